//! What is on disks, and what of it travels.

use mig_engine::ownership::Decision;
use migpipe_units::{Acknowledged, HostId, Nonce};

/// What an ACK says: each copy of the guest has a nonce of its own, and a host whose records were
/// lost is another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ack {
    /// The vmrun that has the copy.
    pub vm: u8,
    /// The host that it is on.
    pub host: u8,
    /// How often that host's records were lost before.
    pub lost: u8,
}

impl Ack {
    /// As it travels.
    pub const fn told(self) -> Acknowledged {
        let mut host = [0; 16];
        (host[0], host[1]) = (self.host, self.lost);
        Acknowledged { host: HostId::from_bytes(host), nonce: self.nonce() }
    }

    /// What GO must bring.
    pub const fn nonce(self) -> Nonce {
        Nonce::from_bytes([self.vm; 16])
    }

    /// What was told.
    pub fn of(told: Acknowledged) -> Self {
        let host = told.host.to_bytes();
        Self { vm: told.nonce.to_bytes()[0], host: host[0], lost: host[1] }
    }
}

/// What a destination host remembers of one migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Record {
    /// What a reader sees.
    pub visible: Option<Decision>,
    /// What a crash of the host leaves.
    pub durable: Option<Decision>,
    /// The vmrun whose socket is in it.
    pub vm: Option<u8>,
}

impl Record {
    /// Nothing is remembered.
    pub const NONE: Self = Self { visible: None, durable: None, vm: None };
}

/// The file that a guest is saved to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Saved {
    /// There is none, or it has no name yet.
    No,
    /// It can be read, and a power loss takes it away.
    Visible,
    /// It is on the disk.
    Durable,
}
