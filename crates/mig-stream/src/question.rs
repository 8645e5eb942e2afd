//! What a source wants to know of a migration, or has to say about it.

use std::time::Duration;

use migpipe_units::Acknowledged;

use crate::bytes::{Malformed, Put, Take};
use crate::record::nanoseconds;

/// What a question carries beside the id of the migration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Question {
    /// What the `Ack` said that the source has; nothing where none came, as one way.
    pub to: Option<Acknowledged>,
    /// How long ago the migration began, by the clock of its source: a host that remembers less
    /// does not know whether it heard of it.
    pub age: Duration,
}

impl Question {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.u8(self.to.is_some().into());
        if let Some(to) = &self.to {
            bytes.acknowledged(to);
        }
        bytes.u64(nanoseconds(self.age));
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut take = Take::new(bytes);
        let to = match take.u8()? {
            0 => None,
            1 => Some(take.acknowledged()?),
            _ => return Err(Malformed("it is not told whether the guest was acknowledged")),
        };
        let age = Duration::from_nanos(take.u64()?);
        take.finish()?;
        Ok(Self { to, age })
    }
}
