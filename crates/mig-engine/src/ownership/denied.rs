//! Why a vmrun does not do what it was asked.

use migpipe_units::MigrationId;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::state::State;

/// Why a vmrun does not do what it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Error)]
pub enum Denied {
    /// The guest is on its way already.
    #[error("a migration of this guest is under way ({0}): wait for it, or cancel it")]
    AlreadyMigrating(MigrationId),
    /// The guest is not this vmrun's any more.
    #[error("the guest was handed over ({0}): find its outcome with mig-send --resolve")]
    HandedOver(MigrationId),
    /// The guest has not arrived.
    #[error("the guest is still arriving")]
    StillArriving,
    /// This migration was refused, and a refusal is for ever.
    #[error("this host has refused the migration {0}, for ever: send the guest again")]
    Refused(MigrationId),
    /// GO is for a copy of the guest that another vmrun has.
    #[error(
        "the GO of migration {0} is for another copy of the guest: the stream of this one is a \
         copy, and its source has heard of another ACK"
    )]
    NotAcknowledged(MigrationId),
    /// The request names another migration.
    #[error("this is not about the migration {asked}: the guest is {state}")]
    OtherMigration {
        /// The migration that was asked about.
        asked: MigrationId,
        /// What the vmrun is.
        state: State,
    },
    /// The vmrun holds a guest, and was asked to take another.
    #[error("this vmrun has a guest: start another with vmrun --incoming")]
    NotIncoming,
    /// The guest may exist nowhere else.
    #[error(
        "the guest was handed over ({0}) and the destination has not confirmed it: resolve it, or \
         quit with --force to throw this copy away"
    )]
    MayBeLastCopy(MigrationId),
    /// The process is about to end.
    #[error("this vmrun is ending")]
    Finished,
}
