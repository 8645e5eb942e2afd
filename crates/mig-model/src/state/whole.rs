//! All of it.

use mig_engine::ownership::{Decision, Ownership, State as Owner};

use super::channel::{Back, Connection, Forward, Pipe};
use super::history::{History, Rule};
use super::numbers::{HOSTS, QUERIES, SOURCE_TOOLS, TOOLS, VMS};
use super::records::{Record, Saved};
use super::tools::{PendingQuery, Receiver, SourceTool};
use super::vmrun::{ProcessState, Vm};

/// One moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// The vmruns: the source, then two that wait on the destination host, or on one each.
    pub vms: [Vm; VMS],
    /// The tools' control connections.
    pub connections: [Connection; TOOLS],
    /// The tools at the source's side.
    pub source_tools: [Option<SourceTool>; SOURCE_TOOLS],
    /// The tools at the destination's side.
    pub receivers: [Option<Receiver>; 2],
    /// Streams forward.
    pub forward: [Pipe<Forward>; 2],
    /// Answers back.
    pub back: [Pipe<Back>; 2],
    /// Queries.
    pub queries: [Option<PendingQuery>; QUERIES],
    /// The records of each host that a guest may come to, by migration.
    pub records: [[Record; 2]; HOSTS],
    /// How often those of each were lost.
    pub lost: [u8; HOSTS],
    /// The file that the guest is saved to.
    pub file: Saved,
    /// How often that file may still be read.
    pub reads: u8,
    /// Senders that were started.
    pub sent: [bool; 2],
    /// Crashes that may still come.
    pub crashes: u8,
    /// Times that the operator may still end a guest.
    pub quits: u8,
    /// Times that a host may still lose its records.
    pub wipes: u8,
    /// Faults that may still come.
    pub faults: u8,
    /// For the properties.
    pub history: History,
}

impl State {
    /// A guest that runs at the source, and two vmruns that wait on another host.
    pub fn initial(crashes: u8, quits: u8, wipes: u8, faults: u8, reads: u8) -> Self {
        Self {
            vms: [
                Vm::new(Ownership::booted()),
                Vm::new(Ownership::incoming()),
                Vm::new(Ownership::incoming()),
            ],
            connections: [Connection::IDLE; TOOLS],
            source_tools: [None; SOURCE_TOOLS],
            receivers: [None; 2],
            forward: [Pipe::CLOSED; 2],
            back: [Pipe::CLOSED; 2],
            queries: [None; QUERIES],
            records: [[Record::NONE; 2]; HOSTS],
            lost: [0; HOSTS],
            file: Saved::No,
            reads,
            sent: [false; 2],
            crashes,
            quits,
            wipes,
            faults,
            history: History {
                continued: [0; 2],
                committed: [false; 2],
                taken_by: [None; 2],
                released: [false; 2],
                stays: [false; 2],
                ran: [false; VMS],
                never: [false; VMS],
                gone: false,
                unsure: false,
                broken: None,
            },
        }
    }

    /// Notes that a rule was broken; the first one is kept.
    pub fn broke(&mut self, rule: Rule) {
        self.history.broken.get_or_insert(rule);
    }

    /// Whether a saved guest may be restored: it was not decided, and nobody works on it.
    pub fn is_free(&self, host: usize, number: usize) -> bool {
        let record = &self.records[host][number];
        // By the process, not by another that was started in its place.
        let held = record.vm.is_some_and(|vm| {
            let here = &self.vms[usize::from(vm)];
            let restores =
                matches!(here.ownership.state(), Owner::Receiving(_) | Owner::Prepared(_));
            here.process == ProcessState::Alive && (restores || here.busy.is_some())
        });
        match record.visible {
            None => true,
            Some(Decision::Restoring) => !held,
            Some(Decision::MayRun | Decision::Ran | Decision::Refused) => false,
        }
    }

    /// Whether this vmrun lives.
    pub fn is_alive(&self, vm: usize) -> bool {
        self.vms[vm].process == ProcessState::Alive
    }
}
