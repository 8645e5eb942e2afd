//! What one moment of a migration consists of. Everything is `Copy` and small: a check visits
//! millions of these.

use mig_engine::handover::{
    Destination, Query, ResolveOperation, Resolver, Source, SourceOperation, SourceStepOutcome,
};
use mig_engine::ownership::{Decision, Input, Ownership, State as Owner};
use migpipe_units::{Acknowledged, HostId, MigrationId, Nonce};

/// The vmrun that has the guest at first; the others wait for one, on the other host.
pub const SOURCE: usize = 0;
/// All vmruns.
pub const VMS: usize = 3;
/// Tools that speak to the source's vmrun: two senders, then two resolvers.
pub const ASKERS: usize = 4;
/// The first resolver among the askers.
pub const RESOLVER: usize = 2;
/// All tools: the askers, then one reception for each waiting vmrun.
pub const TOOLS: usize = ASKERS + 2;
/// A step that no client waits for.
pub const NOBODY: u8 = u8::MAX;
/// Questions that may be on their way at once.
pub const QUESTIONS: usize = 2;

/// The id of the migration that sender `number` runs.
pub const fn id_of(number: u8) -> MigrationId {
    MigrationId::from_bytes([number + 1; 16])
}

/// The number of the sender whose migration has this id.
pub fn number_of(id: MigrationId) -> usize {
    usize::from(id != id_of(0))
}

/// Hosts that a guest may come to.
pub const HOSTS: usize = 2;

/// What an ACK says: each copy of the guest has a nonce of its own, and a host whose records were
/// lost is another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ack {
    /// The vmrun that has the copy.
    pub vm: u8,
    /// The host that it is on.
    pub host: u8,
    /// How often that host's records were lost before.
    pub lost: u8,
}

impl Ack {
    /// As it travels.
    pub const fn told(self) -> Acknowledged {
        let mut host = [0; 16];
        (host[0], host[1]) = (self.host, self.lost);
        Acknowledged { host: HostId::from_bytes(host), nonce: self.nonce() }
    }

    /// What GO must bring.
    pub const fn nonce(self) -> Nonce {
        Nonce::from_bytes([self.vm; 16])
    }

    /// What was told.
    pub fn of(told: Acknowledged) -> Self {
        let host = told.host.to_bytes();
        Self { vm: told.nonce.to_bytes()[0], host: host[0], lost: host[1] }
    }
}

/// The vmrun that a tool speaks to.
pub const fn vm_of(tool: usize) -> usize {
    if tool < ASKERS { SOURCE } else { tool - ASKERS + 1 }
}

/// Whether a process lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Life {
    /// It lives.
    Alive,
    /// It ended by itself.
    Ended,
    /// It was killed.
    Killed,
}

/// One vmrun: its own ownership machine, and what `bins/vmrun/src/guest.rs` keeps beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Vm {
    /// Whether the process lives.
    pub life: Life,
    /// The machine under test.
    pub ownership: Ownership,
    /// Whether vCPUs run now.
    pub running: bool,
    /// The migration by which the guest leaves.
    pub leaving: Option<Leaving>,
    /// The reception that brings a guest.
    pub receiver: Option<u8>,
    /// A step whose record is being written: the lock is held.
    pub busy: Option<Busy>,
    /// The migrations whose guest it took back, though their destination may be prepared.
    pub released: [bool; 2],
    /// What is still to be recorded when somebody finds the time.
    pub later: Option<(u8, Decision)>,
}

impl Vm {
    /// A vmrun that has just started.
    pub const fn new(ownership: Ownership) -> Self {
        Self {
            life: Life::Alive,
            ownership,
            running: ownership.may_run(),
            leaving: None,
            receiver: None,
            busy: None,
            released: [false; 2],
            later: None,
        }
    }
}

/// See `Migration` in `bins/vmrun/src/guest.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Leaving {
    /// The tool that began it.
    pub client: u8,
    /// The blackout has begun.
    pub paused: bool,
    /// The state was saved since, and the guest has not run.
    pub saved: bool,
}

