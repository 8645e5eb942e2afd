//! The destination's side of the handover.

use super::{Form, Outcome};

/// What mig-recv does now.
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
    Go,
    /// Say that the guest runs.
    SendRunning,
    /// Have the vmrun give the migration up, for ever.
    Refuse,
    /// All done.
    Finished(DestinationEnding),
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
    form: Form,
    step: DestinationStep,
}

impl Destination {
    /// A destination that has read the header.
    pub const fn new(form: Form) -> Self {
        Self { form, step: DestinationStep::Receive }
    }

    /// What is to be done now.
    pub const fn step(&self) -> DestinationStep {
        self.step
    }

    /// Goes on after the present step went as `outcome` says.
    pub fn advance(&mut self, outcome: Outcome) {
        use DestinationStep::*;
        self.step = match (self.step, outcome, self.form) {
            (Finished(ending), _, _) => Finished(ending),
            (Receive, Outcome::Done, Form::BothWays) => SendReady,
            (Receive | SendReady, Outcome::Done, _) => Read,
            (Read, Outcome::Done, Form::BothWays) => Prepare,
            (Read, Outcome::Done, _) => AwaitEof,
            (AwaitEof, Outcome::Done, _) => Prepare,
            // The source committed before it wrote End.
            (Prepare, Outcome::Done, Form::OneWay | Form::Saved) => Go,
            (Prepare, Outcome::Done, _) => SendAck,
            (SendAck, Outcome::Done, Form::SeparateCommit) => AwaitCommit,
            (SendAck, Outcome::Done, _) => AwaitGo,
            (AwaitGo, Outcome::Done, _) => Go,
            (Go, Outcome::Done, Form::BothWays) => SendRunning,
            // Somebody else brought GO, or nobody listens.
            (Go | AwaitCommit, Outcome::Done, _) => Finished(DestinationEnding::Runs),
            (SendRunning, _, _) => Finished(DestinationEnding::Runs),
            (Refuse, Outcome::Done, _) => Finished(DestinationEnding::Refused),
            // The vmrun may be prepared all the same, and one way its source has committed: if it
            // resolves, the guest runs here. A saved guest may run, if its vmrun does not say.
            (Refuse, _, Form::OneWay | Form::Saved) => Finished(DestinationEnding::Prepared),
            // The source was not answered or gave up itself, so that no GO will come; or the vmrun
            // had refused already.
            (Refuse, _, _) => Finished(DestinationEnding::Refused),
            // Before the ACK is on its way the source cannot have committed both ways, and one
            // way an unfinished stream must not run: the guest is given up here.
            (Receive | SendReady | Read | AwaitEof | Prepare, _, _) => Refuse,
            // Nobody will ever ask for a saved guest that cannot run now, and its file is left: what
            // is here is given up.
            (Go, Outcome::Failed | Outcome::Cancelled, Form::Saved) => Refuse,
            // The source itself said that it gave up before its commit.
            (AwaitGo, Outcome::Refused, _) => Refuse,
            (AwaitCommit | Go, Outcome::Refused, _) => Finished(DestinationEnding::Refused),
            // The ACK may have arrived, so the source may have committed.
            (SendAck | AwaitGo | AwaitCommit | Go, _, _) => Finished(DestinationEnding::Prepared),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use DestinationStep::*;

    const FORMS: [Form; 4] = [Form::BothWays, Form::SeparateCommit, Form::OneWay, Form::Saved];

    fn path(form: Form) -> Vec<DestinationStep> {
        let mut destination = Destination::new(form);
        let mut steps = vec![destination.step()];
        while !matches!(destination.step(), Finished(_)) {
            destination.advance(Outcome::Done);
            steps.push(destination.step());
        }
        steps
    }

    #[test]
    fn the_guest_runs_only_after_go_or_the_end_of_a_one_way_stream() {
        assert_eq!(
            path(Form::BothWays),
            [
                Receive,
                SendReady,
                Read,
                Prepare,
                SendAck,
                AwaitGo,
                Go,
                SendRunning,
                Finished(DestinationEnding::Runs)
            ]
        );
        assert_eq!(
            path(Form::SeparateCommit),
            [
                Receive,
                Read,
                AwaitEof,
                Prepare,
                SendAck,
                AwaitCommit,
                Finished(DestinationEnding::Runs)
            ]
        );
        assert_eq!(
            path(Form::OneWay),
            [Receive, Read, AwaitEof, Prepare, Go, Finished(DestinationEnding::Runs)]
        );
        assert_eq!(path(Form::Saved), path(Form::OneWay));
    }

    #[test]
    fn a_failure_before_the_ack_refuses_for_ever() {
        for form in FORMS {
            for step in path(form).into_iter().take_while(|step| !matches!(step, SendAck | Go)) {
                for outcome in [Outcome::Failed, Outcome::Refused, Outcome::Cancelled] {
                    let mut destination = Destination { form, step };
                    destination.advance(outcome);
                    assert_eq!(destination.step(), Refuse, "{form:?} {step:?} {outcome:?}");
                }
            }
        }
    }

    #[test]
    fn a_refusal_that_vmrun_did_not_confirm_is_certain_only_while_the_source_has_not_committed() {
        for (form, ending) in [
            (Form::BothWays, DestinationEnding::Refused),
            (Form::SeparateCommit, DestinationEnding::Refused),
            (Form::OneWay, DestinationEnding::Prepared),
            (Form::Saved, DestinationEnding::Prepared),
        ] {
            for outcome in [Outcome::Failed, Outcome::Refused] {
                let mut destination = Destination { form, step: Refuse };
                destination.advance(outcome);
                assert_eq!(destination.step(), Finished(ending), "{form:?} {outcome:?}");
            }
        }
    }

    #[test]
    fn a_lost_go_leaves_the_destination_prepared_and_resolvable() {
        for form in [Form::BothWays, Form::SeparateCommit] {
            for step in [SendAck, AwaitGo, AwaitCommit] {
                let mut destination = Destination { form, step };
                destination.advance(Outcome::Failed);
                assert_eq!(destination.step(), Finished(DestinationEnding::Prepared));
            }
        }
    }

    #[test]
    fn a_saved_guest_that_cannot_run_now_is_given_up_here() {
        let mut destination = Destination { form: Form::Saved, step: Go };
        destination.advance(Outcome::Failed);
        assert_eq!(destination.step(), Refuse);
        destination.advance(Outcome::Done);
        assert_eq!(destination.step(), Finished(DestinationEnding::Refused));
    }

    #[test]
    fn a_lost_running_message_does_not_stop_the_guest() {
        let mut destination = Destination { form: Form::BothWays, step: SendRunning };
        destination.advance(Outcome::Failed);
        assert_eq!(destination.step(), Finished(DestinationEnding::Runs));
    }
}
