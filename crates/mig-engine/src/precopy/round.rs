//! What one round did.

use std::time::Duration;

use migpipe_units::{Bytes, BytesPerSec, Pages};
use serde::{Deserialize, Serialize};

use super::nanos;

/// What one round did, the harvest at its end included.
///
/// The JSON names carry the units: `round`, `sent_pages`, `fill_pages`, `sent_bytes`,
/// `deferred_pages`, `dirtied_pages`, `duration_ns`, `rate_bytes_per_sec`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RoundStats {
    /// Its number; round 0 sends all memory that exists.
    #[serde(rename = "round")]
    pub number: u32,
    /// Pages whose bytes were sent.
    #[serde(rename = "sent_pages")]
    pub sent: Pages,
    /// Pages that were sent as a pattern (`Fill`), not as bytes.
    #[serde(rename = "fill_pages")]
    pub fills: Pages,
    /// Bytes of the stream, record headers included.
    #[serde(rename = "sent_bytes")]
    pub bytes: Bytes,
    /// Dirty pages that this round did not send because they wait for the blackout.
    #[serde(rename = "deferred_pages")]
    pub deferred: Pages,
    /// Pages that became dirty, as found at the end. A deferred page that was written to again
    /// did not *become* dirty and is not counted.
    #[serde(rename = "dirtied_pages")]
    pub dirtied: Pages,
    /// How long the round took.
    #[serde(rename = "duration_ns", with = "nanos")]
    pub duration: Duration,
    /// The rate of the stream in this round.
    #[serde(rename = "rate_bytes_per_sec")]
    pub rate: BytesPerSec,
}

impl RoundStats {
    /// Pages that the destination got in this round, in whatever form.
    pub const fn transferred(&self) -> Pages {
        Pages(self.sent.0.saturating_add(self.fills.0))
    }

    /// Pages that the destination still lacks at the end of this round.
    pub const fn left(&self) -> Pages {
        Pages(self.dirtied.0.saturating_add(self.deferred.0))
    }
}
