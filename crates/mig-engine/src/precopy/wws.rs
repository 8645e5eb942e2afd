//! The writable working set: pages that the guest writes to all the time.
//!
//! To send such a page before the blackout is a waste: it will be dirty again. So a page that was
//! dirty in two rounds in a row waits for the blackout instead, for as long as it goes on being
//! dirty in every round. A page that cooled down is sent in the next round.

use migpipe_units::{Pages, RegionId};
use page_bitmap::PageBitmap;

/// What [`Wws::plan`] made of a harvest. The pages the destination lacks are `became_dirty +
/// were_waiting`, and just as many are `to_send + waiting`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Pages that became dirty in the round that ended; [`super::RoundStats::dirtied`].
    pub became_dirty: Pages,
    /// Pages that waited while that round was sent; [`super::RoundStats::deferred`].
    pub were_waiting: Pages,
    /// Pages that the next round sends: those left in the bitmaps.
    pub to_send: Pages,
    /// Pages that wait while the next round is sent.
    pub waiting: Pages,
}

/// The pages that wait for the blackout, with what must be known to choose them: two bits a page.
#[derive(Debug, Default)]
pub struct Wws {
    regions: Vec<Region>,
}

#[derive(Debug)]
struct Region {
    /// Dirty at the last harvest.
    previous: PageBitmap,
    waiting: PageBitmap,
}

impl Wws {
    /// For a guest whose regions have these lengths, in the order in which [`Self::plan`] will get
    /// them. Nothing waits yet.
    pub fn new(regions: impl IntoIterator<Item = Pages>) -> Self {
        let empty = |(id, pages)| PageBitmap::new(RegionId(id), pages);
        let region = |it| Region { previous: empty(it), waiting: empty(it) };
        Self { regions: (0..).zip(regions).map(region).collect() }
    }

    /// Switched off: no page ever waits, and nothing is allocated.
    pub fn off() -> Self {
        Self::default()
    }

    /// Turns what a harvest found (one bitmap per region, which held nothing before it) into what the
    /// next round sends, in place; nobody else writes to the bitmaps meanwhile. At most
    /// `room` pages wait from here on ([`super::Policy::deferrable`]): a blackout that is to keep
    /// its promise has no more room. Those that wait already go first.
    ///
    /// No page is lost: each one that was dirty or waited is now in a bitmap or waits. A bitmap
    /// that matches no region is sent as it is.
    pub fn plan(&mut self, dirty: &[PageBitmap], room: Pages) -> Plan {
        let still_hot: u64 = dirty
            .iter()
            .zip(&self.regions)
            .flat_map(|(d, r)| d.words().zip(r.waiting.words()))
            .map(|(d, w)| u64::from((d & w).count_ones()))
            .sum();
        let mut room_for_old = still_hot.min(room.0);
        let mut room_for_new = room.0 - room_for_old;

        let mut plan =
            Plan { became_dirty: dirty.iter().map(PageBitmap::count).sum(), ..Plan::default() };
        for (bitmap, region) in dirty.iter().zip(&self.regions) {
            let known = region.previous.words().zip(region.waiting.words());
            for (index, (dirty, (was_dirty, waited))) in bitmap.words().zip(known).enumerate() {
                if dirty | was_dirty | waited == 0 {
                    continue;
                }
                let hold = lowest(dirty & waited, &mut room_for_old)
                    | lowest(dirty & was_dirty & !waited, &mut room_for_new);
                plan.became_dirty -= pages(dirty & waited);
                plan.were_waiting += pages(waited);
                plan.waiting += pages(hold);
                bitmap.set_word(index, (dirty | waited) & !hold);
                region.previous.set_word(index, dirty);
                region.waiting.set_word(index, hold);
            }
        }
        plan.to_send = plan.became_dirty + plan.were_waiting - plan.waiting;
        plan
    }

    /// Adds the pages that wait to the bitmaps, for the blackout. None waits afterwards.
    pub fn release(&mut self, dirty: &[PageBitmap]) {
        for (bitmap, region) in dirty.iter().zip(&self.regions) {
            bitmap.merge(region.waiting.take_words());
        }
    }

    /// How many pages wait.
    pub fn waiting(&self) -> Pages {
        self.regions.iter().map(|region| region.waiting.count()).sum()
    }
}

fn pages(word: u64) -> Pages {
    Pages(u64::from(word.count_ones()))
}

