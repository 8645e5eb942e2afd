//! The source's side of the handover: a machine that hands out one operation after the other and is
//! told how each went. All that decides who has the guest at the source is in here and in
//! [`resolver`](super::resolver).

use mig_stream::StreamDigest;
use migpipe_units::Acknowledged;

use super::ending::SourceEnding;
use super::failure::{FailureKind, HandoverError};
use super::guest::SourceGuestState;
use super::mode::HandoverMode;
use super::resolver::{Query, ResolveOperation, Resolver, may_be_repeated};

/// The steps of a migration that succeeds, in their order with a handover both ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SourceStep {
    /// Write the header.
    SendHeader,
    /// Wait until the destination says that it can take the guest.
    AwaitReady,
    /// Take the guest for this migration and send rounds of pages.
    PreCopy,
    /// Pause the guest; send the last pages and the state.
    StopAndCopy,
    /// Give the guest of which a snapshot was taken back to the source's vmrun: it runs on.
    Resume,
    /// Write `End`.
    SendEnd,
    /// Close the forward path, which flushes whatever filters hold back.
    Close,
    /// Wait until the destination has loaded everything.
    AwaitAck,
    /// Have everything ready that nobody can wait for behind the commit: the guest's disks are
    /// flushed, and who is to bring GO lives.
    PrepareCommit,
    /// Tell the source's vmrun that the guest is not its own any more, and who acknowledged it.
    Commit,
    /// Send GO.
    SendGo,
    /// Wait until the destination runs.
    AwaitRunning,
}

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SourceOperation {
    /// The next step of the migration.
    Step(SourceStep),
    /// Remove a file that could not be finished, or make sure that it has no end.
    RemoveFile,
    /// Give the guest back to the source's vmrun: it runs.
    Release,
    /// See what became of the guest.
    LookAtGuest,
    /// Find out why this step failed: only now, as it may take its time. If it was the operator who
    /// ended it, or the destination has given the guest up, the error says so then.
    Explain(SourceStep),
    /// Say in the stream that the guest stays, and end the tunnel.
    AbortStream,
    /// Find out what became of a guest that is handed-over, or tell the destination that it was
    /// released.
    Resolve(ResolveOperation),
    /// Let the tunnel end by itself: what it still holds may be the end of the stream.
    LeaveTunnel,
    /// All done.
    Finished(SourceEnding),
}

/// How an operation went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SourceStepOutcome {
    /// It was done.
    Done,
    /// `End` was written; the digest over all of the stream.
    Sent(StreamDigest),
    /// The destination has acknowledged the guest ([`Source::check_ack`]).
    Acknowledged(Acknowledged),
    /// What became of the guest.
    Guest(SourceGuestState),
    /// It was not done.
    Failed(FailureKind),
}

/// The source's side of one migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Source {
    mode: HandoverMode,
    /// The guest is written to a file, and stays.
    snapshot: bool,
    state: State,
    /// The digest of the stream, once it has its `End`.
    sent: Option<StreamDigest>,
    /// What the ACK said.
    taken_by: Option<Acknowledged>,
    /// The source's vmrun has recorded the commit.
    committed: bool,
    /// The source's vmrun has the guest of a snapshot again.
    resumed: bool,
    /// What became of the guest, where that was looked at.
    guest: Option<SourceGuestState>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum State {
    Step(SourceStep),
    RemoveFile(Failed),
    Release(Failed),
    Look(Failed),
    Explain(Failed),
    /// The guest was taken back behind its commit.
    LookAfterTakeBack,
    /// The guest was given back; whether the destination is to be told as well.
    Abort(SourceEnding, bool),
    Tell(SourceEnding),
    AwaitRetry(SourceEnding),
    Resolve(Resolver),
    LeaveTunnel,
    Finished(SourceEnding),
}

/// A step that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Failed {
    step: SourceStep,
    kind: FailureKind,
    /// The source's vmrun has confirmed that it took the guest back.
    released: bool,
    /// The file that it was to end is gone, or has no end: nobody can ever run a guest from it.
    removed: bool,
}

impl Source {
    /// A migration that is about to start.
    pub const fn new(mode: HandoverMode) -> Self {
        Self {
            mode,
            snapshot: false,
            state: State::Step(SourceStep::SendHeader),
            sent: None,
            taken_by: None,
            committed: false,
            resumed: false,
            guest: None,
        }
    }

    /// A snapshot that is about to be taken: the guest is written as it is saved
    /// ([`HandoverMode::Saved`]), and never committed. It runs on before the stream has its `End`, so
    /// that nothing of what becomes of the file can become of the guest.
    pub const fn snapshot() -> Self {
        let mut source = Self::new(HandoverMode::Saved);
        source.snapshot = true;
        source
    }

