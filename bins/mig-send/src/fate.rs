//! What became of a guest at its source, when its vmrun did not confirm it.

use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use mig_engine::ownership::State;
use migpipe_units::MigrationId;
use vm_control::{Client, ClientError, FrameError};

use crate::NAME;

/// How long its vmrun may take to say so; it was waited for already.
const ANSWER: Duration = Duration::from_millis(500);

/// What became of a guest at its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It runs on.
    RunsOn,
    /// It is there, and paused as its operator wanted.
    Paused,
    /// It is handed-over.
    HandedOver,
    /// It is not what this migration could have left behind.
    Is(State),
    /// Its vmrun has ended, and the guest with it.
    Gone,
    /// Its vmrun does not answer. It serves what it was asked, then finds that nobody waits for it.
    Silent,
}

/// A connection of its own to the guest's vmrun, for when the one that moves the guest breaks. A
/// mig-send that reads answers can open no other any more.
#[derive(Debug)]
pub struct Witness {
    client: Client,
    silent: bool,
}

impl Witness {
    /// Connects; the vmrun at `path` answers within `patience`.
    ///
    /// # Errors
    /// As [`Client::connect_within`].
    pub fn new(path: &Path, patience: Duration) -> Result<Self, ClientError> {
        Ok(Self { client: Client::connect_within(path, NAME, patience)?, silent: false })
    }

    /// Asks what became of the guest.
    pub fn fate(&mut self, id: MigrationId) -> Fate {
        if self.silent {
            // The connection ended with the first answer that did not come.
            return Fate::Silent;
        }
        match self.client.set_patience(ANSWER).and_then(|()| self.client.status()) {
            Ok(status) => match status.ownership {
                State::Owned | State::Migrating(_) if status.running => Fate::RunsOn,
                State::Owned | State::Migrating(_) => Fate::Paused,
                State::HandedOver(mine) if mine == id => Fate::HandedOver,
                State::Finished => Fate::Gone,
                other => Fate::Is(other),
            },
            Err(ClientError::Lost { source: FrameError::TimedOut, .. }) => {
                self.silent = true;
                Fate::Silent
            }
            Err(_) => Fate::Gone,
        }
    }
}

/// What became of a guest whose vmrun was reached a moment ago, and cannot be reached again.
pub fn without_witness(error: &ClientError) -> Fate {
    match error {
        ClientError::Connect { source, .. } => match source.kind() {
            // The socket of a vmrun that has ended, or none at all.
            ErrorKind::ConnectionRefused | ErrorKind::NotFound => Fate::Gone,
            _ => Fate::Silent,
        },
        error if error.is_end_of_vmrun() => Fate::Gone,
        _ => Fate::Silent,
    }
}
