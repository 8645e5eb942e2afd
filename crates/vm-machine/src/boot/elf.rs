//! ELF files with a PVH note.

use std::io::{Read, Seek};

use linux_loader::loader::KernelLoader;
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use migpipe_units::Bytes;
use page_bitmap::TrackedMemory;
use vm_memory::{Address, ReadVolatile};

use super::BootError;

/// Copies the segments of `file` to where their headers say; returns the address of the 32-bit
/// PVH entry (Xen, docs/misc/pvh.pandoc).
pub(super) fn load<F: Read + ReadVolatile + Seek>(
    name: &str,
    file: &mut F,
    memory: &TrackedMemory,
    size: Bytes,
) -> Result<u64, BootError> {
    let loaded = Elf::load(memory, None, file, None).map_err(|source| BootError::Load {
        kernel: name.to_owned(),
        memory: size,
        source,
    })?;
    match loaded.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(entry) => Ok(entry.raw_value()),
        _ => Err(BootError::NoPvhNote(name.to_owned())),
    }
}
