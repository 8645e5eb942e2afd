//! What a step of the ownership consists of.

use migpipe_units::MigrationId;
use serde::{Deserialize, Serialize};

use super::state::State;

/// What a vmrun has to do for a transition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Write this decision to the state directory, and to the disk.
    Record(MigrationId, Decision),
    /// Remove what is recorded of this migration, which has not run here and may arrive again. That
    /// it stays does no harm: see [`Decision::Restoring`].
    Forget(MigrationId),
    /// Let the vCPUs run, if the guest was not paused by its operator.
    Run,
    /// End the process.
    Exit,
}

/// What a destination host remembers of a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Decision {
    /// A saved guest is being restored and has not run. This holds for as long as the process that
    /// recorded it lives: after that the migration may arrive again.
    Restoring,
    /// The guest may have run here: nobody else may run it unless this host says so.
    MayRun,
    /// The guest did run here.
    Ran,
    /// The guest has not run here and never will.
    Refused,
}

/// One step of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    /// What must be complete before `next` holds. If it fails, the state stays as it was.
    pub before: Option<Effect>,
    /// The state from now on.
    pub next: State,
    /// What follows from the new state.
    pub after: Option<Effect>,
    /// What is to be recorded some time after; nobody waits for it.
    pub later: Option<Effect>,
}
