//! Why vmrun ended a migration, for as long as its client may ask.

use std::time::Duration;

use migpipe_units::MigrationId;
use vm_control::Refusal;
use vm_control::server::ConnectionId;

/// How often a client that has paused the guest is looked at.
pub const STATUS_POLL_INTERVAL: Duration = Duration::from_secs(1);

/// A client that gave no sign of life so many times in a row is given up: 10 s, a hundred times what
/// mig-send lets pass between two signs, and no longer than most protocols of a guest survive.
pub const SILENT_POLLS: u32 = 10;

/// Why a migration was ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Withdrawal {
    /// The operator said so.
    Cancelled,
    /// Its client does nothing.
    Silent,
}

impl Withdrawal {
    pub fn refusal(self) -> Refusal {
        match self {
            Self::Cancelled => Refusal::Cancelled,
            Self::Silent => Refusal::GivenUp { after: STATUS_POLL_INTERVAL * SILENT_POLLS },
        }
    }
}

/// A migration that was ended, for as long as its client is connected.
#[derive(Clone, Copy, Debug)]
pub struct Withdrawn {
    pub client: ConnectionId,
    pub id: MigrationId,
    pub why: Withdrawal,
}
