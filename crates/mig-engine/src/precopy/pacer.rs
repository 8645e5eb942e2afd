//! The bandwidth limit.

use std::time::Duration;

use migpipe_units::{Bytes, BytesPerSec, PAGE_SIZE};

const NANOS: i128 = 1_000_000_000;

/// What may be sent at once after a pause, in milliseconds of the limit: long enough to keep a
/// path busy between two wake-ups of the sender, too short to be felt by who shares the path.
const BURST_MS: u64 = 50;

/// The least burst in bytes: under a limit so low that 50 ms of it hold less, a page and its
/// record header still go out in one piece.
const MIN_BURST: u64 = 2 * PAGE_SIZE;

/// A token bucket as a function of time. It knows no clock: `now` is the time since any fixed
/// moment, and one that runs backwards counts as standing still.
///
/// Over any stretch of time, no more is let through than the limit times that time plus
/// [`Pacer::burst`], or plus the largest single [`Pacer::take`] where that is larger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pacer {
    limit: Option<BytesPerSec>,
    /// Bytes that may be sent now, times 10^9, so that refilling never rounds. Negative: bytes
    /// that were taken and whose time has not come yet.
    level: i128,
    refilled: Duration,
    blackout: bool,
}

impl Pacer {
    /// No limit where there is `None`. A limit of 0 lets nothing through until it is changed.
    pub fn new(limit: Option<BytesPerSec>) -> Self {
        let mut pacer = Self { limit, level: 0, refilled: Duration::ZERO, blackout: false };
        pacer.level = pacer.full();
        pacer
    }

    /// The limit.
    pub fn limit(&self) -> Option<BytesPerSec> {
        self.limit
    }

    /// Changes the limit at once. Whoever waits after a [`Self::take`] asks [`Self::wait`] again:
    /// what was taken already is paid at the new rate.
    pub fn set_limit(&mut self, limit: Option<BytesPerSec>, now: Duration) {
        self.refill(now);
        let had_limit = self.limit.is_some();
        self.limit = limit;
        self.level = if had_limit && limit.is_some() { self.level.min(self.full()) } else { 0 };
    }

    /// How much to send at once, at most, for an even flow; callers cut long runs to it.
    pub fn burst(&self) -> Bytes {
        match self.limit {
            None => Bytes(u64::MAX),
            Some(limit) => Bytes((limit.0 / (1000 / BURST_MS)).max(MIN_BURST)),
        }
    }

    /// Takes the right to send `bytes` and says how long to wait before they are sent;
    /// [`Duration::MAX`] under a limit of 0.
    pub fn take(&mut self, bytes: Bytes, now: Duration) -> Duration {
        self.refill(now);
        if self.limit.is_some() && !self.blackout {
            self.level = self.level.saturating_sub(i128::from(bytes.0) * NANOS);
        }
        self.wait(now)
    }

    /// How long it is, from now on, until all that was taken may be sent.
    pub fn wait(&self, now: Duration) -> Duration {
        let Some(limit) = self.limit.filter(|_| !self.blackout) else {
            return Duration::ZERO;
        };
        let debt = u128::try_from(-self.level_at(limit, now)).unwrap_or(0);
        match (debt, limit.0) {
            (0, _) => Duration::ZERO,
            (_, 0) => Duration::MAX,
            (debt, rate) => u64::try_from(debt.div_ceil(u128::from(rate)))
                .map_or(Duration::MAX, Duration::from_nanos),
        }
    }

    /// The limit does not hold in the blackout, not even one that is set meanwhile.
    pub fn begin_blackout(&mut self) {
        self.blackout = true;
    }

    fn full(&self) -> i128 {
        match self.limit {
            None => 0,
            Some(_) => i128::from(self.burst().0) * NANOS,
        }
    }

    fn level_at(&self, limit: BytesPerSec, now: Duration) -> i128 {
        let elapsed = now.saturating_sub(self.refilled).as_nanos();
        let earned = u128::from(limit.0).saturating_mul(elapsed);
        self.level.saturating_add(i128::try_from(earned).unwrap_or(i128::MAX)).min(self.full())
    }

