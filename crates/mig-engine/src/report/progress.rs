//! Where a migration is.

use std::fmt;
use std::time::Duration;

use migpipe_units::{Bytes, BytesPerSec, MigrationId, Pages};
use serde::{Deserialize, Serialize};

use super::text::{Time, grouped};
use super::{Location, ReportOutcome};
use crate::precopy::nanos;

/// How long a line of progress is at most where nobody says how wide it may be, in characters.
const WIDTH: usize = 79;

/// Where a migration is: what `vmctl info`, SIGUSR1 and `--progress json` show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// What it is doing.
    pub phase: Phase,
    /// The round that is being sent, from 0 on.
    pub round: u32,
    /// Bytes sent in all rounds so far.
    #[serde(rename = "sent_bytes")]
    pub sent: Bytes,
    /// Bytes to be sent in all, as far as it is known: `sent` and the rest of this round.
    #[serde(rename = "total_bytes")]
    pub total: Bytes,
    /// Pages that the destination lacks, as of the last harvest and less those sent since.
    #[serde(rename = "dirty_pages")]
    pub dirty: Pages,
    /// The measured rate.
    #[serde(rename = "rate_bytes_per_sec")]
    pub rate: BytesPerSec,
    /// Time until `total` is sent, where a rate is known.
    #[serde(rename = "eta_ns", with = "nanos::known")]
    pub eta: Option<Duration>,
    /// How far the vCPUs are throttled.
    #[serde(rename = "throttle_percent")]
    pub throttle: u8,
}

/// What a line of progress says beside [`Progress`]: what does not change on the way, and the end.
pub trait Reported {
    /// Whose report it is.
    fn side(&self) -> Location;
    /// The guest's name on this side, once it is known.
    fn guest(&self) -> Option<&str>;
    /// Which migration, once it is known.
    fn migration(&self) -> Option<MigrationId>;
    /// How it ended.
    fn outcome(&self) -> ReportOutcome;
    /// Why it ended so, unless it completed.
    fn reason(&self) -> Option<&str>;
    /// Where the guest is, where that is known.
    fn location(&self) -> Option<Location>;
}

/// A line of `--progress json`: where a migration is, of which guest, and at the end what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgressEvent {
    /// The version of this format: [`ProgressEvent::VERSION`].
    pub version: u32,
    /// When, since 1970 began (UTC), by the clock of this host.
    #[serde(rename = "time_ns", with = "nanos")]
    pub time: Duration,
    /// Whose line it is.
    pub side: Location,
    /// The guest's name on this side; none of a stream whose header did not come.
    pub guest: Option<String>,
    /// Which migration; likewise.
    pub migration: Option<MigrationId>,
    /// Where it is.
    #[serde(flatten)]
    pub progress: Progress,
    /// How it ended, in the last line; nothing before.
    pub outcome: Option<ReportOutcome>,
    /// Why it ended so, unless it completed.
    pub reason: Option<String>,
    /// Where the guest is then, where that is known.
    #[serde(rename = "guest_is_at")]
    pub location: Option<Location>,
}

impl ProgressEvent {
    /// The version of the line that this code writes.
    pub const VERSION: u32 = 1;

    /// On the way, at `time` (since 1970 began); whose it is stands in the report.
    pub fn new(report: &impl Reported, progress: Progress, time: Duration) -> Self {
        Self {
            version: Self::VERSION,
            time,
            side: report.side(),
            guest: report.guest().map(str::to_owned),
            migration: report.migration(),
            progress,
            outcome: None,
            reason: None,
            location: None,
        }
    }

    /// The last one: what the report says of the end.
    pub fn last(report: &impl Reported, progress: Progress, time: Duration) -> Self {
        Self {
            outcome: Some(report.outcome()),
            reason: report.reason().map(str::to_owned),
            location: report.location(),
            ..Self::new(report, Progress { phase: Phase::Done, ..progress }, time)
        }
    }
}

/// What a migration is doing. In JSON: `connect`, `pre_copy`, `blackout`, `handover`, `resolve`,
/// `done`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Header sent, READY not yet here; the guest is untouched.
    #[default]
    Connect,
    /// Sending rounds; the guest runs.
    PreCopy,
    /// The guest is paused.
    Blackout,
    /// State is sent; ACK, GO and RUNNING are under way.
    Handover,
    /// GO was sent and no answer came; asking the destination what became of it.
    Resolve,
    /// It ended, one way or the other.
    Done,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Connect => "connect",
            Self::PreCopy => "pre-copy",
            Self::Blackout => "blackout",
            Self::Handover => "handover",
            Self::Resolve => "resolve",
            Self::Done => "done",
        })
    }
}

impl Progress {
    /// One line for a person, without a line feed; at most 79 columns.
    pub fn line(&self) -> String {
        self.line_within(WIDTH)
    }

    /// As [`Self::line`], in at most `width` columns. Where not all fits, what matters least is left
    /// out. All of it is ASCII, so that each character is one column.
    pub fn line_within(&self, width: usize) -> String {
        let mut line = match self.phase {
            Phase::PreCopy => format!("{} round {}", self.phase, self.round),
            phase => phase.to_string(),
        };
        let mut parts = vec![format!("{} of {}", self.sent, self.total)];
        if self.total.0 > 0 {
            let share = u128::from(self.sent.0) * 100 / u128::from(self.total.0);
            parts.push(format!("{}%", share.min(100)));
        }
        if matches!(self.phase, Phase::PreCopy | Phase::Blackout) {
            if self.rate.0 > 0 {
                parts.push(self.rate.to_string());
            }
            if self.throttle > 0 {
                parts.push(format!("throttle {}%", self.throttle));
            }
            parts.push(format!("{} dirty", grouped(self.dirty.0)));
            parts.extend(self.eta.map(|eta| format!("eta {}", Time(eta))));
        }
        for part in parts {
            if line.len() + 2 + part.len() > width {
                break;
            }
            line.push_str("  ");
            line.push_str(&part);
        }
        line.truncate(width);
        line
    }
}
