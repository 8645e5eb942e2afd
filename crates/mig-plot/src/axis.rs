//! Axes: where an amount lies, and which amounts are written beside it.

use std::time::Duration;

use mig_engine::report::grouped;

/// Amounts further apart than this are shown by their logarithms, or the small ones would all lie on
/// the ground.
const LINEAR_UP_TO: u64 = 100;

/// Room above the highest amount, as a share of the axis.
const HEADROOM: f64 = 1.1;

/// About so many amounts are written beside an axis.
const TICKS: f64 = 6.0;

/// An axis of counts from 0 on.
#[derive(Clone, Debug, PartialEq)]
pub struct CountAxis {
    logarithmic: bool,
    /// The top, in the axis' own measure.
    top: f64,
}

impl CountAxis {
    /// The axis that shows all of `counts`: linear, or logarithmic where they are far apart.
    pub fn over(counts: impl IntoIterator<Item = u64>) -> Self {
        let (mut least, mut most) = (u64::MAX, 0);
        for count in counts.into_iter().filter(|&count| count > 0) {
            least = least.min(count);
            most = most.max(count);
        }
        let logarithmic = most / least.max(1) >= LINEAR_UP_TO;
        let mut axis = Self { logarithmic, top: 1.0 };
        axis.top = axis.measure(most.max(1)) * HEADROOM;
        axis
    }

    /// Whether it shows logarithms.
    pub const fn is_logarithmic(&self) -> bool {
        self.logarithmic
    }

    /// Where `count` lies: 0 is the bottom, 1 the top.
    pub fn position(&self, count: u64) -> f64 {
        (self.measure(count) / self.top).min(1.0)
    }

    /// The counts that are written beside it, each with its position.
    pub fn ticks(&self) -> Vec<(f64, String)> {
        let counts = if self.logarithmic { self.powers() } else { self.steps() };
        counts.into_iter().map(|count| (self.position(count), short(count))).collect()
    }

    /// The logarithm of one more than the count, so that 0 has a place and it is the bottom.
    fn measure(&self, count: u64) -> f64 {
        let count = count as f64;
        if self.logarithmic { (1.0 + count).log10() } else { count }
    }

    /// 0 and powers of ten; where only some of them have room, 1 is too near 0.
    fn powers(&self) -> Vec<u64> {
        let decades = self.top.floor().min(19.0) as u32;
        let step = (f64::from(decades) / TICKS).ceil().max(1.0) as u32;
        let first = if step > 1 { step } else { 0 };
        let powers = (first..=decades).step_by(step as usize).map(|power| 10u64.pow(power));
        [0].into_iter().chain(powers).filter(|&count| self.measure(count) <= self.top).collect()
    }

    fn steps(&self) -> Vec<u64> {
        let step = round_step(self.top / TICKS).max(1.0);
        let last = (self.top.min(u64::MAX as f64) / step).floor() as u64;
        (0..=last).map(|n| (n as f64 * step) as u64).collect()
    }
}

/// An axis of time from 0 on, in the unit that fits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TimeAxis {
    /// The end (nanoseconds).
    end: f64,
}

/// Units of time with their nanoseconds.
const UNITS: [(&str, f64); 4] = [("s", 1e9), ("ms", 1e6), ("us", 1e3), ("ns", 1.0)];

impl TimeAxis {
    /// The axis that ends at `longest`.
    pub fn up_to(longest: Duration) -> Self {
        Self { end: (longest.as_nanos() as f64).max(1.0) }
    }

    /// Where `time` lies: 0 is the start, 1 the end.
    pub fn position(&self, time: Duration) -> f64 {
        (time.as_nanos() as f64 / self.end).min(1.0)
    }

    /// The unit of the ticks.
    pub fn unit(&self) -> &'static str {
        self.scale().0
    }

    /// The times that are written beside it, in its unit, each with its position.
    pub fn ticks(&self) -> Vec<(f64, String)> {
        let (_, nanos) = self.scale();
        let step = round_step(self.end / nanos / TICKS);
        let digits = (-step.log10().floor()).max(0.0) as usize;
        let last = (self.end / nanos / step + 1e-6).floor() as u64;
        let tick = |n: u64| {
            let value = n as f64 * step;
            ((value * nanos / self.end).min(1.0), format!("{value:.digits$}"))
        };
        (0..=last).map(tick).collect()
    }

    fn scale(&self) -> (&'static str, f64) {
        let fits = UNITS.into_iter().find(|(_, nanos)| self.end >= *nanos);
        fits.unwrap_or(UNITS[UNITS.len() - 1])
    }
}

