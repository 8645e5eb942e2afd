//! What a query to a destination carries.

use std::str::FromStr;
use std::time::Duration;

use mig_engine::handover::Query;
use mig_stream::Preamble;
use migpipe_units::MigrationId;
use serde::{Deserialize, Serialize};

/// What a query carries beside the id of its migration: all that the resolve helper takes.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct QueryArgs {
    /// What the destination is asked, or told.
    pub query: Query,
    /// How long ago the migration began.
    pub age: Duration,
}

impl QueryArgs {
    /// The preamble of the query about the migration `id`.
    pub fn preamble(&self, id: MigrationId) -> Preamble {
        match self.query {
            Query::Committed(_) => Preamble::resolve(id),
            Query::Released => Preamble::release(id),
        }
    }
}

impl FromStr for QueryArgs {
    type Err = serde_json::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        serde_json::from_str(text)
    }
}
