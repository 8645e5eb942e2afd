//! What a source can do, and the loop that has it done.

use mig_stream::StreamDigest;
use migpipe_units::Acknowledged;

use super::ending::SourceEnding;
use super::failure::{Failure, FailureKind, HandoverError};
use super::guest::SourceGuestState;
use super::resolver::{self, Query, ResolveIo, ResolveOperation};
use super::source::{Source, SourceOperation, SourceStep, SourceStepOutcome};

/// What a source can do: one method for each operation of [`Source`], which alone decides what is
/// done when and what follows from it.
pub trait SourceIo: ResolveIo<Error: From<HandoverError>> {
    /// What the destination still lacks when pre-copy ends.
    type Remainder;

    /// See [`SourceStep::SendHeader`].
    ///
    /// # Errors
    /// When the header was not written.
    fn send_header(&mut self) -> Result<(), Self::Error>;

    /// See [`SourceStep::AwaitReady`].
    ///
    /// # Errors
    /// When no READY came in time.
    fn await_ready(&mut self) -> Result<(), Self::Error>;

    /// See [`SourceStep::PreCopy`].
    ///
    /// # Errors
    /// When the guest cannot be taken, or the rounds of pages did not come to an end.
    fn precopy(&mut self) -> Result<Self::Remainder, Self::Error>;

    /// See [`SourceStep::StopAndCopy`].
    ///
    /// # Errors
    /// When the guest was not paused, saved or sent.
    fn stop_and_copy(&mut self, remainder: Self::Remainder) -> Result<(), Self::Error>;

    /// See [`SourceStep::Resume`].
    ///
    /// # Errors
    /// When vmrun did not confirm it.
    fn resume(&mut self) -> Result<(), Self::Error>;

    /// See [`SourceStep::SendEnd`]. Returns the digest over the stream.
    ///
    /// # Errors
    /// When it was not written.
    fn send_end(&mut self) -> Result<StreamDigest, Self::Error>;

    /// See [`SourceStep::Close`].
    ///
    /// # Errors
    /// When the end of the stream may not have arrived, as far as that can be known.
    fn close(&mut self) -> Result<(), Self::Error>;

    /// See [`SourceStep::AwaitAck`]. Returns the digest that was echoed, and who acknowledges.
    ///
    /// # Errors
    /// When no ACK came in time.
    fn await_ack(&mut self) -> Result<(StreamDigest, Acknowledged), Self::Error>;

    /// See [`SourceStep::PrepareCommit`].
    ///
    /// # Errors
    /// When the disks are not flushed in time, or nobody could bring GO.
    fn prepare_commit(&mut self) -> Result<(), Self::Error>;

    /// See [`SourceStep::Commit`]. A cancel of the operator comes before this or not at all.
    ///
    /// # Errors
    /// [`FailureKind::Cancelled`] if it came before, [`FailureKind::Undone`] if vmrun said no, and
    /// [`FailureKind::Failed`] if it has not answered.
    fn commit(&mut self, taken_by: Option<Acknowledged>) -> Result<(), Self::Error>;

    /// See [`SourceStep::SendGo`].
    ///
    /// # Errors
    /// When it was not sent whole.
    fn send_go(&mut self, taken_by: Acknowledged) -> Result<(), Self::Error>;

    /// See [`SourceStep::AwaitRunning`].
    ///
    /// # Errors
    /// When the destination did not say in time that the guest runs.
    fn await_running(&mut self, taken_by: Acknowledged) -> Result<(), Self::Error>;

    /// See [`SourceOperation::RemoveFile`]. True if the file is gone, or has no end.
    fn remove_file(&mut self) -> bool;

    /// See [`SourceOperation::Release`].
    ///
    /// # Errors
    /// When vmrun did not confirm it.
    fn release(&mut self) -> Result<(), Self::Error>;

    /// See [`SourceOperation::LookAtGuest`].
    fn guest_state(&mut self) -> SourceGuestState;

    /// See [`SourceOperation::Explain`]: the error of `step`, with all that can be found out about
    /// it; [`FailureKind::GivenUp`] if the destination says that it has given the guest up. Unless
    /// `may_be_cancelled`, it is no cancel of the operator.
    fn explain(
        &mut self,
        step: SourceStep,
        error: Self::Error,
        may_be_cancelled: bool,
    ) -> Self::Error;

    /// See [`SourceOperation::AbortStream`]; `why` is what failed first.
    fn abort_stream(&mut self, why: Option<&Self::Error>);

    /// See [`SourceOperation::LeaveTunnel`].
    fn leave_tunnel(&mut self);
}

/// How a migration ended.
#[derive(Debug)]
pub struct SourceEnd<E> {
    /// Its ending.
    pub ending: SourceEnding,
    /// What became of the guest at the source, where that was looked at.
    pub guest: Option<SourceGuestState>,
    /// Why it ended so, unless the guest has moved: what failed first, unless a query has found out
    /// more.
    pub reason: Option<E>,
}

