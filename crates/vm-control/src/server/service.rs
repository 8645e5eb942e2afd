//! What answers the requests.

use std::os::fd::OwnedFd;
use std::sync::mpsc::Receiver;

use super::peer::{ConnectionId, Peer};
use crate::message::{Event, Reply, Request};

/// An answer, and the descriptors that go with it.
#[derive(Debug)]
pub struct Answer {
    /// What is said.
    pub reply: Reply,
    /// What comes beside it.
    pub fds: Vec<OwnedFd>,
}

impl From<Reply> for Answer {
    fn from(reply: Reply) -> Self {
        Self { reply, fds: Vec::new() }
    }
}

/// What answers the requests. Called from many threads at once.
pub trait Service: Send + Sync + 'static {
    /// Answers one request of one connection. [`Request::Subscribe`] never comes here, and
    /// [`Request::Hello`] only with the right version. While it waits for something else it should
    /// look whether the peer is there still: its going is not told before this returns.
    fn handle(&self, peer: &Peer<'_>, request: Request) -> Answer;

    /// The connection is gone, whatever the reason. Called once for each.
    fn closed(&self, connection: ConnectionId);

    /// A channel on which events come from now on.
    fn subscribe(&self) -> Receiver<Event>;
}
