//! What became of a guest at its source.

use migpipe_units::MigrationId;

use crate::ownership::State;

/// What became of a guest at its source, as its vmrun says over a connection of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SourceGuestState {
    /// It runs on.
    Runs,
    /// It is there and does not run: its operator paused it, or the blackout goes on.
    Paused,
    /// It is handed-over by this migration.
    HandedOver,
    /// It is not what this migration could have left behind.
    Other(State),
    /// Its vmrun has ended, and the guest with it.
    Gone,
    /// Its vmrun does not answer. It serves what it was asked, then finds that nobody waits for it.
    Silent,
}

impl SourceGuestState {
    /// What the status of the source's vmrun means for the migration `id`.
    pub fn of(ownership: State, running: bool, id: MigrationId) -> Self {
        match ownership {
            State::Owned | State::Migrating(_) if running => Self::Runs,
            State::Owned | State::Migrating(_) => Self::Paused,
            State::HandedOver(mine) if mine == id => Self::HandedOver,
            State::Finished => Self::Gone,
            other => Self::Other(other),
        }
    }
}