/// The least of 1, 2 and 5 times a power of ten that is not less than `step`.
fn round_step(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    let round = [1.0, 2.0, 5.0].into_iter().find(|factor| factor * power >= step * 0.999_999);
    round.unwrap_or(10.0) * power
}

/// A count in at most seven characters: `517`, `100,000`, `2.5 M`.
fn short(count: u64) -> String {
    const PREFIXES: [(&str, u64); 5] = [
        ("E", 1_000_000_000_000_000_000),
        ("P", 1_000_000_000_000_000),
        ("T", 1_000_000_000_000),
        ("G", 1_000_000_000),
        ("M", 1_000_000),
    ];
    match PREFIXES.into_iter().find(|(_, unit)| count >= *unit) {
        None => grouped(count),
        Some((prefix, unit)) if count.is_multiple_of(unit) => format!("{} {prefix}", count / unit),
        Some((prefix, unit)) => format!("{:.1} {prefix}", count as f64 / unit as f64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(ticks: Vec<(f64, String)>) -> Vec<String> {
        ticks.into_iter().map(|(_, label)| label).collect()
    }

    #[test]
    fn counts_that_are_near_each_other_have_a_linear_axis() {
        let axis = CountAxis::over([60_000, 5_000, 0]);
        assert!(!axis.is_logarithmic());
        assert_eq!(
            labels(axis.ticks()),
            ["0", "20,000", "40,000", "60,000"],
            "round steps from 0 on"
        );
        assert_eq!(axis.position(0), 0.0);
        assert!((axis.position(33_000) - 0.5).abs() < 1e-9);
    }

    #[test]
    fn counts_that_are_far_apart_have_a_logarithmic_axis_on_which_nothing_is_the_bottom() {
        let axis = CountAxis::over([103_445, 517, 0]);
        assert!(axis.is_logarithmic());
        assert_eq!(labels(axis.ticks()), ["0", "1", "10", "100", "1,000", "10,000", "100,000"]);
        assert_eq!(axis.position(0), 0.0);
        assert!(axis.position(1) > 0.0 && axis.position(517) < axis.position(518));
    }

    #[test]
    fn no_count_leaves_its_axis_and_no_tick_does() {
        for counts in [vec![], vec![0], vec![1], vec![7, 3], vec![u64::MAX, 1], vec![u64::MAX; 2]] {
            let axis = CountAxis::over(counts.iter().copied());
            for count in counts {
                assert!((0.0..=1.0).contains(&axis.position(count)), "{count}");
            }
            let ticks = axis.ticks();
            assert!((2..=9).contains(&ticks.len()), "{ticks:?}");
            for pair in ticks.windows(2) {
                assert!(pair[0].0 < pair[1].0 && pair[1].0 <= 1.0, "{ticks:?}");
                assert_ne!(pair[0].1, pair[1].1, "{ticks:?}");
            }
            assert!(ticks.iter().all(|(_, label)| label.len() <= 7), "{ticks:?}");
        }
    }

    #[test]
    fn times_are_written_in_the_unit_that_fits() {
        for (nanos, unit, text) in [
            (2_520_000, "ms", vec!["0.0", "0.5", "1.0", "1.5", "2.0", "2.5"]),
            (100_000_000, "ms", vec!["0", "20", "40", "60", "80", "100"]),
            (900, "ns", vec!["0", "200", "400", "600", "800"]),
            (3_000_000_000, "s", vec!["0.0", "0.5", "1.0", "1.5", "2.0", "2.5", "3.0"]),
        ] {
            let axis = TimeAxis::up_to(Duration::from_nanos(nanos));
            assert_eq!(
                (axis.unit(), labels(axis.ticks())),
                (unit, text.iter().map(ToString::to_string).collect())
            );
        }
        let axis = TimeAxis::up_to(Duration::from_millis(4));
        assert!((axis.position(Duration::from_millis(1)) - 0.25).abs() < 1e-9);
        assert_eq!(TimeAxis::up_to(Duration::ZERO).unit(), "ns");
        assert!(TimeAxis::up_to(Duration::MAX).ticks().len() < 10);
    }
}
