//! The migration by which the guest leaves, as its vmrun knows it.

use std::time::Instant;

use page_bitmap::GuestBitmap;
use vm_control::Order;
use vm_control::server::ConnectionId;

/// The migration by which the guest leaves.
pub struct Migration {
    pub client: ConnectionId,
    pub began: Instant,
    pub log: Option<GuestBitmap>,
    /// The blackout has begun: the migration paused the guest.
    pub paused: bool,
    /// The state was saved since, and the guest has not run.
    pub saved: bool,
    /// How often its client has said that it lives.
    pub signs: u64,
    /// How often the migration has paused the guest.
    pub pauses: u64,
    /// In which of these pauses the disks were flushed last.
    pub flushed_in: Option<u64>,
    /// The state was given out at all: a destination may be prepared.
    pub given_out: bool,
    /// How its destination is asked, if it can be: arguments of `mig-send --resolve`.
    pub destination: Vec<String>,
    pub progress: Option<String>,
    pub orders: Vec<Order>,
}

impl Migration {
    /// One that `client` has just begun.
    pub fn new(client: ConnectionId) -> Self {
        Self {
            client,
            began: Instant::now(),
            log: None,
            paused: false,
            saved: false,
            signs: 0,
            pauses: 0,
            flushed_in: None,
            given_out: false,
            destination: Vec::new(),
            progress: None,
            orders: Vec::new(),
        }
    }

    /// The pause that lasts: which one it is.
    pub fn pause(&self) -> Option<u64> {
        self.paused.then_some(self.pauses)
    }
}