/// Migrates to the end.
pub fn run<I: SourceIo>(mut source: Source, io: &mut I) -> SourceEnd<I::Error> {
    let mut pass = Pass { remainder: None, failed: None, reason: None };
    loop {
        if let SourceOperation::Finished(ending) = source.operation() {
            // That the guest has moved says more than what went wrong before it was known.
            let reason = pass.reason.filter(|_| ending != SourceEnding::Moved);
            return SourceEnd { ending, guest: source.guest(), reason };
        }
        let outcome = pass.perform(&source, io);
        source.advance(outcome);
    }
}

/// What the loop keeps between two operations.
struct Pass<R, E> {
    remainder: Option<R>,
    /// Why a step failed, until it is explained.
    failed: Option<E>,
    reason: Option<E>,
}

impl<R, E: Failure + From<HandoverError>> Pass<R, E> {
    fn perform<I>(&mut self, source: &Source, io: &mut I) -> SourceStepOutcome
    where
        I: SourceIo<Remainder = R, Error = E>,
    {
        let done = |done| match done {
            true => SourceStepOutcome::Done,
            false => SourceStepOutcome::Failed(FailureKind::Failed),
        };
        match source.operation() {
            SourceOperation::Step(step) => self.step(source, step, io).unwrap_or_else(|error| {
                let kind = error.kind();
                self.failed = Some(error);
                SourceStepOutcome::Failed(kind)
            }),
            SourceOperation::RemoveFile => done(io.remove_file()),
            SourceOperation::Release => done(io.release().is_ok()),
            SourceOperation::LookAtGuest => SourceStepOutcome::Guest(io.guest_state()),
            SourceOperation::Explain(step) => {
                let Some(error) = self.failed.take() else { return SourceStepOutcome::Done };
                let error = io.explain(step, error, source.may_be_cancelled());
                let kind = error.kind();
                self.reason.get_or_insert(error);
                SourceStepOutcome::Failed(kind)
            }
            SourceOperation::AbortStream => {
                io.abort_stream(self.reason.as_ref());
                SourceStepOutcome::Done
            }
            SourceOperation::Resolve(operation) => self.resolve(operation, io),
            SourceOperation::LeaveTunnel => {
                io.leave_tunnel();
                SourceStepOutcome::Done
            }
            SourceOperation::Finished(_) => SourceStepOutcome::Done,
        }
    }

    fn step<I>(
        &mut self,
        source: &Source,
        step: SourceStep,
        io: &mut I,
    ) -> Result<SourceStepOutcome, E>
    where
        I: SourceIo<Remainder = R, Error = E>,
    {
        match step {
            SourceStep::SendHeader => io.send_header()?,
            SourceStep::AwaitReady => io.await_ready()?,
            SourceStep::PreCopy => self.remainder = Some(io.precopy()?),
            SourceStep::StopAndCopy => match self.remainder.take() {
                Some(remainder) => io.stop_and_copy(remainder)?,
                None => unreachable!("the source stops and copies after pre-copy, and once"),
            },
            SourceStep::Resume => io.resume()?,
            SourceStep::SendEnd => return Ok(SourceStepOutcome::Sent(io.send_end()?)),
            SourceStep::Close => io.close()?,
            SourceStep::AwaitAck => {
                let (echoed, by) = io.await_ack()?;
                source.check_ack(echoed)?;
                return Ok(SourceStepOutcome::Acknowledged(by));
            }
            SourceStep::PrepareCommit => io.prepare_commit()?,
            SourceStep::Commit => io.commit(source.taken_by())?,
            SourceStep::SendGo => io.send_go(source.acknowledged()?)?,
            SourceStep::AwaitRunning => io.await_running(source.acknowledged()?)?,
        }
        Ok(SourceStepOutcome::Done)
    }

    fn resolve<I>(&mut self, operation: ResolveOperation, io: &mut I) -> SourceStepOutcome
    where
        I: SourceIo<Remainder = R, Error = E>,
    {
        match resolver::perform(operation, io) {
            Ok(true) => SourceStepOutcome::Done,
            Ok(false) => SourceStepOutcome::Failed(FailureKind::Failed),
            Err(error) => {
                let kind = error.kind();
                match kind {
                    // The operator has to know this, whatever it was that made the query necessary.
                    FailureKind::OtherHost | FailureKind::MayHaveRun
                        if matches!(operation, ResolveOperation::Query(Query::Committed(_))) =>
                    {
                        self.reason = Some(error);
                    }
                    _ => drop(self.reason.get_or_insert(error)),
                }
                SourceStepOutcome::Failed(kind)
            }
        }
    }
}
