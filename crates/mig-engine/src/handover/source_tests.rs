//! The driver of a source, with every operation failing in every way.

use mig_stream::StreamDigest;
use migpipe_units::{Acknowledged, HostId, Nonce};

use super::ending::SourceEnding;
use super::failure::{Failure, FailureKind};
use super::guest::SourceGuestState;
use super::mode::HandoverMode::{self, BothWays, OneWay, Saved, SeparateCommit};
use super::resolver::{Query, ResolveIo, ResolveOperation, Resolver, run as run_resolver};
use super::script::{KINDS, Script, TestError, with_every_script};
use super::source::{Source, SourceOperation, SourceStep, SourceStepOutcome};
use super::source_io::{SourceEnd, SourceIo, run};
use crate::ownership::State;

const MODES: [HandoverMode; 4] = [BothWays, SeparateCommit, OneWay, Saved];
const SENT: StreamDigest = StreamDigest(7);

fn by() -> Acknowledged {
    Acknowledged { host: HostId::from_bytes([1; 16]), nonce: Nonce::from_bytes([2; 16]) }
}

/// What is known of the guest's owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Source,
    /// The commit was not answered.
    Unclear,
    HandedOver,
}

/// A source whose results come from a script, and which checks each operation against what is known
/// by then.
struct Double<'a> {
    script: &'a Script,
    mode: HandoverMode,
    snapshot: bool,
    begun: bool,
    /// The state that was sent is whole.
    saved: bool,
    ended: bool,
    acknowledged: bool,
    prepared: bool,
    owner: Owner,
    releases: u32,
    release_confirmed: bool,
    looked: Option<SourceGuestState>,
    /// The destination has said that it gave the guest up.
    gave_up: bool,
    /// GO, in whatever shape, may have left.
    let_go: bool,
    /// The destination says that the guest runs there, or the file is whole.
    arrived: bool,
    /// Nobody else will run the guest.
    certain: bool,
    confirmed: bool,
    taken_back: bool,
    retries: u32,
    forced: bool,
}

impl<'a> Double<'a> {
    fn new(script: &'a Script, mode: HandoverMode) -> Self {
        Self {
            script,
            mode,
            snapshot: false,
            begun: false,
            saved: false,
            ended: false,
            acknowledged: false,
            prepared: false,
            owner: Owner::Source,
            releases: 0,
            release_confirmed: false,
            looked: None,
            gave_up: false,
            let_go: false,
            arrived: false,
            certain: false,
            confirmed: false,
            taken_back: false,
            retries: 0,
            forced: false,
        }
    }

    fn expected_ack(&self) -> Option<Acknowledged> {
        self.mode.is_answered().then(by)
    }
}

impl ResolveIo for Double<'_> {
    type Error = TestError;

    fn query(&mut self, query: Query) -> Result<(), TestError> {
        let result = self.script.any_result();
        match query {
            Query::Committed(taken_by) => {
                assert_eq!(self.owner, Owner::HandedOver, "a query is GO");
                assert_eq!(taken_by, self.expected_ack());
                self.let_go = true;
                self.arrived |= result.is_ok();
                self.certain |= result == Err(TestError(FailureKind::Refused));
            }
            Query::Released => {
                assert_eq!(self.owner, Owner::Source, "GO may still come");
                assert_eq!(self.releases, 1);
                assert!(self.saved && self.mode.is_answered(), "nobody can be prepared");
                assert!(!self.gave_up, "it knows that");
                assert!(
                    self.looked == Some(SourceGuestState::Runs)
                        || self.looked == Some(SourceGuestState::Paused) && self.release_confirmed
                        || self.looked == Some(SourceGuestState::Silent) && self.release_confirmed,
                    "the destination may have the last copy"
                );
            }
        }
        result
    }

    fn await_retry(&mut self) -> bool {
        self.retries += 1;
        self.retries == 1 && self.script.choose(&[true, false])
    }

    fn confirm(&mut self) -> Result<(), TestError> {
        assert_eq!(self.owner, Owner::HandedOver);
        assert!(self.arrived, "the guest may be nowhere else");
        self.confirmed = true;
        self.script.any_result()
    }

    fn take_back(&mut self) -> Result<(), TestError> {
        assert_eq!(self.owner, Owner::HandedOver);
        assert!(self.certain || self.forced, "the guest may run elsewhere");
        let result = self.script.any_result();
        self.taken_back = result.is_ok();
        result
    }
}

