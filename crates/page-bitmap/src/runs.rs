//! The pages of a set as runs.

use migpipe_units::{PageRange, Pages};

use crate::bitmap::PageBitmap;

impl PageBitmap {
    /// The pages in address order as runs of at most `longest` pages (0 counts as 1). Empty words
    /// are passed over 64 pages at a time.
    pub const fn runs(&self, longest: Pages) -> Runs<'_> {
        let longest = if longest.0 == 0 { 1 } else { longest.0 };
        Runs { bitmap: self, next: 0, longest }
    }

    /// The same, and each run is taken out of the set before it is handed out.
    pub const fn take_runs(&self, longest: Pages) -> TakeRuns<'_> {
        TakeRuns(self.runs(longest))
    }
}

/// The pages of a [`PageBitmap`] as runs; see [`PageBitmap::runs`].
#[derive(Clone, Debug)]
pub struct Runs<'a> {
    bitmap: &'a PageBitmap,
    next: u64,
    longest: u64,
}

impl Iterator for Runs<'_> {
    type Item = PageRange;

    fn next(&mut self) -> Option<PageRange> {
        let pages = self.bitmap.pages().0;
        let first = self.bitmap.find(self.next, pages, 0)?;
        let until = first.saturating_add(self.longest).min(pages);
        let end = self.bitmap.find(first, until, u64::MAX).unwrap_or(until).min(until);
        // Another process may have taken the bit meanwhile: a page more is sent then.
        let count = Pages(end.saturating_sub(first).max(1));
        self.next = first + count.0;
        Some(PageRange { region: self.bitmap.region(), first, count })
    }
}

/// The same, each taken out of the set; see [`PageBitmap::take_runs`].
#[derive(Clone, Debug)]
pub struct TakeRuns<'a>(Runs<'a>);

impl Iterator for TakeRuns<'_> {
    type Item = PageRange;

    fn next(&mut self) -> Option<PageRange> {
        let run = self.0.next()?;
        self.0.bitmap.remove(run.first, run.count);
        Some(run)
    }
}

#[cfg(test)]
mod tests {
    use migpipe_units::RegionId;
    use proptest::prelude::*;

    use super::*;

    const REGION: RegionId = RegionId(3);

    fn bitmap(pages: u64, ranges: &[(u64, u64)]) -> PageBitmap {
        let bitmap = PageBitmap::new(REGION, Pages(pages));
        ranges.iter().for_each(|&(first, count)| bitmap.insert(first, Pages(count)));
        bitmap
    }

    fn runs(bitmap: &PageBitmap, longest: u64) -> Vec<(u64, u64)> {
        bitmap.runs(Pages(longest)).map(|run| (run.first, run.count.0)).collect()
    }

    #[test]
    fn a_run_crosses_words_and_is_cut_at_the_longest() {
        let bitmap = bitmap(1000, &[(60, 200), (999, 1)]);
        assert_eq!(runs(&bitmap, u64::MAX), [(60, 200), (999, 1)]);
        assert_eq!(runs(&bitmap, 150), [(60, 150), (210, 50), (999, 1)]);
        assert_eq!(bitmap.runs(Pages(9)).next().unwrap().region, REGION);
    }

    #[test]
    fn the_end_of_a_run_is_looked_for_no_further_than_the_longest() {
        // Else each piece of a long run costs a look at all that is left of it.
        let bitmap = bitmap(1000, &[(0, 500)]);
        assert_eq!(bitmap.find(0, 64, u64::MAX), None);
        assert_eq!(bitmap.find(0, 500, u64::MAX), Some(500));
        assert_eq!(bitmap.find(500, 1000, 0), None);
    }

    #[test]
    fn the_full_set_of_a_whole_number_of_words_is_one_run() {
        assert_eq!(runs(&bitmap(128, &[(0, 128)]), u64::MAX), [(0, 128)]);
        assert_eq!(runs(&bitmap(130, &[(0, 200)]), u64::MAX), [(0, 130)]);
        assert_eq!(runs(&bitmap(0, &[(0, 1)]), u64::MAX), []);
    }

    #[test]
    fn a_full_set_that_is_emptied_has_no_runs() {
        let bitmap = bitmap(100, &[(0, 100)]);
        bitmap.remove(0, Pages(99));
        assert_eq!(runs(&bitmap, 10), [(99, 1)]);
        bitmap.clear();
        assert!(bitmap.is_empty() && runs(&bitmap, 10).is_empty());
    }

    #[test]
    fn a_run_that_is_taken_is_not_in_the_set_when_it_is_handed_out() {
        let bitmap = bitmap(200, &[(10, 100), (150, 1)]);
        let mut taken = bitmap.take_runs(Pages(64));
        assert_eq!(taken.next().unwrap().count, Pages(64));
        assert_eq!(bitmap.count(), Pages(37));
        // What is added again behind the run stays, what lies ahead is handed out.
        bitmap.insert(10, Pages(1));
        bitmap.insert(151, Pages(1));
        assert_eq!(taken.map(|run| (run.first, run.count.0)).last(), Some((150, 2)));
        assert_eq!(runs(&bitmap, 9), [(10, 1)]);
    }

    proptest! {
        #[test]
        fn runs_cover_exactly_the_pages_of_the_set_in_order(
            pages in 0u64..700,
            ranges in prop::collection::vec((0u64..700, 1u64..150), 0..6),
            holes in prop::collection::vec((0u64..700, 1u64..20), 0..6),
            longest in 0u64..200,
        ) {
            let bitmap = PageBitmap::new(REGION, Pages(pages));
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
            let runs: Vec<_> = bitmap.runs(Pages(longest)).collect();
            prop_assert_eq!(bitmap.take_runs(Pages(longest)).collect::<Vec<_>>(), runs);
            prop_assert!(bitmap.is_empty());
        }
    }
}
