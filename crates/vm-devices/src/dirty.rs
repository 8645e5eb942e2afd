//! What devices wrote: the part of the dirty log that the hypervisor does not see.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use migpipe_units::{PageRange, Pages, RegionId};
use vm_state::MemoryRegion;

/// One bit per page of guest memory, set by whoever writes guest memory from this process.
///
/// All bitmaps of the project are laid out alike: the regions in order of their number, each from a
/// fresh `u64` on, bit n of a region in word n / 64 at place n % 64.
#[derive(Debug)]
pub struct DeviceDirtyLog {
    on: AtomicBool,
    regions: Vec<Region>,
    words: Box<[AtomicU64]>,
}

#[derive(Debug)]
struct Region {
    id: RegionId,
    first_word: usize,
    pages: u64,
}

impl DeviceDirtyLog {
    /// A log for these regions, switched off.
    pub fn new(memory: &[MemoryRegion]) -> Self {
        let mut words = 0;
        let regions = memory
            .iter()
            .map(|region| {
                let first_word = words;
                words += region.pages.0.div_ceil(64) as usize;
                Region { id: region.id, first_word, pages: region.pages.0 }
            })
            .collect();
        Self {
            on: AtomicBool::new(false),
            regions,
            words: (0..words).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// How many words a bitmap of all regions has.
    pub fn words(&self) -> usize {
        self.words.len()
    }

    /// Begins an empty log.
    pub fn start(&self) {
        self.clear();
        self.on.store(true, Ordering::SeqCst);
    }

    /// Ends the log and forgets what it holds.
    pub fn stop(&self) {
        self.on.store(false, Ordering::SeqCst);
        self.clear();
    }

    fn clear(&self) {
        for word in &self.words {
            word.store(0, Ordering::Relaxed);
        }
    }

    /// Says that these pages were written; call it after the write. Costs next to nothing while
    /// the log is off. Pages outside the region are left out.
    pub fn mark(&self, range: PageRange) {
        if !self.on.load(Ordering::SeqCst) {
            return;
        }
        let Some(region) = self.regions.iter().find(|region| region.id == range.region) else {
            return;
        };
        let end = range.first.saturating_add(range.count.0).min(region.pages);
        let mut page = range.first;
        while page < end {
            let until = (page / 64 + 1).saturating_mul(64).min(end);
            let bits = mask(until - page) << (page % 64);
            let word = region.first_word + (page / 64) as usize;
            // Release: whoever harvests the bit sees the write that it stands for.
            self.words[word].fetch_or(bits, Ordering::Release);
            page = until;
        }
    }

    /// Puts the bits of a whole bitmap into the log, so that the next harvest hands them out again.
    /// Bits past the end of a region are left out, and so are words past the last.
    pub fn put_back(&self, bitmap: &[u64]) {
        for (word, &bits) in self.words.iter().zip(bitmap) {
            if bits != 0 {
                word.fetch_or(bits, Ordering::Release);
            }
        }
        for region in &self.regions {
            let rest = region.pages % 64;
            if rest != 0 {
                let last = region.first_word + (region.pages / 64) as usize;
                self.words[last].fetch_and(mask(rest), Ordering::Relaxed);
            }
        }
    }

    /// Moves all bits into `bitmap`, beside those that are there; each bit is handed out once.
    pub fn harvest_into(&self, bitmap: &mut [u64]) {
        for (word, bits) in self.words.iter().zip(bitmap) {
            if word.load(Ordering::Relaxed) != 0 {
                *bits |= word.swap(0, Ordering::Acquire);
            }
        }
    }

    /// How many bits are set in `bitmap`.
    pub fn count(bitmap: &[u64]) -> Pages {
        Pages(bitmap.iter().map(|word| u64::from(word.count_ones())).sum())
    }
}

/// The lowest `bits` bits, of 64 at most.
const fn mask(bits: u64) -> u64 {
    if bits >= 64 { u64::MAX } else { (1 << bits) - 1 }
}

#[cfg(test)]
mod tests {
    use migpipe_units::Gfn;

    use super::*;

    fn log() -> DeviceDirtyLog {
        let region = |id, base, pages| MemoryRegion {
            id: RegionId(id),
            base: Gfn(base),
            pages: Pages(pages),
        };
        let log = DeviceDirtyLog::new(&[region(0, 0, 100), region(1, 0x10_0000, 130)]);
        log.start();
        log
    }

    fn range(region: u16, first: u64, count: u64) -> PageRange {
        PageRange { region: RegionId(region), first, count: Pages(count) }
    }

    #[test]
    fn each_region_starts_at_a_fresh_word() {
        let log = log();
        assert_eq!(log.words(), 2 + 3);
        log.mark(range(0, 99, 1));
        log.mark(range(1, 63, 66));
        let mut bitmap = vec![0; 5];
        log.harvest_into(&mut bitmap);
        assert_eq!(bitmap, [0, 1 << 35, 1 << 63, u64::MAX, 1]);
    }

    #[test]
    fn every_bit_is_handed_out_once() {
        let log = log();
        log.mark(range(0, 3, 2));
        let mut bitmap = vec![1; 5];
        log.harvest_into(&mut bitmap);
        assert_eq!(bitmap[0], 0b11001);
        let mut again = vec![0; 5];
        log.harvest_into(&mut again);
        assert_eq!(again, [0; 5]);
    }

    #[test]
    fn what_is_put_back_is_handed_out_again_without_bits_that_are_no_page() {
        let log = log();
        log.put_back(&[u64::MAX; 9]);
        let mut bitmap = vec![0; 5];
        log.harvest_into(&mut bitmap);
        assert_eq!(DeviceDirtyLog::count(&bitmap), Pages(230));
        assert_eq!(bitmap[1], (1 << 36) - 1);
    }

    #[test]
    fn pages_outside_the_region_are_left_out() {
        let log = log();
        log.mark(range(0, 98, u64::MAX));
        log.mark(range(0, u64::MAX, 1));
        log.mark(range(7, 0, 1));
        let mut bitmap = vec![0; 5];
        log.harvest_into(&mut bitmap);
        assert_eq!(bitmap, [0, 0b11 << 34, 0, 0, 0]);
    }

    #[test]
    fn a_log_that_is_off_takes_no_marks_and_a_new_one_is_empty() {
        let log = log();
        log.mark(range(0, 0, 1));
        log.stop();
        log.mark(range(0, 1, 1));
        log.start();
        let mut bitmap = vec![0; 5];
        log.harvest_into(&mut bitmap);
        assert_eq!(bitmap, [0; 5]);
    }
}
