//! A vmrun without a machine: its guest writes exactly what a test says, exactly when it says. What a
//! real guest does only by luck, such as writing in the last instant before the pause, happens here
//! every time.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mig_engine::ownership::{Input, Ownership, State};
use migpipe_units::{Acknowledged, Gfn, HostId, MigrationId, Nonce, PAGE_SIZE, Pages, RegionId};
use nix::sys::memfd::{MFdFlags, memfd_create};
use page_bitmap::GuestBitmap;
use vm_control::server::{Answer, ConnectionId, Peer, Server, Service};
use vm_control::{Event, Loaded, PROTOCOL_VERSION, Refusal, Reply, Request, Started, Status};
use vm_state::{CpuDescription, KernelKind, MachineDescription, MemoryBacking, MemoryRegion};

/// What it acknowledges with.
const ACK: Acknowledged =
    Acknowledged { host: HostId::from_bytes([1; 16]), nonce: Nonce::from_bytes([2; 16]) };

/// Its memory.
const MEMORY: Pages = Pages(64);

/// When the guest, or one of its devices, may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// When the dirty log was read: the write is in the next reading.
    Harvested,
    /// In the last instant before the vCPUs stand still.
    Pausing,
    /// While the state of a stopped machine is saved: a device that finishes a request.
    Saving,
}

/// What goes wrong at a vmrun, from the first request that a test names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It refuses such requests.
    Refuses,
    /// It has ended: nobody is answered any more.
    Ends,
}

type Which = Box<dyn Fn(&Request) -> bool + Send>;

type Script = Box<dyn Fn(Moment, &Writer<'_>) + Send + Sync>;

/// What a script writes with.
pub struct Writer<'a>(&'a Guest);

impl Writer<'_> {
    /// Fills a page with `byte`, as a vCPU does.
    pub fn write(&self, page: u64, byte: u8) {
        self.write_unlogged(page, byte);
        lock(&self.0.dirty).insert(page);
    }

    /// The same, and the dirty log misses it.
    pub fn write_unlogged(&self, page: u64, byte: u8) {
        self.0.fill(page, byte);
    }
}

