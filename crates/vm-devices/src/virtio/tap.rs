//! The host's end of a network device: a tap (Documentation/networking/tuntap.rst).
#![allow(unsafe_code, reason = "owns the tap's ioctls")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;

use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref, ioctl_with_val};

/// linux/if_tun.h.
pub(crate) const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
pub(crate) const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
pub(crate) const TUNGETIFF: libc::c_ulong = 0x8004_54d2;
pub(crate) const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54d8;
const IFF_TAP: libc::c_short = 0x0002;
const IFF_NO_PI: libc::c_short = 0x1000;
const IFF_VNET_HDR: libc::c_short = 0x4000;
const IFF_PERSIST: libc::c_short = 0x0800;

/// TUN_F_*: what the guest can take from the host.
pub(super) const OFFLOAD_CSUM: u32 = 1;
pub(super) const OFFLOAD_TSO4: u32 = 2;
pub(super) const OFFLOAD_TSO6: u32 = 4;

/// struct ifreq, as far as TUNSETIFF reads it.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    rest: [u8; 22],
}

/// Opens the tap `name`, whose frames have a virtio-net header of `header` bytes before them.
///
/// It has to be there: of who may make one (CAP_NET_ADMIN) the kernel takes any other name for a
/// wish, and a guest whose tap is misspelt would run at the end of a wire that leads nowhere. Only
/// what was made beforehand is persistent; what this open has made goes when it is closed.
///
/// # Errors
/// [`io::ErrorKind::NotFound`] if there was none of that name, otherwise what the kernel says.
pub(super) fn open(name: &str, header: i32) -> io::Result<File> {
    let tap = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")?;
    let flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
    let mut request = InterfaceRequest { name: [0; libc::IFNAMSIZ], flags, rest: [0; 22] };
    // One byte is for the zero at the end.
    match request.name[..libc::IFNAMSIZ - 1].get_mut(..name.len()) {
        Some(room) if !name.is_empty() => room.copy_from_slice(name.as_bytes()),
        _ => return Err(io::ErrorKind::InvalidInput.into()),
    }
    // SAFETY: the kernel reads and writes a struct ifreq, 40 bytes, which the request is.
    check(unsafe { ioctl_with_mut_ref(&tap, TUNSETIFF, &mut request) })?;
    // SAFETY: the kernel writes a struct ifreq, as above.
    check(unsafe { ioctl_with_mut_ref(&tap, TUNGETIFF, &mut request) })?;
    if request.flags & IFF_PERSIST == 0 {
        return Err(io::Error::new(io::ErrorKind::NotFound, "there is no such tap"));
    }
    // SAFETY: the kernel reads an int.
    check(unsafe { ioctl_with_ref(&tap, TUNSETVNETHDRSZ, &header) })?;
    Ok(tap)
}

/// Says what the guest can take: OFFLOAD_*.
pub(super) fn set_offload(tap: &File, offload: u32) -> io::Result<()> {
    // SAFETY: the argument is a number.
    check(unsafe { ioctl_with_val(tap, TUNSETOFFLOAD, offload.into()) })
}

fn check(ret: libc::c_int) -> io::Result<()> {
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
