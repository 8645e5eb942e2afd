//! The source's side of the handover.

use super::{Form, Outcome};

/// What mig-send does now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SourceStep {
    /// Write the header.
    Open,
    /// Wait until the destination says that it can take the guest.
    AwaitReady,
    /// Take the guest for this migration and send rounds of pages.
    PreCopy,
    /// Pause the guest; send the last pages and the state.
    Blackout,
    /// Write `End`.
    End,
    /// Close the forward path, which flushes whatever filters hold back.
    Close,
    /// Wait until the destination has loaded everything.
    AwaitAck,
    /// Tell the source's vmrun that the guest is not its own any more.
    Commit,
    /// Send GO.
    Go,
    /// Wait until the destination runs.
    AwaitRunning,
    /// Ask the destination what became of the guest.
    Resolve,
    /// Tell the source's vmrun that the destination runs: it ends.
    Confirm,
    /// Tell the source's vmrun that the destination refused: it runs.
    TakeBack,
    /// Give the guest back to the source's vmrun: it runs.
    Release,
    /// Tell a destination that may be prepared that the guest was given back: it would wait for
    /// GO for ever. Nobody's guest depends on it.
    TellReleased,
    /// All done.
    Finished(SourceEnding),
}

/// How a migration ended for its sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SourceEnding {
    /// The destination runs the guest (both ways), or the stream is complete (one way).
    Moved,
    /// The guest runs on the source.
    Stayed,
    /// The operator cancelled; the guest runs on the source.
    Cancelled,
    /// The source is handed-over and the outcome is not known.
    Unknown,
}

impl SourceEnding {
    /// mig-send's exit status for this ending.
    pub const fn exit_status(self) -> u8 {
        match self {
            Self::Moved => 0,
            Self::Stayed => 1,
            Self::Cancelled => 3,
            Self::Unknown => 4,
        }
    }
}

/// The source's side of one migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Source {
    form: Form,
    step: SourceStep,
    /// Where a release leads: whether the operator asked for it.
    cancelled: bool,
    /// Whether the destination may be prepared when the guest is given back.
    may_be_prepared: bool,
}

impl Source {
    /// A migration that is about to start.
    pub const fn new(form: Form) -> Self {
        Self { form, step: SourceStep::Open, cancelled: false, may_be_prepared: false }
    }

    /// A source that is handed-over already and whose outcome is to be found.
    pub const fn resolving(form: Form) -> Self {
        Self { form, step: SourceStep::Resolve, cancelled: false, may_be_prepared: false }
    }

    /// What is to be done now.
    pub const fn step(&self) -> SourceStep {
        self.step
    }

    /// Whether the source's vmrun is handed-over: nothing may cancel from here on.
    pub const fn is_committed(&self) -> bool {
        use SourceStep::*;
        match self.step {
            Go | AwaitRunning | Resolve | Confirm | TakeBack => true,
            // One way, End and Close come after the commit.
            End | Close => !self.form.is_answered(),
            Finished(ending) => matches!(ending, SourceEnding::Unknown),
            _ => false,
        }
    }

    /// Goes on after the present step went as `outcome` says.
    pub fn advance(&mut self, outcome: Outcome) {
        self.step = match outcome {
            Outcome::Done => self.after_success(),
            _ if self.is_committed() => self.after_late_failure(outcome),
            _ => self.after_early_failure(outcome),
        };
    }

    fn after_success(&self) -> SourceStep {
        use SourceStep::*;
        match (self.step, self.form) {
            (Open, Form::BothWays) => AwaitReady,
            (Open, _) => PreCopy,
            (AwaitReady, _) => PreCopy,
            (PreCopy, _) => Blackout,
            // One way nobody can say "refused" later, so the commit comes before the destination
            // can have everything that it needs to run.
            (Blackout, Form::OneWay | Form::Saved) => Commit,
            (Blackout, _) => End,
            (End, Form::BothWays) => AwaitAck,
            (End, _) => Close,
            (Close, Form::OneWay) => Finished(SourceEnding::Moved),
            // The file is on the disk: the source has nothing left to wait for.
            (Close, Form::Saved) => Confirm,
            (Close, _) => AwaitAck,
            // The destination is whole and paused: this is the last moment at which a failure
            // costs nothing.
            (AwaitAck, _) => Commit,
            (Commit, Form::OneWay | Form::Saved) => End,
            (Commit, _) => Go,
            (Go, _) => AwaitRunning,
            (AwaitRunning | Resolve, _) => Confirm,
            (Confirm, _) => Finished(SourceEnding::Moved),
            (TakeBack, _) => Finished(SourceEnding::Stayed),
            (Release, _) if self.may_be_prepared => TellReleased,
            (Release | TellReleased, _) => self.given_back(),
            (Finished(ending), _) => Finished(ending),
        }
    }

    /// How a migration ends whose guest runs on at the source.
    const fn given_back(&self) -> SourceStep {
        SourceStep::Finished(match self.cancelled {
            true => SourceEnding::Cancelled,
            false => SourceEnding::Stayed,
        })
    }

    fn after_early_failure(&mut self, outcome: Outcome) -> SourceStep {
        match self.step {
            SourceStep::Finished(ending) => SourceStep::Finished(ending),
            // Even if nobody hears the release, the vmrun runs on by itself when its client goes.
            // If it is dead, the destination may have the last whole copy: that is not taken away.
            SourceStep::Release | SourceStep::TellReleased => self.given_back(),
            // Whether the vmrun recorded the commit is not known, so neither copy may be given up.
            SourceStep::Commit if outcome == Outcome::Failed => {
                SourceStep::Finished(SourceEnding::Unknown)
            }
            step => {
                self.cancelled = outcome == Outcome::Cancelled;
                self.may_be_prepared = self.form != Form::OneWay
                    && matches!(
                        step,
                        SourceStep::End
                            | SourceStep::Close
                            | SourceStep::AwaitAck
                            | SourceStep::Commit
                    );
                SourceStep::Release
            }
        }
    }

