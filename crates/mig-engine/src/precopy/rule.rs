//! The reason why pre-copy ended.

use std::fmt;
use std::time::Duration;

use migpipe_units::Pages;
use serde::{Deserialize, Serialize};

use super::nanos;
use crate::report::text::Time;

/// The reason why pre-copy ended; [`fmt::Display`] gives it as one line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// Next to nothing is left (the talk's first rule).
    Converged {
        /// Pages left.
        left: Pages,
        /// At most so many count as next to nothing.
        min_pages: Pages,
    },
    /// What is left can be sent within the promised downtime.
    FitsDowntime {
        /// Pages left.
        left: Pages,
        /// The downtime that is expected.
        #[serde(rename = "estimate_ns", with = "nanos")]
        estimate: Duration,
        /// The downtime that is promised.
        #[serde(rename = "max_downtime_ns", with = "nanos")]
        max_downtime: Duration,
    },
    /// The guest dirties memory as fast as it is sent (the talk's second rule).
    NoProgress {
        /// In so many rounds in a row.
        rounds: u32,
        /// Pages transferred in them.
        sent: Pages,
        /// Pages that became dirty in them.
        dirtied: Pages,
        /// How far the vCPUs were throttled by then, in percent.
        throttle: u8,
    },
    /// So many rounds and no more (the talk's third rule).
    HardLimit {
        /// Rounds that were sent.
        rounds: u32,
        /// Pages left.
        left: Pages,
    },
    /// The promise cannot be kept even with no page left: state, round trips and what the tunnel
    /// has buffered take longer than that.
    OutOfReach {
        /// The downtime of a blackout that sends no page.
        #[serde(rename = "fixed_ns", with = "nanos")]
        fixed: Duration,
        /// The downtime that is promised.
        #[serde(rename = "max_downtime_ns", with = "nanos")]
        max_downtime: Duration,
    },
}

impl Rule {
    /// The rule's name for machines; never changes.
    pub const fn tag(&self) -> &'static str {
        match self {
            Self::Converged { .. } => "converged",
            Self::FitsDowntime { .. } => "fits_downtime",
            Self::NoProgress { .. } => "no_progress",
            Self::HardLimit { .. } => "hard_limit",
            Self::OutOfReach { .. } => "out_of_reach",
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Converged { left, min_pages } => {
                write!(f, "converged: {} (at most {})", Left(left), min_pages.0)
            }
            Self::FitsDowntime { left, estimate, max_downtime } => write!(
                f,
                "fits the downtime: {}, {} expected (at most {})",
                Left(left),
                Time(estimate),
                Time(max_downtime)
            ),
            Self::NoProgress { rounds, sent, dirtied, throttle: 0 } => write!(
                f,
                "no progress: in {} fewer pages were sent ({}) than became dirty ({})",
                Rounds(rounds),
                sent.0,
                dirtied.0
            ),
            Self::NoProgress { rounds, sent, dirtied, throttle } => write!(
                f,
                "no progress: throttled by {throttle}%, in {} {} were sent and {} became dirty",
                Rounds(rounds),
                sent,
                dirtied.0
            ),
            Self::HardLimit { rounds, left } => {
                write!(f, "hard limit: {}, {}", Rounds(rounds), Left(left))
            }
            Self::OutOfReach { fixed, max_downtime } => write!(
                f,
                "out of reach: {} of downtime even with no page left (at most {})",
                Time(fixed),
                Time(max_downtime)
            ),
        }
    }
}

struct Left(Pages);

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Pages(1) => f.write_str("1 page left"),
            Pages(count) => write!(f, "{count} pages left"),
        }
    }
}

struct Rounds(u32);

impl fmt::Display for Rounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            1 => f.write_str("1 round"),
            count => write!(f, "{count} rounds"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_is_one_line_that_says_its_figures() {
        let ms = Duration::from_millis;
        for (rule, tag, line) in [
            (
                Rule::Converged { left: Pages(31), min_pages: Pages(50) },
                "converged",
                "converged: 31 pages left (at most 50)",
            ),
            (
                Rule::FitsDowntime { left: Pages(1200), estimate: ms(42), max_downtime: ms(100) },
                "fits_downtime",
                "fits the downtime: 1200 pages left, 42.0 ms expected (at most 100 ms)",
            ),
            (
                Rule::NoProgress { rounds: 2, sent: Pages(900), dirtied: Pages(1000), throttle: 0 },
                "no_progress",
                "no progress: in 2 rounds fewer pages were sent (900) than became dirty (1000)",
            ),
            (
                Rule::NoProgress {
                    rounds: 2,
                    sent: Pages(1000),
                    dirtied: Pages(990),
                    throttle: 99,
                },
                "no_progress",
                "no progress: throttled by 99%, in 2 rounds 1000 pages were sent and 990 became \
                 dirty",
            ),
            (
                Rule::HardLimit { rounds: 30, left: Pages(1) },
                "hard_limit",
                "hard limit: 30 rounds, 1 page left",
            ),
            (
                Rule::OutOfReach { fixed: ms(150), max_downtime: ms(100) },
                "out_of_reach",
                "out of reach: 150 ms of downtime even with no page left (at most 100 ms)",
            ),
        ] {
            assert_eq!(rule.to_string(), line);
            assert_eq!(rule.tag(), tag);
            let json = serde_json::to_string(&rule).unwrap();
            assert!(json.starts_with(&format!("{{\"{tag}\":")), "{json}");
            assert_eq!(serde_json::from_str::<Rule>(&json).unwrap(), rule);
        }
    }
}
