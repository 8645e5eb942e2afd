//! Wire structs, taken from and put into byte strings without a panic.
//!
//! A part of the format with a fixed layout is a `repr(C)` struct of little-endian fields that have no
//! alignment, so that its bytes are those of the struct; what has a length in front of it is read
//! piece by piece.

use migpipe_units::{Acknowledged, HostId, Nonce};
use thiserror::Error;
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::checksum::crc32c;

/// What is wrong with the fields of a record, a header or a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct Malformed(pub(crate) &'static str);

const TOO_SHORT: Malformed = Malformed("it is shorter than its fields");
const TOO_LONG: Malformed = Malformed("bytes are left over behind its fields");

/// A wire struct that is all of `bytes`.
pub(crate) fn whole<T: FromBytes + Unaligned>(bytes: &[u8]) -> Result<T, Malformed> {
    let mut take = Take::new(bytes);
    let value = take.read()?;
    take.finish()?;
    Ok(value)
}

/// A list of wire structs that is all of `bytes`.
pub(crate) fn list<T>(bytes: &[u8]) -> Result<&[T], Malformed>
where
    T: FromBytes + Immutable + KnownLayout + Unaligned,
{
    <[T]>::ref_from_bytes(bytes).map_err(|_| TOO_LONG)
}

/// The CRC-32C of a wire struct that ends with it: of all that is in front.
pub(crate) fn crc_of(wire: &(impl IntoBytes + Immutable)) -> u32 {
    let bytes = wire.as_bytes();
    crc32c(&bytes[..bytes.len() - size_of::<U32>()])
}

/// The bytes of a payload that are not read yet.
pub(crate) struct Take<'a>(&'a [u8]);

impl<'a> Take<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self
            .0
            .split_at_checked(count)
            .ok_or(Malformed("it is shorter than its own fields say"))?;
        self.0 = rest;
        Ok(head)
    }

    /// The next wire struct.
    pub(crate) fn read<T: FromBytes + Unaligned>(&mut self) -> Result<T, Malformed> {
        let (value, rest) = T::read_from_prefix(self.0).map_err(|_| TOO_SHORT)?;
        self.0 = rest;
        Ok(value)
    }

    /// All that is left.
    pub(crate) const fn rest(self) -> &'a [u8] {
        self.0
    }

    /// Refuses what is left over: a field that nobody reads would be state that nobody loads.
    pub(crate) const fn finish(self) -> Result<(), Malformed> {
        if self.0.is_empty() { Ok(()) } else { Err(TOO_LONG) }
    }
}

/// Appends wire structs to a byte string.
pub(crate) trait Put {
    fn put<T: IntoBytes + Immutable + Unaligned + ?Sized>(&mut self, value: &T);
}

impl Put for Vec<u8> {
    fn put<T: IntoBytes + Immutable + Unaligned + ?Sized>(&mut self, value: &T) {
        self.extend_from_slice(value.as_bytes());
    }
}

/// What an `Ack` says of who gives it.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct AcknowledgedBytes {
    host: [u8; 16],
    nonce: [u8; 16],
}

impl From<&Acknowledged> for AcknowledgedBytes {
    fn from(by: &Acknowledged) -> Self {
        Self { host: by.host.to_bytes(), nonce: by.nonce.to_bytes() }
    }
}

impl From<AcknowledgedBytes> for Acknowledged {
    fn from(bytes: AcknowledgedBytes) -> Self {
        Self { host: HostId::from_bytes(bytes.host), nonce: Nonce::from_bytes(bytes.nonce) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::little_endian::U16;

    #[test]
    fn a_struct_is_read_whole_and_what_is_too_short_or_too_long_is_refused() {
        assert_eq!(whole::<U16>(&[1, 2]).map(U16::get), Ok(0x0201));
        assert_eq!(whole::<U16>(&[1]).map(U16::get), Err(TOO_SHORT));
        assert_eq!(whole::<U16>(&[1, 2, 3]).map(U16::get), Err(TOO_LONG));
        assert_eq!(list::<U16>(&[1, 2, 3, 4]).map(<[_]>::len), Ok(2));
        assert_eq!(list::<U16>(&[]).map(<[_]>::len), Ok(0));
        assert_eq!(list::<U16>(&[1, 2, 3]).map(<[_]>::len), Err(TOO_LONG));
    }

    #[test]
    fn what_is_taken_is_in_front_of_what_is_left() {
        let mut take = Take::new(&[1, 2, 3, 4]);
        assert_eq!(take.read::<U16>().map(U16::get), Ok(0x0201));
        assert_eq!(take.bytes(3), Err(Malformed("it is shorter than its own fields say")));
        assert_eq!(take.bytes(1), Ok(&[3][..]));
        assert_eq!(take.rest(), [4]);
    }
}