    /// What is to be done now.
    pub const fn operation(&self) -> SourceOperation {
        match self.state {
            State::Step(step) => SourceOperation::Step(step),
            State::RemoveFile(_) => SourceOperation::RemoveFile,
            State::Release(_) => SourceOperation::Release,
            State::Look(_) | State::LookAfterTakeBack => SourceOperation::LookAtGuest,
            State::Explain(failed) => SourceOperation::Explain(failed.step),
            State::Abort(..) => SourceOperation::AbortStream,
            State::Tell(_) => SourceOperation::Resolve(ResolveOperation::Query(Query::Released)),
            State::AwaitRetry(_) => SourceOperation::Resolve(ResolveOperation::AwaitRetry),
            State::Resolve(resolver) => SourceOperation::Resolve(resolver.operation()),
            State::LeaveTunnel => SourceOperation::LeaveTunnel,
            State::Finished(ending) => SourceOperation::Finished(ending),
        }
    }

    /// Whether the source's vmrun has recorded the commit: nothing may cancel from there on.
    pub const fn is_committed(&self) -> bool {
        self.committed
    }

    /// Whether the operator's cancel, or the signal that ended the other programs of a pipeline, may
    /// still be why the present step failed. Behind the commit, or where that is not known, it makes
    /// no difference any more.
    pub const fn may_be_cancelled(&self) -> bool {
        let committing = matches!(
            self.state,
            State::Step(SourceStep::Commit)
                | State::Explain(Failed { step: SourceStep::Commit, .. })
        );
        !self.committed && !committing
    }

    /// What the ACK said: what the commit, GO and every query carry. Nothing one way.
    pub const fn taken_by(&self) -> Option<Acknowledged> {
        self.taken_by
    }

    /// What the ACK said, where there must have been one.
    ///
    /// # Errors
    /// [`HandoverError::NothingToAcknowledge`].
    pub fn acknowledged(&self) -> Result<Acknowledged, HandoverError> {
        self.taken_by.ok_or(HandoverError::NothingToAcknowledge)
    }

    /// What became of the guest at the source, where that was looked at.
    pub const fn guest(&self) -> Option<SourceGuestState> {
        self.guest
    }

    /// Checks that an ACK is for what was sent.
    ///
    /// # Errors
    /// [`HandoverError::OtherStream`].
    pub fn check_ack(&self, echoed: StreamDigest) -> Result<(), HandoverError> {
        match self.sent == Some(echoed) {
            true => Ok(()),
            false => Err(HandoverError::OtherStream),
        }
    }

    /// Goes on after the present operation went as `outcome` says.
    pub fn advance(&mut self, outcome: SourceStepOutcome) {
        use SourceStepOutcome::*;
        self.state = match (self.state, outcome) {
            (State::Finished(ending), _) => State::Finished(ending),
            (State::Step(step), Failed(kind)) => self.after_failure(step, kind),
            (State::Step(step), outcome) => self.after_success(step, outcome),
            (State::RemoveFile(failed), outcome) => {
                let failed = self::Failed { removed: outcome == Done, ..failed };
                match self.resumed {
                    true => State::Look(self::Failed { released: true, ..failed }),
                    false => State::Explain(failed),
                }
            }
            // Even if nobody hears the release, the vmrun runs on by itself when its client goes.
            (State::Release(failed), outcome) => {
                State::Look(self::Failed { released: outcome == Done, ..failed })
            }
            (State::Look(failed), outcome) => {
                self.guest = Some(Self::seen(outcome, failed.released));
                State::Explain(failed)
            }
            (State::LookAfterTakeBack, outcome) => {
                self.guest = Some(Self::seen(outcome, true));
                State::Finished(SourceEnding::Stayed)
            }
            (State::Explain(failed), outcome) => self.after_explanation(failed, outcome),
            (State::Abort(ending, true), _) => State::Tell(ending),
            (State::Tell(ending), Failed(kind)) if may_be_repeated(kind) => {
                State::AwaitRetry(ending)
            }
            (State::AwaitRetry(ending), Done) => State::Tell(ending),
            // If nobody hears it now, the header of the guest's next migration says it again.
            (State::Abort(ending, _) | State::Tell(ending) | State::AwaitRetry(ending), _) => {
                State::Finished(ending)
            }
            (State::Resolve(mut resolver), outcome) => {
                resolver.advance(match outcome {
                    Failed(kind) => Err(kind),
                    _ => Ok(()),
                });
                self.resolving(resolver)
            }
            (State::LeaveTunnel, _) => State::Finished(SourceEnding::Unknown),
        };
    }

    /// What became of the guest, as its vmrun says or, where it does not, as it has said before:
    /// that it has the guest again.
    const fn seen(outcome: SourceStepOutcome, has_it: bool) -> SourceGuestState {
        match outcome {
            SourceStepOutcome::Guest(SourceGuestState::Silent) if has_it => SourceGuestState::Runs,
            SourceStepOutcome::Guest(guest) => guest,
            _ => SourceGuestState::Silent,
        }
    }