/// The lowest set bits of `word`, as many as there is room for; takes that room.
fn lowest(word: u64, room: &mut u64) -> u64 {
    let count = u64::from(word.count_ones());
    if count <= *room {
        *room -= count;
        return word;
    }
    let mut beyond = word;
    for _ in 0..*room {
        beyond &= beyond - 1;
    }
    *room = 0;
    word & !beyond
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use proptest::prelude::*;

    const LENGTHS: [Pages; 2] = [Pages(100), Pages(70)];

    fn harvest(pages: &[(u16, u64)]) -> Vec<PageBitmap> {
        let bitmaps: Vec<_> =
            (0..).zip(LENGTHS).map(|(id, pages)| PageBitmap::new(RegionId(id), pages)).collect();
        for &(region, page) in pages {
            bitmaps[usize::from(region)].insert(page, Pages(1));
        }
        bitmaps
    }

    fn set(bitmaps: &[PageBitmap]) -> BTreeSet<(u16, u64)> {
        bitmaps.iter().flat_map(|b| b.runs(Pages(1))).map(|run| (run.region.0, run.first)).collect()
    }

    #[test]
    fn a_page_dirty_in_two_rounds_waits_until_it_cools_down() {
        let mut wws = Wws::new(LENGTHS);
        let dirty = harvest(&[(0, 5), (1, 69)]);
        wws.plan(&dirty, Pages(10));
        assert_eq!(set(&dirty), [(0, 5), (1, 69)].into(), "dirty once: sent");

        let dirty = harvest(&[(0, 5), (1, 1)]);
        let plan = wws.plan(&dirty, Pages(10));
        assert_eq!(set(&dirty), [(1, 1)].into(), "dirty twice: waits");
        assert_eq!((plan.became_dirty, plan.waiting), (Pages(2), Pages(1)));

        let dirty = harvest(&[(0, 5)]);
        let plan = wws.plan(&dirty, Pages(10));
        assert_eq!(set(&dirty), [].into(), "still hot: still waits");
        assert_eq!(
            (plan.became_dirty, plan.were_waiting),
            (Pages(0), Pages(1)),
            "a page that waits does not become dirty"
        );

        let dirty = harvest(&[]);
        let plan = wws.plan(&dirty, Pages(10));
        assert_eq!(set(&dirty), [(0, 5)].into(), "cooled down: sent");
        assert_eq!((plan.to_send, plan.waiting), (Pages(1), Pages(0)));
    }

    #[test]
    fn a_page_that_was_clean_for_a_round_begins_anew() {
        let mut wws = Wws::new(LENGTHS);
        for pages in [&[(0, 5)][..], &[], &[(0, 5)]] {
            let dirty = harvest(pages);
            assert_eq!(wws.plan(&dirty, Pages(10)).waiting, Pages(0));
            assert_eq!(dirty, harvest(pages));
        }
    }

    #[test]
    fn no_more_pages_wait_than_the_blackout_has_room_for() {
        let mut wws = Wws::new(LENGTHS);
        let hot = [(0, 1), (0, 64), (0, 99), (1, 0), (1, 65)];
        wws.plan(&harvest(&hot), Pages(0));
        let dirty = harvest(&hot);
        assert_eq!(wws.plan(&dirty, Pages(3)).waiting, Pages(3));
        assert_eq!(set(&dirty), [(1, 0), (1, 65)].into());

        let dirty = harvest(&hot);
        assert_eq!(wws.plan(&dirty, Pages(2)).waiting, Pages(2));
        assert_eq!(set(&dirty), [(0, 99), (1, 0), (1, 65)].into());
    }

    #[test]
    fn pages_that_wait_already_go_before_new_ones() {
        let mut wws = Wws::new(LENGTHS);
        wws.plan(&harvest(&[(1, 9)]), Pages(1));
        wws.plan(&harvest(&[(1, 9), (0, 0)]), Pages(1));
        let dirty = harvest(&[(1, 9), (0, 0)]);
        wws.plan(&dirty, Pages(1));
        assert_eq!(set(&dirty), [(0, 0)].into());
    }

    #[test]
    fn switched_off_it_sends_every_page_in_every_round() {
        let mut wws = Wws::off();
        for _ in 0..3 {
            let dirty = harvest(&[(0, 5), (1, 6)]);
            let plan = wws.plan(&dirty, Pages(u64::MAX));
            assert_eq!(dirty, harvest(&[(0, 5), (1, 6)]));
            assert_eq!((plan.became_dirty, plan.to_send), (Pages(2), Pages(2)));
        }
        assert_eq!(wws.waiting(), Pages(0));
    }

    proptest! {
        #[test]
        fn no_page_is_lost_between_the_rounds_and_the_blackout(
            rounds in prop::collection::vec(
                (prop::collection::vec((0u16..2, 0u64..70), 0..60), 0u64..40),
                1..8,
            ),
            last in prop::collection::vec((0u16..2, 0u64..70), 0..20),
        ) {
            let mut wws = Wws::new(LENGTHS);
            let mut lacks = BTreeSet::new();
            for (pages, room) in &rounds {
                let before = wws.waiting();
                let dirty = harvest(pages);
                lacks.extend(pages.iter().copied());
                let plan = wws.plan(&dirty, Pages(*room));
                prop_assert!(plan.waiting <= Pages(*room));
                prop_assert_eq!(plan.waiting, wws.waiting());
                prop_assert_eq!(plan.were_waiting, before);
                prop_assert_eq!(plan.became_dirty + before, Pages(lacks.len() as u64));
                let sent = set(&dirty);
                prop_assert_eq!(plan.to_send, Pages(sent.len() as u64));
                prop_assert!(sent.is_subset(&lacks));
                lacks = &lacks - &sent;
                prop_assert_eq!(Pages(lacks.len() as u64), plan.waiting);
            }
            let blackout = harvest(&last);
            lacks.extend(last);
            wws.release(&blackout);
            prop_assert_eq!(set(&blackout), lacks);
            prop_assert_eq!(wws.waiting(), Pages(0));
        }
    }
}
