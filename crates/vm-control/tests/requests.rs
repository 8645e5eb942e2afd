//! Each method of a client makes its one request, and hands out what is answered to that and
//! nothing else.

use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mig_engine::handover::HandoverMode;
use mig_engine::ownership::{Authority, Input, MigrationStatus, State};
use migpipe_units::{Acknowledged, Bytes, Gfn, HostId, MigrationId, Nonce, Pages, RegionId};
use nix::sys::memfd::{MFdFlags, memfd_create};
use vm_control::server::{Answer, ConnectionId, Peer, Server, Service};
use vm_control::{
    Client, ClientError, Event, Loaded, Order, PROTOCOL_VERSION, Refusal, Reply, Request, Started,
    Status,
};
use vm_state::{
    CpuDescription, DeviceParam, KernelKind, MachineDescription, MemoryBacking, MemoryRegion,
};

const ID: MigrationId = MigrationId::from_bytes([5; 16]);
const NONCE: Nonce = Nonce::from_bytes([6; 16]);

type Answers = Box<dyn Fn(&Request) -> Answer + Send + Sync>;

/// A vmrun that answers as it is told to, and remembers what it was asked.
struct Vmrun {
    version: u16,
    answers: Answers,
    asked: Mutex<Vec<Request>>,
}

impl Service for Vmrun {
    fn handle(&self, _: &Peer<'_>, request: Request) -> Answer {
        if let Request::Hello { .. } = request {
            return Reply::Hello { version: self.version, name: "web".into(), pid: 4711 }.into();
        }
        let answer = (self.answers)(&request);
        self.asked.lock().unwrap().push(request);
        answer
    }

    fn closed(&self, _: ConnectionId) {}

    fn subscribe(&self) -> Receiver<Event> {
        let (events, come) = channel();
        events.send(Event::Resumed).unwrap();
        come
    }
}

struct Served {
    vmrun: Arc<Vmrun>,
    server: Server,
    _dir: tempfile::TempDir,
}

impl Served {
    fn new(answers: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        Self::of_version(PROTOCOL_VERSION, answers)
    }

    fn of_version(
        version: u16,
        answers: impl Fn(&Request) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::bind(&dir.path().join("web.sock")).unwrap();
        let asked = Mutex::default();
        let vmrun = Arc::new(Vmrun { version, answers: Box::new(answers), asked });
        server.serve(Arc::<Vmrun>::clone(&vmrun)).unwrap();
        Self { vmrun, server, _dir: dir }
    }

    fn client(&self) -> Client {
        Client::connect(self.server.path(), "test").unwrap()
    }

    fn asked(&self) -> Vec<Request> {
        std::mem::take(&mut self.vmrun.asked.lock().unwrap())
    }
}

fn machine() -> MachineDescription {
    MachineDescription {
        name: "web".to_owned(),
        vcpus: 1,
        memory: vec![MemoryRegion { id: RegionId(0), base: Gfn(0), pages: Pages(16) }],
        hugetlb: false,
        cpu: CpuDescription::default(),
        devices: Vec::new(),
        kernel: KernelKind::Builtin,
        boot: None,
    }
}

fn disk() -> DeviceParam {
    let [kind, id, name, value] = ["block", "disk0", "path", "/web.raw"].map(str::to_owned);
    DeviceParam { kind, id, name, value }
}

fn status() -> Status {
    Status {
        name: "web".to_owned(),
        pid: 4711,
        ownership: State::Owned,
        running: true,
        vcpus: 3,
        memory: Bytes(16 << 12),
        backing: Some(MemoryBacking::HugeTmpfs),
        throttle: 20,
        progress: None,
        balloon: None,
        held: None,
        handover: None,
        released: vec![ID],
    }
}

const LOADED: Loaded = Loaded {
    load: Duration::from_millis(7),
    acknowledge: Some(Acknowledged { host: HostId::from_bytes([8; 16]), nonce: NONCE }),
};

const STARTED: Started =
    Started { go: Duration::from_millis(1), first_instruction: Duration::from_micros(50) };

