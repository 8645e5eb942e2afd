//! A vmrun.

use mig_engine::ownership::{Decision, Input, Ownership};

/// Whether a process lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProcessState {
    /// It lives.
    Alive,
    /// It ended by itself.
    Ended,
    /// It was killed.
    Killed,
}

/// One vmrun: its own ownership machine, and what `bins/vmrun/src/guest.rs` keeps beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Vm {
    /// Whether the process lives.
    pub process: ProcessState,
    /// The machine under test.
    pub ownership: Ownership,
    /// Whether vCPUs run now.
    pub running: bool,
    /// The migration by which the guest leaves.
    pub leaving: Option<Leaving>,
    /// The receiver that brings a guest.
    pub receiver: Option<u8>,
    /// A step whose record is being written: the lock is held.
    pub busy: Option<Busy>,
    /// The migrations whose guest it took back, though their destination may be prepared.
    pub released: [bool; 2],
    /// What is still to be recorded when somebody finds the time.
    pub later: Option<(u8, Decision)>,
}

impl Vm {
    /// A vmrun that has just started.
    pub const fn new(ownership: Ownership) -> Self {
        Self {
            process: ProcessState::Alive,
            ownership,
            running: ownership.may_run(),
            leaving: None,
            receiver: None,
            busy: None,
            released: [false; 2],
            later: None,
        }
    }
}

/// See `Migration` in `bins/vmrun/src/guest.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Leaving {
    /// The tool that began it.
    pub client: u8,
    /// The blackout has begun.
    pub paused: bool,
    /// The state was saved since, and the guest has not run.
    pub saved: bool,
}

/// A step between its record and its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Busy {
    /// The step.
    pub input: Input,
    /// The tool that waits for it.
    pub by: u8,
}