/// A step between its record and its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Busy {
    /// The step.
    pub input: Input,
    /// The tool that waits for it.
    pub by: u8,
}

/// What a tool asks of its vmrun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Request {
    /// A step of ownership.
    Own(Input),
    /// Pause the guest and save its state.
    Save,
}

/// A tool's end of its control connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Line {
    /// Nobody is connected.
    Idle,
    /// The tool is there.
    Open,
    /// The tool has given up waiting for an answer once, and hears nothing more.
    TimedOut,
    /// The tool is gone, and vmrun has not noticed yet.
    Gone,
}

/// A control connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Connection {
    /// The tool's end.
    pub line: Line,
    /// Requests that vmrun has not served, the oldest first.
    pub pending: [Option<Request>; 2],
}

impl Connection {
    /// No connection.
    pub const IDLE: Self = Self { line: Line::Idle, pending: [None; 2] };

    /// Adds a request behind the others.
    pub fn ask(&mut self, request: Request) {
        if let Some(free) = self.pending.iter_mut().find(|slot| slot.is_none()) {
            *free = Some(request);
        }
    }

    /// Takes the oldest request.
    pub const fn take(&mut self) {
        self.pending = [self.pending[1], None];
    }
}

/// What goes forward. Pages are not modelled: they travel between the header and `End`, and a cut
/// between them is a cut before `End`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Forward {
    /// The header, with the earlier migrations that the source released.
    Header([bool; 2]),
    /// The last page and section, and `End`.
    End,
    /// GO, for the copy of the guest that was acknowledged so.
    Go(Option<Ack>),
    /// The source gave up before its commit.
    Abort,
}

/// What comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Back {
    /// READY.
    Ready,
    /// ACK.
    Ack(Ack),
    /// RUNNING.
    Running,
    /// The destination gave up.
    Failed,
}

/// One direction of a tunnel: no reordering, but it may end anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pipe<M> {
    /// What is on its way, the oldest first.
    pub queue: [Option<M>; 4],
    /// Whether what is written from now on will arrive.
    pub open: bool,
}

impl<M: Copy> Pipe<M> {
    /// Nothing, and nothing will come.
    pub const CLOSED: Self = Self { queue: [None; 4], open: false };
    /// A fresh tunnel.
    pub const OPEN: Self = Self { queue: [None; 4], open: true };

    /// How many messages are on their way.
    pub fn len(&self) -> usize {
        self.queue.iter().flatten().count()
    }

    /// Whether nothing is on its way.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes; what is written into a dead tunnel is lost.
    pub fn write(&mut self, message: M) {
        if self.open {
            let end = self.len();
            assert!(end < self.queue.len(), "no handover has so many messages on their way");
            self.queue[end] = Some(message);
        }
    }

    /// Takes the oldest message.
    pub fn read(&mut self) -> Option<M> {
        let message = self.queue[0]?;
        self.queue.rotate_left(1);
        self.queue[3] = None;
        Some(message)
    }
}

/// The driver of a tool at the source's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Driver {
    /// That of mig-send.
    Source(Source),
    /// That of mig-send --resolve.
    Resolver(Resolver),
}

impl Driver {
    /// What is to be done now.
    pub const fn operation(&self) -> SourceOperation {
        match self {
            Self::Source(source) => source.operation(),
            Self::Resolver(resolver) => match resolver.operation() {
                ResolveOperation::Finished(ending) => SourceOperation::Finished(ending),
                operation => SourceOperation::Resolve(operation),
            },
        }
    }

    /// Tells the driver how that went.
    pub fn advance(&mut self, outcome: SourceStepOutcome) {
        match self {
            Self::Source(source) => source.advance(outcome),
            Self::Resolver(resolver) => resolver.advance(match outcome {
                SourceStepOutcome::Failed(kind) => Err(kind),
                _ => Ok(()),
            }),
        }
    }