/// What the right answer to a request is.
fn right(request: &Request) -> Answer {
    let memory = |bytes| {
        let file = memfd_create("test", MFdFlags::MFD_CLOEXEC).unwrap();
        nix::unistd::ftruncate(&file, bytes).unwrap();
        vec![file]
    };
    let (reply, fds) = match request {
        Request::Describe => (Reply::Description(machine()), Vec::new()),
        Request::Status => (Reply::Status(status()), Vec::new()),
        Request::MapMemory => (Reply::Done, memory(16 << 12)),
        Request::DirtyLogStart | Request::MeasureDirtying => (Reply::Done, memory(8)),
        Request::DirtyLogHarvest => (Reply::Harvested { dirty: Pages(12) }, Vec::new()),
        Request::Pause => (Reply::Paused { took: Duration::from_micros(60) }, Vec::new()),
        Request::SaveState => (Reply::State(vec![vec![1], vec![2, 3]]), Vec::new()),
        Request::Receive { .. } => {
            (Reply::Received { notes: vec!["elsewhere".into()] }, memory(16 << 12))
        }
        Request::Prepare { .. } => (Reply::Prepared(LOADED), Vec::new()),
        Request::Go { .. } => (Reply::Started(STARTED), Vec::new()),
        Request::MigrationStatus { .. } => {
            (Reply::MigrationStatus(MigrationStatus::Prepared), Vec::new())
        }
        Request::PostProgress { .. } => (Reply::Orders(vec![Order::Cancel]), Vec::new()),
        _ => (Reply::Done, Vec::new()),
    };
    Answer { reply, fds }
}

type Call = fn(&Client) -> Result<String, ClientError>;

fn text<T: std::fmt::Debug>(answer: Result<T, ClientError>) -> Result<String, ClientError> {
    answer.map(|answer| format!("{answer:?}"))
}

/// Every method, the request that it makes, and what it returns of the right answer.
fn calls() -> Vec<(Call, Request, String)> {
    let receive = Request::Receive {
        id: ID,
        description: machine(),
        overrides: vec![disk()],
        mode: HandoverMode::OneWay,
    };
    let sections = vec![vec![4; 5]];
    let paused_for = Some(Duration::from_millis(3));
    let by = Authority::Source(Some(NONCE));
    let done = || "()".to_owned();
    vec![
        (|it| text(it.describe()), Request::Describe, format!("{:?}", machine())),
        (|it| text(it.status()), Request::Status, format!("{:?}", status())),
        (
            |it| text(it.map_memory(&machine()).map(|memory| memory.regions().next())),
            Request::MapMemory,
            format!("{:?}", Some((RegionId(0), Pages(16)))),
        ),
        (
            |it| text(it.dirty_log_start(&machine()).map(|log| log.len())),
            Request::DirtyLogStart,
            "1".to_owned(),
        ),
        (
            |it| text(it.measure_dirtying(&machine()).map(|log| log.len())),
            Request::MeasureDirtying,
            "1".to_owned(),
        ),
        (|it| text(it.dirty_log_harvest()), Request::DirtyLogHarvest, "Pages(12)".to_owned()),
        (|it| text(it.pause()), Request::Pause, "60µs".to_owned()),
        (|it| text(it.resume()), Request::Resume, done()),
        (|it| text(it.flush_disks()), Request::FlushDisks, done()),
        (|it| text(it.save_state()), Request::SaveState, "[[1], [2, 3]]".to_owned()),
        (|it| text(it.throttle(30)), Request::Throttle(30), done()),
        (|it| text(it.balloon(Bytes(9))), Request::Balloon(Bytes(9)), done()),
        (
            |it| text(it.leaves(ID, "hostb".into(), vec!["tcp:hostb:1".into()])),
            Request::Leaves { id: ID, to: "hostb".into(), destination: vec!["tcp:hostb:1".into()] },
            done(),
        ),
        (|it| text(it.own(Input::Begin(ID))), Request::Own(Input::Begin(ID)), done()),
        (
            |it| {
                let received = it.receive(ID, machine(), vec![disk()], HandoverMode::OneWay);
                text(received.map(|(memory, notes)| (memory.regions().next(), notes)))
            },
            receive,
            format!("{:?}", (Some((RegionId(0), Pages(16))), vec!["elsewhere"])),
        ),
        (
            |it| text(it.prepare(ID, vec![vec![4; 5]], Some(Duration::from_millis(3)))),
            Request::Prepare { id: ID, sections, paused_for },
            format!("{LOADED:?}"),
        ),
        (
            |it| text(it.go(ID, Authority::Source(Some(NONCE)))),
            Request::Go { id: ID, by },
            format!("{STARTED:?}"),
        ),
        (
            |it| text(it.migration_status(ID, Some(NONCE))),
            Request::MigrationStatus { id: ID, nonce: Some(NONCE) },
            "Prepared".to_owned(),
        ),
        (
            |it| text(it.post_progress(ID, "{}".into())),
            Request::PostProgress { id: ID, progress: "{}".into() },
            "[Cancel]".to_owned(),
        ),
        (|it| text(it.order(Order::Cancel)), Request::Order(Order::Cancel), done()),
    ]
}

