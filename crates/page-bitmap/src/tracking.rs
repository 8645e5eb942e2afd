//! Guest memory that marks what is written through it, so that no device can forget to.
//!
//! vm-memory calls the bitmap of a region after each write through its accessors, before the writer
//! goes on. Its own `AtomicBitmap` could do that too; but it lives on the heap alone, and is emptied
//! by an atomic operation on every word, empty or not, into a vector of its own.

use migpipe_units::{PAGE_SIZE, Pages, RegionId};
use vm_memory::GuestMemoryMmap;
use vm_memory::bitmap::{Bitmap, NewBitmap, RefSlice, WithBitmapSlice};

use crate::bitmap::PageBitmap;

/// Memory whose regions have a bitmap each of what this process has written since the bitmap was
/// last emptied. What others write (vCPUs, which KVM logs, or a hole that is punched into the file)
/// is not seen.
pub type TrackedMemory = GuestMemoryMmap<PageBitmap>;

impl<'a> WithBitmapSlice<'a> for PageBitmap {
    type S = RefSlice<'a, Self>;
}

impl Bitmap for PageBitmap {
    fn mark_dirty(&self, offset: usize, len: usize) {
        let Some(last) = len.checked_sub(1) else { return };
        let first = offset as u64 / PAGE_SIZE;
        let last = offset.saturating_add(last) as u64 / PAGE_SIZE;
        self.insert(first, Pages(last - first + 1));
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.contains(offset as u64 / PAGE_SIZE)
    }

    fn slice_at(&self, offset: usize) -> RefSlice<'_, Self> {
        RefSlice::new(self, offset)
    }
}

/// Memory without pages.
impl Default for PageBitmap {
    fn default() -> Self {
        Self::new(RegionId(0), Pages(0))
    }
}

/// For memory that is made of ranges and not of the regions of a guest: all are called region 0.
impl NewBitmap for PageBitmap {
    fn with_len(len: usize) -> Self {
        Self::new(RegionId(0), Pages((len as u64).div_ceil(PAGE_SIZE)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestRegionMmap};

    use super::*;

    fn marked(memory: &TrackedMemory) -> Vec<u64> {
        let bitmap = |region: &GuestRegionMmap<PageBitmap>| -> Vec<u64> {
            let runs = region.get_mmap();
            let runs = runs.bitmap().take_runs(Pages(1));
            runs.map(|run| run.first).collect()
        };
        memory.iter().flat_map(bitmap).collect()
    }

    #[test]
    fn every_kind_of_write_is_marked_and_no_read_is() {
        let memory = TrackedMemory::from_ranges(&[(GuestAddress(0), 16 * 4096)]).unwrap();
        assert!(marked(&memory).is_empty());
        memory.write_slice(&[1; 5000], GuestAddress(4095)).unwrap();
        assert_eq!(marked(&memory), [0, 1, 2]);
        memory.write_obj(7_u64, GuestAddress(4 * 4096)).unwrap();
        memory.store(7_u16, GuestAddress(6 * 4096), Ordering::Release).unwrap();
        assert_eq!(marked(&memory), [4, 6]);
        assert_eq!(memory.read_obj::<u64>(GuestAddress(4 * 4096)).unwrap(), 7);
        memory.read_slice(&mut [0; 5000], GuestAddress(0)).unwrap();
        assert!(marked(&memory).is_empty(), "each bit is handed out once");
    }

    #[test]
    fn a_write_that_does_not_fit_is_marked_as_far_as_it_went() {
        let memory = TrackedMemory::from_ranges(&[(GuestAddress(0), 2 * 4096)]).unwrap();
        assert!(memory.write_slice(&[1; 4096], GuestAddress(4097)).is_err());
        assert_eq!(marked(&memory), [1]);
    }

    #[test]
    fn a_mark_without_a_length_is_none_and_one_beyond_the_end_is_cut() {
        let bitmap = PageBitmap::with_len(3 * 4096 - 1);
        assert_eq!(bitmap.pages(), Pages(3));
        bitmap.mark_dirty(4096, 0);
        assert!(bitmap.is_empty() && !bitmap.dirty_at(4096));
        bitmap.mark_dirty(2 * 4096, usize::MAX);
        assert!(bitmap.dirty_at(2 * 4096) && bitmap.count() == Pages(1));
    }
}
