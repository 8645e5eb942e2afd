//! Kernel images.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use migpipe_units::Bytes;
use nix::sys::memfd::{MFdFlags, memfd_create};
use vm_machine::Kernel;

use crate::memory::within;

/// Memory of the guest: enough to boot, little enough to be cheap.
const MEMORY: Bytes = Bytes(16 << 20);

/// The loaders read into guest memory, which is not ours; what they hold is the list of an ELF
/// file's program headers (65,535 of 56 bytes), its notes, and the tables that a kernel is given.
const HELD: usize = 8 << 20;

/// A kernel image of whatever kind: an ELF file with a PVH note, an ELF vmlinux, a bzImage. The
/// last byte says how many vCPUs there are.
pub fn kernel(bytes: &[u8]) {
    let Some((&vcpus, image)) = bytes.split_last() else { return };
    let file = memory_file(image);
    // The loaders open a path; this one is the file that nobody else has.
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    within(HELD, || {
        let Ok(kernel) = Kernel::from_file(path, None) else { return };
        if let Err(error) = kernel.try_load("console=ttyS0", MEMORY, u32::from(vcpus)) {
            assert!(!error.to_string().is_empty());
        }
    });
}

fn memory_file(bytes: &[u8]) -> File {
    let file = memfd_create("kernel", MFdFlags::MFD_CLOEXEC).expect("a memory file");
    let mut file = File::from(file);
    file.write_all(bytes).expect("memory takes it");
    file
}
