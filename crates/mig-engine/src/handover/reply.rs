//! What a host answers a query with, by what it knows.

use crate::ownership::{Decision, MigrationStatus};

/// What a host knows of a migration, and of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// What its record says.
    pub record: Option<Decision>,
    /// What a vmrun says that has to do with it; nothing if none of those that live has.
    pub live: Option<MigrationStatus>,
    /// Whether the ACK that the source has is of this host; nothing if the source has none.
    pub acknowledged_here: Option<bool>,
    /// Whether this host remembers what was before the migration began.
    pub remembers: bool,
}

/// What the host's side does with a query.
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
    /// Have the vmrun that has the guest refuse, then ask again.
    RefuseInVmrun,
    /// The guest may have run here: the record says so and nobody is left who knows.
    MayHaveRun,
    /// The guest was acknowledged here, and the record of it is gone.
    RecordLost,
    /// Another host acknowledged the guest.
    OtherHost,
    /// The records of this host are younger than the migration.
    RemembersTooLittle,
}

/// The answer to a source that has committed. It is GO, where that is what is waited for.
pub const fn reply(known: Known) -> Reply {
    use Decision::*;
    match (known.acknowledged_here, known.live, known.record) {
        (_, Some(MigrationStatus::Prepared), _) => Reply::Prepared,
        (_, Some(MigrationStatus::Running), _) | (_, _, Some(Ran)) => Reply::Running,
        (Some(false), _, _) => Reply::OtherHost,
        (_, Some(MigrationStatus::Refused), _) | (_, _, Some(Refused)) => Reply::Refused,
        // Of one that was acknowledged there is another copy that knows better.
        (None, Some(MigrationStatus::Receiving), _) => Reply::RefuseInVmrun,
        (_, _, Some(MayRun)) => Reply::MayHaveRun,
        // A saved guest that is being restored has not run; whether somebody still restores it is
        // found by the one who records the refusal.
        (Some(true), _, None | Some(Restoring)) => Reply::RecordLost,
        (None, Some(MigrationStatus::PreparedForAnother), None | Some(Restoring)) => {
            Reply::MayHaveRun
        }
        (None, _, None | Some(Restoring)) if known.remembers => Reply::RefuseFirst,
        (None, _, None | Some(Restoring)) => Reply::RemembersTooLittle,
    }
}