    /// Whether nothing may cancel any more.
    pub const fn is_committed(&self) -> bool {
        match self {
            Self::Source(source) => source.is_committed(),
            Self::Resolver(_) => true,
        }
    }

    /// The ACK that it has.
    pub fn taken_by(&self) -> Option<Ack> {
        let told = match (self, self.operation()) {
            (Self::Source(source), _) => source.taken_by(),
            (_, SourceOperation::Resolve(ResolveOperation::Query(Query::Committed(by)))) => by,
            _ => None,
        };
        told.map(Ack::of)
    }
}

/// A tool at the source's side: mig-send, or mig-send --resolve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Asker {
    /// The driver under test.
    pub driver: Driver,
    /// The number of the migration that it is about.
    pub number: u8,
    /// Whether its present question was asked.
    pub asked: bool,
}

/// mig-recv, reading a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Reception {
    /// The driver under test.
    pub driver: Destination,
    /// The number of the migration.
    pub number: u8,
}

/// A question on its way, and the mig-recv that answers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Question {
    /// Who asked, while it waits; [`NOBODY`] after.
    pub asker: u8,
    /// The number of the migration that it is about.
    pub number: u8,
    /// The host that it came to.
    pub host: u8,
    /// The source took the guest back, and says so.
    pub released: bool,
    /// The ACK that the asker has.
    pub taken_by: Option<Ack>,
    /// How far it got.
    pub phase: Phase,
}

/// How far a question got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// On its way, or about to look (again).
    Look,
    /// The record was read; the vmrun named in it was not asked yet.
    Read(Option<Decision>),
    /// A refusal is being written.
    Recording,
    /// The answer is on its way.
    Answer(Answer),
}

/// What comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Answer {
    /// The guest runs there.
    Running,
    /// The guest never will.
    Refused,
    /// Nobody knows.
    MayHaveRun,
    /// Another host acknowledged the guest.
    OtherHost,
    /// The question could not be read: mig-recv says so, and nothing was decided.
    Unreadable,
}

/// What a destination host remembers of one migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Record {
    /// What a reader sees.
    pub visible: Option<Decision>,
    /// What a crash of the host leaves.
    pub durable: Option<Decision>,
    /// The vmrun whose socket is in it.
    pub vm: Option<u8>,
}

impl Record {
    /// Nothing is remembered.
    pub const NONE: Self = Self { visible: None, durable: None, vm: None };
}

/// The file that a guest is saved to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Saved {
    /// There is none, or it has no name yet.
    No,
    /// It can be read, and a power loss takes it away.
    Visible,
    /// It is on the disk.
    Durable,
}

/// What nobody in the system can see, kept for the properties.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct History {
    /// How often the state saved for each migration was continued from: the source that runs on
    /// counts, and each destination that runs it.
    pub continued: [u8; 2],
    /// The source was handed-over for this migration.
    pub committed: [bool; 2],
    /// The vmrun whose ACK the source committed with.
    pub taken_by: [Option<u8>; 2],
    /// GO was written, in whatever shape.
    pub released: [bool; 2],
    /// The operator's cancel was accepted, or the tool's status said that the guest stays.
    pub stays: [bool; 2],
    /// The guest ran in this vmrun, after it arrived there.
    pub ran: [bool; VMS],
    /// A tool's exit status said that the guest will never run in this vmrun.
    pub never: [bool; VMS],
    /// A vmrun that owned the guest was killed or ended by its operator.
    pub gone: bool,
    /// A vmrun of the destination host was killed, or ended by its operator after it had run.
    pub unsure: bool,
    /// A rule that a step broke.
    pub broken: Option<Rule>,
}

