//! The destination's side of the handover: a machine that hands out one operation after the other
//! and is told how each went. All that decides who has the guest at the destination is in here;
//! what a host answers a source that asks later is in [`Responder`](super::Responder).

use mig_stream::StreamDigest;
use migpipe_units::{Acknowledged, Nonce};

use super::failure::{FailureKind, HandoverError};
use super::mode::HandoverMode;
use crate::ownership::{Decision, MigrationStatus};

/// The steps of a migration that succeeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DestinationStep {
    /// Check the description against this host and have a vmrun build the machine; the durable
    /// "may run" record is part of it.
    Receive,
    /// Say that the guest can come.
    SendReady,
    /// Read pages and sections up to `End`.
    Read,
    /// Read the end of the file: one way it is the last proof that the sender finished.
    AwaitEof,
    /// Have the vmrun load the state and check it.
    Prepare,
    /// Say that everything is here.
    SendAck,
    /// Wait for GO through the stream.
    AwaitGo,
    /// Wait until somebody else brings GO to the vmrun.
    AwaitCommit,
    /// Have the vmrun run the guest.
    Run,
    /// Say that the guest runs.
    SendRunning,
}

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DestinationOperation {
    /// The next step of the migration.
    Step(DestinationStep),
    /// Ask the vmrun how the guest stands.
    LookAtGuest,
    /// See what the record of the migration says: its vmrun does not.
    ReadRecord,
    /// Have the vmrun give the migration up, for ever.
    Refuse,
    /// Wait until the vmrun has ended.
    AwaitEnd {
        /// It has confirmed that it gave the guest up, and ends therefore.
        gave_up: bool,
    },
    /// Tell the source that the guest was given up, if it listens.
    SayGivenUp {
        /// It was taken up before.
        received: bool,
    },
    /// All done.
    Finished(DestinationEnding),
}

/// How an operation went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DestinationStepOutcome {
    /// It was done.
    Done,
    /// `End` was read; the digest over all of the stream.
    Read(StreamDigest),
    /// The vmrun has loaded the guest. What is to be acknowledged has an identity.
    Prepared(Option<Acknowledged>),
    /// How the guest stands in its vmrun.
    Status(MigrationStatus),
    /// What the record says.
    Recorded(Option<Decision>),
    /// It was not done.
    Failed(FailureKind),
}

/// How a migration ended for its receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DestinationEnding {
    /// The guest runs here.
    Runs,
    /// The guest has not run here and will not.
    Refused,
    /// The guest may be here, paused, and wait for a GO that did not come through this stream.
    Prepared,
}

impl DestinationEnding {
    /// mig-recv's exit status for this ending.
    pub const fn exit_status(self) -> u8 {
        match self {
            Self::Runs => 0,
            Self::Refused => 1,
            Self::Prepared => 4,
        }
    }
}

/// The destination's side of one migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Destination {
    mode: HandoverMode,
    state: State,
    /// Whether the vmrun has taken the migration up.
    received: bool,
    /// The digest of the stream, once its `End` was read.
    read: Option<StreamDigest>,
    /// What the ACK says, once the guest is prepared. Nothing one way.
    acknowledged: Option<Acknowledged>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum State {
    Step(DestinationStep),
    /// This step failed; the vmrun knows what became of the guest.
    Look(DestinationStep),
    /// The vmrun does not say it, and the record may.
    Record(DestinationStep),
    Refuse,
    AwaitEnd(Refusal),
    SayGivenUp(DestinationEnding),
    /// The vmrun did not confirm that it gave the guest up. Its connection closes with us, and then
    /// it refuses by itself, if it lives; the record says whether it has.
    RefusalRecord,
    Finished(DestinationEnding),
}

/// How a refusal went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Refusal {
    /// The vmrun has recorded it.
    Confirmed,
    /// The vmrun did not say so.
    Unconfirmed,
}

