//! What a query to a destination carries.

use std::str::FromStr;
use std::time::Duration;

use mig_engine::handover::Query;
use mig_stream::Preamble;
use migpipe_units::{Acknowledged, MigrationId};
use serde::{Deserialize, Serialize};

/// What a query carries beside the id of its migration: all that the resolve helper takes.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct QueryArgs {
    /// The source took the guest back before its commit, and says so.
    released: bool,
    /// Who acknowledged the guest.
    pub taken_by: Option<Acknowledged>,
    /// How long ago the migration began.
    pub age: Duration,
}

impl QueryArgs {
    /// Of a migration that began so long ago.
    pub const fn new(query: Query, age: Duration) -> Self {
        match query {
            Query::Committed(taken_by) => Self { released: false, taken_by, age },
            Query::Released => Self { released: true, taken_by: None, age },
        }
    }

    /// The preamble of the query about the migration `id`.
    pub fn preamble(&self, id: MigrationId) -> Preamble {
        if self.released { Preamble::release(id) } else { Preamble::resolve(id) }
    }
}

impl FromStr for QueryArgs {
    type Err = serde_json::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        serde_json::from_str(text)
    }
}