    const fn resolving(&self, resolver: Resolver) -> State {
        match resolver.operation() {
            ResolveOperation::Finished(SourceEnding::Unknown) => self.unknown(),
            ResolveOperation::Finished(SourceEnding::Stayed) => State::LookAfterTakeBack,
            ResolveOperation::Finished(ending) => State::Finished(ending),
            _ => State::Resolve(resolver),
        }
    }

    const fn unknown(&self) -> State {
        match self.mode {
            HandoverMode::OneWay => State::LeaveTunnel,
            _ => State::Finished(SourceEnding::Unknown),
        }
    }

    fn after_success(&mut self, step: SourceStep, outcome: SourceStepOutcome) -> State {
        use HandoverMode::*;
        use SourceStep::*;
        match outcome {
            SourceStepOutcome::Sent(digest) => self.sent = Some(digest),
            SourceStepOutcome::Acknowledged(by) => self.taken_by = Some(by),
            _ => {}
        }
        self.committed |= step == Commit;
        self.resumed |= step == Resume;
        State::Step(match (step, self.mode) {
            (PrepareCommit, _) if self.snapshot => Resume,
            (Close, _) if self.snapshot => return State::Finished(SourceEnding::Snapshot),
            (Resume, _) => SendEnd,
            (SendHeader, BothWays) => AwaitReady,
            (SendHeader, _) => PreCopy,
            (AwaitReady, _) => PreCopy,
            (PreCopy, _) => StopAndCopy,
            // One way nobody can say "refused" later, so the commit comes before the destination
            // can have everything that it needs to run.
            (StopAndCopy, OneWay | Saved) => PrepareCommit,
            (StopAndCopy, _) => SendEnd,
            (SendEnd, BothWays) => AwaitAck,
            (SendEnd, _) => Close,
            (Close, OneWay) => return State::Finished(SourceEnding::Moved),
            // The file is on the disk: the source has nothing left to wait for.
            (Close, Saved) => return State::Resolve(Resolver::confirming()),
            (Close, _) => AwaitAck,
            // The destination is whole and paused: this is the last moment at which a failure
            // costs nothing.
            (AwaitAck, _) => PrepareCommit,
            (PrepareCommit, _) => Commit,
            (Commit, OneWay | Saved) => SendEnd,
            (Commit, _) => SendGo,
            (SendGo, _) => AwaitRunning,
            (AwaitRunning, _) => return State::Resolve(Resolver::confirming()),
        })
    }

    fn after_failure(&self, step: SourceStep, kind: FailureKind) -> State {
        use SourceStep::*;
        let failed = Failed { step, kind, released: false, removed: false };
        if self.mode == HandoverMode::Saved && matches!(step, SendEnd | Close) {
            return State::RemoveFile(failed);
        }
        if self.committed {
            State::Explain(failed)
        } else if failed.may_have_committed() {
            State::Look(failed)
        } else {
            // The guest may stand still: it runs before anything is found out.
            State::Release(failed)
        }
    }

    fn after_explanation(&self, failed: Failed, explained: SourceStepOutcome) -> State {
        use SourceStep::*;
        let kind = match explained {
            SourceStepOutcome::Failed(kind) => kind,
            _ => failed.kind,
        };
        if self.committed {
            return match failed.step {
                SendGo | AwaitRunning => State::Resolve(Resolver::new(self.taken_by, false)),
                SendEnd | Close if failed.removed => State::Resolve(Resolver::taking_back()),
                _ => self.unknown(),
            };
        }
        if failed.may_have_committed() {
            return self.unknown();
        }
        // A destination that may be prepared would wait for GO for ever, unless it has said that it
        // gave the guest up. Nobody's guest depends on that it is told: unless the guest is at the
        // source for certain, the destination may have the last whole copy, and that is not taken
        // away.
        let gave_up = |kind| matches!(kind, FailureKind::Refused | FailureKind::GivenUp);
        let may_be_prepared = self.mode.is_answered()
            && matches!(failed.step, SendEnd | Close | AwaitAck | PrepareCommit | Commit)
            && !gave_up(failed.kind)
            && !gave_up(kind);
        let is_here = match self.guest {
            Some(SourceGuestState::Runs) => true,
            Some(SourceGuestState::Paused) => failed.released,
            _ => false,
        };
        let ending = match kind {
            FailureKind::Cancelled => SourceEnding::Cancelled,
            _ => SourceEnding::Stayed,
        };
        State::Abort(ending, may_be_prepared && is_here)
    }
}

impl Failed {
    /// Whether the vmrun recorded the commit is not known, so neither copy may be given up.
    fn may_have_committed(&self) -> bool {
        let certain = matches!(self.kind, FailureKind::Undone | FailureKind::Cancelled);
        self.step == SourceStep::Commit && !certain
    }
}
