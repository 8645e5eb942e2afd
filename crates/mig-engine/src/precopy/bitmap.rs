//! Which pages of a region.

use migpipe_units::{PageRange, Pages, RegionId};

const BITS: u64 = u64::BITS as u64;

/// A set of pages of one region: one bit a page, lowest bit of the first word first, as KVM's
/// dirty log gives them (KVM API, KVM_GET_DIRTY_LOG).
///
/// No bit beyond the region's last page is ever set, so the counts are true.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bitmap {
    region: RegionId,
    pages: Pages,
    words: Vec<u64>,
}

impl Bitmap {
    /// The empty set over a region of so many pages.
    pub fn new(region: RegionId, pages: Pages) -> Self {
        Self { region, pages, words: vec![0; pages.0.div_ceil(BITS) as usize] }
    }

    /// The set of all pages of a region.
    pub fn full(region: RegionId, pages: Pages) -> Self {
        let mut full = Self::new(region, pages);
        full.words.fill(u64::MAX);
        full.drop_what_is_beyond();
        full
    }

    /// The set that a dirty log holds. Bits beyond the last page are dropped, and words that are
    /// missing hold no page.
    pub fn from_words(region: RegionId, pages: Pages, mut words: Vec<u64>) -> Self {
        words.resize(pages.0.div_ceil(BITS) as usize, 0);
        let mut bitmap = Self { region, pages, words };
        bitmap.drop_what_is_beyond();
        bitmap
    }

    /// The region that the pages belong to.
    pub fn region(&self) -> RegionId {
        self.region
    }

    /// The length of the region.
    pub fn pages(&self) -> Pages {
        self.pages
    }

    /// The bits.
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// How many pages are in the set.
    pub fn count(&self) -> Pages {
        Pages(self.words.iter().map(|w| u64::from(w.count_ones())).sum())
    }

    /// Whether no page is in the set.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|&w| w == 0)
    }

    /// Whether this page, counted from the start of the region, is in the set.
    pub fn contains(&self, page: u64) -> bool {
        self.words.get((page / BITS) as usize).is_some_and(|w| w >> (page % BITS) & 1 == 1)
    }

    /// Adds `count` pages from `first` on; those beyond the last page of the region are left out.
    pub fn insert(&mut self, first: u64, count: Pages) {
        self.for_range(first, count, |word, mask| *word |= mask);
    }

    /// Takes `count` pages from `first` on out of the set.
    pub fn remove(&mut self, first: u64, count: Pages) {
        self.for_range(first, count, |word, mask| *word &= !mask);
    }

    /// Empties the set.
    pub fn clear(&mut self) {
        self.words.fill(0);
    }

    /// Adds the pages of a dirty log; bits beyond the last page are dropped.
    pub fn union(&mut self, words: &[u64]) {
        for (mine, theirs) in self.words.iter_mut().zip(words) {
            *mine |= theirs;
        }
        self.drop_what_is_beyond();
    }

    /// The pages in address order as runs of at most `longest` pages (0 counts as 1). Empty words
    /// are passed over 64 pages at a time.
    pub fn runs(&self, longest: Pages) -> Runs<'_> {
        Runs { bitmap: self, next: 0, longest: longest.0.max(1) }
    }

    pub(super) fn words_mut(&mut self) -> &mut [u64] {
        &mut self.words
    }

    fn for_range(&mut self, first: u64, count: Pages, change: impl Fn(&mut u64, u64)) {
        let end = first.saturating_add(count.0).min(self.pages.0);
        let mut page = first;
        while page < end {
            let bit = page % BITS;
            let here = (BITS - bit).min(end - page);
            let mask = (u64::MAX >> (BITS - here)) << bit;
            change(&mut self.words[(page / BITS) as usize], mask);
            page += here;
        }
    }

    fn drop_what_is_beyond(&mut self) {
        let used = self.pages.0 % BITS;
        if let (Some(last), 1..) = (self.words.last_mut(), used) {
            *last &= u64::MAX >> (BITS - used);
        }
    }

    /// The first page from `from` on whose bit is set (or, with `flip` of all ones, clear).
    fn find(&self, from: u64, flip: u64) -> Option<u64> {
        let mut index = (from / BITS) as usize;
        let mut word = (self.words.get(index)? ^ flip) & (u64::MAX << (from % BITS));
        while word == 0 {
            index += 1;
            word = self.words.get(index)? ^ flip;
        }
        Some(index as u64 * BITS + u64::from(word.trailing_zeros()))
    }
}

/// The pages of a [`Bitmap`] as runs; see [`Bitmap::runs`].
#[derive(Clone, Debug)]
pub struct Runs<'a> {
    bitmap: &'a Bitmap,
    next: u64,
    longest: u64,
}

