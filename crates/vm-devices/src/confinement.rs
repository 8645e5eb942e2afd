//! What is left to the threads of the devices: they read what the guest has written into its
//! memory, and what clients of its consoles type.
//!
//! Each confines itself as its first act (`migpipe_confine::thread`), and opens nothing any more: what is
//! behind a device was opened before its thread began.
#![forbid(unsafe_code)]

use migpipe_confine::sets::{DESCRIPTORS, POLL, RUNTIME};
use migpipe_confine::{Call, Check, Filter, calls};

/// What serves a ring.
pub const RINGS: &[Call] = calls![
    SYS_epoll_create1;
    SYS_epoll_ctl;
    SYS_epoll_wait;
    SYS_epoll_pwait => "what a newer C library makes of it";
    SYS_read => "kicks, frames, randomness";
    SYS_pread64 => "a disk image";
    SYS_pwrite64;
    SYS_fdatasync;
    SYS_fallocate => "discarded sectors, and the pages of a balloon";
];

/// The thread that serves the rings of one virtio device.
pub const WORKER: Filter = Filter { thread: "device", tables: &[RUNTIME, RINGS] };

/// A socket or a terminal that somebody types at.
pub const CLIENT: &[Call] = calls![
    SYS_read;
    SYS_recvfrom;
    SYS_sendto;
    SYS_accept4;
    SYS_ioctl(Check::Is(1, libc::FIONBIO as u32)) => "a client does not hold the console up";
    SYS_ioctl(Check::Is(1, libc::FIOCLEX as u32));
];

/// The thread that reads and writes for one console, by a descriptor each.
pub const CONSOLE: Filter =
    Filter { thread: "console", tables: &[RUNTIME, POLL, DESCRIPTORS, CLIENT] };

/// What opens the far ends of devices, for whoever builds a machine.
pub const FAR_ENDS: &[Call] = calls![
    SYS_eventfd2;
    SYS_lseek => "the length of an image";
    SYS_fstatfs => "whether another host may write it";
    SYS_ioctl(Check::Is(1, crate::virtio::tap::TUNSETIFF as u32)) => "TUNSETIFF";
    SYS_ioctl(Check::Is(1, crate::virtio::tap::TUNGETIFF as u32)) => "TUNGETIFF: whether it was there";
    SYS_ioctl(Check::Is(1, crate::virtio::tap::TUNSETVNETHDRSZ as u32)) => "TUNSETVNETHDRSZ";
    SYS_socket(Check::Is(0, libc::AF_UNIX as u32)) => "a console at a socket";
    SYS_bind;
    SYS_listen;
    SYS_connect => "whether somebody else listens there";
    SYS_geteuid => "whether a socket is our user's";
    SYS_unlink => "a socket at which nobody listens any more";
    SYS_chmod => "for its user alone";
    SYS_fchmodat;
    SYS_ioctl(Check::Is(1, libc::FIONBIO as u32));
];

/// What is done with the images of disks when a guest leaves and when it has come.
pub const DISKS: &[Call] = calls![
    SYS_fdatasync => "what the guest has written is on the disk before it leaves";
    SYS_fadvise64 => "what is cached of an image that another host has written";
];

/// What sets a device up, for whoever serves the guest's accesses to its registers or loads its
/// state.
pub const REGISTERS: &[Call] = calls![
    SYS_ioctl(Check::Is(1, crate::virtio::tap::TUNSETOFFLOAD as u32)) => "TUNSETOFFLOAD: what the driver of a network card takes";
];
