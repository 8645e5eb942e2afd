//! What a migration consists of at the source: the guest, the channel, pre-copy and the report. The
//! phases work on it one after the other, and hand what the next one needs to it as a value.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mig_channel::{ChannelWriter, Tunnel};
use mig_engine::handover::HandoverMode;
use mig_engine::precopy::{Pacer, Policy, RateMeter, Wws};
use mig_engine::report::Report;
use mig_stream::StreamWriter;
use migpipe_cli::{Milestone, Milestones};
use migpipe_units::MigrationId;
use vm_control::Client;
use vm_mapping::GuestMemory;
use vm_state::MachineDescription;

use crate::answers::Answers;
use crate::args::Args;
use crate::attempts::Attempts;
use crate::disks::Disks;
use crate::error::StepError;
use crate::monitor::Shared;
use crate::pages::PageSender;
use crate::query::ResolveHelper;
use crate::status::StatusConnection;

/// A guest that is being sent away.
pub struct OutgoingMigration<'a> {
    pub args: &'a Args,
    pub shared: Arc<Shared>,
    pub id: MigrationId,
    pub started: Instant,
    pub guest: Guest<'a>,
    pub channel: Channel<'a>,
    pub precopy: PreCopy,
    pub report: Report,
    pub milestones: Milestones,
    /// When the last vCPU had stopped.
    pub paused: Option<Instant>,
    /// When the destination had the guest.
    pub acknowledged: Option<Instant>,
}

/// The guest at its vmrun.
pub struct Guest<'a> {
    /// The connection to which the migration belongs.
    pub client: Client,
    /// The one that says what became of the guest when that one breaks.
    pub status: &'a mut StatusConnection,
    pub machine: MachineDescription,
    pub memory: GuestMemory,
    pub disks: Disks,
}

/// The way to the destination and back.
pub struct Channel<'a> {
    pub mode: HandoverMode,
    pub stream: StreamWriter<ChannelWriter>,
    /// One way none come.
    pub answers: Answers,
    pub tunnel: Option<Tunnel>,
    /// Who asks the destination what became of the guest, where it can be asked.
    pub helper: Option<ResolveHelper>,
    /// The attempts at that.
    pub attempts: Attempts<'a>,
}

/// What pre-copy decides by, and what pages are sent with.
pub struct PreCopy {
    pub policy: Policy,
    pub pacer: Pacer,
    pub meter: RateMeter,
    pub wws: Wws,
    pub pages: PageSender,
}

impl OutgoingMigration<'_> {
    /// Ctrl-C at the terminal is for this program again.
    pub fn release_terminal(&self) {
        if let Some(tunnel) = &self.channel.tunnel {
            tunnel.release_terminal();
        }
    }

    /// Tells whoever waits for it.
    pub fn reached(&self, milestone: Milestone) {
        self.milestones.reached(milestone, self.id);
    }

    /// What the monitor was told since the last call.
    pub fn take_orders(&mut self) -> Result<(), StepError> {
        if self.shared.is_cancelled() {
            return Err(StepError::Cancelled);
        }
        if let Some(limit) = self.shared.take_speed() {
            self.precopy.pacer.set_limit(limit, self.started.elapsed());
            // What was measured under the old limit says nothing of the new one.
            self.precopy.meter = RateMeter::default();
            self.precopy.meter.start(self.started.elapsed());
        }
        if let Some(downtime) = self.shared.take_downtime() {
            self.precopy.policy.set_max_downtime(downtime);
        }
        Ok(())
    }

    /// How long the next step of the blackout may take.
    pub fn left_of_blackout(&self) -> Duration {
        match (self.args.enforce_downtime, self.paused) {
            (true, Some(paused)) => {
                self.precopy.policy.limits().max_downtime.saturating_sub(paused.elapsed())
            }
            _ => self.args.timeout,
        }
    }
}