#[test]
fn each_method_makes_its_request_and_returns_what_is_answered() {
    let served = Served::new(right);
    let client = served.client();
    assert_eq!((client.name(), client.pid(), client.path()), ("web", 4711, served.server.path()));
    for (call, request, returned) in calls() {
        assert_eq!(call(&client).unwrap(), returned, "{request:?}");
        assert_eq!(served.asked(), [request]);
    }
}

#[test]
fn an_answer_to_something_else_is_none() {
    for (call, request, _) in calls() {
        // One that is right for another request.
        let served = Served::new(|request| match right(request).reply {
            Reply::Done => Reply::Orders(Vec::new()).into(),
            _ => Reply::Done.into(),
        });
        // What comes with descriptors is seen by those; the reply says nothing more.
        if matches!(request, Request::MapMemory | Request::DirtyLogStart | Request::MeasureDirtying)
        {
            continue;
        }
        let error = call(&served.client()).unwrap_err();
        assert!(matches!(error, ClientError::OutOfTurn { .. }), "{request:?}: {error}");
        assert!(error.to_string().contains("out of turn"), "{error}");
    }
    let nothing = Served::new(|_| Reply::Done.into());
    let log = nothing.client().dirty_log_start(&machine());
    assert!(matches!(log, Err(ClientError::OutOfTurn { .. })), "{log:?}");
    let memory = nothing.client().map_memory(&machine());
    assert!(matches!(memory, Err(ClientError::Memory(_))), "{memory:?}");
}

#[test]
fn a_refusal_is_handed_on_with_its_code_and_is_no_end_of_vmrun() {
    let served = Served::new(|_| Reply::Refused(Refusal::Cancelled).into());
    for (call, request, _) in calls() {
        let client = served.client();
        let error = call(&client).unwrap_err();
        let refused = matches!(error, ClientError::Refused(Refusal::Cancelled));
        assert!(refused && !error.is_end_of_vmrun(), "{request:?}: {error}");
    }
}

#[test]
fn a_vmrun_of_another_release_is_named_with_its_version() {
    let served = Served::of_version(PROTOCOL_VERSION + 1, right);
    let error = Client::connect(served.server.path(), "test").unwrap_err();
    let ClientError::Version { theirs, .. } = error else { panic!("{error}") };
    assert_eq!(theirs, PROTOCOL_VERSION + 1);
}

#[test]
fn a_vmrun_that_is_gone_and_one_that_is_slow_are_told_apart() {
    let nowhere = Client::connect(Path::new("/nowhere/web.sock"), "test").unwrap_err();
    assert!(matches!(nowhere, ClientError::Connect { .. }) && !nowhere.is_end_of_vmrun());

    let gone = Served::new(|_| panic!("a mistake of the service"));
    let error = gone.client().resume().unwrap_err();
    assert!(error.is_end_of_vmrun(), "{error}");

    let (answer, is_answered) = channel::<()>();
    let is_answered = Mutex::new(is_answered);
    let slow = Served::new(move |_| {
        let _ = is_answered.lock().unwrap().recv();
        Reply::Done.into()
    });
    let client = slow.client();
    client.set_timeout(Duration::from_millis(20)).unwrap();
    let error = client.resume().unwrap_err();
    assert!(matches!(error, ClientError::Lost { .. }) && !error.is_end_of_vmrun(), "{error}");
    // Its late answer is none to the next request.
    drop(answer);
    assert!(client.status().is_err());
}

#[test]
fn events_come_as_they_are_until_there_are_no_more() {
    let served = Served::new(right);
    let mut events = served.client().subscribe().unwrap();
    assert_eq!(events.next(None), Some(Event::Resumed));
    assert_eq!(events.next(None), None);
    let names = [
        (Event::Resumed, "resumed"),
        (Event::Paused, "paused"),
        (Event::Ownership(State::Owned), "ownership"),
        (Event::Ended("off".into()), "ended"),
    ];
    for (event, name) in names {
        assert_eq!(event.name(), name);
    }
}
