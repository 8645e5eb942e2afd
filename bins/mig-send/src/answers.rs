//! What comes back from the destination.

use std::io;
use std::time::Duration;

use mig_channel::ChannelReader;
use mig_stream::{DestinationOutcome, Message, ReturnReader, StreamDigest, Timings};
use migpipe_units::{Acknowledged, Bytes, Finding, MigrationId};

use crate::error::{AnswerError, StepError};

/// The return path of one migration. It is not read before something is expected on it.
#[derive(Debug)]
pub struct Answers {
    state: State,
    id: MigrationId,
}

#[derive(Debug)]
enum State {
    Closed,
    New(ChannelReader),
    Open(ReturnReader<ChannelReader>),
}

impl Answers {
    /// What comes back by `back`; nothing one way.
    pub fn new(back: Option<ChannelReader>, id: MigrationId) -> Self {
        Self { state: back.map_or(State::Closed, State::New), id }
    }

    /// The next message, within `timeout`.
    fn next(&mut self, timeout: Duration) -> Result<Message, StepError> {
        let mut reader = match std::mem::replace(&mut self.state, State::Closed) {
            State::Closed => return Err(AnswerError::Closed.into()),
            State::New(mut back) => {
                back.set_deadline(Some(timeout));
                ReturnReader::open(back, self.id)?
            }
            State::Open(reader) => reader,
        };
        reader.get_mut().set_deadline(Some(timeout));
        let message = reader.next_message()?;
        self.state = State::Open(reader);
        Ok(message.ok_or(AnswerError::Ended)?)
    }

    /// As [`Self::next`], unless the destination says that it has given the guest up.
    fn answer(&mut self, timeout: Duration) -> Result<Message, StepError> {
        match self.next(timeout)? {
            Message::Refused { reason } => Err(StepError::Refused(reason)),
            Message::Failed { reason } => Err(StepError::GivenUp(reason)),
            message => Ok(message),
        }
    }

    /// Waits until the first answer comes, `timeout` at most; once more where `again` says so.
    fn first(
        &mut self,
        timeout: Duration,
        mut again: impl FnMut() -> bool,
    ) -> Result<(), StepError> {
        let State::New(back) = &mut self.state else { return Ok(()) };
        loop {
            back.set_deadline(Some(timeout));
            match back.wait_readable() {
                Err(error) if error.kind() == io::ErrorKind::TimedOut && again() => {}
                waited => return Ok(waited?),
            }
        }
    }

    /// READY: the destination can take the guest.
    pub fn ready(
        &mut self,
        timeout: Duration,
        again: impl FnMut() -> bool,
    ) -> Result<(), StepError> {
        self.first(timeout, again)?;
        match self.answer(timeout)? {
            Message::Ready { .. } => Ok(()),
            other => Err(out_of_turn("READY", &other)),
        }
    }

    /// ACK: the destination has loaded everything. It echoes the digest of the stream; what it says
    /// of itself goes into GO and every query.
    pub fn ack(
        &mut self,
        timeout: Duration,
    ) -> Result<(StreamDigest, Acknowledged, Timings), StepError> {
        loop {
            match self.answer(timeout)? {
                // With a separate commit nobody has waited for it yet.
                Message::Ready { .. } => {}
                Message::Ack { digest, by, timings } => return Ok((digest, by, timings)),
                other => return Err(out_of_turn("ACK", &other)),
            }
        }
    }

    /// RUNNING: the guest runs there.
    pub fn running(&mut self, timeout: Duration) -> Result<Timings, StepError> {
        match self.answer(timeout)? {
            Message::Running { timings } => Ok(timings),
            other => Err(out_of_turn("RUNNING", &other)),
        }
    }

    /// What became of the migration.
    pub fn outcome(
        &mut self,
        timeout: Duration,
        again: impl FnMut() -> bool,
    ) -> Result<DestinationOutcome, StepError> {
        self.first(timeout, again)?;
        match self.next(timeout)? {
            Message::Resolved(outcome) => Ok(outcome),
            // That the query could not be read says nothing of the guest: only an outcome is a
            // refusal that was recorded.
            Message::Refused { reason } | Message::Failed { reason } => {
                Err(AnswerError::NoOutcome(reason).into())
            }
            other => Err(out_of_turn("the outcome", &other)),
        }
    }

    /// What the destination finds about a guest that it is asked about.
    pub fn findings(
        &mut self,
        timeout: Duration,
        again: impl FnMut() -> bool,
    ) -> Result<Vec<Finding>, StepError> {
        self.first(timeout, again)?;
        match self.answer(timeout)? {
            Message::Examined { findings } => Ok(findings),
            other => Err(out_of_turn("what it finds", &other)),
        }
    }

    /// All that was sent so far has come.
    pub fn measured(&mut self, timeout: Duration) -> Result<Bytes, StepError> {
        match self.answer(timeout)? {
            Message::Measured { bytes } => Ok(bytes),
            other => Err(out_of_turn("a measurement", &other)),
        }
    }

    /// Why the destination gave up, if it says so within `timeout`.
    pub fn failure_reason(&mut self, timeout: Duration) -> Option<String> {
        loop {
            match self.next(timeout) {
                Ok(Message::Refused { reason } | Message::Failed { reason }) => {
                    return Some(reason);
                }
                Ok(_) => {}
                Err(_) => return None,
            }
        }
    }
}

fn out_of_turn(expected: &'static str, found: &Message) -> StepError {
    AnswerError::OutOfTurn { found: format!("{found:?}"), expected }.into()
}

/// A named phase of the destination's timings.
pub fn phase(timings: &Timings, name: &str) -> Option<Duration> {
    timings.iter().find(|(phase, _)| phase == name).map(|(_, time)| *time)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use mig_channel::{Endpoint, Interrupt, open_sender};
    use mig_engine::handover::{Failure, FailureKind};
    use mig_stream::ReturnWriter;
    use migpipe_units::{HostId, Nonce};

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(120);

    /// What a source reads of a destination that says this and closes.
    fn answers(message: &Message) -> Answers {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("destination");
        let listener = UnixListener::bind(&path).unwrap();
        let destination = Endpoint::Unix(path);
        let channel = open_sender(&destination, None, false, &Interrupt::new().unwrap()).unwrap();
        let (there, _) = listener.accept().unwrap();
        let id = MigrationId::random();
        ReturnWriter::new(there, id).unwrap().send(message).unwrap();
        Answers::new(channel.back, id)
    }

    fn ack() -> Message {
        let by =
            Acknowledged { host: HostId::from_bytes([1; 16]), nonce: Nonce::from_bytes([2; 16]) };
        Message::Ack { digest: StreamDigest(1), by, timings: Timings::new() }
    }

    #[test]
    fn only_an_outcome_says_that_the_guest_was_refused() {
        let outcome = |message: &Message| answers(message).outcome(TIMEOUT, || false);
        let refused = outcome(&Message::Resolved(DestinationOutcome::Refused));
        assert!(matches!(refused, Ok(DestinationOutcome::Refused)), "{refused:?}");
        let reason = "the query cannot be read";
        let refused = Message::Refused { reason: reason.to_owned() };
        let failed = Message::Failed { reason: reason.to_owned() };
        for (message, said) in [(refused, reason), (failed, reason), (ack(), "Ack")] {
            let stop = outcome(&message).unwrap_err();
            assert_eq!(stop.kind(), FailureKind::Failed, "after {message:?}: {stop:?}");
            assert!(stop.reason().contains(said), "after {message:?}: {stop:?}");
        }
    }
}