    fn after_late_failure(&self, outcome: Outcome) -> SourceStep {
        match (self.step, outcome) {
            (SourceStep::Finished(ending), _) => SourceStep::Finished(ending),
            (SourceStep::Go | SourceStep::AwaitRunning, _) => SourceStep::Resolve,
            (SourceStep::Resolve, Outcome::Refused) => SourceStep::TakeBack,
            // A file that was not finished and certainly has no end: nobody can ever run a guest
            // from it.
            (SourceStep::End | SourceStep::Close, Outcome::Refused)
                if matches!(self.form, Form::Saved) =>
            {
                SourceStep::TakeBack
            }
            // The guest is there; only this source's vmrun was not told. It stays handed-over.
            (SourceStep::Confirm, _) => SourceStep::Finished(SourceEnding::Moved),
            _ => SourceStep::Finished(SourceEnding::Unknown),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use SourceStep::*;

    const FORMS: [Form; 4] = [Form::BothWays, Form::SeparateCommit, Form::OneWay, Form::Saved];

    fn path(form: Form) -> Vec<SourceStep> {
        let mut source = Source::new(form);
        let mut steps = vec![source.step()];
        while !matches!(source.step(), Finished(_)) {
            source.advance(Outcome::Done);
            steps.push(source.step());
        }
        steps
    }

    const fn at(form: Form, step: SourceStep) -> Source {
        Source { form, step, cancelled: false, may_be_prepared: false }
    }

    #[test]
    fn a_destination_that_may_be_prepared_is_told_that_the_guest_stays() {
        for form in [Form::BothWays, Form::SeparateCommit, Form::OneWay] {
            for outcome in [Outcome::Failed, Outcome::Refused, Outcome::Cancelled] {
                for step in path(form) {
                    let mut source = at(form, step);
                    source.advance(outcome);
                    if source.step() != Release {
                        continue;
                    }
                    let told =
                        form != Form::OneWay && matches!(step, End | Close | AwaitAck | Commit);
                    source.advance(Outcome::Done);
                    assert_eq!(source.step() == TellReleased, told, "{form:?} {step:?}");
                    let ending = match outcome {
                        Outcome::Cancelled => SourceEnding::Cancelled,
                        _ => SourceEnding::Stayed,
                    };
                    while source.step() == TellReleased {
                        source.advance(outcome);
                    }
                    assert_eq!(source.step(), Finished(ending));
                }
            }
        }
    }

    #[test]
    fn each_form_commits_once_and_at_its_own_place() {
        assert_eq!(
            path(Form::BothWays),
            [
                Open,
                AwaitReady,
                PreCopy,
                Blackout,
                End,
                AwaitAck,
                Commit,
                Go,
                AwaitRunning,
                Confirm,
                Finished(SourceEnding::Moved)
            ]
        );
        assert_eq!(
            path(Form::SeparateCommit),
            [
                Open,
                PreCopy,
                Blackout,
                End,
                Close,
                AwaitAck,
                Commit,
                Go,
                AwaitRunning,
                Confirm,
                Finished(SourceEnding::Moved)
            ]
        );
        assert_eq!(
            path(Form::OneWay),
            [Open, PreCopy, Blackout, Commit, End, Close, Finished(SourceEnding::Moved)]
        );
        assert_eq!(
            path(Form::Saved),
            [Open, PreCopy, Blackout, Commit, End, Close, Confirm, Finished(SourceEnding::Moved)]
        );
    }

    #[test]
    fn any_failure_before_the_commit_gives_the_guest_back() {
        for form in FORMS {
            for outcome in [Outcome::Failed, Outcome::Refused, Outcome::Cancelled] {
                for step in path(form).into_iter().take_while(|step| *step != Commit) {
                    let mut source = at(form, step);
                    source.advance(outcome);
                    assert_eq!(source.step(), Release, "{form:?} {step:?} {outcome:?}");
                    source.advance(Outcome::Failed);
                    let expected = match outcome {
                        Outcome::Cancelled => SourceEnding::Cancelled,
                        _ => SourceEnding::Stayed,
                    };
                    assert_eq!(source.step(), Finished(expected));
                }
            }
        }
    }

    #[test]
    fn after_the_commit_only_a_certain_refusal_gives_the_guest_back() {
        for form in FORMS {
            let after = path(form).into_iter().skip_while(|step| *step != Commit).skip(1);
            for step in after.chain([Resolve, TakeBack]) {
                let source = at(form, step);
                for outcome in [Outcome::Failed, Outcome::Refused, Outcome::Cancelled] {
                    let mut source = source;
                    source.advance(outcome);
                    assert_ne!(source.step(), Release, "{form:?} {step:?} {outcome:?}");
                    let refused = match step {
                        Resolve => outcome == Outcome::Refused,
                        End | Close => outcome == Outcome::Refused && form == Form::Saved,
                        _ => false,
                    };
                    assert_eq!(source.step() == TakeBack, refused, "{form:?} {step:?}");
                }
            }
        }
    }

    #[test]
    fn a_lost_answer_to_the_commit_leaves_the_outcome_open() {
        let mut source = at(Form::BothWays, Commit);
        source.advance(Outcome::Failed);
        assert_eq!(source.step(), Finished(SourceEnding::Unknown));
        assert_eq!(SourceEnding::Unknown.exit_status(), 4);
    }
}
