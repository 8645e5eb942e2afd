//! What a source asks a host about one migration.

use std::time::Duration;

use mig_engine::handover::Query;
use mig_stream::{Kind, QueryBody};
use migpipe_units::{Acknowledged, MigrationId};
use serde::{Deserialize, Serialize};

/// What is asked of the host.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct HostQuery {
    pub id: MigrationId,
    /// Whether the source took the guest back.
    pub released: bool,
    pub to: Option<Acknowledged>,
    pub age: Duration,
}

impl HostQuery {
    /// What a stream of this kind asks.
    pub const fn new(id: MigrationId, kind: Kind, query: QueryBody) -> Self {
        let QueryBody { to, age } = query;
        Self { id, released: matches!(kind, Kind::Release), to, age }
    }

    /// The source took the guest of this migration back.
    pub const fn release(id: MigrationId) -> Self {
        Self { id, released: true, to: None, age: Duration::ZERO }
    }

    /// What the driver is to find the answer to.
    pub const fn query(&self) -> Query {
        match self.released {
            true => Query::Released,
            false => Query::Committed(self.to),
        }
    }
}
