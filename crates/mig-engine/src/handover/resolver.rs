//! What a source does that has committed and does not know what became of its guest.
//!
//! It asks the destination until that is known, or until there is no time left for it. An answer is
//! known in one of two cases: the destination runs the guest, and the source's vmrun ends; or the
//! destination has refused it for ever, and the source's vmrun takes it back. Everything else leaves
//! the source handed-over, unless the operator forces the guest back.

use mig_stream::DestinationOutcome;
use migpipe_units::Acknowledged;
use serde::{Deserialize, Serialize};

use super::ending::SourceEnding;
use super::failure::{Failure, FailureKind};

/// What a source says to a destination by a tunnel of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Query {
    /// What became of the guest? The source has committed, so this is GO as well. It carries what
    /// the ACK said; one way there was none.
    Committed(Option<Acknowledged>),
    /// The guest was given back to the source before the commit: nobody may wait for its GO.
    Released,
}

impl Query {
    /// What the ACK said, where there was one and it matters.
    pub const fn taken_by(self) -> Option<Acknowledged> {
        match self {
            Self::Committed(taken_by) => taken_by,
            Self::Released => None,
        }
    }

    /// What the answer of the destination means: `Ok` where this query has nothing left to ask.
    ///
    /// # Errors
    /// The kind of failure that any other answer is.
    pub const fn verdict(self, answer: &DestinationOutcome) -> Result<(), FailureKind> {
        Err(match (self, answer) {
            (Self::Committed(_), DestinationOutcome::Running)
            | (Self::Released, DestinationOutcome::Refused) => {
                return Ok(());
            }
            (Self::Committed(_), DestinationOutcome::Refused) => FailureKind::Refused,
            // It could not run the guest now, or did not hear the GO in the query.
            (Self::Committed(_), DestinationOutcome::Prepared) => FailureKind::Failed,
            // The next tunnel may lead to the right one.
            (Self::Committed(_), DestinationOutcome::OtherHost { .. }) => FailureKind::OtherHost,
            (Self::Committed(_), DestinationOutcome::MayHaveRun { .. }) | (Self::Released, _) => {
                FailureKind::MayHaveRun
            }
        })
    }
}

/// Whether a query that failed so is worth another attempt.
pub(super) const fn may_be_repeated(kind: FailureKind) -> bool {
    matches!(kind, FailureKind::Failed | FailureKind::OtherHost)
}

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ResolveOperation {
    /// Ask the destination.
    Query(Query),
    /// Wait a little before the next attempt, if there is time left for one.
    AwaitRetry,
    /// Tell the source's vmrun that the destination runs the guest, or has it on its disk: it ends.
    Confirm,
    /// Tell the source's vmrun that the guest is its own again: it runs.
    TakeBack,
    /// All done.
    Finished(SourceEnding),
}

/// The search for what became of one guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Resolver {
    taken_by: Option<Acknowledged>,
    force: bool,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum State {
    Query,
    AwaitRetry,
    Confirm,
    TakeBack,
    /// Taking the guest back by the operator's order alone.
    ForceBack,
    Finished(SourceEnding),
}

impl Resolver {
    /// Asks the destination. With `force` the guest is taken back in the end if that leads to
    /// nothing: two run if the operator is wrong.
    pub const fn new(taken_by: Option<Acknowledged>, force: bool) -> Self {
        Self { taken_by, force, state: State::Query }
    }

    /// The destination has the guest.
    pub(super) const fn confirming() -> Self {
        Self { taken_by: None, force: false, state: State::Confirm }
    }

    /// There is no destination.
    pub(super) const fn taking_back() -> Self {
        Self { taken_by: None, force: false, state: State::TakeBack }
    }

    /// What is to be done now.
    pub const fn operation(&self) -> ResolveOperation {
        match self.state {
            State::Query => ResolveOperation::Query(Query::Committed(self.taken_by)),
            State::AwaitRetry => ResolveOperation::AwaitRetry,
            State::Confirm => ResolveOperation::Confirm,
            State::TakeBack | State::ForceBack => ResolveOperation::TakeBack,
            State::Finished(ending) => ResolveOperation::Finished(ending),
        }
    }

    /// Goes on after the present operation.
    pub fn advance(&mut self, result: Result<(), FailureKind>) {
        use SourceEnding::*;
        self.state = match (self.state, result) {
            (State::Query, Ok(())) => State::Confirm,
            (State::Query, Err(FailureKind::Refused)) => State::TakeBack,
            (State::Query, Err(kind)) if may_be_repeated(kind) => State::AwaitRetry,
            // Who cancels is there to decide again.
            (State::Query, Err(FailureKind::Cancelled)) => State::Finished(Unknown),
            (State::AwaitRetry, Ok(())) => State::Query,
            (State::Query | State::AwaitRetry, Err(_)) if self.force => State::ForceBack,
            // The guest is there; at worst this source's vmrun was not told. It stays handed-over.
            (State::Confirm, _) => State::Finished(Moved),
            (State::TakeBack, Ok(())) => State::Finished(Stayed),
            (State::ForceBack, Ok(())) => State::Finished(Forced),
            (State::Query | State::AwaitRetry | State::TakeBack | State::ForceBack, Err(_)) => {
                State::Finished(Unknown)
            }
            (State::Finished(ending), _) => State::Finished(ending),
        };
    }
}

/// What can be done for a guest that is handed-over.
pub trait ResolveIo {
    /// Why something could not be done.
    type Error: Failure;

    /// Opens a tunnel of its own to the destination, asks, and says what came of it. The kind of an
    /// error that is an answer of the destination is that of [`Query::verdict`].
    ///
    /// # Errors
    /// When the answer is another one, or none came.
    fn query(&mut self, query: Query) -> Result<(), Self::Error>;

    /// Waits a little; false if there is no time left for another attempt.
    fn await_retry(&mut self) -> bool;

    /// Has the source's vmrun end, whose guest is elsewhere now.
    ///
    /// # Errors
    /// When it was not told.
    fn confirm(&mut self) -> Result<(), Self::Error>;

    /// Has the source's vmrun run the guest again, which the destination never will.
    ///
    /// # Errors
    /// When it was not told.
    fn take_back(&mut self) -> Result<(), Self::Error>;
}

/// Carries one operation out.
pub(super) fn perform<I: ResolveIo + ?Sized>(
    operation: ResolveOperation,
    io: &mut I,
) -> Result<bool, I::Error> {
    match operation {
        ResolveOperation::Query(query) => io.query(query)?,
        ResolveOperation::AwaitRetry => return Ok(io.await_retry()),
        ResolveOperation::Confirm => io.confirm()?,
        ResolveOperation::TakeBack => io.take_back()?,
        ResolveOperation::Finished(_) => {}
    }
    Ok(true)
}

/// Resolves to the end. With the ending comes the last error, if there is one behind the last query
/// that succeeded.
pub fn run<I: ResolveIo>(mut resolver: Resolver, io: &mut I) -> (SourceEnding, Option<I::Error>) {
    let mut reason = None;
    loop {
        if let ResolveOperation::Finished(ending) = resolver.operation() {
            return (ending, reason);
        }
        let operation = resolver.operation();
        let result = match perform(operation, io) {
            Ok(true) => {
                if let ResolveOperation::Query(_) = operation {
                    // Why an earlier attempt failed is of no interest any more.
                    reason = None;
                }
                Ok(())
            }
            Ok(false) => Err(FailureKind::Failed),
            Err(error) => {
                let kind = error.kind();
                reason = Some(error);
                Err(kind)
            }
        };
        resolver.advance(result);
    }
}
