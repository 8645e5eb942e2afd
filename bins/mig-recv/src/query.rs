//! What a source asks a host about one migration.

use std::time::Duration;

use mig_engine::handover::resolve::{Known, Reply, reply, reply_to_release};
use mig_stream::{Kind, Question};
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
    pub const fn new(id: MigrationId, kind: Kind, question: Question) -> Self {
        let Question { to, age } = question;
        Self { id, released: matches!(kind, Kind::Release), to, age }
    }

    /// What the host does with it, as far as it knows.
    pub fn reply(&self, known: Known) -> Reply {
        if self.released { reply_to_release(known) } else { reply(known) }
    }
}
