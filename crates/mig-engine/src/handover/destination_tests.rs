//! The driver of a destination, with every operation failing in every way.

use mig_stream::StreamDigest;
use migpipe_units::{Acknowledged, HostId, Nonce};

use super::destination::{
    Destination, DestinationEnding, DestinationOperation, DestinationStep, DestinationStepOutcome,
};
use super::destination_io::{DestinationEnd, DestinationIo, run};
use super::failure::FailureKind;
use super::mode::HandoverMode::{self, BothWays, OneWay, Saved, SeparateCommit};
use super::script::{Script, TestError, with_every_script};
use crate::ownership::{Decision, MigrationStatus};

const MODES: [HandoverMode; 4] = [BothWays, SeparateCommit, OneWay, Saved];
const DIGEST: StreamDigest = StreamDigest(7);
const FAILED: TestError = TestError(FailureKind::Failed);

const fn nonce(number: u8) -> Nonce {
    Nonce::from_bytes([number; 16])
}

fn by() -> Acknowledged {
    Acknowledged { host: HostId::from_bytes([1; 16]), nonce: nonce(2) }
}

/// What is known of the guest here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Here {
    /// It was not taken up.
    Nothing,
    /// It was taken up, and nobody can have committed to it.
    Arriving,
    /// Its source may have committed.
    Whole,
    /// It may run: GO came, or the one-way stream is complete.
    MayRun,
    /// The vmrun, or its record, says that it runs.
    Runs,
    /// The source said that no GO comes for this copy; or its file is left, and nobody will ask.
    Disowned,
    /// The vmrun, or its record, says that it was refused.
    Refused,
}

/// A destination whose results come from a script, and which checks each operation against what is
/// known by then.
struct Double<'a> {
    script: &'a Script,
    mode: HandoverMode,
    here: Here,
    /// It was refused, and the vmrun did not confirm that.
    unconfirmed: bool,
    eof: bool,
    said: u32,
    ran: bool,
}

impl Double<'_> {
    fn any(&self) -> Result<(), TestError> {
        self.script.any_result()
    }

    /// One failure stands for all where the kind makes no difference; see `any`.
    fn done_or_failed(&self) -> Result<(), TestError> {
        self.script.choose(&[Ok(()), Err(FAILED)])
    }

    fn expected(&self) -> Option<Nonce> {
        self.mode.is_answered().then(|| nonce(2))
    }
}

/// The guest that was taken up.
struct Guest;

/// What the stream brought.
struct Content;

