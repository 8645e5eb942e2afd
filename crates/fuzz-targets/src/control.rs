//! The control socket, from both ends.

use std::io::{IoSlice, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use mig_engine::handover::HandoverMode;
use mig_engine::ownership::{Authority, Input, Ownership};
use migpipe_units::{Gfn, MigrationId, Pages, RegionId};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use vm_control::server::{Answer, ConnectionId, Peer, Server, Service};
use vm_control::{Client, ClientError, Event, Order, PROTOCOL_VERSION, Refusal, Reply, Request};
use vm_state::{CpuDescription, KernelKind, MachineDescription, MemoryRegion};

use crate::memory::within;
use crate::parts::parts;

/// A message of one byte for each element of a list is the worst: a vector for each, twice while
/// the list grows, and the frame itself.
const PER_BYTE: usize = 100;
/// The thread of a connection, both ends' buffers.
const FIXED: usize = 1 << 20;

/// What is in flight at once fits a socket's buffer, so that neither end waits for the other.
const MOST: usize = 64 << 10;

const HANG_TIMEOUT: Duration = Duration::from_secs(600);
const ID: MigrationId = MigrationId::from_bytes([7; 16]);

/// What a client writes. Unless the first byte is odd, it has said hello.
pub fn control_server(bytes: &[u8]) {
    let Some((&bare, sent)) = bytes.split_first() else { return };
    let server = server();
    within(FIXED + PER_BYTE * bytes.len(), || {
        let (mut ours, theirs) = UnixStream::pair().expect("a socket pair");
        let (closed, is_closed) = channel();
        server.serve_connection(theirs, Arc::new(Vmrun::new(closed))).expect("a thread");
        if bare & 1 == 0 {
            let hello = Request::Hello { version: PROTOCOL_VERSION, client: "fuzz".to_owned() };
            let _ = ours.write_all(&frame(&hello));
        }
        // Of a server that has closed already nothing more is to be heard.
        let _ = ours.write_all(&sent[..sent.len().min(MOST)]);
        let _ = ours.shutdown(Shutdown::Write);
        ours.set_read_timeout(Some(HANG_TIMEOUT)).expect("a timeout");
        let _ = ours.read_to_end(&mut Vec::new());
        is_closed.recv_timeout(HANG_TIMEOUT).expect("the server is told of every end");
    });
}

/// What vmrun answers. Unless the first byte is odd, it has said hello. Each answer comes with a
/// descriptor.
pub fn control_client(bytes: &[u8]) {
    let Some((&bare, sent)) = bytes.split_first() else { return };
    within(FIXED + PER_BYTE * bytes.len(), || {
        let (ours, mut theirs) = UnixStream::pair().expect("a socket pair");
        if bare & 1 == 0 {
            let (version, name) = (PROTOCOL_VERSION, "web".to_owned());
            let hello = frame(&Reply::Hello { version, name, pid: 1 });
            theirs.write_all(&hello).expect("room for it");
        }
        let memory = memfd_create("guest-memory", MFdFlags::MFD_CLOEXEC).expect("a memory file");
        nix::unistd::ftruncate(&memory, 16 << 12).expect("a memory file grows");
        for part in parts(&sent[..sent.len().min(MOST)]) {
            let length = (part.len() as u32).to_le_bytes();
            let fds = [memory.as_raw_fd()];
            let rights = [ControlMessage::ScmRights(&fds)];
            let slices = [IoSlice::new(&length), IoSlice::new(part)];
            sendmsg::<()>(theirs.as_raw_fd(), &slices, &rights, MsgFlags::MSG_NOSIGNAL, None)
                .expect("room for it");
        }
        theirs.shutdown(Shutdown::Write).expect("it is open");
        converse(ours);
    });
}

fn server() -> &'static Server {
    static SERVER: OnceLock<(Server, tempfile::TempDir)> = OnceLock::new();
    let (server, _) = SERVER.get_or_init(|| {
        let dir = tempfile::tempdir().expect("a directory");
        let server = Server::bind(&dir.path().join("fuzz.sock")).expect("a socket");
        (server, dir)
    });
    server
}

fn frame(message: &impl serde::Serialize) -> Vec<u8> {
    let body = postcard::to_stdvec(message).expect("it can be encoded");
    [&(body.len() as u32).to_le_bytes()[..], &body].concat()
}