/// A guest that is there in name alone.
struct Guest {
    memory: File,
    dirty: Mutex<BTreeSet<u64>>,
    log: Mutex<Option<GuestBitmap>>,
    ownership: Mutex<Ownership>,
    /// Whether the source of the guest that arrives waits for its ACK.
    acknowledged: AtomicBool,
    /// Whether the guest cannot be started.
    broken: AtomicBool,
    fault: Mutex<Option<(Which, Fault)>>,
    ended: AtomicBool,
    /// The connection whose client sends the guest away, and by which migration.
    sender: Mutex<Option<(ConnectionId, MigrationId)>>,
    script: Script,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Guest {
    fn fill(&self, page: u64, byte: u8) {
        let bytes = [byte; PAGE_SIZE as usize];
        self.memory.write_all_at(&bytes, page * PAGE_SIZE).expect("memory");
    }

    fn play(&self, moment: Moment) {
        (self.script)(moment, &Writer(self));
    }

    /// What goes wrong with this request, if anything does.
    fn fault(&self, request: &Request) -> Option<Fault> {
        if self.ended.load(Ordering::SeqCst) {
            return Some(Fault::Ends);
        }
        let fault = lock(&self.fault);
        let (_, fault) = fault.as_ref().filter(|(which, _)| which(request))?;
        self.ended.store(*fault == Fault::Ends, Ordering::SeqCst);
        Some(*fault)
    }

    /// Takes the step, and says `answer` where that is allowed.
    fn own(&self, input: Input, answer: impl FnOnce() -> Answer) -> Answer {
        let mut ownership = lock(&self.ownership);
        match ownership.step(input) {
            Ok(transition) => {
                ownership.enter(input, &transition);
                answer()
            }
            Err(denied) => Reply::Refused(denied.into()).into(),
        }
    }

    fn memory(&self) -> Answer {
        done_with(self.memory.try_clone().expect("a descriptor").into())
    }

    fn harvest(&self) -> Pages {
        let pages = std::mem::take(&mut *lock(&self.dirty));
        let log = lock(&self.log);
        let bitmap = &log.as_ref().expect("the log was started")[0];
        pages.iter().for_each(|page| bitmap.insert(*page, Pages(1)));
        Pages(pages.len() as u64)
    }

    fn status(&self) -> Status {
        let ownership = lock(&self.ownership);
        Status {
            name: NAME.to_owned(),
            pid: std::process::id(),
            ownership: ownership.state(),
            running: ownership.may_run(),
            vcpus: 1,
            memory: MEMORY.bytes(),
            backing: Some(MemoryBacking::HugeTmpfs),
            throttle: 0,
            progress: None,
            balloon: None,
            held: None,
            handover: None,
            released: Vec::new(),
        }
    }
}

const NAME: &str = "scripted";

/// What one says that refuses.
pub const REFUSES: &str = "this vmrun refuses";

/// What one that cannot start its guest says.
const CANNOT_START: &str = "the vCPUs cannot be started";

fn done_with(fd: OwnedFd) -> Answer {
    Answer { reply: Reply::Done, fds: vec![fd] }
}

fn regions() -> Vec<MemoryRegion> {
    vec![MemoryRegion { id: RegionId(0), base: Gfn(0), pages: MEMORY }]
}

impl Service for Guest {
    fn handle(&self, peer: &Peer<'_>, request: Request) -> Answer {
        match self.fault(&request) {
            Some(Fault::Refuses) => return Reply::Refused(Refusal::failed(REFUSES)).into(),
            // Its connections end with it; nothing is said of that.
            Some(Fault::Ends) => std::panic::resume_unwind(Box::new(())),
            None => {}
        }
        if let Request::Own(Input::Begin(id)) = request {
            *lock(&self.sender) = Some((peer.id(), id));
        }
        match request {
            Request::Hello { .. } => {
                let (version, name) = (PROTOCOL_VERSION, NAME.to_owned());
                Reply::Hello { version, name, pid: std::process::id() }.into()
            }
            Request::Describe => Reply::Description(MachineDescription {
                name: NAME.to_owned(),
                vcpus: 1,
                memory: regions(),
                hugetlb: false,
                cpu: CpuDescription::default(),
                devices: Vec::new(),
                kernel: KernelKind::Builtin,
                boot: None,
            })
            .into(),
            Request::Status => Reply::Status(self.status()).into(),
            Request::MapMemory => self.memory(),
            Request::DirtyLogStart | Request::MeasureDirtying => {
                let (log, fd) = GuestBitmap::share([(RegionId(0), MEMORY)]).expect("a bitmap");
                *lock(&self.log) = Some(log);
                done_with(fd)
            }
            Request::DirtyLogHarvest => {
                let dirty = self.harvest();
                self.play(Moment::Harvested);
                Reply::Harvested { dirty }.into()
            }
            Request::Pause => {
                self.play(Moment::Pausing);
                Reply::Paused { took: Duration::ZERO }.into()
            }
            Request::SaveState => {
                self.play(Moment::Saving);
                Reply::State(Vec::new()).into()
            }
            Request::Own(input) => self.own(input, || Reply::Done.into()),
            Request::Receive { id, mode, .. } => {
                self.acknowledged.store(mode.is_answered(), Ordering::SeqCst);
                self.own(Input::Receive(id), || Answer {
                    reply: Reply::Received { notes: Vec::new() },
                    ..self.memory()
                })
            }
            Request::Prepare { id, .. } => {
                let acknowledge = self.acknowledged.load(Ordering::SeqCst).then_some(ACK);
                let loaded = Loaded { acknowledge, ..Loaded::default() };
                let prepared = Input::Prepared(id, acknowledge.map(|by| by.nonce));
                self.own(prepared, || Reply::Prepared(loaded).into())
            }
            // As a vmrun that cannot lock a disk: it stays prepared.
            Request::Go { .. } if self.broken.load(Ordering::SeqCst) => {
                Reply::Refused(Refusal::failed(CANNOT_START)).into()
            }
            Request::Go { id, by } => {
                self.own(Input::Go(id, by), || Reply::Started(Started::default()).into())
            }
            Request::MigrationStatus { id, nonce } => {
                Reply::MigrationStatus(lock(&self.ownership).migration_status(id, nonce)).into()
            }
            Request::PostProgress { .. } => Reply::Orders(Vec::new()).into(),
            _ => Reply::Done.into(),
        }
    }

