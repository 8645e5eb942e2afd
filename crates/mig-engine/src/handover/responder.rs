//! The host's side of a query: a machine that hands out one operation after the other and is told how
//! each went. A source asks what became of a migration, or says that it took the guest back; all that
//! decides what it is told is in here.
//!
//! The answer comes from two memories: the vmruns of the host, as far as they live, and its durable
//! records. What is *known* counts on whatever host it is found: a guest that runs there, or waits
//! there for the GO of this very source. What is *not* known is an answer on one host alone, the one
//! that would know:
//!
//! - A destination that acknowledged the guest said who it is. Another host, to which the same name
//!   leads, or the same one with its records lost, says so, and neither refuses nor records
//!   anything.
//! - A source that has no ACK (one way) says how old the migration is. A host that has not
//!   remembered for so long does not say "never heard of it" either.
//!
//! The order, and why:
//! 1. The record, and the vmrun whose socket is in it: in most cases they have the answer.
//! 2. Every other vmrun that can be reached: the record may be lost, or be in another state
//!    directory, while the guest runs. One that does not answer may be the one, so that nothing is
//!    known then. Records that cannot be read make no difference up to here.
//! 3. What the host remembers is read once more: a vmrun may have refused, and ended, and the records may
//!    have been lost, since it was read. If it has changed all is looked through again.
//! 4. Only then a refusal of what is unknown is recorded, and after that it is told, so that the guest
//!    cannot arrive behind the answer's back. A guest that came meanwhile has made its own record
//!    first, and all is looked through again.
//!
//! Only a source that has committed asks, so the query is GO as well: a guest that is prepared here for
//! it runs before the answer is given.

use super::reply::{Known, Reply, reply, reply_to_release};
use super::resolver::Query;
use crate::ownership::{Decision, MigrationStatus};

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ResponderOperation {
    /// Read what the host remembers of the migration.
    ReadRecord,
    /// Ask the vmrun whose socket is in the record, if there is one.
    QueryNamedVmrun,
    /// Ask the next vmrun of the host: each of them, since the record was read.
    QueryNextVmrun,
    /// Have the vmrun that has the guest run it.
    Run,
    /// Have the vmrun that has the guest give it up, for ever.
    Refuse,
    /// Wait until that vmrun has ended: the name of its guest is free then.
    AwaitEnd,
    /// See that the refusal which was read is on the disk: its writer may not have come to that.
    SyncRefusal,
    /// Record that the guest will never run here, unless somebody has recorded something else.
    RecordRefusal,
    /// Read what the host remembers once more: it may have changed since it was read.
    ReadAgain,
    /// Wait a little, if there is time left to look again.
    AwaitRetry,
    /// All done.
    Finished(HostAnswer),
}

/// How an operation went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ResponderOutcome {
    /// It was done.
    Done,
    /// What the host remembers.
    Memory(HostMemory),
    /// What the vmrun says that was asked; nothing, if there is none, or none any more.
    Status(Option<MigrationStatus>),
    /// Somebody else has recorded something first.
    Overtaken,
    /// It was not done.
    Failed,
}

/// What a host remembers of a migration, and of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HostMemory {
    /// What its record says.
    pub record: Option<Decision>,
    /// Whether the ACK that the source has is of this host; nothing if the source has none.
    pub acknowledged_here: Option<bool>,
    /// Whether this host remembers what was before the migration began.
    pub remembers: bool,
}

/// What a host answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HostAnswer {
    /// The guest runs, or ran, here.
    Running,
    /// The guest will never run here, and that is on the disk.
    Refused,
    /// The guest may have run here.
    MayHaveRun(Doubt),
    /// Another host acknowledged the guest.
    OtherHost,
    /// It cannot be known now: the source may ask again.
    NotKnownNow,
}

/// Why a guest may have run, for all that a host knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Doubt {
    /// It was received here, and nobody is left who knows what became of it.
    VmrunGone,
    /// It was acknowledged here, and the record of it is gone.
    RecordLost,
    /// The records of this host are younger than the migration.
    RemembersTooLittle,
}

/// The host's side of one query.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Responder {
    asked: Asked,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Asked {
    Committed { acknowledged: bool },
    Released,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum State {
    ReadRecord,
    QueryNamed(Memory),
    QueryNext(Memory),
    Run,
    Refuse,
    AwaitEnd,
    SyncRefusal,
    RecordRefusal,
    ReadAgain(HostMemory, IfUnchanged),
    AwaitRetry,
    Finished(HostAnswer),
}

/// What follows if the host remembers what it did before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum IfUnchanged {
    Doubt,
    Refuse,
}

/// Nothing, where it cannot be read.
type Memory = Option<HostMemory>;

impl Responder {
    /// A query that has just come.
    pub const fn new(query: Query) -> Self {
        let asked = match query {
            Query::Committed(by) => Asked::Committed { acknowledged: by.is_some() },
            Query::Released => Asked::Released,
        };
        Self { asked, state: State::ReadRecord }
    }