impl DestinationIo for Double<'_> {
    type Error = TestError;
    type Guest = Guest;
    type Content = Content;

    fn receive(&mut self) -> Result<Guest, TestError> {
        self.any()?;
        self.here = Here::Arriving;
        Ok(Guest)
    }

    fn send_ready(&mut self) -> Result<(), TestError> {
        assert_eq!((self.mode, self.here), (BothWays, Here::Arriving));
        self.any()
    }

    fn read(&mut self, _: &mut Guest) -> Result<(StreamDigest, Content), TestError> {
        assert_eq!(self.here, Here::Arriving);
        self.any().map(|()| (DIGEST, Content))
    }

    fn await_eof(&mut self) -> Result<(), TestError> {
        assert_ne!(self.mode, BothWays, "the stream goes on");
        let result = self.any();
        self.eof = result.is_ok();
        result
    }

    fn prepare(&mut self, _: &mut Guest, _: Content) -> Result<Option<Acknowledged>, TestError> {
        assert_eq!(self.eof, self.mode != BothWays);
        self.any()?;
        if !self.mode.is_answered() {
            self.here = Here::MayRun;
            return Ok(None);
        }
        Ok(self.script.choose(&[Some(by()), None]))
    }

    fn send_ack(
        &mut self,
        _: &mut Guest,
        digest: StreamDigest,
        acknowledged: Acknowledged,
    ) -> Result<(), TestError> {
        assert_eq!((digest, acknowledged), (DIGEST, by()));
        assert!(self.mode.is_answered());
        self.here = Here::Whole;
        self.any()
    }

    fn await_go(&mut self) -> Result<Nonce, TestError> {
        let result = self.any();
        match result {
            Ok(()) => {
                let came = self.script.choose(&[nonce(2), nonce(3)]);
                self.here = if came == nonce(2) { Here::MayRun } else { Here::Disowned };
                Ok(came)
            }
            Err(error) => {
                if error == TestError(FailureKind::Refused) {
                    self.here = Here::Disowned;
                }
                Err(error)
            }
        }
    }

    fn await_commit(&mut self, _: &mut Guest, nonce: Option<Nonce>) -> Result<(), TestError> {
        assert_eq!(nonce, self.expected());
        let result = self.any();
        if result.is_ok() {
            self.here = Here::Runs;
        }
        result
    }

    fn run(&mut self, _: &mut Guest, nonce: Option<Nonce>) -> Result<(), TestError> {
        assert!(matches!(self.here, Here::MayRun | Here::Runs), "{:?}", self.here);
        assert_eq!(nonce, self.expected());
        self.ran = true;
        let result = self.any();
        if result.is_ok() {
            self.here = Here::Runs;
        } else if self.mode == Saved {
            self.here = Here::Disowned;
        }
        result
    }

    fn send_running(&mut self, _: &mut Guest) -> Result<(), TestError> {
        assert_eq!(self.here, Here::Runs);
        self.any()
    }

    fn migration_status(
        &mut self,
        _: &mut Guest,
        nonce: Option<Nonce>,
    ) -> Result<MigrationStatus, TestError> {
        assert_eq!(nonce, self.expected());
        self.done_or_failed()?;
        if self.here == Here::Runs {
            return Ok(MigrationStatus::Running);
        }
        let status = self.script.choose(&[
            MigrationStatus::Prepared,
            MigrationStatus::Running,
            MigrationStatus::Refused,
            MigrationStatus::PreparedForAnother,
            MigrationStatus::NotMine,
        ]);
        match status {
            MigrationStatus::Running => self.here = Here::Runs,
            MigrationStatus::Refused => self.here = Here::Refused,
            _ => {}
        }
        Ok(status)
    }

    fn record(&mut self) -> Result<Option<Decision>, TestError> {
        self.done_or_failed()?;
        let decision = self.script.choose(&[
            Some(Decision::MayRun),
            Some(Decision::Ran),
            Some(Decision::Refused),
            Some(Decision::Restoring),
            None,
        ]);
        match decision {
            Some(Decision::Ran) if !self.unconfirmed && self.mode != Saved => {
                self.here = Here::Runs;
            }
            Some(Decision::Refused) => self.here = Here::Refused,
            None if self.unconfirmed && self.mode == Saved => self.here = Here::Refused,
            _ => {}
        }
        Ok(decision)
    }

    fn refuse(&mut self, _: &mut Guest) -> Result<(), TestError> {
        let may = match self.here {
            Here::Arriving | Here::Disowned | Here::Refused => true,
            // The load failed, or one way something behind the end.
            Here::Nothing | Here::Whole | Here::MayRun | Here::Runs => false,
        };
        assert!(may, "{:?}: the guest may be awaited here", self.here);
        let result = self.any();
        match result {
            Ok(()) => self.here = Here::Refused,
            Err(_) => self.unconfirmed = true,
        }
        result
    }

    fn await_end(&mut self, _: Guest, gave_up: bool) {
        assert_eq!(gave_up, self.here == Here::Refused && !self.unconfirmed);
    }

    fn say_given_up(&mut self, received: bool, why: Option<&TestError>) {
        assert!(why.is_some());
        assert_eq!(received, self.here != Here::Nothing);
        self.said += 1;
    }
}