impl SourceIo for Double<'_> {
    type Remainder = ();

    fn send_header(&mut self) -> Result<(), TestError> {
        self.script.any_result()
    }

    fn await_ready(&mut self) -> Result<(), TestError> {
        assert_eq!(self.mode, BothWays);
        assert!(!self.begun, "the guest was touched already");
        self.script.any_result()
    }

    fn precopy(&mut self) -> Result<(), TestError> {
        self.begun = true;
        self.script.any_result()
    }

    fn stop_and_copy(&mut self, (): ()) -> Result<(), TestError> {
        let result = self.script.any_result();
        self.saved = result.is_ok();
        result
    }

    fn resume(&mut self) -> Result<(), TestError> {
        assert!(self.snapshot && self.saved && self.prepared && !self.ended);
        let result = self.script.any_result();
        self.releases += u32::from(result.is_ok());
        result
    }

    fn send_end(&mut self) -> Result<StreamDigest, TestError> {
        assert!(self.saved && !self.ended);
        if self.snapshot {
            assert_eq!(self.releases, 1, "it stands still for the file");
        } else if !self.mode.is_answered() {
            assert_eq!(self.owner, Owner::HandedOver, "End is GO one way");
            self.let_go = true;
        }
        let result = self.script.any_result();
        self.ended = result.is_ok();
        result.map(|()| SENT)
    }

    fn close(&mut self) -> Result<(), TestError> {
        assert!(self.ended);
        let result = self.script.any_result();
        self.arrived |= result.is_ok() && !self.mode.is_answered();
        result
    }

    fn await_ack(&mut self) -> Result<(StreamDigest, Acknowledged), TestError> {
        assert!(self.ended);
        self.script.any_result()?;
        let echoed = self.script.choose(&[SENT, StreamDigest(8)]);
        self.acknowledged = echoed == SENT;
        Ok((echoed, by()))
    }

    fn prepare_commit(&mut self) -> Result<(), TestError> {
        let result = self.script.any_result();
        self.prepared = result.is_ok();
        result
    }

    fn commit(&mut self, taken_by: Option<Acknowledged>) -> Result<(), TestError> {
        assert!(self.saved && self.prepared && !self.snapshot);
        assert_eq!(self.owner, Owner::Source);
        assert_eq!(self.releases, 0, "the guest was given back");
        assert_eq!(self.acknowledged, self.mode.is_answered());
        assert_eq!(taken_by, self.expected_ack());
        let result = self.script.any_result();
        self.owner = match result {
            Ok(()) => Owner::HandedOver,
            Err(TestError(FailureKind::Undone | FailureKind::Cancelled)) => Owner::Source,
            Err(_) => Owner::Unclear,
        };
        result
    }

    fn send_go(&mut self, taken_by: Acknowledged) -> Result<(), TestError> {
        assert_eq!(self.owner, Owner::HandedOver, "GO comes after the commit");
        assert_eq!(taken_by, by());
        self.let_go = true;
        self.script.any_result()
    }

    fn await_running(&mut self, taken_by: Acknowledged) -> Result<(), TestError> {
        assert_eq!(taken_by, by());
        let result = self.script.any_result();
        self.arrived |= result.is_ok();
        result
    }

    fn remove_file(&mut self) -> bool {
        assert_eq!(self.mode, Saved);
        self.certain = self.script.choose(&[true, false]);
        self.certain
    }

    fn release(&mut self) -> Result<(), TestError> {
        assert_eq!(self.owner, Owner::Source, "the guest may not be the source's any more");
        self.releases += 1;
        assert_eq!(self.releases, 1);
        let result = self.script.any_result();
        self.release_confirmed = result.is_ok();
        result
    }

    fn guest_state(&mut self) -> SourceGuestState {
        let seen = self.script.choose(&[
            SourceGuestState::Runs,
            SourceGuestState::Paused,
            SourceGuestState::HandedOver,
            SourceGuestState::Other(State::Incoming),
            SourceGuestState::Gone,
            SourceGuestState::Silent,
        ]);
        self.looked = Some(seen);
        seen
    }

    fn explain(&mut self, _: SourceStep, error: TestError, may_be_cancelled: bool) -> TestError {
        let committing = self.owner != Owner::Source;
        assert!(!committing || !may_be_cancelled, "a cancel comes too late");
        let explained = [FailureKind::GivenUp, FailureKind::Cancelled].map(TestError);
        let mut options = vec![error];
        options.extend(&explained[..if may_be_cancelled { 2 } else { 1 }]);
        let explained = self.script.choose(&options);
        let gave_up = [FailureKind::Refused, FailureKind::GivenUp];
        self.gave_up = gave_up.contains(&error.0) || gave_up.contains(&explained.0);
        explained
    }

    fn abort_stream(&mut self, why: Option<&TestError>) {
        assert!(why.is_some(), "whoever aborts is told what failed");
        assert_eq!(self.owner, Owner::Source);
        assert_eq!(self.releases, 1, "the guest runs before anything else is said");
    }

    fn leave_tunnel(&mut self) {
        assert_eq!(self.mode, OneWay);
        assert_ne!(self.owner, Owner::Source);
    }
}

