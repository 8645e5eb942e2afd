//! Whoever is at the other end of a connection.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use nix::sys::socket::{MsgFlags, recv};

/// Names one connection for as long as vmrun lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnectionId(pub(super) u64);

/// Whoever is at the other end of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Peer<'a> {
    pub(super) id: ConnectionId,
    pub(super) stream: &'a UnixStream,
}

impl Peer<'_> {
    /// The connection.
    pub const fn id(&self) -> ConnectionId {
        self.id
    }

    /// Whether it has closed its end.
    pub fn is_gone(&self) -> bool {
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        matches!(recv(self.stream.as_raw_fd(), &mut [0], flags), Ok(0))
    }
}