    /// What was begun and not committed ends with its client.
    fn closed(&self, connection: ConnectionId) {
        let sender = lock(&self.sender).take_if(|(sender, _)| *sender == connection);
        if let Some((_, id)) = sender {
            let _ = self.own(Input::Release(id), || Reply::Done.into());
        }
    }

    fn subscribe(&self) -> Receiver<Event> {
        channel().1
    }
}

/// A vmrun that serves its socket as long as this lives.
pub struct Scripted {
    guest: Arc<Guest>,
    server: Server,
}

impl Scripted {
    /// One whose guest runs and has the bytes of `pages`, each a page full, from the start on.
    pub fn running(
        socket: PathBuf,
        pages: &[u8],
        script: impl Fn(Moment, &Writer<'_>) + Send + Sync + 'static,
    ) -> Self {
        let scripted = Self::new(socket, Ownership::booted(), Box::new(script));
        for (page, byte) in (0..).zip(pages) {
            scripted.guest.fill(page, *byte);
        }
        scripted
    }

    /// One that waits for a guest.
    pub fn incoming(socket: PathBuf) -> Self {
        Self::new(socket, Ownership::incoming(), Box::new(|_, _| {}))
    }

    fn new(socket: PathBuf, ownership: Ownership, script: Script) -> Self {
        let memory = memfd_create(c"guest-memory", MFdFlags::MFD_CLOEXEC).expect("a memory file");
        nix::unistd::ftruncate(&memory, MEMORY.bytes().0 as i64).expect("a memory file grows");
        let guest = Arc::new(Guest {
            memory: memory.into(),
            dirty: Mutex::default(),
            log: Mutex::default(),
            ownership: Mutex::new(ownership),
            acknowledged: AtomicBool::new(false),
            broken: AtomicBool::new(false),
            fault: Mutex::default(),
            ended: AtomicBool::new(false),
            sender: Mutex::default(),
            script,
        });
        let server = Server::bind(&socket).expect("a socket");
        server.serve(Arc::<Guest>::clone(&guest)).expect("a thread");
        Self { guest, server }
    }

    /// From now on its guest cannot be started.
    pub fn break_down(&self) {
        self.guest.broken.store(true, Ordering::SeqCst);
    }

    /// From the first request of these on this goes wrong.
    pub fn fails(&self, fault: Fault, which: impl Fn(&Request) -> bool + Send + 'static) {
        *lock(&self.guest.fault) = Some((Box::new(which), fault));
    }

    /// Its socket.
    pub fn socket(&self) -> &Path {
        self.server.path()
    }

    /// All of its memory.
    pub fn memory(&self) -> Vec<u8> {
        let mut bytes = vec![0; MEMORY.bytes().0 as usize];
        self.guest.memory.read_exact_at(&mut bytes, 0).expect("memory");
        bytes
    }

    /// Whose the guest is.
    pub fn state(&self) -> State {
        lock(&self.guest.ownership).state()
    }

    /// Whether the guest may run here.
    pub fn may_run(&self) -> bool {
        lock(&self.guest.ownership).may_run()
    }
}