/// Rules that are checked where the step is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// GO was written before the source was handed-over.
    CommitBeforeGo,
    /// A destination ran before GO was written.
    GoBeforeRunning,
    /// A cancelled or failed migration was committed after all, or its guest ran elsewhere.
    StaysMeansStays,
    /// mig-send's status 0 was not true.
    MovedMeansMoved,
    /// mig-recv's status 0 was not true.
    RunsMeansRuns,
    /// mig-recv's status 1 was not true.
    RefusedMeansNever,
    /// A refusal left the host before it was on the disk.
    RecordedBeforeSaid,
    /// The last whole copy of a guest was thrown away, and nobody had said so.
    KeptForSomebody,
}

/// One moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// The vmruns: the source, then two that wait on the destination host, or on one each.
    pub vms: [Vm; VMS],
    /// The tools' control connections.
    pub connections: [Connection; TOOLS],
    /// The tools at the source's side.
    pub askers: [Option<Asker>; ASKERS],
    /// The tools at the destination's side.
    pub receptions: [Option<Reception>; 2],
    /// Streams forward.
    pub forward: [Pipe<Forward>; 2],
    /// Answers back.
    pub back: [Pipe<Back>; 2],
    /// Questions.
    pub questions: [Option<Question>; QUESTIONS],
    /// The records of each host that a guest may come to, by migration.
    pub records: [[Record; 2]; HOSTS],
    /// How often those of each were lost.
    pub lost: [u8; HOSTS],
    /// The file that the guest is saved to.
    pub file: Saved,
    /// How often that file may still be read.
    pub reads: u8,
    /// Senders that were started.
    pub sent: [bool; 2],
    /// Crashes that may still come.
    pub crashes: u8,
    /// Times that the operator may still end a guest.
    pub quits: u8,
    /// Times that a host may still lose its records.
    pub wipes: u8,
    /// Faults that may still come.
    pub faults: u8,
    /// For the properties.
    pub history: History,
}

impl State {
    /// A guest that runs at the source, and two vmruns that wait on another host.
    pub fn initial(crashes: u8, quits: u8, wipes: u8, faults: u8, reads: u8) -> Self {
        Self {
            vms: [
                Vm::new(Ownership::booted()),
                Vm::new(Ownership::incoming()),
                Vm::new(Ownership::incoming()),
            ],
            connections: [Connection::IDLE; TOOLS],
            askers: [None; ASKERS],
            receptions: [None; 2],
            forward: [Pipe::CLOSED; 2],
            back: [Pipe::CLOSED; 2],
            questions: [None; QUESTIONS],
            records: [[Record::NONE; 2]; HOSTS],
            lost: [0; HOSTS],
            file: Saved::No,
            reads,
            sent: [false; 2],
            crashes,
            quits,
            wipes,
            faults,
            history: History {
                continued: [0; 2],
                committed: [false; 2],
                taken_by: [None; 2],
                released: [false; 2],
                stays: [false; 2],
                ran: [false; VMS],
                never: [false; VMS],
                gone: false,
                unsure: false,
                broken: None,
            },
        }
    }

    /// Notes that a rule was broken; the first one is kept.
    pub fn broke(&mut self, rule: Rule) {
        self.history.broken.get_or_insert(rule);
    }

    /// Whether a saved guest may be restored: it was not decided, and nobody works on it.
    pub fn is_free(&self, host: usize, number: usize) -> bool {
        let record = &self.records[host][number];
        // By the process, not by another that was started in its place.
        let held = record.vm.is_some_and(|vm| {
            let here = &self.vms[usize::from(vm)];
            let restores =
                matches!(here.ownership.state(), Owner::Receiving(_) | Owner::Prepared(_));
            here.life == Life::Alive && (restores || here.busy.is_some())
        });
        match record.visible {
            None => true,
            Some(Decision::Restoring) => !held,
            Some(Decision::MayRun | Decision::Ran | Decision::Refused) => false,
        }
    }

    /// Whether this vmrun lives.
    pub fn is_alive(&self, vm: usize) -> bool {
        self.vms[vm].life == Life::Alive
    }
}
