//! What a source asks a host about one migration.

use std::time::Duration;

use mig_engine::handover::Query;
use mig_stream::{Kind, QueryBody};
use migpipe_units::MigrationId;
use serde::{Deserialize, Serialize};

/// What is asked of the host.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct HostQuery {
    pub id: MigrationId,
    /// What the driver is to find the answer to.
    pub query: Query,
    /// How long ago the migration began, by the clock of its source.
    pub age: Duration,
}

impl HostQuery {
    /// What a stream of this kind asks.
    pub const fn new(id: MigrationId, kind: Kind, body: QueryBody) -> Self {
        let query = match kind {
            Kind::Release => Query::Released,
            Kind::Resolve | Kind::Migrate | Kind::Probe => Query::Committed(body.to),
        };
        Self { id, query, age: body.age }
    }

    /// The source took the guest of this migration back.
    pub const fn release(id: MigrationId) -> Self {
        Self { id, query: Query::Released, age: Duration::ZERO }
    }
}
