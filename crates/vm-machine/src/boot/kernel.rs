//! What a machine boots.

use std::path::PathBuf;

use vm_guest::DirtySpec;

/// What a machine boots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// The built-in guest.
    Builtin(DirtySpec),
    /// An ELF file with a PVH note.
    Elf(PathBuf),
    /// A Linux kernel: a bzImage or an uncompressed vmlinux.
    Linux {
        /// The kernel.
        image: PathBuf,
        /// Its initial RAM disk.
        initrd: Option<PathBuf>,
    },
}
