//! How often each page was sent.

use migpipe_units::{PageRange, Pages};

/// Pages that share one allocation: 16 MiB of guest memory cost 4 KiB here, and nothing until one
/// of them is sent.
const CHUNK: u64 = 4096;

/// Counts how often each page was sent, up to 255 times. A guest of 16 GiB costs 4 MiB if all of
/// it was sent, and memory that was never touched costs nothing.
#[derive(Clone, Debug)]
pub struct SentHistogram {
    regions: Vec<Region>,
    /// Pages that were sent so many times.
    pages: [u64; 256],
}

#[derive(Clone, Debug)]
struct Region {
    pages: u64,
    chunks: Vec<Option<Box<[u8; CHUNK as usize]>>>,
}

impl SentHistogram {
    /// For a guest whose regions, in the order of their ids, have these lengths.
    pub fn new(regions: impl IntoIterator<Item = Pages>) -> Self {
        let region = |pages: Pages| Region {
            pages: pages.0,
            chunks: vec![None; pages.0.div_ceil(CHUNK) as usize],
        };
        Self { regions: regions.into_iter().map(region).collect(), pages: [0; 256] }
    }

    /// Notes that these pages were sent once more, in whatever form. There is nothing to note of
    /// pages outside of the guest's memory.
    pub fn record(&mut self, range: PageRange) {
        let Some(region) = self.regions.get_mut(usize::from(range.region.0)) else {
            return;
        };
        let end = range.first.saturating_add(range.count.0).min(region.pages);
        let mut page = range.first;
        while page < end {
            let offset = page % CHUNK;
            let here = (CHUNK - offset).min(end - page);
            let chunk = region.chunks[(page / CHUNK) as usize]
                .get_or_insert_with(|| Box::new([0; CHUNK as usize]));
            for times in &mut chunk[offset as usize..(offset + here) as usize] {
                self.pages[usize::from(*times)] = self.pages[usize::from(*times)].wrapping_sub(1);
                *times = times.saturating_add(1);
                self.pages[usize::from(*times)] = self.pages[usize::from(*times)].wrapping_add(1);
            }
            page += here;
        }
    }

    /// Pages that were sent once, twice, three times, and so on. The last entry is not 0, and the
    /// 255th counts the pages that were sent as often or more.
    pub fn times(&self) -> Vec<Pages> {
        let sent = &self.pages[1..];
        let used = sent.iter().rposition(|&count| count > 0).map_or(0, |i| i + 1);
        sent[..used].iter().copied().map(Pages).collect()
    }

    #[cfg(test)]
    fn allocated(&self) -> usize {
        let chunks = self.regions.iter().flat_map(|r| &r.chunks);
        chunks.filter(|c| c.is_some()).count() * CHUNK as usize
    }
}

#[cfg(test)]
mod tests {
    use migpipe_units::RegionId;

    use super::*;

    fn range(region: u16, first: u64, count: u64) -> PageRange {
        PageRange { region: RegionId(region), first, count: Pages(count) }
    }

    #[test]
    fn pages_are_counted_by_how_often_they_were_sent() {
        let mut sent = SentHistogram::new([Pages(10_000), Pages(10)]);
        assert_eq!(sent.times(), []);
        sent.record(range(0, 0, 10_000));
        sent.record(range(1, 0, 10));
        sent.record(range(0, 4000, 200));
        sent.record(range(0, 4095, 2));
        sent.record(range(1, 9, 1));
        assert_eq!(sent.times(), [Pages(9809), Pages(199), Pages(2)]);
    }

    #[test]
    fn a_count_stays_at_the_highest() {
        let mut sent = SentHistogram::new([Pages(1)]);
        for _ in 0..300 {
            sent.record(range(0, 0, 1));
        }
        assert_eq!(sent.times().len(), 255);
        assert_eq!(sent.times()[254], Pages(1));
        assert_eq!(sent.times().into_iter().sum::<Pages>(), Pages(1));
    }

    #[test]
    fn memory_that_was_never_sent_costs_nothing() {
        let mut sent = SentHistogram::new([Pages(4 << 20)]);
        assert_eq!(sent.allocated(), 0);
        sent.record(range(0, 0, 1));
        sent.record(range(0, 4_000_000, 1));
        assert_eq!(sent.allocated(), 2 * 4096);
    }

    #[test]
    fn pages_outside_of_the_guest_are_not_counted() {
        let mut sent = SentHistogram::new([Pages(10)]);
        sent.record(range(0, 9, u64::MAX));
        sent.record(range(0, u64::MAX, 1));
        sent.record(range(7, 0, 1));
        assert_eq!(sent.times(), [Pages(1)]);
    }
}
