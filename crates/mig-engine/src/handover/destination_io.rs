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
    /// The guest in the vmrun that has taken it up.
    type Guest;
    /// What the stream brings beside the pages.
    type Content;

    /// See [`DestinationStep::Receive`].
    ///
    /// # Errors
    /// When this host cannot take the guest. A vmrun that was started for it has ended by then.
    fn receive(&mut self) -> Result<Self::Guest, Self::Error>;

    /// See [`DestinationStep::SendReady`].
    ///
    /// # Errors
    /// When it was not sent.
    fn send_ready(&mut self) -> Result<(), Self::Error>;

    /// See [`DestinationStep::Read`]. The pages go to the guest's memory. Returns the digest over the
    /// stream.
    ///
    /// # Errors
    /// When the stream breaks off or is wrong; [`Refused`](super::FailureKind::Refused) if the source says that it
    /// gave up.
    fn read(
        &mut self,
        guest: &mut Self::Guest,
    ) -> Result<(StreamDigest, Self::Content), Self::Error>;

    /// See [`DestinationStep::AwaitEof`].
    ///
    /// # Errors
    /// When something else came, or nothing.
    fn await_eof(&mut self) -> Result<(), Self::Error>;

    /// See [`DestinationStep::Prepare`]. Returns what the ACK is to say; nothing one way.
    ///
    /// # Errors
    /// When the guest cannot be loaded, or is not what was sent.
    fn prepare(
        &mut self,
        guest: &mut Self::Guest,
        content: Self::Content,
    ) -> Result<Option<Acknowledged>, Self::Error>;

    /// See [`DestinationStep::SendAck`].
    ///
    /// # Errors
    /// When it was not sent whole.
    fn send_ack(
        &mut self,
        guest: &mut Self::Guest,
        digest: StreamDigest,
        by: Acknowledged,
    ) -> Result<(), Self::Error>;

    /// See [`DestinationStep::AwaitGo`]. Returns the nonce that came with it.
    ///
    /// # Errors
    /// When no GO came in time; [`Refused`](super::FailureKind::Refused) if the source says that none will.
    fn await_go(&mut self) -> Result<Nonce, Self::Error>;

    /// See [`DestinationStep::AwaitCommit`].
    ///
    /// # Errors
    /// When the guest does not run in time.
    fn await_commit(
        &mut self,
        guest: &mut Self::Guest,
        nonce: Option<Nonce>,
    ) -> Result<(), Self::Error>;

    /// See [`DestinationStep::Run`].
    ///
    /// # Errors
    /// When the vmrun did not say that it runs the guest.
    fn run(&mut self, guest: &mut Self::Guest, nonce: Option<Nonce>) -> Result<(), Self::Error>;

    /// See [`DestinationStep::SendRunning`].
    ///
    /// # Errors
    /// When it was not sent.
    fn send_running(&mut self, guest: &mut Self::Guest) -> Result<(), Self::Error>;

    /// See [`DestinationOperation::LookAtGuest`].
    ///
    /// # Errors
    /// When the vmrun does not say.
    fn migration_status(
        &mut self,
        guest: &mut Self::Guest,
        nonce: Option<Nonce>,
    ) -> Result<MigrationStatus, Self::Error>;

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
    fn refuse(&mut self, guest: &mut Self::Guest) -> Result<(), Self::Error>;

    /// See [`DestinationOperation::AwaitEnd`].
    fn await_end(&mut self, guest: Self::Guest, gave_up: bool);

    /// See [`DestinationOperation::SayGivenUp`].
    fn say_given_up(&mut self, received: bool, why: Option<&Self::Error>);
}

/// How a migration ended at its destination.
#[derive(Debug)]
pub struct DestinationEnd<G, E> {
    /// Its ending.
    pub ending: DestinationEnding,
    /// The guest, unless it was not taken up, or was given up.
    pub guest: Option<G>,
    /// What failed first.
    pub reason: Option<E>,
}

