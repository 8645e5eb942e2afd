//! Where the bits of each region are in a bitmap of a whole guest.
//!
//! The regions come in the order of their numbers, each from a fresh `u64` on, so that a region's
//! words are what KVM_GET_DIRTY_LOG gives for its slot and no word belongs to two regions. Bit n of
//! a region, its page n, is in its word n / 64 at place n % 64.

use migpipe_units::{Pages, RegionId};

/// Pages that one word has bits for.
pub(crate) const PAGES_PER_WORD: u64 = u64::BITS as u64;

/// How many words the bits of a region of so many pages take.
pub(crate) const fn words_for(pages: Pages) -> usize {
    pages.0.div_ceil(PAGES_PER_WORD) as usize
}

/// The place of one region's bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) region: RegionId,
    pub(crate) pages: Pages,
    pub(crate) first_word: usize,
}

/// The places of `regions`, and how many words all of them take.
pub(crate) fn layout(regions: impl IntoIterator<Item = (RegionId, Pages)>) -> (Vec<Place>, usize) {
    let mut words = 0;
    let places = regions.into_iter().map(|(region, pages)| {
        let first_word = words;
        words += words_for(pages);
        Place { region, pages, first_word }
    });
    (places.collect(), words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_region_begins_at_a_fresh_word() {
        let (places, words) = layout(
            [(0, 100), (1, 128), (2, 1), (3, 0), (4, 65)]
                .map(|(region, pages)| (RegionId(region), Pages(pages))),
        );
        let first: Vec<_> = places.iter().map(|place| place.first_word).collect();
        assert_eq!((first, words), (vec![0, 2, 4, 5, 5], 7));
    }
}
