//! vmrun's end of the control socket: one thread per connection, so that a client that stalls
//! stalls nobody else.

mod connection;
mod listener;
mod peer;
mod service;
#[cfg(test)]
mod tests;

use migpipe_confine::{Call, calls};

pub use listener::{Server, ServerError};
pub use peer::{ConnectionId, Peer};
pub use service::{Answer, Service};

/// What serving clients takes, beside threads and what goes over a socket.
pub const CALLS: &[Call] = calls![
    SYS_accept4;
    SYS_geteuid => "whether a client is our user's";
    SYS_memfd_create => "the bitmap that a sender reads";
    SYS_ftruncate;
    SYS_unlink => "the socket goes with the guest";
];