#[test]
fn the_guest_has_one_owner_whatever_fails() {
    for mode in MODES {
        let mut endings = Vec::new();
        let runs = with_every_script(|script| {
            let mut io = Double::new(script, mode);
            let SourceEnd { ending, guest, reason } = run(Source::new(mode), &mut io);
            let is_source = io.owner == Owner::Source;
            assert_eq!(io.releases, u32::from(is_source), "{mode:?} {script:?}");
            assert!(is_source || !io.taken_back || !io.confirmed, "{mode:?} {script:?}");
            match ending {
                SourceEnding::Moved => assert!(io.arrived && io.owner == Owner::HandedOver),
                SourceEnding::Stayed | SourceEnding::Cancelled => {
                    assert!(is_source && !io.let_go || io.taken_back, "{mode:?} {script:?}");
                }
                SourceEnding::Unknown => {
                    assert!(!is_source && !io.taken_back, "{mode:?} {script:?}");
                }
                SourceEnding::Forced => panic!("nobody forces a migration"),
                SourceEnding::Snapshot => panic!("the guest was to move"),
            }
            let cancelled = reason == Some(TestError(FailureKind::Cancelled));
            assert!(ending != SourceEnding::Cancelled || cancelled, "{mode:?} {script:?}");
            assert_eq!(ending == SourceEnding::Moved, reason.is_none(), "{mode:?} {script:?}");
            assert_eq!(guest.is_some(), io.looked.is_some());
            let open = matches!(ending, SourceEnding::Moved | SourceEnding::Unknown);
            assert!(open || guest.is_some(), "{mode:?} {script:?}");
            if !endings.contains(&ending) {
                endings.push(ending);
            }
        });
        assert!(runs > 1000, "{mode:?}: {runs}");
        assert_eq!(endings.len(), 4, "{mode:?}: {endings:?}");
    }
}