#[test]
fn the_guest_runs_or_waits_or_never_will_whatever_fails() {
    for mode in MODES {
        let mut endings = Vec::new();
        let runs = with_every_script(|script| {
            let mut io = Double {
                script,
                mode,
                here: Here::Nothing,
                unconfirmed: false,
                eof: false,
                said: 0,
                ran: false,
            };
            let DestinationEnd { ending, guest, reason } = run(Destination::new(mode), &mut io);
            match ending {
                DestinationEnding::Runs => {
                    assert_eq!(io.here, Here::Runs, "{mode:?} {script:?}");
                    assert!(guest.is_some(), "{mode:?} {script:?}");
                }
                DestinationEnding::Refused => {
                    // Nobody was acknowledged, or the source itself said that no GO comes.
                    let moot = mode.is_answered() && io.unconfirmed;
                    assert!(
                        matches!(io.here, Here::Nothing | Here::Refused) || moot,
                        "{mode:?} {script:?}: {:?}",
                        io.here
                    );
                    assert!(io.said <= 1 && reason.is_some(), "{mode:?} {script:?}");
                }
                DestinationEnding::Prepared => {
                    assert!(
                        matches!(io.here, Here::Whole | Here::MayRun | Here::Runs)
                            || io.unconfirmed,
                        "{mode:?} {script:?}: {:?}",
                        io.here
                    );
                    assert!(reason.is_some(), "{mode:?} {script:?}");
                }
            }
            assert!(!io.ran || io.here != Here::Nothing);
            if !endings.contains(&ending) {
                endings.push(ending);
            }
        });
        assert!(runs > 100, "{mode:?}: {runs}");
        assert_eq!(endings.len(), 3, "{mode:?}: {endings:?}");
    }
}

/// A driver that has come to this step.
fn at(mode: HandoverMode, step: DestinationStep) -> Destination {
    let mut destination = Destination::new(mode);
    while destination.operation() != DestinationOperation::Step(step) {
        destination.advance(success(destination.operation()));
    }
    destination
}

fn success(operation: DestinationOperation) -> DestinationStepOutcome {
    match operation {
        DestinationOperation::Step(DestinationStep::Read) => DestinationStepOutcome::Read(DIGEST),
        DestinationOperation::Step(DestinationStep::Prepare) => {
            DestinationStepOutcome::Prepared(Some(by()))
        }
        _ => DestinationStepOutcome::Done,
    }
}

#[test]
fn the_guest_runs_only_after_go_or_the_end_of_a_one_way_stream() {
    use DestinationStep::*;
    let steps = |mode| {
        let mut destination = Destination::new(mode);
        let mut steps = Vec::new();
        while let DestinationOperation::Step(step) = destination.operation() {
            steps.push(step);
            destination.advance(success(destination.operation()));
        }
        assert_eq!(
            destination.operation(),
            DestinationOperation::Finished(DestinationEnding::Runs)
        );
        steps
    };
    assert_eq!(
        steps(BothWays),
        [Receive, SendReady, Read, Prepare, SendAck, AwaitGo, Run, SendRunning]
    );
    assert_eq!(steps(SeparateCommit), [Receive, Read, AwaitEof, Prepare, SendAck, AwaitCommit]);
    for mode in [OneWay, Saved] {
        assert_eq!(steps(mode), [Receive, Read, AwaitEof, Prepare, Run]);
    }
}

#[test]
fn a_go_that_does_not_come_in_time_is_no_refusal() {
    for (mode, step) in
        [(BothWays, DestinationStep::AwaitGo), (SeparateCommit, DestinationStep::AwaitCommit)]
    {
        let mut destination = at(mode, step);
        destination.advance(DestinationStepOutcome::Failed(FailureKind::Failed));
        assert_eq!(destination.operation(), DestinationOperation::LookAtGuest);
        destination.advance(DestinationStepOutcome::Status(MigrationStatus::Prepared));
        let prepared = DestinationOperation::Finished(DestinationEnding::Prepared);
        assert_eq!(destination.operation(), prepared, "{mode:?}");
    }
}

#[test]
fn a_vmrun_that_does_not_answer_is_no_refusal() {
    let mut destination = at(BothWays, DestinationStep::AwaitGo);
    for _ in 0..2 {
        destination.advance(DestinationStepOutcome::Failed(FailureKind::Failed));
    }
    assert_eq!(destination.operation(), DestinationOperation::ReadRecord);
    destination.advance(DestinationStepOutcome::Recorded(Some(Decision::MayRun)));
    let prepared = DestinationOperation::Finished(DestinationEnding::Prepared);
    assert_eq!(destination.operation(), prepared);
}

#[test]
fn a_lost_running_message_does_not_stop_the_guest() {
    let mut destination = at(BothWays, DestinationStep::SendRunning);
    destination.advance(DestinationStepOutcome::Failed(FailureKind::Failed));
    let runs = DestinationOperation::Finished(DestinationEnding::Runs);
    assert_eq!(destination.operation(), runs);
}
