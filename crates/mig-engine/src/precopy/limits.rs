//! What the user allows a migration to cost.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use migpipe_units::Pages;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::nanos;

/// The limits of pre-copy. The defaults are the talk's, and 100 ms of downtime.
///
/// In JSON, `max_downtime` is `max_downtime_ns`, a whole number of nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Limits {
    /// Converged when at most this many pages are left.
    pub min_pages: Pages,
    /// No progress when this many rounds in a row sent fewer pages than became dirty. 0 counts
    /// as 1.
    pub stall_rounds: u32,
    /// The hard limit: so many rounds, the first included, and no more. 0 counts as 1, for the
    /// first round has been sent by the time anybody asks.
    pub max_rounds: u32,
    /// The downtime that is promised.
    #[serde(rename = "max_downtime_ns", with = "nanos")]
    pub max_downtime: Duration,
    /// The talk's three rules alone: stop at whatever downtime comes of it.
    pub classic: bool,
    /// What no progress leads to, unless `classic`.
    pub on_stall: OnStall,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            min_pages: Pages(50),
            stall_rounds: 2,
            max_rounds: 30,
            max_downtime: Duration::from_millis(100),
            classic: false,
            on_stall: OnStall::default(),
        }
    }
}

/// What to do with a guest that dirties memory as fast as it is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnStall {
    /// Slow its vCPUs down in steps until the promise can be met.
    #[default]
    Throttle,
    /// Stop and copy, whatever downtime comes of it.
    Stop,
    /// Give up; the guest runs on at the source.
    Abort,
}

impl OnStall {
    const ALL: [Self; 3] = [Self::Throttle, Self::Stop, Self::Abort];
}

impl fmt::Display for OnStall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Throttle => "throttle",
            Self::Stop => "stop",
            Self::Abort => "abort",
        })
    }
}

/// The text names no [`OnStall`].
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("'{0}' is nothing to do about a stalled migration: choose throttle, stop or abort")]
pub struct ParseOnStallError(String);

impl FromStr for OnStall {
    type Err = ParseOnStallError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|choice| choice.to_string() == text)
            .ok_or_else(|| ParseOnStallError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_json_names_of_the_limits_are_stable() {
        let json = serde_json::to_string(&Limits::default()).unwrap();
        assert_eq!(
            json,
            "{\"min_pages\":50,\"stall_rounds\":2,\"max_rounds\":30,\"max_downtime_ns\":100000000,\
             \"classic\":false,\"on_stall\":\"throttle\"}"
        );
        assert_eq!(serde_json::from_str::<Limits>(&json).unwrap(), Limits::default());
    }

    #[test]
    fn what_to_do_about_a_stall_is_read_as_it_is_shown() {
        for choice in OnStall::ALL {
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
        let error = "panic".parse::<OnStall>().unwrap_err();
        assert!(error.to_string().contains("'panic'"), "{error}");
    }
}
