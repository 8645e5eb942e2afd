//! A set of pages of one region.

use std::sync::atomic::{AtomicU64, Ordering};

use migpipe_units::{Pages, RegionId};

use crate::layout::{PAGES_PER_WORD, words_for};
use crate::words::Words;

/// A set of pages of one region, each counted from the start of the region: one bit a page, lowest
/// bit of the first word first, as KVM's dirty log gives them (KVM API, KVM_GET_DIRTY_LOG).
///
/// Bits may be set while others are taken, in another thread or another process: each change of a
/// word is atomic, and each bit is taken once. A bit beyond the last page is never seen, whoever
/// has set it.
#[derive(Debug)]
pub struct PageBitmap {
    region: RegionId,
    pages: Pages,
    words: Words,
}

impl PageBitmap {
    /// The empty set over a region of so many pages.
    pub fn new(region: RegionId, pages: Pages) -> Self {
        Self::over(region, pages, Words::zeros(words_for(pages)))
    }

    /// The set that `words` hold.
    pub(crate) const fn over(region: RegionId, pages: Pages, words: Words) -> Self {
        Self { region, pages, words }
    }

    /// The region that the pages belong to.
    pub const fn region(&self) -> RegionId {
        self.region
    }

    /// The length of the region.
    pub const fn pages(&self) -> Pages {
        self.pages
    }

    /// How many pages are in the set.
    pub fn count(&self) -> Pages {
        self.words().map(ones).sum()
    }

    /// Whether no page is in the set.
    pub fn is_empty(&self) -> bool {
        self.words().all(|word| word == 0)
    }

    /// Whether this page is in the set.
    pub fn contains(&self, page: u64) -> bool {
        page < self.pages.0 && self.word((page / PAGES_PER_WORD) as usize) >> (page % 64) & 1 == 1
    }

    /// Adds `count` pages from `first` on; those beyond the last page of the region are left out.
    /// Whoever takes such a bit sees what was written before it was added.
    pub fn insert(&self, first: u64, count: Pages) {
        self.for_range(first, count, |word, mask| {
            word.fetch_or(mask, Ordering::SeqCst);
        });
    }

    /// Takes `count` pages from `first` on out of the set.
    pub fn remove(&self, first: u64, count: Pages) {
        self.for_range(first, count, |word, mask| {
            word.fetch_and(!mask, Ordering::SeqCst);
        });
    }

    /// Empties the set.
    pub fn clear(&self) {
        for word in self.slice() {
            word.store(0, Ordering::SeqCst);
        }
    }

    /// The words, each as it is when it is reached.
    pub fn words(&self) -> impl Iterator<Item = u64> + '_ {
        (0..self.slice().len()).map(|index| self.word(index))
    }

    /// Puts another word in the place of word `index`, for one who is alone with the set.
    ///
    /// # Panics
    /// If there is no such word.
    pub fn set_word(&self, index: usize, word: u64) {
        self.slice()[index].store(word & self.valid(index), Ordering::Release);
    }

    /// Takes all pages out of the set, word by word: each bit is handed out once, whoever adds some
    /// meanwhile.
    pub fn take_words(&self) -> impl Iterator<Item = u64> + '_ {
        self.slice().iter().enumerate().map(|(index, word)| {
            // Most words are empty, and to look is cheaper than to swap.
            match word.load(Ordering::Relaxed) {
                0 => 0,
                _ => word.swap(0, Ordering::SeqCst) & self.valid(index),
            }
        })
    }

    /// Adds the pages of `words`, beside those that are in the set already. Returns how many there
    /// are in `words`.
    pub fn merge(&self, words: impl IntoIterator<Item = u64>) -> Pages {
        let mut count = Pages(0);
        for (index, (mine, word)) in self.slice().iter().zip(words).enumerate() {
            let word = word & self.valid(index);
            if word != 0 {
                mine.fetch_or(word, Ordering::Release);
                count += ones(word);
            }
        }
        count
    }

    /// The first page of `from..until` whose bit is set (or, with `flip` of all ones, clear), looked
    /// for in no word beyond that of `until`; it may be a page of that word behind `until`.
    pub(crate) fn find(&self, from: u64, until: u64, flip: u64) -> Option<u64> {
        let count = words_for(Pages(until)).min(self.slice().len());
        let mut index = (from / PAGES_PER_WORD) as usize;
        let mut wanted = u64::MAX << (from % PAGES_PER_WORD);
        while index < count {
            let word = (self.word(index) ^ flip) & wanted;
            if word != 0 {
                return Some(index as u64 * PAGES_PER_WORD + u64::from(word.trailing_zeros()));
            }
            (index, wanted) = (index + 1, u64::MAX);
        }
        None
    }

    fn slice(&self) -> &[AtomicU64] {
        self.words.as_slice()
    }

    fn word(&self, index: usize) -> u64 {
        self.slice()[index].load(Ordering::Acquire) & self.valid(index)
    }

    /// The bits of word `index` that are pages.
    const fn valid(&self, index: usize) -> u64 {
        let before = index as u64 * PAGES_PER_WORD;
        match self.pages.0.saturating_sub(before) {
            0 => 0,
            left if left < PAGES_PER_WORD => u64::MAX >> (PAGES_PER_WORD - left),
            _ => u64::MAX,
        }
    }

    fn for_range(&self, first: u64, count: Pages, change: impl Fn(&AtomicU64, u64)) {
        let end = first.saturating_add(count.0).min(self.pages.0);
        let words = self.slice();
        let mut page = first;
        while page < end {
            let bit = page % PAGES_PER_WORD;
            let here = (PAGES_PER_WORD - bit).min(end - page);
            let mask = (u64::MAX >> (PAGES_PER_WORD - here)) << bit;
            change(&words[(page / PAGES_PER_WORD) as usize], mask);
            page += here;
        }
    }
}

