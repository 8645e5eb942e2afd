//! Points in time that two processes of one host can compare.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// A reading of CLOCK_MONOTONIC. Unlike [`std::time::Instant`] it may travel to another process of
/// the same host, so that a downtime across two of them can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MonotonicTime(Duration);

impl MonotonicTime {
    /// The present.
    pub fn now() -> Self {
        // The clock exists on every Linux; a reading of zero would only spoil a statistic.
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
        Self(now)
    }

    /// The moment that is so long after the zero of the clock.
    pub const fn from_clock(reading: Duration) -> Self {
        Self(reading)
    }

    /// The reading of the clock.
    pub const fn to_clock(self) -> Duration {
        self.0
    }

    /// The time since `earlier`; none if that is later.
    pub const fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}
