//! What a migration consists of at the destination: the stream, the way back, and the guest. The
//! phases work on it one after the other, and hand what the next one needs to it as a value.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mig_channel::ChannelReader;
use mig_engine::handover::HandoverMode;
use mig_stream::{FormatVersion, MemoryDigest, StreamReader};
use migpipe_units::MigrationId;
use vm_state::MachineDescription;

use crate::answers::Answers;
use crate::args::Args;
use crate::host::{LocalHost, Vmrun};
use crate::memory::Incoming;
use crate::report::Arrival;

/// A guest that arrives, whose header is good.
pub struct IncomingMigration<'a> {
    pub args: &'a Args,
    pub host: &'a mut dyn LocalHost,
    pub stream: StreamReader<ChannelReader>,
    pub answers: Answers,
    pub id: MigrationId,
    pub mode: HandoverMode,
    pub version: FormatVersion,
    pub description: MachineDescription,
    /// What the guest is called on this host.
    pub name: String,
    pub began: Instant,
    /// What is told of it.
    pub arrival: Arc<Arrival>,
    /// When the stream said that the guest is paused. Of a saved one that was long ago, whenever it is
    /// read.
    pub paused: Option<Instant>,
    /// When the ACK was sent.
    pub acknowledged: Option<Instant>,
}

/// The guest, in the vmrun that has taken it up.
pub struct Guest {
    pub vmrun: Vmrun,
    pub memory: Incoming,
    /// What was measured since the source was told last.
    pub timings: Vec<(String, Duration)>,
}

/// What the stream has brought beside the pages.
#[derive(Default)]
pub struct Content {
    /// The saved state, for vmrun.
    pub sections: Vec<Vec<u8>>,
    /// What the whole memory was on the source, where that is to be compared.
    pub digest: Option<MemoryDigest>,
}