    fn refill(&mut self, now: Duration) {
        if let Some(limit) = self.limit {
            self.level = self.level_at(limit, now);
        }
        self.refilled = self.refilled.max(now);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn without_a_limit_nobody_waits() {
        let mut pacer = Pacer::new(None);
        assert_eq!(pacer.take(Bytes(u64::MAX), ms(0)), ms(0));
        assert_eq!(pacer.take(Bytes(u64::MAX), ms(0)), ms(0));
    }

    #[test]
    fn after_the_burst_the_flow_is_the_limit() {
        let mut pacer = Pacer::new(Some(BytesPerSec(1_000_000)));
        assert_eq!(pacer.burst(), Bytes(50_000));
        assert_eq!(pacer.take(Bytes(50_000), SECOND), ms(0));
        assert_eq!(pacer.take(Bytes(1_000_000), SECOND), SECOND);
        assert_eq!(pacer.wait(SECOND + ms(400)), ms(600));
        assert_eq!(pacer.wait(SECOND * 2), ms(0));
    }

    #[test]
    fn a_page_and_its_header_go_out_in_one_piece_under_any_limit() {
        let slow = Pacer::new(Some(BytesPerSec(1)));
        assert_eq!((slow.limit(), slow.burst()), (Some(BytesPerSec(1)), Bytes(8192)));
        assert_eq!(Pacer::new(None).limit(), None);
    }

    #[test]
    fn a_long_pause_earns_one_burst_and_no_more() {
        let mut pacer = Pacer::new(Some(BytesPerSec(1_000_000)));
        pacer.take(Bytes(50_000), ms(0));
        assert_eq!(pacer.take(Bytes(60_000), SECOND * 3600), ms(10));
    }

    #[test]
    fn a_changed_limit_holds_at_once_also_for_who_waits_already() {
        let mut pacer = Pacer::new(Some(BytesPerSec(10_000)));
        pacer.take(pacer.burst(), ms(0));
        assert_eq!(pacer.take(Bytes(1_000_000), ms(0)), SECOND * 100);
        pacer.set_limit(Some(BytesPerSec(1_000_000)), ms(0));
        assert_eq!(pacer.wait(ms(0)), SECOND);
        pacer.set_limit(None, ms(500));
        assert_eq!(pacer.wait(ms(500)), ms(0));
        pacer.set_limit(Some(BytesPerSec(1_000_000)), SECOND);
        assert_eq!(pacer.take(Bytes(1_000), SECOND), ms(1));
    }

    #[test]
    fn a_limit_of_nothing_waits_until_it_is_changed() {
        let mut pacer = Pacer::new(Some(BytesPerSec(0)));
        pacer.take(pacer.burst(), ms(0));
        assert_eq!(pacer.take(Bytes(1), SECOND), Duration::MAX);
        pacer.set_limit(Some(BytesPerSec(1000)), SECOND);
        assert_eq!(pacer.wait(SECOND), ms(1));
    }

    #[test]
    fn the_blackout_is_exempt_whatever_is_set_meanwhile() {
        let mut pacer = Pacer::new(Some(BytesPerSec(1000)));
        pacer.take(Bytes(1_000_000), ms(0));
        pacer.begin_blackout();
        assert_eq!(pacer.wait(ms(0)), ms(0));
        pacer.set_limit(Some(BytesPerSec(1)), ms(1));
        assert_eq!(pacer.take(Bytes(1 << 30), ms(1)), ms(0));
    }

    #[test]
    fn a_clock_that_runs_backwards_stands_still() {
        let mut pacer = Pacer::new(Some(BytesPerSec(1_000_000)));
        pacer.take(Bytes(50_000), SECOND);
        assert_eq!(pacer.take(Bytes(1000), ms(0)), ms(1));
    }

    proptest! {
        #[test]
        fn no_window_holds_more_than_the_limit_and_the_burst(
            limit in 1u64..50_000_000,
            takes in prop::collection::vec((1u64..300_000, 0u64..100_000_000), 1..60),
        ) {
            let mut pacer = Pacer::new(Some(BytesPerSec(limit)));
            let mut now = Duration::ZERO;
            let mut sent: Vec<(Duration, u64)> = Vec::new();
            for (bytes, idle_ns) in takes {
                now += Duration::from_nanos(idle_ns);
                now += pacer.take(Bytes(bytes), now);
                sent.push((now, bytes));
            }
            let largest = sent.iter().map(|s| s.1).max().unwrap();
            let spare = pacer.burst().0.max(largest);
            for (from, first) in sent.iter().enumerate() {
                let mut total = 0;
                for last in &sent[from..] {
                    total += last.1;
                    let window = (last.0 - first.0).as_nanos();
                    // Waits are whole nanoseconds, so each may end up to one too late and the next
                    // bytes gain what the limit is worth in that.
                    let allowed =
                        u128::from(limit) * (window + 1) + u128::from(spare) * NANOS as u128;
                    prop_assert!(u128::from(total) * NANOS as u128 <= allowed, "{total}");
                }
            }
        }

        #[test]
        fn nobody_waits_longer_than_the_limit_asks_for(
            limit in 1u64..50_000_000,
            takes in prop::collection::vec(1u64..300_000, 1..60),
        ) {
            let mut pacer = Pacer::new(Some(BytesPerSec(limit)));
            let mut now = Duration::ZERO;
            let mut total = 0;
            for bytes in takes {
                now += pacer.take(Bytes(bytes), now);
                total += bytes;
                let due = BytesPerSec(limit).time_for(Bytes(total));
                prop_assert!(now <= due + Duration::from_micros(1), "{now:?} {due:?}");
            }
        }
    }
}
