//! Guest memory as a device uses it: what it writes is in the dirty log afterwards.

use std::sync::Arc;

use units::{PAGE_SIZE, PageRange, Pages};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap};
use vm_state::MemoryRegion;

use crate::dirty::DeviceDirtyLog;

/// The memory of one guest and the log of what devices write to it. It is the only way by which a
/// virtio device touches guest memory; the rings are the exception, whose writes the ring module
/// marks here.
#[derive(Clone)]
pub struct GuestRam {
    memory: GuestMemoryMmap,
    regions: Arc<[MemoryRegion]>,
    log: Arc<DeviceDirtyLog>,
}

impl GuestRam {
    /// The memory `memory`, whose regions the description calls `regions`.
    pub fn new(
        memory: GuestMemoryMmap,
        regions: &[MemoryRegion],
        log: Arc<DeviceDirtyLog>,
    ) -> Self {
        Self { memory, regions: regions.into(), log }
    }

    pub(super) const fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    pub(super) fn holds(&self, address: u64, len: u64) -> bool {
        usize::try_from(len).is_ok_and(|len| {
            GuestMemoryBackend::check_range(&self.memory, GuestAddress(address), len)
        })
    }

    pub(super) fn read(&self, address: u64, into: &mut [u8]) -> Result<(), GuestMemoryError> {
        self.memory.read_slice(into, GuestAddress(address))
    }

    pub(super) fn write(&self, address: u64, bytes: &[u8]) -> Result<(), GuestMemoryError> {
        let written = self.memory.write_slice(bytes, GuestAddress(address));
        // A write that fails may have written a part.
        self.mark(address, bytes.len() as u64);
        written
    }

    /// Says that `len` bytes from `address` on were written.
    pub(super) fn mark(&self, address: u64, len: u64) {
        if len == 0 {
            return;
        }
        let last = address.saturating_add(len - 1);
        for region in self.regions.iter() {
            let base = region.base.address();
            let end = base.saturating_add(region.pages.bytes().0);
            if address >= end || last < base {
                continue;
            }
            let first = (address.max(base) - base) / PAGE_SIZE;
            let count = (last.min(end - 1) - base) / PAGE_SIZE - first + 1;
            self.log.mark(PageRange { region: region.id, first, count: Pages(count) });
        }
    }
}