/// A vmrun without a machine: it owns what it is told to own.
struct Vmrun {
    ownership: Mutex<Ownership>,
    closed: Sender<ConnectionId>,
}

impl Vmrun {
    fn new(closed: Sender<ConnectionId>) -> Self {
        Self { ownership: Mutex::new(Ownership::booted()), closed }
    }

    fn own(&self, input: Input) -> Reply {
        let mut ownership = self.ownership.lock().unwrap_or_else(PoisonError::into_inner);
        match ownership.step(input) {
            Ok(transition) => {
                ownership.enter(input, &transition);
                Reply::Done
            }
            Err(denied) => Reply::Refused(denied.into()),
        }
    }
}

impl Service for Vmrun {
    fn handle(&self, _: &Peer<'_>, request: Request) -> Answer {
        match request {
            Request::Hello { .. } => {
                Reply::Hello { version: PROTOCOL_VERSION, name: "web".to_owned(), pid: 1 }
            }
            Request::Describe => Reply::Description(machine()),
            Request::Own(input) => self.own(input),
            Request::Go { id, by } => self.own(Input::Go(id, by)),
            Request::MigrationStatus { id, nonce } => {
                let ownership = self.ownership.lock().unwrap_or_else(PoisonError::into_inner);
                Reply::MigrationStatus(ownership.migration_status(id, nonce))
            }
            Request::Prepare { sections, .. } => Reply::State(sections),
            Request::Receive { overrides, .. } => {
                let first = overrides.into_iter().next().map(|param| param.value);
                Reply::Refused(Refusal::failed(first.unwrap_or_default()))
            }
            Request::PostProgress { progress, .. } => Reply::Refused(Refusal::failed(progress)),
            Request::Order(order) => Reply::Orders(vec![order]),
            _ => Reply::Done,
        }
        .into()
    }

    fn closed(&self, connection: ConnectionId) {
        let _ = self.closed.send(connection);
    }

    fn subscribe(&self) -> Receiver<Event> {
        let (events, come) = channel();
        let _ = events.send(Event::Paused);
        come
    }
}

fn machine() -> MachineDescription {
    let region = MemoryRegion { id: RegionId(0), base: Gfn(0), pages: Pages(16) };
    MachineDescription {
        name: "web".to_owned(),
        vcpus: 1,
        memory: vec![region],
        hugetlb: false,
        cpu: CpuDescription::default(),
        devices: Vec::new(),
        kernel: KernelKind::Builtin,
        boot: None,
    }
}

/// Every request once, in the order of a migration, until the connection breaks.
fn converse(stream: UnixStream) {
    let Ok(client) = Client::over(stream, Path::new("fuzz.sock"), "fuzz", HANG_TIMEOUT) else {
        return;
    };
    let _ = all_requests(client);
}

/// Goes on after what is no loss of the connection.
fn heard<T>(answer: Result<T, ClientError>) -> Result<Option<T>, ClientError> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(error @ (ClientError::Lost { .. } | ClientError::Connect { .. })) => Err(error),
        Err(error) => {
            assert!(!error.to_string().is_empty());
            Ok(None)
        }
    }
}

fn all_requests(client: Client) -> Result<(), ClientError> {
    let machine = heard(client.describe())?.unwrap_or_else(machine);
    if let Some(memory) = heard(client.map_memory(&machine))? {
        for (region, pages) in memory.regions() {
            memory.first_bytes(region, pages.0.saturating_sub(1));
        }
        let _ = memory.existing();
    }
    if let Some(bitmap) = heard(client.dirty_log_start(&machine))? {
        bitmap.count();
    }
    heard(client.status())?;
    heard(client.dirty_log_harvest())?;
    heard(client.pause())?;
    let sections = heard(client.save_state())?.unwrap_or_default();
    heard(client.own(Input::Commit(ID, None)))?;
    heard(client.migration_status(ID, None))?;
    heard(client.post_progress(ID, String::new()))?;
    heard(client.order(Order::Cancel))?;
    heard(client.receive(ID, machine, Vec::new(), HandoverMode::BothWays))?;
    heard(client.prepare(ID, sections, None))?;
    heard(client.go(ID, Authority::Operator))?;
    if let Some(mut events) = heard(client.subscribe())? {
        while events.next(Some(HANG_TIMEOUT)).is_some() {}
    }
    Ok(())
}
