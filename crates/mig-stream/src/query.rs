//! What a source wants to know of a migration, or has to say about it.

use std::time::Duration;

use migpipe_units::Acknowledged;
use zerocopy::little_endian::U64;

use crate::bytes::{AcknowledgedBytes, Malformed, Put, Take};
use crate::record::nanoseconds;

/// What a query carries beside the id of the migration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueryBody {
    /// What the `Ack` said that the source has; nothing where none came, as one way.
    pub to: Option<Acknowledged>,
    /// How long ago the migration began, by the clock of its source: a host that remembers less
    /// does not know whether it heard of it.
    pub age: Duration,
}

impl QueryBody {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.put(&u8::from(self.to.is_some()));
        if let Some(to) = &self.to {
            bytes.put(&AcknowledgedBytes::from(to));
        }
        bytes.put(&U64::new(nanoseconds(self.age)));
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut take = Take::new(bytes);
        let to = match take.read::<u8>()? {
            0 => None,
            1 => Some(take.read::<AcknowledgedBytes>()?.into()),
            _ => return Err(Malformed("it is not told whether the guest was acknowledged")),
        };
        let age = Duration::from_nanos(take.read::<U64>()?.get());
        take.finish()?;
        Ok(Self { to, age })
    }
}
