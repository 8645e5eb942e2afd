//! What a vmrun is to its guest.

use std::fmt;

use migpipe_units::MigrationId;
use serde::{Deserialize, Serialize};

/// What one vmrun is to its guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum State {
    /// The guest is this vmrun's: it may run and may be paused.
    Owned,
    /// A client sends the guest away; it may run until the blackout.
    Migrating(MigrationId),
    /// The guest belongs to the destination. It never runs here again, unless the destination
    /// refuses it.
    HandedOver(MigrationId),
    /// No guest yet.
    Incoming,
    /// A guest is arriving.
    Receiving(MigrationId),
    /// The guest is here, whole, and waits for GO.
    Prepared(MigrationId),
    /// This host will never run that migration's guest.
    Refused(MigrationId),
    /// Nothing is left to do; the process ends.
    Finished,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Owned => f.write_str("owned"),
            Self::Migrating(id) => write!(f, "migrating ({id})"),
            Self::HandedOver(id) => write!(f, "handed-over ({id})"),
            Self::Incoming => f.write_str("incoming"),
            Self::Receiving(id) => write!(f, "receiving ({id})"),
            Self::Prepared(id) => write!(f, "prepared ({id})"),
            Self::Refused(id) => write!(f, "refused ({id})"),
            Self::Finished => f.write_str("finished"),
        }
    }
}