impl Iterator for Runs<'_> {
    type Item = PageRange;

    fn next(&mut self) -> Option<PageRange> {
        let first = self.bitmap.find(self.next, 0)?;
        // A set bit is never beyond the last page, so the end is not either.
        let end = self
            .bitmap
            .find(first, u64::MAX)
            .unwrap_or(self.bitmap.pages.0)
            .min(first.saturating_add(self.longest));
        self.next = end;
        Some(PageRange { region: self.bitmap.region, first, count: Pages(end - first) })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const REGION: RegionId = RegionId(3);

    fn runs(bitmap: &Bitmap, longest: u64) -> Vec<(u64, u64)> {
        bitmap.runs(Pages(longest)).map(|run| (run.first, run.count.0)).collect()
    }

    #[test]
    fn a_run_crosses_words_and_is_cut_at_the_longest() {
        let mut bitmap = Bitmap::new(REGION, Pages(1000));
        bitmap.insert(60, Pages(200));
        bitmap.insert(999, Pages(1));
        assert_eq!(runs(&bitmap, u64::MAX), [(60, 200), (999, 1)]);
        assert_eq!(runs(&bitmap, 150), [(60, 150), (210, 50), (999, 1)]);
        assert_eq!(bitmap.runs(Pages(9)).next().unwrap().region, REGION);
    }

    #[test]
    fn a_set_knows_its_region_and_whether_it_has_a_page() {
        let mut bitmap = Bitmap::new(REGION, Pages(1000));
        assert_eq!((bitmap.region(), bitmap.pages()), (REGION, Pages(1000)));
        assert!(bitmap.is_empty());
        bitmap.insert(999, Pages(1));
        assert!(!bitmap.is_empty());
    }

    #[test]
    fn the_full_set_of_a_whole_number_of_words_is_one_run() {
        assert_eq!(runs(&Bitmap::full(REGION, Pages(128)), u64::MAX), [(0, 128)]);
        assert_eq!(runs(&Bitmap::full(REGION, Pages(130)), u64::MAX), [(0, 130)]);
        assert_eq!(runs(&Bitmap::full(REGION, Pages(0)), u64::MAX), []);
    }

    #[test]
    fn bits_beyond_the_last_page_are_dropped() {
        let mut bitmap = Bitmap::from_words(REGION, Pages(65), vec![u64::MAX; 9]);
        assert_eq!(bitmap.count(), Pages(65));
        bitmap.union(&[u64::MAX; 9]);
        bitmap.insert(60, Pages(u64::MAX));
        assert_eq!(bitmap.count(), Pages(65));
        assert!(!bitmap.contains(65) && !bitmap.contains(u64::MAX));
        assert_eq!(Bitmap::from_words(REGION, Pages(650), vec![1]).count(), Pages(1));
    }

    #[test]
    fn a_full_set_that_is_emptied_has_no_runs() {
        let mut bitmap = Bitmap::full(REGION, Pages(100));
        bitmap.remove(0, Pages(99));
        assert_eq!(runs(&bitmap, 10), [(99, 1)]);
        bitmap.clear();
        assert!(bitmap.is_empty() && runs(&bitmap, 10).is_empty());
    }

    proptest! {
        #[test]
        fn runs_cover_exactly_the_pages_of_the_set_in_order(
            pages in 0u64..700,
            ranges in prop::collection::vec((0u64..700, 1u64..150), 0..6),
            holes in prop::collection::vec((0u64..700, 1u64..20), 0..6),
            longest in 0u64..200,
        ) {
            let mut bitmap = Bitmap::new(REGION, Pages(pages));
            let mut model = vec![false; pages as usize];
            let edits = ranges.iter().map(|r| (r, true)).chain(holes.iter().map(|h| (h, false)));
            for (&(first, count), present) in edits {
                if present {
                    bitmap.insert(first, Pages(count));
                } else {
                    bitmap.remove(first, Pages(count));
                }
                for page in model.iter_mut().skip(first as usize).take(count as usize) {
                    *page = present;
                }
            }
            let mut covered = vec![false; pages as usize];
            let mut end = 0;
            for run in bitmap.runs(Pages(longest)) {
                prop_assert!(run.first >= end && !run.is_empty());
                prop_assert!(run.count.0 <= longest.max(1));
                end = run.first + run.count.0;
                covered[run.first as usize..end as usize].fill(true);
            }
            prop_assert_eq!(&covered, &model);
            prop_assert_eq!(bitmap.count().0, model.iter().filter(|p| **p).count() as u64);
            for (page, present) in model.iter().enumerate() {
                prop_assert_eq!(bitmap.contains(page as u64), *present);
            }
        }
    }
}
