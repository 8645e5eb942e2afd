//! Logging which pages a guest writes to, for somebody who wants to know how many they are before a
//! migration begins. It changes nothing of the guest, and is over when its client is gone or a migration
//! needs the log.

use page_bitmap::GuestBitmap;
use vm_control::server::ConnectionId;

/// A measurement that goes on.
pub struct Measurement {
    pub client: ConnectionId,
    pub log: GuestBitmap,
}
