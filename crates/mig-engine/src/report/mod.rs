//! What a migration did: the report at its end and the snapshot on its way.
//!
//! The JSON of both is meant to be read by scripts for years: names carry their units (`_pages`,
//! `_bytes`, `_bytes_per_sec`, `_percent`; every time is a whole number of nanoseconds, `_ns`),
//! what is not known is `null`, fields are added but never renamed, and [`Report::version`] counts
//! the changes that a reader must know of.

mod arrival;
mod progress;
mod table;
#[cfg(test)]
mod tests;
pub(crate) mod text;

use std::time::Duration;

use migpipe_units::{Bytes, MigrationId, Pages};
use serde::{Deserialize, Serialize};

pub use arrival::{ArrivalDowntime, ArrivalReport, ArrivalTotals, ArrivedRound};
pub use progress::{Phase, Progress, ProgressEvent, Reported};
pub use text::{Time, clean, grouped};

use crate::handover::SourceEnding;
use crate::precopy::{RoundStats, Rule, nanos};

/// The report of one migration, as its source saw it.
///
/// [`Report::table`] renders it for a terminal; serde gives the JSON of `--report`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The version of this format: [`Report::VERSION`].
    pub version: u32,
    /// The guest's name on the source.
    pub guest: String,
    /// Which migration.
    pub migration: MigrationId,
    /// Whether there was a return path.
    pub mode: Mode,
    /// The version of the stream's format.
    pub format_version: u16,
    /// How it ended.
    pub outcome: ReportOutcome,
    /// Why it ended so, unless it completed: one line for a person.
    pub reason: Option<String>,
    /// Where the guest is now, where that is known: a stream without a way back does not tell.
    #[serde(rename = "guest_is_at", default)]
    pub location: Option<Location>,
    /// The downtime that would have been needed, where the promise was given up.
    #[serde(rename = "needed_downtime_ns", with = "nanos::known")]
    pub needed_downtime: Option<Duration>,
    /// Every round of pre-copy.
    pub rounds: Vec<RoundStats>,
    /// The pages of the blackout as one more round, numbered on from the others; `None` where it
    /// did not come so far. The guest stood still, so nothing became dirty and nothing waited.
    pub blackout: Option<RoundStats>,
    /// Pages that were sent once, twice, three times, and so on.
    #[serde(rename = "sent_times_pages")]
    pub histogram: Vec<Pages>,
    /// The rule that ended pre-copy; `None` where it did not come so far.
    pub ended_by: Option<EndedBy>,
    /// The throttle steps, first to last.
    pub throttle: Vec<ThrottleStep>,
    /// How long the guest stood still.
    pub downtime: Downtime,
    /// What was promised about that.
    pub promise: Promise,
    /// The whole of it.
    pub totals: Totals,
}

impl Report {
    /// The version of the report that this code writes.
    pub const VERSION: u32 = 1;
}

impl Reported for Report {
    fn side(&self) -> Location {
        Location::Source
    }

    fn guest(&self) -> Option<&str> {
        Some(&self.guest)
    }

    fn migration(&self) -> Option<MigrationId> {
        Some(self.migration)
    }

    fn outcome(&self) -> ReportOutcome {
        self.outcome
    }

    fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }

    fn location(&self) -> Option<Location> {
        self.location
    }
}

/// Whether the destination could answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// No way back: the stream alone.
    OneWay,
    /// With handover.
    BothWays,
}

/// How a migration ended; the exit status of `mig-send` in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReportOutcome {
    /// The destination runs the guest, or the stream is complete (one way). Status 0.
    Completed,
    /// Failed; the guest runs on the source. Status 1.
    Failed,
    /// The promised downtime could not be kept; the guest runs on the source. Status 1.
    GaveUp,
    /// Cancelled; the guest runs on the source. Status 3.
    Cancelled,
    /// Not known: the source is handed-over and no answer came. Status 4.
    Unknown,
}

impl From<SourceEnding> for ReportOutcome {
    fn from(ending: SourceEnding) -> Self {
        match ending {
            SourceEnding::Moved | SourceEnding::Snapshot => Self::Completed,
            SourceEnding::Stayed | SourceEnding::Forced => Self::Failed,
            SourceEnding::Cancelled => Self::Cancelled,
            SourceEnding::Unknown => Self::Unknown,
        }
    }
}

