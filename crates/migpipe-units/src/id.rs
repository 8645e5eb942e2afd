//! The identities that a handover is about: which migration, which host, which acknowledgement.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// An id of 16 random bytes that cannot be taken for one of another type.
macro_rules! random_id {
    ($(#[$about:meta])* $name:ident) => {
        $(#[$about])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(Uuid);

        impl $name {
            /// A new random id (UUID version 4).
            pub fn random() -> Self {
                Self(Uuid::new_v4())
            }

            /// The id made of these 16 bytes, in the order in which [`Self::to_bytes`] gives them.
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(Uuid::from_bytes(bytes))
            }

            /// The id as 16 bytes, most significant first, as RFC 4122 writes them.
            pub const fn to_bytes(self) -> [u8; 16] {
                *self.0.as_bytes()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::parse_str(text).map(Self)
            }
        }
    };
}

random_id! {
    /// Names one migration for as long as anybody remembers it: in the stream, in both vmruns and
    /// in the durable records of the destination host.
    MigrationId
}

random_id! {
    /// Names the memory that a host has of migrations: it is made with the directory of its
    /// records, and is lost with it. A host that was installed anew is another one.
    HostId
}

random_id! {
    /// What a destination puts into its ACK and wants to see in GO: who has it was told by the
    /// destination that this very copy of the guest is whole.
    Nonce
}

/// What an ACK says of who gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Acknowledged {
    /// The host whose records have the migration.
    pub host: HostId,
    /// The copy of the guest that is prepared there.
    pub nonce: Nonce,
}
