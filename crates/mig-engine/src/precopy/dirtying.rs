//! How much memory a guest writes to in a given time, as measured for a while.
//!
//! What decides about pre-copy is how many *different* pages a guest writes to while a round is sent:
//! a page that is written twice is sent once. In a short time these are nearly as many as there are
//! writes, in a long one they are the working set. So it is measured as a curve: the log is read at
//! [`HARVESTS`], and between these the curve is a straight line. Behind the last it goes on as its last
//! two thirds have it: straight where they rise alike, and flattening out where the second rises less.

use std::time::Duration;

use migpipe_units::Pages;

/// When the log is read, since the measurement began: the last says how long it takes.
pub const HARVESTS: [Duration; 10] = {
    let moments = [8, 16, 32, 64, 128, 256, 512, 1024, 2048, 3072];
    let mut harvests = [Duration::ZERO; 10];
    let mut index = 0;
    while index < moments.len() {
        harvests[index] = Duration::from_millis(moments[index]);
        index += 1;
    }
    harvests
};

/// The second of two thirds rises as much as the first if it rises at least by this share of it.
const ALIKE: f64 = 0.95;

/// The measurement.
#[derive(Clone, Debug, Default)]
pub struct DirtyingMeter {
    /// Pages written to since the beginning, at each harvest.
    sums: Vec<(Duration, Pages)>,
    pieces: Vec<Piece>,
}

/// What was written to between two harvests.
#[derive(Clone, Copy, Debug)]
struct Piece {
    length: Duration,
    dirty: Pages,
    /// Of these, what had been written to in the piece before.
    again: Pages,
}

/// Samples of so nearly the same length are taken together.
const SAME_LENGTH: std::ops::Range<f64> = 0.97..1.03;

impl DirtyingMeter {
    /// A harvest `time` after the beginning: `dirty` pages were written to since the one before, of
    /// which `again` had been before that one too, and `sum` since the beginning, each counted once.
    pub fn note(&mut self, time: Duration, dirty: Pages, again: Pages, sum: Pages) {
        let before = self.sums.last().map_or(Duration::ZERO, |(before, _)| *before);
        let length = time.saturating_sub(before);
        self.pieces.push(Piece { length, dirty, again });
        self.sums.push((time, sum));
    }

    /// What was measured, of a guest that has so many pages.
    pub fn curve(&self, memory: Pages) -> Dirtying {
        let mut points = vec![(0.0, 0.0)];
        let mut last = 0.0_f64;
        for (time, sum) in &self.sums {
            // What was written in a later piece of about the same length is another sample.
            let alike = self.pieces.iter().skip(1).filter(|piece| {
                SAME_LENGTH.contains(&(piece.length.as_secs_f64() / time.as_secs_f64()))
            });
            let samples: Vec<_> =
                alike.map(|piece| piece.dirty.0 as f64).chain([sum.0 as f64]).collect();
            last = last.max(samples.iter().sum::<f64>() / samples.len() as f64);
            points.push((time.as_secs_f64(), last));
        }
        let mut curve = Dirtying::new(points, memory.0 as f64);
        curve.by_chance = self.by_chance(&curve);
        curve
    }

    /// How the pages of two pieces in a row were in common: as by chance (1), or as by a sweep that
    /// comes back to a page when it has been to all others (0).
    fn by_chance(&self, curve: &Dirtying) -> f64 {
        let (mut found, mut possible) = (0.0, 0.0);
        for pair in self.pieces.windows(2) {
            let [before, piece] = [pair[0], pair[1]].map(|it| it.dirty.0 as f64);
            let (sweep, chance) = curve.in_common(before, piece);
            found += pair[1].again.0 as f64 - sweep;
            possible += chance - sweep;
        }
        if possible < 1.0 { 1.0 } else { (found / possible).clamp(0.0, 1.0) }
    }
}

/// How many different pages a guest writes to in a given time.
#[derive(Clone, Debug, PartialEq)]
pub struct Dirtying {
    /// Seconds and pages, rising.
    points: Vec<(f64, f64)>,
    /// Pages a second behind the last point.
    slope: f64,
    /// In so many seconds that falls to 1/e, if it does.
    decay: Option<f64>,
    memory: f64,
    /// See [`DirtyingMeter::by_chance`].
    by_chance: f64,
}

impl Dirtying {
    fn new(points: Vec<(f64, f64)>, memory: f64) -> Self {
        let mut curve = Self { points, slope: 0.0, decay: None, memory, by_chance: 1.0 };
        let (end, _) = curve.last();
        if end <= 0.0 {
            return curve;
        }
        let third = end / 3.0;
        let rise = |from: f64| (curve.at(from + third) - curve.at(from)) / third;
        let (middle, last) = (rise(third), rise(2.0 * third));
        if last > 0.0 && last < ALIKE * middle {
            let decay = third / (middle / last).ln();
            // From the middle of the last third to its end.
            curve.slope = last * (-third / 2.0 / decay).exp();
            curve.decay = Some(decay);
        } else {
            curve.slope = last;
        }
        curve
    }

    fn last(&self) -> (f64, f64) {
        self.points.last().copied().unwrap_or_default()
    }

