//! Guest memory as a device uses it: what it writes is in the dirty log afterwards.

use std::io;
use std::sync::Arc;

use migpipe_units::{PAGE_SIZE, PageRange, Pages};
use nix::fcntl::{FallocateFlags, fallocate};
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap, GuestMemoryRegion,
};
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

    /// Gives the whole pages of `address..address + len` back to the host: they are zeros from
    /// here on and cost nothing until somebody touches them. A page of which a part lies outside
    /// the range keeps what it holds.
    ///
    /// The order: first the hole, then the mark. What a migration has read before the hole is what
    /// it has sent, so the mark has to be in a harvest after it; the other way round a harvest in
    /// between would take the mark away before the page is zeros.
    ///
    /// # Errors
    /// What the system says; some of the pages may be gone then, and all of them are marked.
    pub(super) fn discard(&self, address: u64, len: u64) -> io::Result<()> {
        let first = address.div_ceil(PAGE_SIZE);
        let end = address.saturating_add(len) / PAGE_SIZE;
        if first >= end {
            return Ok(());
        }
        let (first, end) = (first * PAGE_SIZE, end * PAGE_SIZE);
        let punched = self.memory.iter().try_for_each(|region| {
            let base = region.start_addr().0;
            let (from, to) = (first.max(base), end.min(base.saturating_add(region.len())));
            if from >= to {
                return Ok(());
            }
            let file = region.file_offset().ok_or(io::ErrorKind::Unsupported)?;
            let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            let offset = file.start() + (from - base);
            Ok(fallocate(file.file(), flags, offset as i64, (to - from) as i64)?)
        });
        self.mark(first, end - first);
        punched
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