/// The answer to a source that took the guest back before its commit. Whatever copy of it there is
/// on this host, it is to be given up; that is so on every host.
pub const fn reply_to_release(known: Known) -> Reply {
    use Decision::*;
    match (known.live, known.record) {
        (Some(MigrationStatus::Running), _) | (_, Some(Ran)) => Reply::Running,
        (Some(MigrationStatus::Refused), _) | (_, Some(Refused)) => Reply::Refused,
        (
            Some(
                MigrationStatus::Receiving
                | MigrationStatus::Prepared
                | MigrationStatus::PreparedForAnother,
            ),
            Some(MayRun | Restoring) | None,
        ) => Reply::RefuseInVmrun,
        (_, Some(MayRun)) => Reply::MayHaveRun,
        (_, None | Some(Restoring)) => Reply::RefuseFirst,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One way, and this host remembers long enough.
    const KNOWN: Known =
        Known { record: None, live: None, acknowledged_here: None, remembers: true };
    const MAY_RUN: Known = Known { record: Some(Decision::MayRun), ..KNOWN };
    const STATUSES: [Option<MigrationStatus>; 7] = [
        None,
        Some(MigrationStatus::NotMine),
        Some(MigrationStatus::Receiving),
        Some(MigrationStatus::Prepared),
        Some(MigrationStatus::PreparedForAnother),
        Some(MigrationStatus::Running),
        Some(MigrationStatus::Refused),
    ];
    const RECORDS: [Option<Decision>; 5] = [
        None,
        Some(Decision::Restoring),
        Some(Decision::MayRun),
        Some(Decision::Ran),
        Some(Decision::Refused),
    ];

    fn every() -> impl Iterator<Item = Known> {
        STATUSES.into_iter().flat_map(|live| {
            RECORDS.into_iter().flat_map(move |record| {
                [None, Some(true), Some(false)].into_iter().flat_map(move |acknowledged_here| {
                    [true, false].map(|remembers| Known {
                        record,
                        live,
                        acknowledged_here,
                        remembers,
                    })
                })
            })
        })
    }

    #[test]
    fn never_heard_of_is_refused_before_it_is_answered() {
        assert_eq!(reply(KNOWN), Reply::RefuseFirst);
        assert_eq!(
            reply(Known { live: Some(MigrationStatus::NotMine), ..KNOWN }),
            Reply::RefuseFirst
        );
        assert_eq!(reply_to_release(KNOWN), Reply::RefuseFirst);
    }

    #[test]
    fn never_heard_of_is_no_answer_of_a_host_that_would_not_know() {
        for known in every().filter(|known| known.acknowledged_here.is_some() || !known.remembers) {
            assert_ne!(reply(known), Reply::RefuseFirst, "{known:?}");
        }
        let young = Known { remembers: false, ..KNOWN };
        assert_eq!(reply(young), Reply::RemembersTooLittle);
        let lost = Known { acknowledged_here: Some(true), ..KNOWN };
        assert_eq!(reply(lost), Reply::RecordLost);
    }

    #[test]
    fn another_host_knows_of_a_guest_that_it_has_and_of_no_other() {
        for known in every().filter(|known| known.acknowledged_here == Some(false)) {
            let right = match (known.live, known.record) {
                (Some(MigrationStatus::Prepared), _) => Reply::Prepared,
                (Some(MigrationStatus::Running), _) | (_, Some(Decision::Ran)) => Reply::Running,
                _ => Reply::OtherHost,
            };
            assert_eq!(reply(known), right, "{known:?}");
        }
    }

    #[test]
    fn a_restore_that_was_given_up_is_never_called_a_run() {
        let restoring = Known { record: Some(Decision::Restoring), ..KNOWN };
        assert_eq!(reply(restoring), Reply::RefuseFirst);
        let alive = Known { live: Some(MigrationStatus::Receiving), ..restoring };
        assert_eq!(reply(alive), Reply::RefuseInVmrun);
    }

    #[test]
    fn a_guest_that_may_have_run_is_never_called_refused() {
        for live in [None, Some(MigrationStatus::NotMine)] {
            for acknowledged_here in [None, Some(true)] {
                let known = Known { live, acknowledged_here, ..MAY_RUN };
                assert_eq!(reply(known), Reply::MayHaveRun);
            }
            assert_eq!(reply_to_release(Known { live, ..MAY_RUN }), Reply::MayHaveRun);
        }
    }

    #[test]
    fn the_living_vmrun_knows_better_than_the_record() {
        for record in [None, Some(Decision::MayRun)] {
            let with = |live| reply(Known { live: Some(live), record, ..KNOWN });
            assert_eq!(with(MigrationStatus::Prepared), Reply::Prepared);
            assert_eq!(with(MigrationStatus::Running), Reply::Running);
            assert_eq!(with(MigrationStatus::Receiving), Reply::RefuseInVmrun);
        }
    }

    #[test]
    fn a_copy_that_waits_for_another_go_is_neither_run_nor_refused() {
        for known in every().filter(|known| known.live == Some(MigrationStatus::PreparedForAnother))
        {
            let reply = reply(known);
            assert_ne!(reply, Reply::Prepared, "{known:?}");
            assert_ne!(reply, Reply::RefuseInVmrun, "{known:?}");
            let recorded = known.record == Some(Decision::Refused);
            assert_eq!(
                reply == Reply::Refused,
                recorded && known.acknowledged_here != Some(false),
                "{known:?}"
            );
        }
    }

    #[test]
    fn a_guest_that_was_released_is_given_up_wherever_it_waits() {
        for known in every() {
            let waits = matches!(
                known.live,
                Some(
                    MigrationStatus::Receiving
                        | MigrationStatus::Prepared
                        | MigrationStatus::PreparedForAnother
                )
            );
            let open = !matches!(known.record, Some(Decision::Ran | Decision::Refused));
            let reply = reply_to_release(known);
            assert_eq!(reply == Reply::RefuseInVmrun, waits && open, "{known:?}");
            assert_ne!(reply, Reply::Prepared, "{known:?}");
        }
    }
}