impl Destination {
    /// A destination that has read the header.
    pub const fn new(mode: HandoverMode) -> Self {
        Self {
            mode,
            state: State::Step(DestinationStep::Receive),
            received: false,
            read: None,
            acknowledged: None,
        }
    }

    /// What is to be done now.
    pub const fn operation(&self) -> DestinationOperation {
        match self.state {
            State::Step(step) => DestinationOperation::Step(step),
            State::Look(_) => DestinationOperation::LookAtGuest,
            State::Record(_) | State::RefusalRecord => DestinationOperation::ReadRecord,
            State::Refuse => DestinationOperation::Refuse,
            State::AwaitEnd(refusal) => {
                DestinationOperation::AwaitEnd { gave_up: matches!(refusal, Refusal::Confirmed) }
            }
            State::SayGivenUp(_) => DestinationOperation::SayGivenUp { received: self.received },
            State::Finished(ending) => DestinationOperation::Finished(ending),
        }
    }

    /// The digest that the ACK echoes.
    pub const fn digest(&self) -> Option<StreamDigest> {
        self.read
    }

    /// What the ACK says of this copy of the guest. Nothing one way.
    pub const fn acknowledged(&self) -> Option<Acknowledged> {
        self.acknowledged
    }

    /// What GO must bring. Nothing one way.
    pub fn nonce(&self) -> Option<Nonce> {
        self.acknowledged.map(|by| by.nonce)
    }

    /// Checks that a GO is for this copy of the guest.
    ///
    /// # Errors
    /// [`HandoverError::OtherCopy`].
    pub fn check_go(&self, nonce: Nonce) -> Result<(), HandoverError> {
        match self.nonce() == Some(nonce) {
            true => Ok(()),
            false => Err(HandoverError::OtherCopy),
        }
    }

    /// Checks that a guest whose source waits for an ACK can be acknowledged.
    ///
    /// # Errors
    /// [`HandoverError::NothingToAcknowledge`].
    pub const fn check_prepared(&self, by: Option<Acknowledged>) -> Result<(), HandoverError> {
        match self.mode.is_answered() && by.is_none() {
            false => Ok(()),
            true => Err(HandoverError::NothingToAcknowledge),
        }
    }

    /// Goes on after the present operation went as `outcome` says.
    pub fn advance(&mut self, outcome: DestinationStepOutcome) {
        use DestinationStepOutcome as Outcome;
        self.state = match (self.state, outcome) {
            (State::Finished(ending), _) => State::Finished(ending),
            (State::Step(step), Outcome::Failed(kind)) => self.after_failure(step, kind),
            (State::Step(step), outcome) => self.after_success(step, outcome),

            (State::Look(step), Outcome::Status(MigrationStatus::Running)) => {
                self.after_success(step, Outcome::Done)
            }
            (State::Look(step), Outcome::Status(MigrationStatus::Refused)) => {
                Self::was_refused(step)
            }
            (State::Look(step), Outcome::Status(_)) => self.is_open(step),
            // A vmrun that is slow, or gone, says nothing of the guest.
            (State::Look(step), _) => State::Record(step),

            // Of a saved guest that may have been another restore.
            (State::Record(step), Outcome::Recorded(Some(Decision::Ran)))
                if self.mode != HandoverMode::Saved =>
            {
                self.after_success(step, Outcome::Done)
            }
            (State::Record(step), Outcome::Recorded(Some(Decision::Refused))) => {
                Self::was_refused(step)
            }
            (State::Record(step), _) => self.is_open(step),

            (State::Refuse, outcome) => State::AwaitEnd(match outcome {
                Outcome::Failed(_) => Refusal::Unconfirmed,
                _ => Refusal::Confirmed,
            }),
            // Once the source hears of it, it ends the tunnel, and this process with it perhaps: all
            // that is to be found out is found out before.
            (State::AwaitEnd(Refusal::Unconfirmed), _) => State::RefusalRecord,
            (State::AwaitEnd(Refusal::Confirmed), _) => {
                State::SayGivenUp(DestinationEnding::Refused)
            }
            (State::SayGivenUp(ending), _) => State::Finished(ending),
            (State::RefusalRecord, Outcome::Recorded(Some(Decision::Refused))) => {
                State::SayGivenUp(DestinationEnding::Refused)
            }
            (State::RefusalRecord, outcome) => State::SayGivenUp(match (self.mode, outcome) {
                // Nobody restores it any more, and it has not run.
                (HandoverMode::Saved, Outcome::Recorded(None)) => DestinationEnding::Refused,
                // The vmrun may be prepared all the same, and one way its source has committed: if
                // it resolves, the guest runs here. A saved guest may run, if its vmrun does not say.
                (HandoverMode::OneWay | HandoverMode::Saved, _) => DestinationEnding::Prepared,
                // The source was not answered or gave up itself, so that no GO will come.
                (HandoverMode::BothWays | HandoverMode::SeparateCommit, _) => {
                    DestinationEnding::Refused
                }
            }),
        };
    }

