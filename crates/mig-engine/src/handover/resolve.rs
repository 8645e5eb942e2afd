//! What a host answers when a source asks what became of a migration.
//!
//! The answer comes from two memories: the vmrun that took the guest, if it lives, and the durable
//! record of the host. A host that never heard of the migration records a refusal *first* and
//! answers then, so that the guest cannot arrive behind the answer's back.

use crate::ownership::{Decision, Standing};

/// What the host's side does with a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reply {
    /// The guest waits here for GO.
    Prepared,
    /// The guest runs, or ran, here.
    Running,
    /// The guest will never run here.
    Refused,
    /// Record a refusal, then answer [`Reply::Refused`]. If somebody else recorded first, ask
    /// again.
    RefuseFirst,
    /// Have the vmrun that is receiving refuse, then ask again.
    RefuseInVmrun,
    /// The guest may have run here: the record says so and nobody is left who knows.
    MayHaveRun,
}

/// The answer of a host whose record says `record` and whose vmrun, if it lives, says `live`.
pub const fn reply(record: Option<Decision>, live: Option<Standing>) -> Reply {
    match (live, record) {
        (Some(Standing::Prepared), _) => Reply::Prepared,
        (Some(Standing::Running), _) | (_, Some(Decision::Ran)) => Reply::Running,
        (Some(Standing::Refused), _) | (_, Some(Decision::Refused)) => Reply::Refused,
        (Some(Standing::Receiving), _) => Reply::RefuseInVmrun,
        (_, Some(Decision::MayRun)) => Reply::MayHaveRun,
        // A saved guest that is being restored has not run; whether somebody still restores it is
        // found by the one who records the refusal.
        (_, None | Some(Decision::Restoring)) => Reply::RefuseFirst,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_heard_of_is_refused_before_it_is_answered() {
        assert_eq!(reply(None, None), Reply::RefuseFirst);
        assert_eq!(reply(None, Some(Standing::NotMine)), Reply::RefuseFirst);
    }

    #[test]
    fn a_restore_that_was_given_up_is_never_called_a_run() {
        assert_eq!(reply(Some(Decision::Restoring), None), Reply::RefuseFirst);
        assert_eq!(
            reply(Some(Decision::Restoring), Some(Standing::Receiving)),
            Reply::RefuseInVmrun
        );
    }

    #[test]
    fn a_guest_that_may_have_run_is_never_called_refused() {
        for live in [None, Some(Standing::NotMine)] {
            assert_eq!(reply(Some(Decision::MayRun), live), Reply::MayHaveRun);
        }
    }

    #[test]
    fn the_living_vmrun_knows_better_than_the_record() {
        let may_run = Some(Decision::MayRun);
        assert_eq!(reply(may_run, Some(Standing::Prepared)), Reply::Prepared);
        assert_eq!(reply(may_run, Some(Standing::Running)), Reply::Running);
        assert_eq!(reply(may_run, Some(Standing::Receiving)), Reply::RefuseInVmrun);
    }
}
