//! Guest memory as a device uses it: what it writes is in the dirty log afterwards.

use std::io;
use std::ops::Range;

use migpipe_units::PAGE_SIZE;
use nix::fcntl::{FallocateFlags, fallocate};
use page_bitmap::{PageBitmap, TrackedMemory};
use vm_memory::bitmap::Bitmap;
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion, GuestRegionMmap,
};

/// The memory of one guest. It is the only way by which a virtio device touches it, and marks what
/// is written through it.
#[derive(Clone)]
pub struct GuestRam(TrackedMemory);

impl GuestRam {
    /// The memory `memory`.
    pub const fn new(memory: TrackedMemory) -> Self {
        Self(memory)
    }

    pub(super) const fn memory(&self) -> &TrackedMemory {
        &self.0
    }

    pub(super) fn holds(&self, address: u64, len: u64) -> bool {
        usize::try_from(len)
            .is_ok_and(|len| GuestMemoryBackend::check_range(&self.0, GuestAddress(address), len))
    }

    pub(super) fn read(&self, address: u64, into: &mut [u8]) -> Result<(), GuestMemoryError> {
        self.0.read_slice(into, GuestAddress(address))
    }

    pub(super) fn write(&self, address: u64, bytes: &[u8]) -> Result<(), GuestMemoryError> {
        self.0.write_slice(bytes, GuestAddress(address))
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
        let range = first * PAGE_SIZE..end * PAGE_SIZE;
        let parts = || self.0.iter().filter_map(|region| Some((region, part_in(region, &range)?)));
        let punched = parts().try_for_each(|(region, part)| punch_hole(region, &part));
        for (region, part) in parts() {
            region.bitmap().mark_dirty(part.start as usize, (part.end - part.start) as usize);
        }
        punched
    }
}

/// What of the guest-physical `range` lies in `region`, counted from its start.
fn part_in(region: &GuestRegionMmap<PageBitmap>, range: &Range<u64>) -> Option<Range<u64>> {
    let base = region.start_addr().0;
    let from = range.start.max(base) - base;
    let to = range.end.min(base.saturating_add(region.len())).saturating_sub(base);
    (from < to).then_some(from..to)
}

fn punch_hole(region: &GuestRegionMmap<PageBitmap>, part: &Range<u64>) -> io::Result<()> {
    let file = GuestMemoryRegion::file_offset(region).ok_or(io::ErrorKind::Unsupported)?;
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let offset = (file.start() + part.start) as i64;
    Ok(fallocate(file.file(), flags, offset, (part.end - part.start) as i64)?)
}
