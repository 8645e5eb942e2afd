//! A vmrun without a machine, for unit tests: it answers as it is told to, and notes what it was asked.

use std::fs::File;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mig_engine::ownership::{Input, MigrationStatus};
use migpipe_units::{Acknowledged, HostId, MigrationId, Nonce, Pages};
use nix::sys::memfd::{MFdFlags, memfd_create};
use vm_control::server::{Answer, ConnectionId, Peer, Server, Service};
use vm_control::{Event, Loaded, PROTOCOL_VERSION, Refusal, Reply, Request, Started};

/// The one migration that it is asked about.
pub const ID: MigrationId = MigrationId::from_bytes([5; 16]);

/// What it acknowledges with.
pub const BY: Acknowledged =
    Acknowledged { host: HostId::from_bytes([1; 16]), nonce: Nonce::from_bytes([2; 16]) };

/// The memory of its guest.
pub const MEMORY: Pages = Pages(16);

/// What the vmrun answers in place of success.
pub type VmrunAnswers = fn(&Request) -> Option<Reply>;

/// The vmrun, as long as this lives.
pub struct ScriptedVmrun {
    server: Server,
    service: Arc<Scripted>,
}

struct Scripted {
    memory: File,
    answers: VmrunAnswers,
    is_answered: bool,
    asked: Mutex<Vec<&'static str>>,
}

impl ScriptedVmrun {
    /// One at `socket`. Its guest is acknowledged where that `is_answered`.
    pub fn new(socket: &Path, is_answered: bool, answers: VmrunAnswers) -> Self {
        let memory = File::from(memfd_create(c"guest-memory", MFdFlags::MFD_CLOEXEC).unwrap());
        memory.set_len(MEMORY.bytes().0).unwrap();
        let asked = Mutex::default();
        let service = Arc::new(Scripted { memory, answers, is_answered, asked });
        let server = Server::bind(socket).unwrap();
        server.serve(Arc::<Scripted>::clone(&service)).unwrap();
        Self { server, service }
    }

    pub fn socket(&self) -> &Path {
        self.server.path()
    }

    pub fn memory(&self) -> &File {
        &self.service.memory
    }

    /// What it was asked.
    pub fn asked(&self) -> Vec<&'static str> {
        self.service.asked.lock().unwrap().clone()
    }
}

impl Service for Scripted {
    fn handle(&self, _: &Peer<'_>, request: Request) -> Answer {
        let (name, success) = match &request {
            Request::Hello { .. } => {
                let (version, name) = (PROTOCOL_VERSION, "web".to_owned());
                return Reply::Hello { version, name, pid: 4711 }.into();
            }
            Request::Receive { .. } => ("receive", Reply::Received { notes: Vec::new() }),
            Request::Prepare { .. } => {
                let acknowledge = self.is_answered.then_some(BY);
                ("prepare", Reply::Prepared(Loaded { load: Duration::from_millis(7), acknowledge }))
            }
            Request::Go { .. } => ("go", Reply::Started(Started::default())),
            Request::MigrationStatus { .. } => {
                ("status", Reply::MigrationStatus(MigrationStatus::Prepared))
            }
            Request::Own(Input::Refuse(id)) if *id == ID => ("refuse", Reply::Done),
            request => panic!("mig-recv never asks {request:?}"),
        };
        self.asked.lock().unwrap().push(name);
        let reply = (self.answers)(&request).unwrap_or(success);
        let fds = match reply {
            Reply::Received { .. } => vec![self.memory.try_clone().unwrap().into()],
            _ => Vec::new(),
        };
        Answer { reply, fds }
    }

    fn closed(&self, _: ConnectionId) {}

    fn subscribe(&self) -> Receiver<Event> {
        channel().1
    }
}

/// What a vmrun answers that does not do it.
pub fn refused() -> Reply {
    Reply::Refused(Refusal::failed("not on this host"))
}

/// What a vmrun that is out of order answers: nothing that could be used.
pub const USELESS: Reply = Reply::Done;
