//! The KVM calls that need `unsafe`: those that kvm-ioctls lacks on x86-64, and the XSAVE calls,
//! whose safety rests on the size of a buffer. All other files of this module are safe code.

use std::arch::x86_64::__cpuid_count;
use std::mem::size_of;

use kvm_bindings::{
    KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, KVMIO, Xsave, kvm_device_attr, kvm_sregs2, kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use thiserror::Error;
use vmm_sys_util::errno;
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref};
use vmm_sys_util::{ioctl_ior_nr, ioctl_iow_nr};
use zerocopy::IntoBytes;

ioctl_ior_nr!(KVM_GET_SREGS2, KVMIO, 0xcc, kvm_sregs2);
ioctl_iow_nr!(KVM_SET_SREGS2, KVMIO, 0xcd, kvm_sregs2);
ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);

/// A KVM call that failed.
#[derive(Debug, Error)]
#[error("{call} failed")]
pub struct IoctlError {
    /// The call, by its name in the KVM API.
    pub call: &'static str,
    /// What the kernel says.
    #[source]
    pub source: kvm_ioctls::Error,
}

/// Names the call that a result of kvm-ioctls is of.
pub(crate) trait Named<T> {
    fn named(self, call: &'static str) -> Result<T, IoctlError>;
}

impl<T> Named<T> for Result<T, kvm_ioctls::Error> {
    fn named(self, call: &'static str) -> Result<T, IoctlError> {
        self.map_err(|source| IoctlError { call, source })
    }
}

/// KVM_GET_SREGS2; `None` where the host has no such call (before Linux 5.14).
pub(crate) fn get_sregs2(vcpu: &VcpuFd) -> Result<Option<kvm_sregs2>, IoctlError> {
    let mut sregs = kvm_sregs2::default();
    // SAFETY: `vcpu` is a vCPU, and the kernel writes one struct kvm_sregs2 into `sregs`.
    let ret = unsafe { ioctl_with_mut_ref(vcpu, KVM_GET_SREGS2(), &mut sregs) };
    unless_unknown(ret, sregs, "KVM_GET_SREGS2")
}

/// KVM_SET_SREGS2; false where the host has no such call. A host without it answers EINVAL, which
/// a host that has it says of wrong registers; so the call that reads them is tried first.
pub(crate) fn set_sregs2(vcpu: &VcpuFd, sregs: &kvm_sregs2) -> Result<bool, IoctlError> {
    if get_sregs2(vcpu)?.is_none() {
        return Ok(false);
    }
    // SAFETY: `vcpu` is a vCPU, and the kernel reads one struct kvm_sregs2 from `sregs`.
    match unsafe { ioctl_with_ref(vcpu, KVM_SET_SREGS2(), sregs) } {
        0 => Ok(true),
        _ => Err(IoctlError { call: "KVM_SET_SREGS2", source: errno::Error::last() }),
    }
}

/// KVM_VCPU_TSC_OFFSET: what is added to the (scaled) TSC of the host to make that of the guest.
/// `None` where the host does not tell (before Linux 5.16, or another kind of KVM).
pub(crate) fn get_tsc_offset(vcpu: &VcpuFd) -> Result<Option<u64>, IoctlError> {
    let mut offset = 0_u64;
    let attr = tsc_offset_attr(&raw mut offset as u64);
    // SAFETY: `vcpu` is a vCPU; the kernel writes eight bytes through `addr`, which is `offset`,
    // alive and written by nobody else during the call.
    let ret = unsafe { ioctl_with_ref(vcpu, KVM_GET_DEVICE_ATTR(), &attr) };
    unless_unknown(ret, offset, "KVM_GET_DEVICE_ATTR of the TSC offset")
}

/// Sets KVM_VCPU_TSC_OFFSET; false where the host does not take it.
pub(crate) fn set_tsc_offset(vcpu: &VcpuFd, offset: u64) -> Result<bool, IoctlError> {
    let attr = tsc_offset_attr(&raw const offset as u64);
    // SAFETY: `vcpu` is a vCPU; the kernel reads eight bytes through `addr`, which is `offset`.
    let ret = unsafe { ioctl_with_ref(vcpu, KVM_SET_DEVICE_ATTR(), &attr) };
    Ok(unless_unknown(ret, (), "KVM_SET_DEVICE_ATTR of the TSC offset")?.is_some())
}

fn tsc_offset_attr(addr: u64) -> kvm_device_attr {
    kvm_device_attr {
        flags: 0,
        group: KVM_VCPU_TSC_CTRL,
        attr: u64::from(KVM_VCPU_TSC_OFFSET),
        addr,
    }
}

/// Asks the kernel for leave to give AMX to guests (arch_prctl(2), ARCH_REQ_XCOMP_GUEST_PERM; Linux
/// 5.17): without it KVM does not offer AMX. It is for the whole process, until it ends, and too late
/// once there is a vCPU. Where it is refused there is no AMX to be given.
pub(crate) fn permit_amx() {
    // SAFETY: this call reads no memory of the process and writes none; its second argument is a
    // number.
    let refused = unsafe { libc::syscall(libc::SYS_arch_prctl, REQ_XCOMP_GUEST_PERM, XTILE_DATA) };
    if refused != 0 {
        tracing::debug!("no AMX for guests: {}", errno::Error::last());
    }
}

/// ARCH_REQ_XCOMP_GUEST_PERM of asm/prctl.h.
pub(crate) const REQ_XCOMP_GUEST_PERM: u32 = 0x1025;

/// The XSAVE component of AMX that takes leave.
const XTILE_DATA: u32 = 18;

/// `None` for the answers by which a kernel says that it does not know a call or an attribute.
fn unless_unknown<T>(ret: i32, value: T, call: &'static str) -> Result<Option<T>, IoctlError> {
    if ret == 0 {
        return Ok(Some(value));
    }
    let source = errno::Error::last();
    match source.errno() {
        libc::ENOTTY | libc::EINVAL | libc::ENXIO => Ok(None),
        _ => Err(IoctlError { call, source }),
    }
}

/// How many bytes KVM_GET_XSAVE2 writes and KVM_SET_XSAVE reads at most: the XSAVE area with
/// every component of this processor in it (CPUID leaf 0xd ecx), and never less than struct
/// kvm_xsave (KVM API, KVM_GET_XSAVE2). KVM's own figure, KVM_CAP_XSAVE2, counts the components
/// that a guest may enable, which are some of these.
pub(crate) fn xsave_buffer_bytes() -> usize {
    let whole = __cpuid_count(0xd, 0).ecx as usize;
    whole.max(size_of::<kvm_xsave>())
}

fn xsave_buffer() -> Result<Xsave, IoctlError> {
    let extra = xsave_buffer_bytes() - size_of::<kvm_xsave>();
    Xsave::new(extra.div_ceil(size_of::<u32>())).map_err(|_| IoctlError {
        call: "allocating an XSAVE area",
        source: errno::Error::new(libc::ENOMEM),
    })
}

/// KVM_GET_XSAVE2: the whole area, [`xsave_buffer_bytes`] long or a few bytes more.
pub(crate) fn get_xsave(vcpu: &VcpuFd) -> Result<Vec<u8>, IoctlError> {
    let mut xsave = xsave_buffer()?;
    // SAFETY: the buffer has room for every component of this processor, and what KVM writes is
    // never more than that; see `xsave_buffer_bytes`.
    unsafe { vcpu.get_xsave2(&mut xsave) }.named("KVM_GET_XSAVE2")?;
    let mut bytes = xsave.as_fam_struct_ref().xsave.region.as_bytes().to_vec();
    bytes.extend_from_slice(xsave.as_slice().as_bytes());
    Ok(bytes)
}

/// KVM_SET_XSAVE of an area that ends in zeros from where `bytes` end.
///
/// `bytes` longer than this host's area are cut: KVM refuses them by the component bits in the
/// XSAVE header if they hold a component that this host lacks.
pub(crate) fn set_xsave(vcpu: &VcpuFd, bytes: &[u8]) -> Result<(), IoctlError> {
    let mut xsave = xsave_buffer()?;
    let (region, extra) = bytes.split_at(bytes.len().min(size_of::<kvm_xsave>()));
    // SAFETY: the length in the header of the array is not touched.
    let area = unsafe { xsave.as_mut_fam_struct() };
    area.xsave.region.as_mut_bytes()[..region.len()].copy_from_slice(region);
    let rest = xsave.as_mut_slice().as_mut_bytes();
    let extra = &extra[..extra.len().min(rest.len())];
    rest[..extra.len()].copy_from_slice(extra);
    // SAFETY: the buffer has room for every component of this processor, and what KVM reads is
    // never more than that; see `xsave_buffer_bytes`.
    unsafe { vcpu.set_xsave2(&xsave) }.named("KVM_SET_XSAVE")
}