/// Receives to the end.
pub fn run<I: DestinationIo>(
    mut destination: Destination,
    io: &mut I,
) -> DestinationEnd<I::Guest, I::Error> {
    let mut pass = Pass { reason: None };
    // The first step, whatever the mode.
    let guest = match io.receive() {
        Ok(guest) => {
            destination.advance(DestinationStepOutcome::Done);
            pass.with_guest(&mut destination, io, guest)
        }
        Err(error) => {
            destination.advance(pass.failed(error));
            None
        }
    };
    loop {
        let outcome = match destination.operation() {
            DestinationOperation::Finished(ending) => {
                return DestinationEnd { ending, guest, reason: pass.reason };
            }
            DestinationOperation::ReadRecord => pass.record(io),
            DestinationOperation::SayGivenUp { received } => {
                io.say_given_up(received, pass.reason.as_ref());
                DestinationStepOutcome::Done
            }
            operation @ (DestinationOperation::Step(_)
            | DestinationOperation::LookAtGuest
            | DestinationOperation::Refuse
            | DestinationOperation::AwaitEnd { .. }) => {
                unreachable!("{operation:?} is for a guest that was taken up, and not given up")
            }
        };
        destination.advance(outcome);
    }
}

/// What the loop keeps between two operations.
struct Pass<E> {
    reason: Option<E>,
}

impl<E: Failure + From<HandoverError>> Pass<E> {
    /// What the driver is told of a failure. The first one is kept.
    fn failed(&mut self, error: E) -> DestinationStepOutcome {
        let kind = error.kind();
        self.reason.get_or_insert(error);
        DestinationStepOutcome::Failed(kind)
    }

    fn record(&mut self, io: &mut impl DestinationIo<Error = E>) -> DestinationStepOutcome {
        match io.record() {
            Ok(decision) => DestinationStepOutcome::Recorded(decision),
            Err(error) => self.failed(error),
        }
    }

    /// All that is done with a guest that was taken up. Returns it unless it was given up.
    fn with_guest<I: DestinationIo<Error = E>>(
        &mut self,
        destination: &mut Destination,
        io: &mut I,
        mut guest: I::Guest,
    ) -> Option<I::Guest> {
        let mut content = None;
        loop {
            let outcome = match destination.operation() {
                DestinationOperation::Step(step) => {
                    perform_step(destination, step, io, &mut guest, &mut content)
                        .unwrap_or_else(|error| self.failed(error))
                }
                DestinationOperation::LookAtGuest => {
                    match io.migration_status(&mut guest, destination.nonce()) {
                        Ok(status) => DestinationStepOutcome::Status(status),
                        Err(error) => self.failed(error),
                    }
                }
                DestinationOperation::ReadRecord => self.record(io),
                DestinationOperation::Refuse => match io.refuse(&mut guest) {
                    Ok(()) => DestinationStepOutcome::Done,
                    Err(error) => self.failed(error),
                },
                DestinationOperation::AwaitEnd { gave_up } => {
                    io.await_end(guest, gave_up);
                    destination.advance(DestinationStepOutcome::Done);
                    return None;
                }
                DestinationOperation::SayGivenUp { .. } | DestinationOperation::Finished(_) => {
                    return Some(guest);
                }
            };
            destination.advance(outcome);
        }
    }
}

fn perform_step<I: DestinationIo>(
    destination: &Destination,
    step: DestinationStep,
    io: &mut I,
    guest: &mut I::Guest,
    content: &mut Option<I::Content>,
) -> Result<DestinationStepOutcome, I::Error> {
    match step {
        DestinationStep::Receive => unreachable!("a guest is taken up once"),
        DestinationStep::SendReady => io.send_ready()?,
        DestinationStep::Read => {
            let (digest, read) = io.read(guest)?;
            *content = Some(read);
            return Ok(DestinationStepOutcome::Read(digest));
        }
        DestinationStep::AwaitEof => io.await_eof()?,
        DestinationStep::Prepare => match content.take() {
            Some(content) => {
                let by = io.prepare(guest, content)?;
                destination.check_prepared(by)?;
                return Ok(DestinationStepOutcome::Prepared(by));
            }
            None => unreachable!("a guest is prepared once, and after its stream was read"),
        },
        DestinationStep::SendAck => match (destination.digest(), destination.acknowledged()) {
            (Some(digest), Some(by)) => io.send_ack(guest, digest, by)?,
            _ => return Err(HandoverError::NothingToAcknowledge.into()),
        },
        DestinationStep::AwaitGo => {
            let nonce = io.await_go()?;
            destination.check_go(nonce)?;
        }
        DestinationStep::AwaitCommit => io.await_commit(guest, destination.nonce())?,
        DestinationStep::Run => io.run(guest, destination.nonce())?,
        DestinationStep::SendRunning => io.send_running(guest)?,
    }
    Ok(DestinationStepOutcome::Done)
}