impl PartialEq for PageBitmap {
    fn eq(&self, other: &Self) -> bool {
        (self.region, self.pages) == (other.region, other.pages) && self.words().eq(other.words())
    }
}

fn ones(word: u64) -> Pages {
    Pages(word.count_ones().into())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    const REGION: RegionId = RegionId(3);

    #[test]
    fn a_set_knows_its_region_and_whether_it_has_a_page() {
        let bitmap = PageBitmap::new(REGION, Pages(1000));
        assert_eq!((bitmap.region(), bitmap.pages()), (REGION, Pages(1000)));
        assert!(bitmap.is_empty());
        bitmap.insert(999, Pages(1));
        assert!(!bitmap.is_empty() && bitmap.contains(999));
    }

    #[test]
    fn no_bit_beyond_the_last_page_is_seen_whoever_set_it() {
        let bitmap = PageBitmap::new(REGION, Pages(65));
        for word in bitmap.slice() {
            word.store(u64::MAX, Ordering::Relaxed);
        }
        assert_eq!(bitmap.count(), Pages(65));
        assert!(!bitmap.contains(65) && !bitmap.contains(u64::MAX));
        assert_eq!(bitmap.take_words().collect::<Vec<_>>(), [u64::MAX, 1]);
        assert_eq!(bitmap.merge([u64::MAX; 9]), Pages(65));
        bitmap.set_word(1, u64::MAX);
        bitmap.insert(60, Pages(u64::MAX));
        bitmap.insert(u64::MAX, Pages(1));
        assert_eq!(bitmap.words().collect::<Vec<_>>(), [u64::MAX, 1]);
    }

    #[test]
    fn what_is_merged_stands_beside_what_is_there_and_is_counted_alone() {
        let bitmap = PageBitmap::new(REGION, Pages(130));
        bitmap.insert(0, Pages(2));
        assert_eq!(bitmap.merge([0b110, 0, 1]), Pages(3));
        assert_eq!(bitmap.words().collect::<Vec<_>>(), [0b111, 0, 1]);
        assert_eq!(bitmap.merge([]), Pages(0), "words that are missing hold no page");
    }

    #[test]
    fn a_bit_that_is_set_while_others_are_taken_is_taken_once() {
        let (bitmap, rounds) = (PageBitmap::new(REGION, Pages(64)), 200_000_u64);
        let ended = AtomicBool::new(false);
        let mut taken = [0_u64; 64];
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 0..rounds {
                    // Each bit is set anew only after it was taken.
                    while bitmap.contains(round % 64) {
                        std::hint::spin_loop();
                    }
                    bitmap.insert(round % 64, Pages(1));
                }
                ended.store(true, Ordering::SeqCst);
            });
            loop {
                let last = ended.load(Ordering::SeqCst);
                for word in bitmap.take_words() {
                    (0..64).for_each(|bit| taken[bit as usize] += word >> bit & 1);
                }
                if last {
                    break;
                }
                std::thread::yield_now();
            }
        });
        assert_eq!(taken, [rounds / 64; 64]);
    }
}
