//! What a vmrun says of a migration.

use serde::{Deserialize, Serialize};

/// What a vmrun says when it is asked about a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum MigrationStatus {
    /// The guest is arriving.
    Receiving,
    /// The guest waits for GO.
    Prepared,
    /// A copy of the guest waits for GO, and not for the one of who asks.
    PreparedForAnother,
    /// The guest runs here, or ran here and went on from here.
    Running,
    /// The guest was refused here.
    Refused,
    /// This vmrun has nothing to do with that migration.
    NotMine,
}
