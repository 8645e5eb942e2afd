//! What comes back from the destination.

use std::io;
use std::time::Duration;

use anyhow::anyhow;
use mig_channel::ChannelReader;
use mig_stream::{DestinationOutcome, Message, ReturnReader, StreamDigest, Timings};
use migpipe_units::{Acknowledged, MigrationId};

use crate::error::{StepError, Told};

/// The return path of one migration. It is not read before something is expected on it.
#[derive(Debug)]
pub struct Answers {
    state: State,
    id: MigrationId,
    /// The destination has said that it gave the guest up.
    pub gave_up: bool,
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
        Self { state: back.map_or(State::Closed, State::New), id, gave_up: false }
    }

    /// The next message, within `timeout`.
    fn next(&mut self, timeout: Duration) -> Result<Message, StepError> {
        let mut reader = match std::mem::replace(&mut self.state, State::Closed) {
            State::Closed => return Err(anyhow!("the return path is closed").into()),
            State::New(mut back) => {
                back.set_deadline(Some(timeout));
                ReturnReader::open(back, self.id)?
            }
            State::Open(reader) => reader,
        };
        reader.get_mut().set_deadline(Some(timeout));
        let message = reader.next_message()?;
        self.state = State::Open(reader);
        self.gave_up = matches!(message, Some(Message::Refused { .. } | Message::Failed { .. }));
        match message {
            Some(Message::Refused { reason }) => Err(StepError::Refused(reason)),
            Some(Message::Failed { reason }) => Err(anyhow::Error::from(Told(reason)).into()),
            Some(message) => Ok(message),
            None => Err(anyhow!("the destination closed the return path without a word").into()),
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
        match self.next(timeout)? {
            Message::Ready { .. } => Ok(()),
            other => Err(out_of_turn("READY", &other)),
        }
    }

    /// ACK: the destination has loaded everything. It echoes the digest of the stream; what it says
    /// of itself goes into GO and every question.
    pub fn ack(
        &mut self,
        timeout: Duration,
    ) -> Result<(StreamDigest, Acknowledged, Timings), StepError> {
        loop {
            match self.next(timeout)? {
                // With a separate commit nobody has waited for it yet.
                Message::Ready { .. } => {}
                Message::Ack { digest, by, timings } => return Ok((digest, by, timings)),
                other => return Err(out_of_turn("ACK", &other)),
            }
        }
    }

    /// RUNNING: the guest runs there.
    pub fn running(&mut self, timeout: Duration) -> Result<Timings, StepError> {
        match self.next(timeout)? {
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
        match self.next(timeout) {
            Ok(Message::Resolved(outcome)) => Ok(outcome),
            Ok(other) => Err(out_of_turn("the outcome", &other)),
            // That the question could not be read says nothing of the guest: only an outcome is a
            // refusal that was recorded.
            Err(StepError::Refused(reason)) => Err(anyhow::Error::from(Told(reason)).into()),
            Err(other) => Err(other),
        }
    }

    /// Why the destination gave up, if it says so within `timeout`.
    pub fn last_words(&mut self, timeout: Duration) -> Option<String> {
        loop {
            match self.next(timeout) {
                Ok(_) => {}
                Err(StepError::Refused(reason)) => return Some(reason),
                Err(StepError::Failed(error)) => {
                    return error.downcast().ok().map(|Told(reason)| reason);
                }
                Err(_) => return None,
            }
        }
    }
}

fn out_of_turn(expected: &str, found: &Message) -> StepError {
    anyhow!("the destination answered {found:?} where {expected} was expected").into()
}

/// A named phase of the destination's timings.
pub fn phase(timings: &Timings, name: &str) -> Option<Duration> {
    timings.iter().find(|(phase, _)| phase == name).map(|(_, time)| *time)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use mig_channel::{Endpoint, Interrupt, open_sender};
    use mig_stream::ReturnWriter;
    use migpipe_units::{HostId, Nonce};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(120);

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
        let outcome = |message: &Message| answers(message).outcome(PATIENCE, || false);
        let refused = outcome(&Message::Resolved(DestinationOutcome::Refused));
        assert!(matches!(refused, Ok(DestinationOutcome::Refused)), "{refused:?}");
        let reason = "the question cannot be read";
        let refused = Message::Refused { reason: reason.to_owned() };
        let failed = Message::Failed { reason: reason.to_owned() };
        for (message, said) in [(refused, reason), (failed, reason), (ack(), "Ack")] {
            let stop = outcome(&message).unwrap_err();
            assert!(matches!(stop, StepError::Failed(_)), "after {message:?}: {stop:?}");
            assert!(stop.reason().contains(said), "after {message:?}: {stop:?}");
        }
    }
}
