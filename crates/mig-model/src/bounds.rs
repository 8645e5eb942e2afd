//! How much is looked at, and what is wrong in it.

use mig_engine::handover::HandoverMode;

use crate::mutation::Mutation;
use crate::state::{Ack, HOSTS, State};

/// How much of the world is looked at. Delays are not bounded.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// The senders that may be started, in any order and at once: the mode of each one's
    /// migration.
    pub modes: [Option<HandoverMode>; 2],
    /// The second sender may start while the first is at work.
    pub at_once: bool,
    /// The one stream is delivered twice, to two vmruns; both ways, the second one is a copy whose
    /// answers reach nobody.
    pub twice: bool,
    /// The second vmrun is on another host, to which every query may come by mistake.
    pub other_host: bool,
    /// Times that a host loses its records.
    pub wipes: u8,
    /// The destination gives a prepared guest up by itself (`--go-timeout`).
    pub go_timeout: bool,
    /// How often a file that the guest is saved to may be read ([`HandoverMode::Saved`]): again after a
    /// restore that failed, and by two at once. It has no name before it is whole: nobody reads it
    /// earlier, and until then it can be given up.
    pub reads: u8,
    /// The file is a snapshot: its guest stays, and it is read as a copy of another guest alone, which
    /// is none of this one's.
    pub snapshot: bool,
    /// Resolvers that may be at work at once. Each may be started again and again.
    pub resolvers: usize,
    /// Crashes: of a tool, of a vmrun or of a whole host.
    pub crashes: u8,
    /// Times that the operator ends a guest (without force).
    pub quits: u8,
    /// Tunnels are cut, beside readers that give up waiting.
    pub cuts: bool,
    /// Failures, timeouts, cuts, losses and cancels, or [`UNBOUNDED`].
    pub faults: u8,
}

/// As many as there can be.
pub const UNBOUNDED: u8 = u8::MAX;

/// The model: the bounds, and the mistake in it if there is to be one.
#[derive(Clone, Copy, Debug)]
pub struct HandoverModel {
    /// How much is looked at.
    pub bounds: Bounds,
    /// What is wrong.
    pub mutation: Option<Mutation>,
}

impl HandoverModel {
    /// The real protocol within these bounds.
    pub const fn new(bounds: Bounds) -> Self {
        Self { bounds, mutation: None }
    }

    /// The protocol with one mistake.
    pub const fn with(bounds: Bounds, mutation: Mutation) -> Self {
        Self { bounds, mutation: Some(mutation) }
    }

    pub(crate) fn is(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }

    /// Which way the messages of this migration go.
    pub fn mode_of(&self, number: u8) -> HandoverMode {
        self.bounds.modes[usize::from(number)].unwrap_or(HandoverMode::BothWays)
    }

    /// Whether the guest is sent to a file.
    pub fn is_saved(&self) -> bool {
        self.mode_of(0) == HandoverMode::Saved
    }

    /// The host on which a vmrun that waits for a guest is.
    pub(crate) const fn host_of(&self, vm: usize) -> usize {
        if self.bounds.other_host && vm == 2 { 1 } else { 0 }
    }

    pub(crate) fn hosts(&self) -> impl Iterator<Item = usize> {
        0..if self.bounds.other_host { HOSTS } else { 1 }
    }

    /// What the ACK of this vmrun says.
    pub(crate) fn ack_of(&self, state: &State, vm: usize) -> Ack {
        let host = self.host_of(vm);
        Ack { vm: vm as u8, host: host as u8, lost: state.lost[host] }
    }
}
