//! The report of a migration at its destination.

use std::time::Duration;

use migpipe_units::{Bytes, MigrationId, Pages};
use serde::{Deserialize, Serialize};

use super::progress::Reported;
use super::{Location, Mode, ReportOutcome};
use crate::precopy::nanos;

/// The report of one migration, as its destination saw it: the JSON of `mig-recv --report`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArrivalReport {
    /// The version of this format: [`ArrivalReport::VERSION`].
    pub version: u32,
    /// Whose report it is: the destination's.
    pub side: Location,
    /// The guest's name on the destination; nothing of a stream whose header did not come.
    pub guest: Option<String>,
    /// Which migration; likewise.
    pub migration: Option<MigrationId>,
    /// Whether the source listens.
    pub mode: Option<Mode>,
    /// The version of the stream's format.
    pub format_version: Option<u16>,
    /// How it ended.
    pub outcome: ReportOutcome,
    /// Why it ended so, unless it completed: one line for a person.
    pub reason: Option<String>,
    /// Where the guest is now, as far as that is known: whether the source runs one that did not come
    /// is its own to say.
    #[serde(rename = "guest_is_at")]
    pub location: Option<Location>,
    /// Every round of pre-copy, as the source has told it.
    pub rounds: Vec<ArrivedRound>,
    /// How long the guest stood still.
    pub downtime: ArrivalDowntime,
    /// The whole of it.
    pub totals: ArrivalTotals,
}

impl ArrivalReport {
    /// The version of the report that this code writes.
    pub const VERSION: u32 = 1;

    /// A report that says nothing yet.
    pub fn begun() -> Self {
        Self {
            version: Self::VERSION,
            side: Location::Destination,
            guest: None,
            migration: None,
            mode: None,
            format_version: None,
            outcome: ReportOutcome::Unknown,
            reason: Some("the migration has not ended".to_owned()),
            location: None,
            rounds: Vec::new(),
            downtime: ArrivalDowntime::default(),
            totals: ArrivalTotals::default(),
        }
    }
}

impl Reported for ArrivalReport {
    fn side(&self) -> Location {
        self.side
    }

    fn guest(&self) -> Option<&str> {
        self.guest.as_deref()
    }

    fn migration(&self) -> Option<MigrationId> {
        self.migration
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

/// What one round brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArrivedRound {
    /// Its number.
    #[serde(rename = "round")]
    pub number: u32,
    /// Pages that came as bytes.
    #[serde(rename = "received_pages")]
    pub pages: Pages,
    /// Pages that came as one pattern each.
    #[serde(rename = "fill_pages")]
    pub fills: Pages,
    /// Bytes of the stream.
    #[serde(rename = "received_bytes")]
    pub bytes: Bytes,
    /// Pages that were dirty at its end.
    #[serde(rename = "dirty_pages")]
    pub dirty: Pages,
    /// How long the source took for it.
    #[serde(rename = "duration_ns", with = "nanos")]
    pub duration: Duration,
}

/// How long the guest stood still, as far as that can be seen from the destination: from the word in
/// the stream that it does. Of a saved guest nothing is known, which was paused long ago.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArrivalDowntime {
    /// Up to the first instruction here.
    #[serde(rename = "total_ns", with = "nanos::known")]
    pub total: Option<Duration>,
    /// The last pages and the state, read.
    #[serde(rename = "receive_ns", with = "nanos::known")]
    pub receive: Option<Duration>,
    /// The state loaded.
    #[serde(rename = "state_load_ns", with = "nanos::known")]
    pub state_load: Option<Duration>,
    /// From ACK to GO. One way there is neither.
    #[serde(rename = "go_ns", with = "nanos::known")]
    pub go: Option<Duration>,
    /// From GO to the first instruction.
    #[serde(rename = "first_instruction_ns", with = "nanos::known")]
    pub first_instruction: Option<Duration>,
}

/// All that came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArrivalTotals {
    /// Bytes of the stream.
    #[serde(rename = "received_bytes")]
    pub bytes: Bytes,
    /// Pages that came as bytes, each as often as it came.
    #[serde(rename = "received_pages")]
    pub pages: Pages,
    /// Pages that came as a pattern.
    #[serde(rename = "fill_pages")]
    pub fills: Pages,
    /// From the header to the end.
    #[serde(rename = "duration_ns", with = "nanos")]
    pub duration: Duration,
    /// CPU time that the receiver used, user and system.
    #[serde(rename = "cpu_ns", with = "nanos")]
    pub cpu: Duration,
}