impl ReportOutcome {
    /// The word for it in JSON.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::GaveUp => "gave_up",
            Self::Cancelled => "cancelled",
            Self::Unknown => "unknown",
        }
    }
}

/// The host that has the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Location {
    /// It stays where it was: it runs there, unless its operator had paused it.
    Source,
    /// It runs there.
    Destination,
}

impl Location {
    /// The word for it in JSON.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }
}

/// The rule that ended pre-copy, for machines and for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndedBy {
    /// [`Rule::tag`].
    pub rule: String,
    /// The rule with its figures as one line.
    pub text: String,
}

impl From<Rule> for EndedBy {
    fn from(rule: Rule) -> Self {
        Self { rule: rule.tag().to_owned(), text: rule.to_string() }
    }
}

/// The vCPUs were throttled further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThrottleStep {
    /// After this round.
    #[serde(rename = "after_round")]
    pub round: u32,
    /// So much of a vCPU's time was taken from it.
    pub percent: u8,
}

/// How long the guest stood still, in all and phase by phase. A phase that was not measured (the
/// destination's on a one-way path) is `None`.
///
/// The phases follow one another in this order; their sum is the total as far as all are known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Downtime {
    /// Last source instruction to first destination instruction.
    #[serde(rename = "total_ns", with = "nanos::known")]
    pub total: Option<Duration>,
    /// The dirty log read for the last time.
    #[serde(rename = "last_harvest_ns", with = "nanos::known")]
    pub last_harvest: Option<Duration>,
    /// What was left of the memory, sent.
    #[serde(rename = "last_pages_ns", with = "nanos::known")]
    pub last_pages: Option<Duration>,
    /// The machine's state saved.
    #[serde(rename = "state_save_ns", with = "nanos::known")]
    pub state_save: Option<Duration>,
    /// State and all that was still under way arrived.
    #[serde(rename = "transfer_ns", with = "nanos::known")]
    pub transfer: Option<Duration>,
    /// The state loaded.
    #[serde(rename = "state_load_ns", with = "nanos::known")]
    pub state_load: Option<Duration>,
    /// What the guest had written put on its disks, as far as that took longer than all before: it
    /// begins with the pause and goes on beside the rest.
    #[serde(rename = "disk_flush_ns", with = "nanos::known", default)]
    pub disk_flush: Option<Duration>,
    /// ACK back to the source and GO to the destination.
    #[serde(rename = "go_ns", with = "nanos::known")]
    pub go: Option<Duration>,
    /// From GO to the first instruction.
    #[serde(rename = "first_instruction_ns", with = "nanos::known")]
    pub first_instruction: Option<Duration>,
}

impl Downtime {
    /// The phases with their names, in order.
    pub fn phases(&self) -> [(&'static str, Option<Duration>); 8] {
        [
            ("last harvest", self.last_harvest),
            ("last pages", self.last_pages),
            ("state save", self.state_save),
            ("transfer", self.transfer),
            ("state load", self.state_load),
            ("disk flush", self.disk_flush),
            ("go", self.go),
            ("first instruction", self.first_instruction),
        ]
    }
}

/// What was promised about the downtime.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promise {
    /// `None` under `--classic`, which promises nothing.
    #[serde(rename = "max_downtime_ns", with = "nanos::known")]
    pub max_downtime: Option<Duration>,
    /// Whether the downtime was at most that; `None` where one of them is not known.
    pub kept: Option<bool>,
}

impl Promise {
    /// The promise, judged by the downtime that came of it.
    pub fn new(max_downtime: Option<Duration>, downtime: Option<Duration>) -> Self {
        Self { max_downtime, kept: downtime.zip(max_downtime).map(|(was, max)| was <= max) }
    }
}

/// The whole of a migration, the blackout included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Bytes of the stream.
    #[serde(rename = "sent_bytes")]
    pub bytes: Bytes,
    /// Pages sent as bytes, each as often as it was sent.
    #[serde(rename = "sent_pages")]
    pub pages: Pages,
    /// Pages sent as a pattern.
    #[serde(rename = "fill_pages")]
    pub fills: Pages,
    /// From the first byte to the end.
    #[serde(rename = "duration_ns", with = "nanos")]
    pub duration: Duration,
    /// CPU time that the sender used, user and system.
    #[serde(rename = "cpu_ns", with = "nanos")]
    pub cpu: Duration,
}