    fn at(&self, seconds: f64) -> f64 {
        let behind = self.points.iter().position(|(time, _)| *time >= seconds);
        let Some(behind) = behind else {
            let (end, pages) = self.last();
            let more = seconds - end;
            let rise = match self.decay {
                Some(decay) => self.slope * decay * (1.0 - (-more / decay).exp()),
                None => self.slope * more,
            };
            return (pages + rise).min(self.memory);
        };
        let (right, high) = self.points[behind];
        let (left, low) = self.points[behind.saturating_sub(1)];
        let part = if right > left { (seconds - left) / (right - left) } else { 1.0 };
        (low + part * (high - low)).min(self.memory)
    }

    /// How many different pages are written to in `time`.
    pub fn within(&self, time: Duration) -> Pages {
        Pages(self.at(time.as_secs_f64()).round() as u64)
    }

    /// How many pages two stretches of time in a row, in which so many are written to, have in common.
    pub fn again(&self, before: Pages, dirty: Pages) -> Pages {
        let (sweep, chance) = self.in_common(before.0 as f64, dirty.0 as f64);
        let again = sweep + self.by_chance * (chance - sweep);
        Pages((again.round() as u64).min(before.0).min(dirty.0))
    }

    /// The same if the guest sweeps over its working set, and if it chooses by chance.
    fn in_common(&self, before: f64, dirty: f64) -> (f64, f64) {
        let set = (self.working_set().0 as f64).max(before).max(dirty).max(1.0);
        ((before + dirty - set).max(0.0), before * dirty / set)
    }

    /// How many it comes to in the long run; where no end of it was seen, all of the memory.
    pub fn working_set(&self) -> Pages {
        let (_, pages) = self.last();
        let most = match self.decay {
            Some(decay) => pages + self.slope * decay,
            None if self.slope > 0.0 => self.memory,
            None => pages,
        };
        Pages(most.min(self.memory).round() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMORY: Pages = Pages(100_000);

    /// A guest that has written to so many pages by each moment, and likewise from any other on.
    fn measured(pages: impl Fn(f64) -> f64) -> Dirtying {
        let mut meter = DirtyingMeter::default();
        let mut before = 0.0;
        for time in HARVESTS.map(|time| time.as_secs_f64()) {
            let count = |time| Pages(pages(time) as u64);
            let piece = count(time - before);
            meter.note(Duration::from_secs_f64(time), piece, Pages(0), count(time));
            before = time;
        }
        meter.curve(MEMORY)
    }

    fn close(found: Pages, expected: f64, share: f64) {
        let found = found.0 as f64;
        assert!((found - expected).abs() <= share * expected, "{found}, not {expected}");
    }

    fn seconds(count: f64) -> Duration {
        Duration::from_secs_f64(count)
    }

    #[test]
    fn a_sweep_is_straight_up_to_its_working_set() {
        let curve = measured(|time| (5000.0 * time).min(4000.0));
        close(curve.within(seconds(0.1)), 500.0, 0.02);
        close(curve.within(seconds(0.5)), 2500.0, 0.02);
        for time in [2.0, 30.0] {
            assert_eq!(curve.within(seconds(time)), Pages(4000));
        }
        assert_eq!(curve.working_set(), Pages(4000));
    }

    #[test]
    fn what_has_shown_no_end_goes_on_to_the_end_of_the_memory() {
        let curve = measured(|time| 3000.0 * time);
        close(curve.within(seconds(10.0)), 30_000.0, 0.01);
        assert_eq!(curve.within(seconds(100.0)), MEMORY);
        assert_eq!(curve.working_set(), MEMORY);
    }

    #[test]
    fn random_writes_flatten_out_towards_their_working_set() {
        let real = |time: f64| 20_000.0 * (1.0 - (-time * 5000.0 / 20_000.0).exp());
        let curve = measured(real);
        for time in [0.3, 1.5, 6.0, 20.0] {
            close(curve.within(seconds(time)), real(time), 0.05);
        }
        close(curve.working_set(), 20_000.0, 0.05);
    }

    #[test]
    fn a_hot_set_beside_a_slow_sweep_keeps_its_slope() {
        let real = |time: f64| (20_000.0 * time).min(1000.0) + 200.0 * time;
        let curve = measured(real);
        close(curve.within(seconds(20.0)), real(20.0), 0.02);
    }

    #[test]
    fn a_guest_that_writes_nothing_has_no_working_set() {
        let curve = measured(|_| 0.0);
        assert_eq!(curve.within(seconds(1000.0)), Pages(0));
        assert_eq!(curve.working_set(), Pages(0));
        assert_eq!(DirtyingMeter::default().curve(MEMORY).within(seconds(9.0)), Pages(0));
    }

    #[test]
    fn a_sweep_and_writes_by_chance_come_back_to_a_page_otherwise() {
        // 5,000 pages of a working set of 20,000 in each piece.
        let back = |again| {
            let mut meter = DirtyingMeter::default();
            for second in 1..=8 {
                let sum = Pages(20_000.min(5000 * second));
                meter.note(seconds(second as f64), Pages(5000), Pages(again), sum);
            }
            meter.curve(MEMORY).again(Pages(5000), Pages(5000))
        };
        assert_eq!(back(0), Pages(0));
        assert_eq!(back(1250), Pages(1250));
        let curve = measured(|time| (5000.0 * time).min(4000.0));
        assert_eq!(curve.again(Pages(4000), Pages(4000)), Pages(4000), "all of them");
    }
}
