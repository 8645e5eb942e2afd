//! Structs of the KVM API as bytes of exact length, and back.
//!
//! The kernel never changes the layout of a struct that it has published, so the bytes are as
//! stable a format as there is. What the wire adds is a length, and a length that is not exactly
//! that of the struct is refused by the name of the field.
#![forbid(unsafe_code)]

use std::mem::size_of;

use vm_state::PayloadError;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// The bytes of a kernel struct.
pub(crate) fn bytes_of<T: IntoBytes + Immutable>(value: &T) -> Vec<u8> {
    value.as_bytes().to_vec()
}

/// The kernel struct that `bytes` are; `field` names it in the error.
pub(crate) fn read<T: FromBytes>(field: &'static str, bytes: &[u8]) -> Result<T, PayloadError> {
    T::read_from_bytes(bytes).map_err(|_| PayloadError::Field {
        field,
        problem: format!("has {} bytes instead of {}", bytes.len(), size_of::<T>()),
    })
}

#[cfg(test)]
mod tests {
    use kvm_bindings::kvm_regs;

    use super::*;

    #[test]
    fn a_struct_is_read_back_from_its_bytes() {
        let regs = kvm_regs { rax: 1, rflags: 2, ..Default::default() };
        assert_eq!(read::<kvm_regs>("regs", &bytes_of(&regs)).unwrap(), regs);
    }

    #[test]
    fn a_wrong_length_is_refused_by_name() {
        for len in [0, 143, 145] {
            let error = read::<kvm_regs>("regs", &vec![0; len]).unwrap_err();
            assert_eq!(error.to_string(), format!("the field regs has {len} bytes instead of 144"));
        }
    }
}
