//! vmrun's end of the control socket: one thread per connection, so that a client that stalls
//! stalls nobody else.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{fs, thread};

use migpipe_confine::{Call, calls};
use nix::sys::socket::{MsgFlags, getsockopt, recv, sockopt};
use thiserror::Error;
use tracing::{debug, warn};
use unix_socket::{SocketFile, Taken};

use crate::frame::{self, FrameError};
use crate::message::{Event, PROTOCOL_VERSION, Refusal, Reply, Request, longest_request};
use vm_paths::PathError;

/// More connections at once are turned away.
const MAX_CONNECTIONS: usize = 64;

/// A client says hello within this time; one that has begun a request finishes it, and takes its
/// answer, within as much.
const FRAME_TIMEOUT: Duration = Duration::from_secs(10);

/// Of connections that have just been closed the places are free within this time.
const SLOT_TIMEOUT: Duration = Duration::from_millis(100);

/// How often a subscriber that hears nothing is looked after.
const SUBSCRIBER_POLL_INTERVAL: Duration = Duration::from_secs(1);

/// What serving clients takes, beside threads and what goes over a socket.
pub const CALLS: &[Call] = calls![
    SYS_accept4;
    SYS_geteuid => "whether a client is our user's";
    SYS_memfd_create => "the bitmap that a sender reads";
    SYS_ftruncate;
    SYS_unlink => "the socket goes with the guest";
];