    /// What is to be done now.
    pub const fn operation(&self) -> ResponderOperation {
        match self.state {
            State::ReadRecord => ResponderOperation::ReadRecord,
            State::QueryNamed(_) => ResponderOperation::QueryNamedVmrun,
            State::QueryNext(_) => ResponderOperation::QueryNextVmrun,
            State::Run => ResponderOperation::Run,
            State::Refuse => ResponderOperation::Refuse,
            State::AwaitEnd => ResponderOperation::AwaitEnd,
            State::SyncRefusal => ResponderOperation::SyncRefusal,
            State::RecordRefusal => ResponderOperation::RecordRefusal,
            State::ReadAgain(..) => ResponderOperation::ReadAgain,
            State::AwaitRetry => ResponderOperation::AwaitRetry,
            State::Finished(answer) => ResponderOperation::Finished(answer),
        }
    }

    /// Goes on after the present operation went as `outcome` says.
    pub fn advance(&mut self, outcome: ResponderOutcome) {
        use HostAnswer::*;
        use ResponderOutcome as Outcome;
        self.state = match (self.state, outcome) {
            (State::Finished(answer), _) => State::Finished(answer),
            (State::ReadRecord, Outcome::Memory(memory)) => State::QueryNamed(Some(memory)),
            (State::ReadRecord, _) => State::QueryNamed(None),

            // A vmrun that does not answer may be the one that runs the guest.
            (State::QueryNamed(_) | State::QueryNext(_), Outcome::Failed) => {
                State::Finished(NotKnownNow)
            }
            (
                State::QueryNamed(memory) | State::QueryNext(memory),
                Outcome::Status(Some(status)),
            ) if status != MigrationStatus::NotMine => self.found(memory, Some(status)),
            (State::QueryNamed(memory), _) => match self.reply(memory, None) {
                Reply::Running | Reply::Refused => self.found(memory, None),
                _ => State::QueryNext(memory),
            },
            (State::QueryNext(memory), Outcome::Status(Some(_))) => State::QueryNext(memory),
            (State::QueryNext(memory), _) => self.found(memory, None),

            (State::Run, Outcome::Done) => State::Finished(Running),
            (State::Refuse, Outcome::Done) if matches!(self.asked, Asked::Released) => {
                State::AwaitEnd
            }
            // If the guest went on meanwhile, the next look shows where to.
            (State::Run | State::Refuse | State::AwaitEnd, _) => State::AwaitRetry,

            (State::SyncRefusal | State::RecordRefusal, Outcome::Done) => State::Finished(Refused),
            (State::RecordRefusal, Outcome::Overtaken) => State::AwaitRetry,
            (State::SyncRefusal | State::RecordRefusal, _) => State::Finished(NotKnownNow),

            (State::ReadAgain(before, IfUnchanged::Doubt), Outcome::Memory(now))
                if now.record == before.record =>
            {
                State::Finished(MayHaveRun(Doubt::VmrunGone))
            }
            (State::ReadAgain(before, IfUnchanged::Refuse), Outcome::Memory(now))
                if now == before =>
            {
                State::RecordRefusal
            }
            (State::ReadAgain(..), Outcome::Memory(_)) => State::AwaitRetry,
            (State::ReadAgain(..), _) => State::Finished(NotKnownNow),

            (State::AwaitRetry, Outcome::Done) => State::ReadRecord,
            (State::AwaitRetry, _) => State::Finished(NotKnownNow),
        };
    }

    const fn reply(&self, memory: Memory, live: Option<MigrationStatus>) -> Reply {
        let HostMemory { record, acknowledged_here, remembers } = match (memory, self.asked) {
            (Some(memory), _) => memory,
            (None, Asked::Committed { acknowledged: true }) => {
                HostMemory { record: None, acknowledged_here: Some(true), remembers: false }
            }
            (None, _) => HostMemory { record: None, acknowledged_here: None, remembers: false },
        };
        let known = Known { record, live, acknowledged_here, remembers };
        match self.asked {
            Asked::Committed { .. } => reply(known),
            Asked::Released => reply_to_release(known),
        }
    }

    /// All that was to be asked was asked.
    fn found(&self, memory: Memory, live: Option<MigrationStatus>) -> State {
        use HostAnswer::*;
        match (self.reply(memory, live), memory) {
            (Reply::Prepared, _) => State::Run,
            (Reply::RefuseInVmrun, _) => State::Refuse,
            (Reply::Running, _) if live == Some(MigrationStatus::Running) => {
                State::Finished(Running)
            }
            // The records would have to say it.
            (_, None) => State::Finished(NotKnownNow),
            (Reply::Running, _) => State::Finished(Running),
            (Reply::Refused, _) => State::SyncRefusal,
            (Reply::RefuseFirst, Some(memory)) => State::ReadAgain(memory, IfUnchanged::Refuse),
            (Reply::MayHaveRun, Some(memory)) => State::ReadAgain(memory, IfUnchanged::Doubt),
            (Reply::RecordLost, _) => State::Finished(MayHaveRun(Doubt::RecordLost)),
            (Reply::RemembersTooLittle, _) => {
                State::Finished(MayHaveRun(Doubt::RemembersTooLittle))
            }
            (Reply::OtherHost, _) => State::Finished(OtherHost),
        }
    }
}