#[test]
fn a_guest_of_which_a_snapshot_is_taken_runs_on_whatever_fails() {
    let mut endings = Vec::new();
    let runs = with_every_script(|script| {
        let mut io = Double { snapshot: true, ..Double::new(script, Saved) };
        let SourceEnd { ending, guest, reason } = run(Source::snapshot(), &mut io);
        assert_eq!((io.owner, io.releases), (Owner::Source, 1), "{script:?}");
        assert!(!io.confirmed && !io.taken_back, "{script:?}");
        match ending {
            SourceEnding::Snapshot => assert!(io.arrived && reason.is_none() && guest.is_none()),
            SourceEnding::Stayed => assert!(reason.is_some() && guest.is_some(), "{script:?}"),
            SourceEnding::Cancelled => {
                assert_eq!(reason, Some(TestError(FailureKind::Cancelled)), "{script:?}");
            }
            other => panic!("{other:?}: {script:?}"),
        }
        if !endings.contains(&ending) {
            endings.push(ending);
        }
    });
    assert!(runs > 1000, "{runs}");
    assert_eq!(endings.len(), 3, "{endings:?}");
}

#[test]
fn a_resolver_takes_the_guest_back_after_a_refusal_or_by_force() {
    for force in [false, true] {
        let mut endings = Vec::new();
        with_every_script(|script| {
            let mut io = Double::new(script, OneWay);
            (io.owner, io.forced) = (Owner::HandedOver, force);
            let (ending, reason) = run_resolver(Resolver::new(None, force), &mut io);
            match ending {
                SourceEnding::Moved => assert!(io.arrived && !io.taken_back),
                SourceEnding::Stayed => {
                    assert!(io.certain && io.taken_back);
                    assert_eq!(reason, Some(TestError(FailureKind::Refused)));
                }
                SourceEnding::Forced => assert!(force && io.taken_back),
                SourceEnding::Unknown => assert!(!io.taken_back && reason.is_some()),
                SourceEnding::Cancelled => panic!("nothing is cancelled behind the commit"),
                SourceEnding::Snapshot => panic!("the guest was to move"),
            }
            if !endings.contains(&ending) {
                endings.push(ending);
            }
        });
        assert_eq!(endings.len(), if force { 4 } else { 3 }, "{endings:?}");
    }
}

/// A driver that has come to this step.
fn at(mode: HandoverMode, step: SourceStep) -> Source {
    let mut source = Source::new(mode);
    while source.operation() != SourceOperation::Step(step) {
        let outcome = match source.operation() {
            SourceOperation::Step(SourceStep::SendEnd) => SourceStepOutcome::Sent(SENT),
            SourceOperation::Step(SourceStep::AwaitAck) => SourceStepOutcome::Acknowledged(by()),
            SourceOperation::Finished(_) => panic!("{mode:?} has no {step:?}"),
            _ => SourceStepOutcome::Done,
        };
        source.advance(outcome);
    }
    source
}

fn steps(mode: HandoverMode) -> Vec<SourceStep> {
    let mut source = Source::new(mode);
    let mut steps = Vec::new();
    while let SourceOperation::Step(step) = source.operation() {
        steps.push(step);
        source.advance(SourceStepOutcome::Done);
    }
    steps
}

#[test]
fn each_mode_commits_once_and_at_its_own_place() {
    use SourceStep::*;
    let begin = [SendHeader, AwaitReady, PreCopy, StopAndCopy];
    let end = [AwaitAck, PrepareCommit, Commit, SendGo, AwaitRunning];
    assert_eq!(steps(BothWays), [&begin[..], &[SendEnd], &end].concat());
    let begin = [SendHeader, PreCopy, StopAndCopy];
    assert_eq!(steps(SeparateCommit), [&begin[..], &[SendEnd, Close], &end].concat());
    for mode in [OneWay, Saved] {
        let expected = [&begin[..], &[PrepareCommit, Commit, SendEnd, Close]].concat();
        assert_eq!(steps(mode), expected);
    }
}