/// Why the socket cannot be served.
#[derive(Debug, Error)]
pub enum ServerError {
    /// Another vmrun answers there.
    #[error("a guest is already at {0}: choose another --name, or end that one")]
    InUse(PathBuf),
    /// Something else is there.
    #[error("cannot make the control socket; choose another --socket")]
    Taken(#[from] Taken),
    /// The socket cannot be made.
    #[error("cannot listen on {path}")]
    Listen {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its directory cannot be made.
    #[error(transparent)]
    Place(#[from] PathError),
}

/// Names one connection for as long as vmrun lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnectionId(u64);

/// Whoever is at the other end of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Peer<'a> {
    id: ConnectionId,
    stream: &'a UnixStream,
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

/// A socket that is bound and listens. It is removed when this is dropped.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    file: SocketFile,
    connections: Arc<Connections>,
}

/// The connections that are served now.
#[derive(Debug, Default)]
struct Connections {
    next: AtomicU64,
    open: AtomicUsize,
    /// How many requests are being answered.
    busy: Mutex<usize>,
    idle: Condvar,
}

impl Connections {
    /// How many are open, once there is a place or `within` is over.
    fn open_after(&self, within: Duration) -> usize {
        let began = Instant::now();
        loop {
            let open = self.open.load(Ordering::Relaxed);
            if open < MAX_CONNECTIONS || began.elapsed() > within {
                return open;
            }
            thread::sleep(Duration::from_millis(1));
        }
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
    fn new(service: Arc<dyn Service>, connections: &Arc<Connections>) -> Self {
        let id = ConnectionId(connections.next.fetch_add(1, Ordering::Relaxed));
        connections.open.fetch_add(1, Ordering::Relaxed);
        Self { id, service, connections: Arc::clone(connections) }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.service.closed(self.id);
        self.connections.open.fetch_sub(1, Ordering::Relaxed);
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

impl Server {
    /// Binds `path`, for its user alone; a socket of this user that nobody listens on any more is
    /// replaced.
    ///
    /// # Errors
    /// [`ServerError::InUse`] if a vmrun answers there, [`ServerError::Taken`] if it is anything else
    /// that is not to be replaced.
    pub fn bind(path: &Path) -> Result<Self, ServerError> {
        if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
            vm_paths::ensure_dir(dir)?;
        }
        let failed = |source| ServerError::Listen { path: path.to_owned(), source };
        unix_socket::make_room(path).map_err(|taken| match taken {
            Taken::InUse(path) => ServerError::InUse(path),
            taken => taken.into(),
        })?;
        let listener = UnixListener::bind(path).map_err(failed)?;
        let server = Self { listener, file: SocketFile::new(path), connections: Arc::default() };
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
        Ok(server)
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Serves connections in threads of its own until the process ends. The socket stays until
    /// `self` is dropped.
    ///
    /// # Errors
    /// [`ServerError::Listen`] if the thread cannot be started.
    pub fn serve(&self, service: Arc<dyn Service>) -> Result<(), ServerError> {
        let failed = |source| ServerError::Listen { path: self.path().to_owned(), source };
        let listener = self.listener.try_clone().map_err(failed)?;
        let connections = Arc::clone(&self.connections);
        thread::Builder::new()
            .name("control".into())
            .spawn(move || accept(&listener, &service, &connections))
            .map_err(failed)?;
        Ok(())
    }

    /// Serves one connection that is there already.
    ///
    /// # Errors
    /// [`ServerError::Listen`] if the thread cannot be started.
    pub fn serve_connection(
        &self,
        stream: UnixStream,
        service: Arc<dyn Service>,
    ) -> Result<ConnectionId, ServerError> {
        spawn(stream, service, &self.connections)
            .map_err(|source| ServerError::Listen { path: self.path().to_owned(), source })
    }

    /// Waits until the requests that have come are answered, but no longer than `within`.
    pub fn drain(&self, within: Duration) {
        let busy = self.connections.busy.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = self.connections.idle.wait_timeout_while(busy, within, |busy| *busy > 0);
    }
}

fn accept(listener: &UnixListener, service: &Arc<dyn Service>, connections: &Arc<Connections>) {
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, say: there will be some when a connection ends.
                warn!("cannot accept a connection: {error}");
                thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        if let Some(refusal) = turn_away(&stream, connections.open_after(SLOT_TIMEOUT)) {
            let _ = stream.set_write_timeout(Some(Duration::from_millis(100)));
            let _ = frame::send(&stream, &Reply::Refused(refusal), &[]);
            continue;
        }
        if let Err(error) = spawn(stream, Arc::clone(service), connections) {
            warn!("cannot serve a connection: {error}");
        }
    }
}

fn spawn(
    stream: UnixStream,
    service: Arc<dyn Service>,
    connections: &Arc<Connections>,
) -> io::Result<ConnectionId> {
    let open = Open::new(service, connections);
    let id = open.id;
    let spawned = thread::Builder::new().name(format!("client-{}", id.0)).spawn(move || {
        match converse(&stream, &open) {
            Ok(()) | Err(FrameError::Closed) => debug!("client {} closed", id.0),
            Err(error) => {
                warn!("client {}: {error}", id.0);
                if let FrameError::TooLong { .. } | FrameError::Damaged(_) = error {
                    let _ = frame::send(&stream, &Reply::Refused(Refusal::new(error)), &[]);
                }
            }
        }
    });
    spawned.map(|_| id)
}

/// Why this peer is not served, if it is not: only vmrun's own user and root are.
fn turn_away(stream: &UnixStream, open: usize) -> Option<Refusal> {
    let own = nix::unistd::geteuid().as_raw();
    match getsockopt(stream, sockopt::PeerCredentials) {
        Ok(peer) if peer.uid() == own || peer.uid() == 0 => {}
        Ok(peer) => {
            return Some(Refusal::new(format!(
                "this guest belongs to uid {own}; uid {} may not control it",
                peer.uid()
            )));
        }
        Err(errno) => return Some(Refusal::new(format!("cannot tell who you are: {errno}"))),
    }
    (open >= MAX_CONNECTIONS).then(|| {
        Refusal::new(format!("{MAX_CONNECTIONS} clients are connected already: try again later"))
    })
}

fn converse(stream: &UnixStream, open: &Open) -> Result<(), FrameError> {
    stream.set_write_timeout(Some(FRAME_TIMEOUT)).map_err(FrameError::Io)?;
    let mut greeted = false;
    loop {
        // A client that is known may be silent between requests for as long as it likes.
        let patience = if greeted { None } else { Some(FRAME_TIMEOUT) };
        stream.set_read_timeout(patience).map_err(FrameError::Io)?;
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
        _ if !*greeted => Reply::Refused(Refusal::new("say hello first")).into(),
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
            Ok(event) => frame::send(stream, &event, &[])?,
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
            Err(RecvTimeoutError::Timeout) if peer.is_gone() => return Ok(()),
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Client, ClientError};
    use std::io::Write;
    use std::sync::mpsc;

    /// Ends what hangs, and measures nothing.
    const HANG_TIMEOUT: Duration = Duration::from_secs(600);

    struct Echo(mpsc::SyncSender<ConnectionId>);

    impl Service for Echo {
        fn handle(&self, _: &Peer<'_>, request: Request) -> Answer {
            match request {
                Request::Hello { .. } => {
                    Reply::Hello { version: PROTOCOL_VERSION, name: "web".into(), pid: 1 }.into()
                }
                Request::Resume => Reply::Done.into(),
                Request::Throttle(_) => panic!("a mistake of the service"),
                _ => Reply::Refused(Refusal::new("no")).into(),
            }
        }

        fn closed(&self, connection: ConnectionId) {
            let _ = self.0.try_send(connection);
        }

        fn subscribe(&self) -> Receiver<Event> {
            let (sender, receiver) = mpsc::sync_channel(1);
            let _ = sender.send(Event::Paused);
            receiver
        }
    }

    fn served() -> (tempfile::TempDir, Server, Receiver<ConnectionId>) {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::bind(&dir.path().join("web.sock")).unwrap();
        let (sender, closed) = mpsc::sync_channel(128);
        server.serve(Arc::new(Echo(sender))).unwrap();
        (dir, server, closed)
    }

    #[test]
    fn requests_are_answered_and_refusals_carry_their_reason() {
        let (_dir, server, _) = served();
        let client = Client::connect(server.path(), "test").unwrap();
        assert_eq!((client.name(), client.pid()), ("web", 1));
        client.resume().unwrap();
        assert!(matches!(client.pause(), Err(ClientError::Refused(why)) if why.message == "no"));
    }

    #[test]
    fn a_client_that_goes_away_is_noticed() {
        let (_dir, server, closed) = served();
        drop(Client::connect(server.path(), "test").unwrap());
        closed.recv_timeout(HANG_TIMEOUT).unwrap();
    }

    #[test]
    fn a_panic_of_the_service_is_the_end_of_that_connection_and_is_noticed() {
        let (_dir, server, closed) = served();
        let client = Client::connect(server.path(), "test").unwrap();
        assert!(matches!(client.throttle(1), Err(ClientError::Lost { .. })));
        closed.recv_timeout(HANG_TIMEOUT).unwrap();
        Client::connect(server.path(), "test").unwrap().resume().unwrap();
    }

    #[test]
    fn garbage_and_a_stalled_frame_disturb_nobody_else() {
        let (_dir, server, closed) = served();
        let mut stalled = UnixStream::connect(server.path()).unwrap();
        stalled.write_all(&[200, 0, 0, 0, 1]).unwrap();
        let mut garbage = UnixStream::connect(server.path()).unwrap();
        garbage.write_all(&[0xff; 400]).unwrap();
        closed.recv_timeout(HANG_TIMEOUT).unwrap();
        Client::connect(server.path(), "test").unwrap().resume().unwrap();
    }

    #[test]
    fn nothing_is_answered_before_hello() {
        let (_dir, server, _) = served();
        let stream = UnixStream::connect(server.path()).unwrap();
        frame::send(&stream, &Request::Resume, &[]).unwrap();
        let (reply, _) = frame::receive::<Reply>(&stream).unwrap();
        assert!(matches!(reply, Reply::Refused(_)));
    }

    #[test]
    fn a_client_can_wait_for_the_end_of_its_vmrun_and_no_longer_than_it_likes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("web.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let vmrun = thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            frame::receive::<Request>(&stream).unwrap();
            let hello = Reply::Hello { version: PROTOCOL_VERSION, name: "web".into(), pid: 1 };
            frame::send(&stream, &hello, &[]).unwrap();
            stream
        });
        let client = Client::connect(&path, "test").unwrap();
        let stream = vmrun.join().unwrap();
        assert!(!client.await_end(Duration::from_millis(20)), "it has not ended");
        drop(stream);
        assert!(client.await_end(HANG_TIMEOUT));
    }

    #[test]
    fn too_many_connections_are_turned_away_with_a_reason() {
        let (_dir, server, _) = served();
        let clients: Vec<_> =
            (0..MAX_CONNECTIONS).map(|_| Client::connect(server.path(), "test").unwrap()).collect();
        let refused = Client::connect(server.path(), "test").unwrap_err();
        assert!(matches!(refused, ClientError::Refused(_)), "{refused}");
        drop(clients);
    }

    #[test]
    fn a_subscriber_hears_events() {
        let (_dir, server, _) = served();
        let mut events = Client::connect(server.path(), "test").unwrap().subscribe().unwrap();
        assert_eq!(events.next(Some(HANG_TIMEOUT)), Some(Event::Paused));
        assert_eq!(events.next(Some(HANG_TIMEOUT)), None);
    }

    #[test]
    fn a_living_socket_is_not_taken_and_a_dead_one_is() {
        let (dir, server, _) = served();
        assert!(matches!(Server::bind(server.path()), Err(ServerError::InUse(_))));
        let dead = dir.path().join("dead.sock");
        drop(UnixListener::bind(&dead).unwrap());
        let mode = {
            let again = Server::bind(&dead).unwrap();
            fs::metadata(again.path()).unwrap().permissions().mode()
        };
        assert_eq!(mode & 0o777, 0o600);
        assert!(!dead.exists(), "the socket is left over");
        let file = dir.path().join("notes");
        fs::write(&file, "precious").unwrap();
        let refused = Server::bind(&file).unwrap_err();
        assert!(matches!(refused, ServerError::Taken(Taken::NoSocket(_))), "{refused}");
        assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
    }
}