    fn after_success(&mut self, step: DestinationStep, outcome: DestinationStepOutcome) -> State {
        use DestinationStep::*;
        use HandoverMode::*;
        match outcome {
            DestinationStepOutcome::Read(digest) => self.read = Some(digest),
            DestinationStepOutcome::Prepared(by) => self.acknowledged = by,
            _ => {}
        }
        self.received |= step == Receive;
        State::Step(match (step, self.mode) {
            (Receive, BothWays) => SendReady,
            (Receive | SendReady, _) => Read,
            (Read, BothWays) => Prepare,
            (Read, _) => AwaitEof,
            (AwaitEof, _) => Prepare,
            // The source committed before it wrote End.
            (Prepare, OneWay | Saved) => Run,
            (Prepare, _) => SendAck,
            (SendAck, SeparateCommit) => AwaitCommit,
            (SendAck, _) => AwaitGo,
            (AwaitGo, _) => Run,
            (Run, BothWays) => SendRunning,
            // Somebody else brought GO, or nobody listens.
            (Run | AwaitCommit | SendRunning, _) => {
                return State::Finished(DestinationEnding::Runs);
            }
        })
    }

    fn after_failure(&self, step: DestinationStep, kind: FailureKind) -> State {
        use DestinationStep::*;
        match step {
            // Before the ACK is on its way the source cannot have committed both ways, and one way
            // an unfinished stream must not run: the guest is given up here.
            Receive | SendReady | Read | AwaitEof | Prepare => self.refuse(),
            // The source itself said that it gave up before its commit, or has sent GO for another
            // copy of the guest.
            AwaitGo if kind == FailureKind::Refused => self.refuse(),
            // The ACK may have arrived, so the source may have committed.
            SendAck => State::Finished(DestinationEnding::Prepared),
            // Whether GO came another way meanwhile, or was refused, the vmrun knows. That nothing
            // was heard of GO in time says nothing.
            AwaitGo | AwaitCommit | Run => State::Look(step),
            SendRunning => State::Finished(DestinationEnding::Runs),
        }
    }

    const fn refuse(&self) -> State {
        match self.received {
            true => State::Refuse,
            false => State::SayGivenUp(DestinationEnding::Refused),
        }
    }

    /// The vmrun, or its record, says that the guest was refused for ever.
    const fn was_refused(step: DestinationStep) -> State {
        match step {
            // The source may still listen.
            DestinationStep::AwaitGo => State::Refuse,
            _ => State::Finished(DestinationEnding::Refused),
        }
    }

    /// Nobody says that the guest runs, nor that it was refused.
    const fn is_open(&self, step: DestinationStep) -> State {
        match (step, self.mode) {
            // Nobody will ever ask for a saved guest that cannot run now, and its file is left:
            // what is here is given up.
            (DestinationStep::Run, HandoverMode::Saved) => State::Refuse,
            _ => State::Finished(DestinationEnding::Prepared),
        }
    }
}
