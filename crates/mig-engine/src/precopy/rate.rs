//! The rate at which bytes go out.

use std::collections::VecDeque;
use std::time::Duration;

use migpipe_units::{Bytes, BytesPerSec};

/// The window is kept as so many slots, so that memory is bounded however often it is told.
const SLOTS: u32 = 20;

/// Measures the rate over a sliding window: the mean of that time, so that one stall or one burst
/// into an empty pipe does not stand for the whole. `now` is the time since any fixed moment.
///
/// Time in which nothing is sent counts. Whoever wants to know what a path carries measures only
/// while there is something to send, and calls [`Self::skip`] over the rest.
#[derive(Clone, Debug)]
pub struct RateMeter {
    slot: Duration,
    /// The bytes of each slot by the number of the slot, oldest first.
    slots: VecDeque<(u128, u64)>,
    start: Option<Duration>,
    skipped: Duration,
}

impl Default for RateMeter {
    /// Two seconds: many wake-ups of a sender, and short enough that a changed path shows within
    /// a round or two.
    fn default() -> Self {
        Self::new(Duration::from_secs(2))
    }
}

impl RateMeter {
    /// Measures over a window of this length (at least 20 ns).
    pub fn new(window: Duration) -> Self {
        Self {
            slot: (window / SLOTS).max(Duration::from_nanos(1)),
            slots: VecDeque::new(),
            start: None,
            skipped: Duration::ZERO,
        }
    }

    /// Measuring begins. The first call counts; without one the first [`Self::add`] does, and its
    /// bytes do not count, for nobody knows how long they took.
    pub fn start(&mut self, now: Duration) {
        self.start.get_or_insert(now);
    }

    /// So many more bytes were sent by now.
    pub fn add(&mut self, bytes: Bytes, now: Duration) {
        let now = now.saturating_sub(self.skipped);
        if self.start.is_none() {
            self.start = Some(now);
            return;
        }
        let number = self.slot_of(now);
        match self.slots.back_mut() {
            Some((last, sum)) if *last >= number => *sum = sum.saturating_add(bytes.0),
            _ => self.slots.push_back((number, bytes.0)),
        }
        while self.slots.len() > SLOTS as usize {
            self.slots.pop_front();
        }
    }

    /// Leaves a stretch of time out of the measurement, such as one spent on anything but sending.
    pub fn skip(&mut self, time: Duration) {
        if self.start.is_some() {
            self.skipped = self.skipped.saturating_add(time);
        }
    }

    /// The rate over the window that ends now; `None` before any time has passed.
    pub fn rate(&self, now: Duration) -> Option<BytesPerSec> {
        let now = now.saturating_sub(self.skipped);
        let start = self.start?;
        // The window begins where a slot does: of that slot all bytes are known.
        let first = self.slot_of(now).saturating_sub(u128::from(SLOTS) - 1);
        let begin = first.saturating_mul(self.slot.as_nanos());
        let begin = Duration::from_nanos(u64::try_from(begin).unwrap_or(u64::MAX));
        let time = now.saturating_sub(begin.max(start));
        if time.is_zero() {
            return None;
        }
        let in_window = self.slots.iter().filter(|(number, _)| *number >= first);
        let bytes = in_window.fold(0u64, |sum, (_, bytes)| sum.saturating_add(*bytes));
        Some(Bytes(bytes).per(time))
    }

    fn slot_of(&self, now: Duration) -> u128 {
        now.as_nanos() / self.slot.as_nanos()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn nothing_is_known_before_time_has_passed() {
        let mut meter = RateMeter::default();
        assert_eq!(meter.rate(ms(1000)), None);
        meter.start(ms(1000));
        meter.add(Bytes(1000), ms(1000));
        assert_eq!(meter.rate(ms(1000)), None);
        assert_eq!(meter.rate(ms(1010)), Some(BytesPerSec(100_000)));
    }

    #[test]
    fn the_bytes_before_the_start_do_not_count() {
        let mut meter = RateMeter::default();
        meter.add(Bytes(1 << 40), ms(500));
        meter.add(Bytes(1000), ms(1500));
        assert_eq!(meter.rate(ms(1500)), Some(BytesPerSec(1000)));
    }

    #[test]
    fn a_changed_path_shows_within_the_window() {
        let mut meter = RateMeter::default();
        meter.start(ms(0));
        for tick in 1..=1000 {
            meter.add(Bytes(10_000), ms(tick * 10));
        }
        assert_eq!(meter.rate(ms(10_000)).unwrap().0 / 10_000, 100);
        for tick in 1001..=1300 {
            meter.add(Bytes(1_000), ms(tick * 10));
        }
        assert_eq!(meter.rate(ms(13_000)).unwrap().0 / 1_000, 100);
        assert_eq!(meter.rate(ms(60_000)), Some(BytesPerSec(0)));
    }

    #[test]
    fn one_stall_weighs_as_much_as_it_lasted() {
        let mut meter = RateMeter::default();
        meter.start(ms(0));
        for tick in (1..=100).chain(151..=200) {
            meter.add(Bytes(10_000), ms(tick * 10));
        }
        let rate = meter.rate(ms(2000)).unwrap().0;
        assert!((730_000..=780_000).contains(&rate), "{rate}");
    }

    #[test]
    fn time_that_is_skipped_does_not_count() {
        let mut meter = RateMeter::default();
        meter.start(ms(0));
        meter.add(Bytes(500_000), ms(500));
        meter.skip(ms(60_000));
        meter.add(Bytes(500_000), ms(61_000));
        assert_eq!(meter.rate(ms(61_000)), Some(BytesPerSec(1_000_000)));
    }

    proptest! {
        #[test]
        fn an_even_flow_is_measured_within_a_tick_of_a_window(
            tick_us in 100u64..100_000,
            bytes in 1u64..10_000_000,
            ticks in 1u64..2000,
        ) {
            let mut meter = RateMeter::default();
            meter.start(Duration::ZERO);
            let tick = Duration::from_micros(tick_us);
            for n in 1..=ticks {
                meter.add(Bytes(bytes), tick * n as u32);
            }
            let truth = bytes as f64 / tick.as_secs_f64();
            let rate = meter.rate(tick * ticks as u32).unwrap().0 as f64;
            // The window holds at least 1.9 s once it is full; a tick more or less at its edge.
            let slack = truth * (tick.as_secs_f64() / 1.9) + 1.0;
            prop_assert!((rate - truth).abs() <= slack, "{rate} for {truth}");
            prop_assert!(meter.slots.len() <= SLOTS as usize);
        }
    }
}
