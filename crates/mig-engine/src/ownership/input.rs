//! What a vmrun is asked to do with its guest.

use migpipe_units::{Acknowledged, MigrationId, Nonce};
use serde::{Deserialize, Serialize};

/// What somebody asks of a vmrun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Input {
    /// A client starts to send the guest away.
    Begin(MigrationId),
    /// The migration ends before its commit: cancelled, failed, or its client went away.
    Release(MigrationId),
    /// The point of no return at the source, with what the destination's ACK said of who gave it;
    /// one way there was none.
    Commit(MigrationId, Option<Acknowledged>),
    /// The destination runs the guest.
    Confirm(MigrationId),
    /// The destination has refused this migration, durably.
    TakeBack(MigrationId),
    /// A guest starts to arrive.
    Receive(MigrationId),
    /// A saved guest starts to arrive: its file is left if it does not run here, and nobody will
    /// ask.
    Restore(MigrationId),
    /// Pages and state are loaded and every check passed. What is to be acknowledged has a fresh
    /// nonce for it.
    Prepared(MigrationId, Option<Nonce>),
    /// Run.
    Go(MigrationId, Authority),
    /// Give this migration up, for ever.
    Refuse(MigrationId),
    /// The operator ends the guest. `force` ends it where it may be the last copy too.
    Quit {
        /// Whether the operator insists.
        force: bool,
    },
}

/// By whose word a prepared guest runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Authority {
    /// A source has committed, with the nonce of the ACK that it got; one way there was none.
    Source(Option<Nonce>),
    /// The operator says so, whatever the source does.
    Operator,
}
