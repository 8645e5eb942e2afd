//! One connection: its requests are answered in the order in which they come, until it ends or
//! becomes a stream of events.

use std::collections::HashMap;
use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use super::peer::{ConnectionId, Peer};
use super::service::Service;
use crate::frame::{self, FrameError};
use crate::message::{Event, PROTOCOL_VERSION, Reply, Request, longest_request};
use crate::refusal::Refusal;

/// A client says hello within this time; one that has begun a request finishes it, and takes its
/// answer, within as much.
const FRAME_TIMEOUT: Duration = Duration::from_secs(10);

/// How often a subscriber that hears nothing is looked after.
const SUBSCRIBER_POLL_INTERVAL: Duration = Duration::from_secs(1);

/// The connections that are served now.
#[derive(Debug, Default)]
pub(super) struct Connections {
    next: AtomicU64,
    open: Mutex<HashMap<ConnectionId, Weak<UnixStream>>>,
    /// How many requests are being answered.
    busy: Mutex<usize>,
    idle: Condvar,
}

impl Connections {
    /// Waits until fewer than `most` are open, but no longer than `within`: whether they are.
    pub(super) fn wait_for_slot(&self, most: usize, within: Duration) -> bool {
        let began = Instant::now();
        while self.open().len() >= most {
            if began.elapsed() > within {
                return false;
            }
            thread::sleep(Duration::from_millis(1));
        }
        true
    }

    fn open(&self) -> MutexGuard<'_, HashMap<ConnectionId, Weak<UnixStream>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends all that are open: their clients see that at once.
    pub(super) fn close(&self) {
        for stream in self.open().values().filter_map(Weak::upgrade) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Waits until no request is being answered, but no longer than `within`.
    pub(super) fn drain(&self, within: Duration) {
        let busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = self.idle.wait_timeout_while(busy, within, |busy| *busy > 0);
    }
}

/// One connection among those that are open. Whatever ends it, also a panic in the service, its
/// place is free again, and what its client had begun does not wait for ever for somebody who is
/// gone.
struct Open {
    id: ConnectionId,
    service: Arc<dyn Service>,
    connections: Arc<Connections>,
}

impl Open {
    fn new(
        stream: &Arc<UnixStream>,
        service: Arc<dyn Service>,
        connections: &Arc<Connections>,
    ) -> Self {
        let id = ConnectionId(connections.next.fetch_add(1, Ordering::Relaxed));
        connections.open().insert(id, Arc::downgrade(stream));
        Self { id, service, connections: Arc::clone(connections) }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.service.closed(self.id);
        self.connections.open().remove(&self.id);
    }
}

/// A request that is being answered.
struct Busy<'a>(&'a Connections);

impl<'a> Busy<'a> {
    fn new(connections: &'a Connections) -> Self {
        *connections.busy.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        Self(connections)
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        let mut busy = self.0.busy.lock().unwrap_or_else(PoisonError::into_inner);
        *busy -= 1;
        if *busy == 0 {
            self.0.idle.notify_all();
        }
    }
}

/// Serves the connection in a thread of its own.
pub(super) fn spawn(
    stream: UnixStream,
    service: Arc<dyn Service>,
    connections: &Arc<Connections>,
) -> io::Result<ConnectionId> {
    let stream = Arc::new(stream);
    let open = Open::new(&stream, service, connections);
    let id = open.id;
    let spawned = thread::Builder::new().name(format!("client-{}", id.0)).spawn(move || {
        match converse(&stream, &open) {
            Ok(()) | Err(FrameError::Closed) => debug!("client {} closed", id.0),
            Err(error) => {
                warn!("client {}: {error}", id.0);
                let refusal = match error {
                    FrameError::TooLong { length, most } => Refusal::TooLong { length, most },
                    FrameError::Damaged(_) => Refusal::Damaged,
                    _ => return,
                };
                let _ = frame::send(&stream, &Reply::Refused(refusal), &[]);
            }
        }
    });
    spawned.map(|_| id)
}

fn converse(stream: &UnixStream, open: &Open) -> Result<(), FrameError> {
    stream.set_write_timeout(Some(FRAME_TIMEOUT)).map_err(FrameError::Io)?;
    let mut greeted = false;
    loop {
        // A client that is known may be silent between requests for as long as it likes.
        let timeout = if greeted { None } else { Some(FRAME_TIMEOUT) };
        stream.set_read_timeout(timeout).map_err(FrameError::Io)?;
        let request: Request =
            frame::receive_request(stream, FRAME_TIMEOUT, |first| longest_request(first, greeted))?;
        if greeted && request == Request::Subscribe {
            let events = open.service.subscribe();
            frame::send(stream, &Reply::Done, &[])?;
            return forward(open.id, stream, &events);
        }
        let _busy = Busy::new(&open.connections);
        let peer = Peer { id: open.id, stream };
        answer(peer, open.service.as_ref(), request, &mut greeted)?;
    }
}

fn answer(
    peer: Peer<'_>,
    service: &dyn Service,
    request: Request,
    greeted: &mut bool,
) -> Result<(), FrameError> {
    let answer = match request {
        Request::Hello { version, ref client } => {
            debug!("client {} is {client}", peer.id.0);
            *greeted = true;
            if version == PROTOCOL_VERSION {
                service.handle(&peer, request)
            } else {
                Reply::Hello { version: PROTOCOL_VERSION, name: String::new(), pid: 0 }.into()
            }
        }
        _ if !*greeted => Reply::Refused(Refusal::NotGreeted).into(),
        request => service.handle(&peer, request),
    };
    let fds: Vec<_> = answer.fds.iter().map(AsFd::as_fd).collect();
    frame::send(peer.stream, &answer.reply, &fds)
}

fn forward(
    id: ConnectionId,
    stream: &UnixStream,
    events: &Receiver<Event>,
) -> Result<(), FrameError> {
    let peer = Peer { id, stream };
    loop {
        match events.recv_timeout(SUBSCRIBER_POLL_INTERVAL) {
            Ok(event) => match frame::send(stream, &event, &[]) {
                Err(_) if peer.is_gone() => return Ok(()),
                sent => sent?,
            },
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
            Err(RecvTimeoutError::Timeout) if peer.is_gone() => return Ok(()),
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use super::*;

    #[test]
    fn a_subscriber_that_has_gone_is_no_failure() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        let (sender, events) = sync_channel(1);
        sender.send(Event::Paused).unwrap();
        assert!(forward(ConnectionId(1), &ours, &events).is_ok());
    }
}