#[test]
fn the_guest_runs_before_anything_is_found_out() {
    for mode in MODES {
        for step in steps(mode).into_iter().take_while(|step| *step != SourceStep::Commit) {
            for kind in KINDS {
                let mut source = at(mode, step);
                source.advance(SourceStepOutcome::Failed(kind));
                assert_eq!(source.operation(), SourceOperation::Release, "{mode:?} {step:?}");
            }
        }
    }
}

#[test]
fn a_commit_that_is_not_answered_leaves_the_outcome_open() {
    for mode in MODES {
        let mut source = at(mode, SourceStep::Commit);
        source.advance(SourceStepOutcome::Failed(FailureKind::Failed));
        assert_eq!(source.operation(), SourceOperation::LookAtGuest);
        source.advance(SourceStepOutcome::Guest(SourceGuestState::Runs));
        source.advance(SourceStepOutcome::Failed(FailureKind::Failed));
        while source.operation() == SourceOperation::LeaveTunnel {
            source.advance(SourceStepOutcome::Done);
        }
        let unknown = SourceEnding::Unknown;
        assert_eq!(source.operation(), SourceOperation::Finished(unknown));
        assert_eq!(unknown.exit_status(), 4);
    }
}

#[test]
fn an_ack_of_another_stream_is_none() {
    let source = at(BothWays, SourceStep::AwaitAck);
    assert!(source.check_ack(SENT).is_ok());
    for digest in [StreamDigest(0), StreamDigest(6), StreamDigest(1 << 63 | 7)] {
        let error = source.check_ack(digest).unwrap_err();
        assert_eq!(error.kind(), FailureKind::Failed);
    }
}

#[test]
fn a_destination_that_gave_up_is_not_told_that_the_guest_was_released() {
    for mode in [BothWays, SeparateCommit] {
        for kind in KINDS {
            let mut source = at(mode, SourceStep::AwaitAck);
            for outcome in [
                SourceStepOutcome::Failed(FailureKind::Failed),
                SourceStepOutcome::Done,
                SourceStepOutcome::Guest(SourceGuestState::Runs),
                // What it was is found out now.
                SourceStepOutcome::Failed(kind),
            ] {
                source.advance(outcome);
            }
            assert_eq!(source.operation(), SourceOperation::AbortStream);
            source.advance(SourceStepOutcome::Done);
            let gave_up = matches!(kind, FailureKind::Refused | FailureKind::GivenUp);
            let ending = match kind {
                FailureKind::Cancelled => SourceEnding::Cancelled,
                _ => SourceEnding::Stayed,
            };
            let next = match gave_up {
                true => SourceOperation::Finished(ending),
                false => SourceOperation::Resolve(ResolveOperation::Query(Query::Released)),
            };
            assert_eq!(source.operation(), next, "{mode:?} {kind:?}");
        }
    }
}

#[test]
fn a_guest_that_was_taken_back_is_looked_at() {
    let seen = [
        (SourceGuestState::Paused, SourceGuestState::Paused),
        // Its vmrun has said that it took the guest back.
        (SourceGuestState::Silent, SourceGuestState::Runs),
        (SourceGuestState::Gone, SourceGuestState::Gone),
    ];
    for (state, expected) in seen {
        let mut source = at(BothWays, SourceStep::AwaitRunning);
        for outcome in [
            SourceStepOutcome::Failed(FailureKind::Failed),
            SourceStepOutcome::Failed(FailureKind::Failed),
            SourceStepOutcome::Failed(FailureKind::Refused),
        ] {
            source.advance(outcome);
        }
        assert_eq!(source.operation(), SourceOperation::Resolve(ResolveOperation::TakeBack));
        source.advance(SourceStepOutcome::Done);
        assert_eq!(source.operation(), SourceOperation::LookAtGuest);
        source.advance(SourceStepOutcome::Guest(state));
        assert_eq!(source.operation(), SourceOperation::Finished(SourceEnding::Stayed));
        assert_eq!(source.guest(), Some(expected));
    }
}
