//! A row of the table: one piece of state, how it is set, and how it is read.

use kvm_ioctls::VcpuFd;

use crate::arch::msr;
use crate::arch::tests::Machine;

/// Where in guest memory what the guest shares with KVM is.
pub(super) const SHARED: u64 = 0x8000;

pub(super) const HOUR_S: u64 = 3600;

/// What cannot be had on a host.
pub(super) type Refused = kvm_ioctls::Error;

/// How what was restored relates to what was saved.
#[derive(Clone, Copy)]
pub(super) enum Expected {
    /// It is the same.
    Same,
    /// It counts on, or stands for something that does: it is less than an hour away.
    Near { per_second: fn(&Machine) -> u64 },
}

pub(super) type Set = dyn Fn(&Machine) -> Result<(), Refused>;
pub(super) type Get = dyn Fn(&Machine) -> Vec<u8>;

/// One piece of state.
pub(super) struct Row {
    pub(super) name: String,
    pub(super) set: Box<Set>,
    pub(super) get: Box<Get>,
    pub(super) expected: Expected,
}

pub(super) fn row(
    name: &str,
    set: impl Fn(&Machine) -> Result<(), Refused> + 'static,
    get: impl Fn(&Machine) -> Vec<u8> + 'static,
) -> Row {
    Row { name: name.to_owned(), set: Box::new(set), get: Box::new(get), expected: Expected::Same }
}

pub(super) fn get_msr(vcpu: &VcpuFd, index: u32) -> Option<u64> {
    msr::get(vcpu, &[index]).unwrap().first().map(|msr| msr.value)
}

pub(super) fn set_msr(vcpu: &VcpuFd, index: u32, value: u64) -> Result<(), Refused> {
    let entry = kvm_bindings::kvm_msr_entry { index, data: value, ..Default::default() };
    match vcpu.set_msrs(&kvm_bindings::Msrs::from_entries(&[entry]).unwrap())? {
        1 => Ok(()),
        _ => Err(Refused::new(libc::EINVAL)),
    }
}
