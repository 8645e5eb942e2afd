//! The tools: mig-send, mig-send --resolve, mig-recv, and the queries between them.

use mig_engine::handover::{
    Destination, Query, ResolveOperation, Resolver, Responder, ResponderOperation, Source,
    SourceOperation, SourceStepOutcome,
};

use super::records::Ack;

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
pub struct SourceTool {
    /// The driver under test.
    pub driver: Driver,
    /// The number of the migration that it is about.
    pub number: u8,
    /// Whether its present query was asked.
    pub asked: bool,
}

/// mig-recv, reading a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Receiver {
    /// The driver under test.
    pub driver: Destination,
    /// The number of the migration.
    pub number: u8,
}

/// A query on its way, and the mig-recv that answers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PendingQuery {
    /// Who asked, while it waits; [`NOBODY`](super::NOBODY) after.
    pub asked_by: u8,
    /// The number of the migration that it is about.
    pub number: u8,
    /// The host that it came to.
    pub host: u8,
    /// The source took the guest back, and says so.
    pub released: bool,
    /// The ACK that the source_tool has.
    pub taken_by: Option<Ack>,
    /// The vmrun that has to do with the migration, once it was found.
    pub found: Option<u8>,
    /// How far it got.
    pub phase: Phase,
}

impl PendingQuery {
    /// Whether nothing was done about it yet.
    pub fn is_new(&self) -> bool {
        match self.phase {
            Phase::Search(responder) => responder.operation() == ResponderOperation::ReadRecord,
            Phase::Recording(_) | Phase::Answer(_) => false,
        }
    }

    /// Whether a refusal is what this host records next.
    pub fn refuses_next(&self, host: usize) -> bool {
        match self.phase {
            Phase::Search(responder) => {
                usize::from(self.host) == host
                    && responder.operation() == ResponderOperation::RecordRefusal
            }
            Phase::Recording(_) | Phase::Answer(_) => false,
        }
    }
}

/// How far a query got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// The mig-recv that answers it looks for the answer: the driver under test.
    Search(Responder),
    /// A refusal is being written.
    Recording(Responder),
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
    /// The query could not be read, or the answer is not known now: nothing was decided.
    NotKnownNow,
}
