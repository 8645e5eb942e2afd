//! What a destination can do, and the loop that has it done.

use mig_stream::StreamDigest;
use migpipe_units::{Acknowledged, Nonce};

use super::destination::{
    Destination, DestinationEnding, DestinationOperation, DestinationStep, DestinationStepOutcome,
};
use super::failure::{Failure, HandoverError};
use crate::ownership::{Decision, MigrationStatus};

/// What a destination can do: one method for each operation of [`Destination`], which alone decides
/// what is done when and what follows from it.
pub trait DestinationIo {
    /// Why something could not be done.
    type Error: Failure + From<HandoverError>;

    /// See [`DestinationStep::Receive`].
    ///
    /// # Errors
    /// When this host cannot take the guest.
    fn receive(&mut self) -> Result<(), Self::Error>;

    /// See [`DestinationStep::SendReady`].
    ///
    /// # Errors
    /// When it was not sent.
    fn send_ready(&mut self) -> Result<(), Self::Error>;

    /// See [`DestinationStep::Read`]. Returns the digest over the stream.
    ///
    /// # Errors
    /// When the stream breaks off or is wrong; [`Refused`](super::FailureKind::Refused) if the source says that it
    /// gave up.
    fn read(&mut self) -> Result<StreamDigest, Self::Error>;

    /// See [`DestinationStep::AwaitEof`].
    ///
    /// # Errors
    /// When something else came, or nothing.
    fn await_eof(&mut self) -> Result<(), Self::Error>;

    /// See [`DestinationStep::Prepare`]. Returns what the ACK is to say; nothing one way.
    ///
    /// # Errors
    /// When the guest cannot be loaded, or is not what was sent.
    fn prepare(&mut self) -> Result<Option<Acknowledged>, Self::Error>;

    /// See [`DestinationStep::SendAck`].
    ///
    /// # Errors
    /// When it was not sent whole.
    fn send_ack(&mut self, digest: StreamDigest, by: Acknowledged) -> Result<(), Self::Error>;

    /// See [`DestinationStep::AwaitGo`]. Returns the nonce that came with it.
    ///
    /// # Errors
    /// When no GO came in time; [`Refused`](super::FailureKind::Refused) if the source says that none will.
    fn await_go(&mut self) -> Result<Nonce, Self::Error>;

    /// See [`DestinationStep::AwaitCommit`].
    ///
    /// # Errors
    /// When the guest does not run in time.
    fn await_commit(&mut self, nonce: Option<Nonce>) -> Result<(), Self::Error>;

    /// See [`DestinationStep::Run`].
    ///
    /// # Errors
    /// When the vmrun did not say that it runs the guest.
    fn run(&mut self, nonce: Option<Nonce>) -> Result<(), Self::Error>;

    /// See [`DestinationStep::SendRunning`].
    ///
    /// # Errors
    /// When it was not sent.
    fn send_running(&mut self) -> Result<(), Self::Error>;

    /// See [`DestinationOperation::LookAtGuest`].
    ///
    /// # Errors
    /// When the vmrun does not say.
    fn migration_status(&mut self, nonce: Option<Nonce>) -> Result<MigrationStatus, Self::Error>;

    /// See [`DestinationOperation::ReadRecord`]. Nothing, if there is none, or a saved guest is not
    /// restored any more.
    ///
    /// # Errors
    /// When it cannot be read.
    fn record(&mut self) -> Result<Option<Decision>, Self::Error>;

    /// See [`DestinationOperation::Refuse`].
    ///
    /// # Errors
    /// When the vmrun did not confirm it.
    fn refuse(&mut self) -> Result<(), Self::Error>;

    /// See [`DestinationOperation::AwaitEnd`].
    fn await_end(&mut self, gave_up: bool);

    /// See [`DestinationOperation::SayGivenUp`].
    fn say_given_up(&mut self, received: bool, why: Option<&Self::Error>);
}

/// Receives to the end. With the ending comes what failed first.
pub fn run<I: DestinationIo>(
    mut destination: Destination,
    io: &mut I,
) -> (DestinationEnding, Option<I::Error>) {
    let mut reason = None;
    loop {
        if let DestinationOperation::Finished(ending) = destination.operation() {
            return (ending, reason);
        }
        let outcome = perform(&destination, io, reason.as_ref()).unwrap_or_else(|error| {
            let kind = error.kind();
            reason.get_or_insert(error);
            DestinationStepOutcome::Failed(kind)
        });
        destination.advance(outcome);
    }
}

fn perform<I: DestinationIo>(
    destination: &Destination,
    io: &mut I,
    why: Option<&I::Error>,
) -> Result<DestinationStepOutcome, I::Error> {
    match destination.operation() {
        DestinationOperation::Step(step) => return perform_step(destination, step, io),
        DestinationOperation::LookAtGuest => {
            return Ok(DestinationStepOutcome::Status(io.migration_status(destination.nonce())?));
        }
        DestinationOperation::ReadRecord => {
            return Ok(DestinationStepOutcome::Recorded(io.record()?));
        }
        DestinationOperation::Refuse => io.refuse()?,
        DestinationOperation::AwaitEnd { gave_up } => io.await_end(gave_up),
        DestinationOperation::SayGivenUp { received } => io.say_given_up(received, why),
        DestinationOperation::Finished(_) => {}
    }
    Ok(DestinationStepOutcome::Done)
}

fn perform_step<I: DestinationIo>(
    destination: &Destination,
    step: DestinationStep,
    io: &mut I,
) -> Result<DestinationStepOutcome, I::Error> {
    match step {
        DestinationStep::Receive => io.receive()?,
        DestinationStep::SendReady => io.send_ready()?,
        DestinationStep::Read => return Ok(DestinationStepOutcome::Read(io.read()?)),
        DestinationStep::AwaitEof => io.await_eof()?,
        DestinationStep::Prepare => {
            let by = io.prepare()?;
            destination.check_prepared(by)?;
            return Ok(DestinationStepOutcome::Prepared(by));
        }
        DestinationStep::SendAck => match (destination.digest(), destination.acknowledged()) {
            (Some(digest), Some(by)) => io.send_ack(digest, by)?,
            _ => return Err(HandoverError::NothingToAcknowledge.into()),
        },
        DestinationStep::AwaitGo => {
            let nonce = io.await_go()?;
            destination.check_go(nonce)?;
        }
        DestinationStep::AwaitCommit => io.await_commit(destination.nonce())?,
        DestinationStep::Run => io.run(destination.nonce())?,
        DestinationStep::SendRunning => io.send_running()?,
    }
    Ok(DestinationStepOutcome::Done)
}
