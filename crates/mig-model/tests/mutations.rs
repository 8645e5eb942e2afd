//! Each mistake is found, and by the property that is there for it: a check that finds nothing
//! might look at nothing.
#![allow(clippy::print_stdout, reason = "what a test says is for whoever runs it")]

use std::collections::BTreeSet;

use mig_engine::handover::HandoverMode::{self, BothWays, OneWay, Saved, SeparateCommit};
use mig_model::bounds::{Bounds, HandoverModel};
use mig_model::graph;
use mig_model::mutation::Mutation::{self, *};
use mig_model::properties::*;
use stateright::{Checker, HasDiscoveries, Model};

const fn bounds(mode: HandoverMode) -> Bounds {
    Bounds {
        modes: [Some(mode), None],
        at_once: false,
        twice: matches!(mode, OneWay),
        other_host: false,
        wipes: 0,
        go_timeout: false,
        reads: 0,
        snapshot: false,
        resolvers: 1,
        crashes: 1,
        quits: 0,
        cuts: false,
        faults: 2,
    }
}

fn breaks(bounds: Bounds, mutation: Mutation, property: &'static str) {
    let wanted = HasDiscoveries::AnyOf(BTreeSet::from([property]));
    let model = HandoverModel::with(bounds, mutation);
    let checker = model.checker().finish_when(wanted).spawn_bfs().join();
    let path =
        checker.discovery(property).unwrap_or_else(|| panic!("{mutation:?} keeps: {property}"));
    println!("{mutation:?} breaks \"{property}\" in {:?}", path.into_actions());
}

#[test]
fn a_destination_that_runs_before_go() {
    breaks(bounds(BothWays), RunsWhenPrepared, NEVER_TWO);
    breaks(bounds(BothWays), RunsWhenPrepared, GO_BEFORE_RUNNING);
}

#[test]
fn never_heard_of_answered_without_a_record() {
    breaks(bounds(OneWay), UnknownIsRefusedUnrecorded, NEVER_TWO);
}

#[test]
fn a_resume_after_the_commit() {
    breaks(bounds(BothWays), ResumeIgnoresOwnership, OWNER_RUNS);
    breaks(bounds(BothWays), ResumeIgnoresOwnership, NEVER_TWO);
}

#[test]
fn a_commit_of_a_state_that_the_guest_has_left_behind() {
    breaks(bounds(BothWays), CommitsAfterResume, CONTINUED_ONCE);
}

#[test]
fn a_refusal_that_is_recorded_after_it_takes_effect() {
    breaks(bounds(BothWays), RefusalRecordedAfter, RECORDED);
}

#[test]
fn a_commit_after_go_is_written() {
    breaks(bounds(BothWays), CommitAfterGo, COMMIT_BEFORE_GO);
    breaks(bounds(BothWays), CommitAfterGo, NEVER_TWO);
}

#[test]
fn a_one_way_end_before_the_commit() {
    breaks(bounds(OneWay), EndBeforeCommit, COMMIT_BEFORE_GO);
    breaks(bounds(OneWay), EndBeforeCommit, NEVER_TWO);
}

#[test]
fn a_go_timeout_without_a_record() {
    let limited = Bounds { go_timeout: true, ..bounds(SeparateCommit) };
    breaks(limited, TimeoutUnrecorded, RECORDED);
}

#[test]
fn may_run_recorded_after_the_first_page() {
    breaks(bounds(OneWay), MayRunRecordedLate, CONTINUED_ONCE);
}

#[test]
fn may_run_not_recorded_at_all() {
    breaks(bounds(OneWay), MayRunUnrecorded, CONTINUED_ONCE);
}

#[test]
fn a_second_go_that_runs_after_a_refusal() {
    let limited = Bounds { go_timeout: true, ..bounds(BothWays) };
    breaks(limited, GoAfterRefusal, CONTINUED_ONCE);
}

#[test]
fn may_have_run_answered_as_refused() {
    breaks(bounds(BothWays), MayHaveRunIsRefused, CONTINUED_ONCE);
}

#[test]
fn a_released_source_that_answers_a_commit() {
    let two = Bounds {
        modes: [Some(BothWays), Some(BothWays)],
        at_once: true,
        crashes: 0,
        faults: 0,
        ..bounds(BothWays)
    };
    breaks(two, ReleasedAnswersCommit, COMMIT_BEFORE_GO);
    breaks(two, ReleasedAnswersCommit, NEVER_TWO);
}

#[test]
fn a_source_that_runs_on_when_its_client_goes_after_the_commit() {
    breaks(bounds(BothWays), ClientGoneAfterCommit, NEVER_TWO);
}

#[test]
fn a_one_way_stream_that_runs_without_its_end() {
    breaks(bounds(OneWay), RunsAtEof, GO_BEFORE_RUNNING);
}

#[test]
fn a_refusal_repeated_before_its_writer_has_synced_it() {
    breaks(bounds(OneWay), RepeatsUnsynced, RECORDED);
    let two_ask = Bounds { resolvers: 2, faults: 0, ..bounds(OneWay) };
    breaks(two_ask, RepeatsUnsynced, NEVER_TWO);
}

#[test]
fn a_query_that_broke_off_taken_for_a_refusal() {
    breaks(bounds(BothWays), UnreadableIsRefused, NEVER_TWO);
}

#[test]
fn a_slow_vmrun_taken_for_one_that_refused() {
    for mode in [BothWays, SeparateCommit, OneWay] {
        breaks(bounds(mode), SlowIsRefused, NEVER);
    }
}

#[test]
fn a_refusal_that_vmrun_was_not_told_of() {
    breaks(bounds(OneWay), UntoldIsRefused, NEVER);
}

#[test]
fn an_operators_go_at_the_destination_before_the_commit() {
    breaks(bounds(BothWays), OperatorsGo, NEVER_TWO);
}

#[test]
fn a_source_that_does_not_take_its_guest_back() {
    let limited = Bounds { go_timeout: true, ..bounds(BothWays) };
    breaks(limited, IgnoresTakeBack, STAYS);
}

#[test]
fn a_file_that_is_given_up_though_somebody_reads_it() {
    breaks(bounds(Saved), AbandonsWhatIsRead, CONTINUED_ONCE);
    breaks(bounds(Saved), AbandonsWhatIsRead, NEVER_TWO);
}

#[test]
fn a_snapshot_that_is_restored_as_the_guest_that_runs_on() {
    let snapshot = Bounds { snapshot: true, ..file() };
    breaks(snapshot, RestoresSnapshot, NEVER_TWO);
    breaks(snapshot, RestoresSnapshot, CONTINUED_ONCE);
}

/// A file that is read twice, and nobody asks.
const fn file() -> Bounds {
    Bounds { reads: 2, resolvers: 0, faults: 1, ..bounds(Saved) }
}

#[test]
fn a_source_that_ends_before_its_file_is_on_the_disk() {
    let unread = Bounds { reads: 1, ..file() };
    breaks(unread, ConfirmsUnsynced, MOVED);
    let found = graph::explore(&HandoverModel::with(unread, ConfirmsUnsynced));
    assert!(found.stuck.is_some(), "the guest is never lost");
}

#[test]
fn a_restore_that_takes_over_what_another_works_on() {
    breaks(file(), TakesOverLiving, CONTINUED_ONCE);
    breaks(file(), TakesOverLiving, NEVER_TWO);
}

#[test]
fn a_saved_guest_that_runs_before_its_record_says_so() {
    breaks(file(), MayRunUnrecorded, CONTINUED_ONCE);
    breaks(file(), MayRunRecordedLate, CONTINUED_ONCE);
}

#[test]
fn a_copy_of_a_stream_that_takes_the_go_of_another() {
    for other_host in [true, false] {
        let copied =
            Bounds { twice: true, other_host, wipes: 1, crashes: 0, faults: 1, ..bounds(BothWays) };
        if other_host {
            breaks(copied, GoForAnyCopy, NEVER_TWO);
        }
        breaks(copied, GoForAnyCopy, CONTINUED_ONCE);
    }
}

#[test]
fn a_query_that_another_host_answers() {
    for mode in [BothWays, SeparateCommit] {
        let elsewhere = Bounds { other_host: true, crashes: 0, faults: 1, ..bounds(mode) };
        breaks(elsewhere, AnyHostAnswers, NEVER_TWO);
    }
}

#[test]
fn a_host_with_a_young_memory_that_answers() {
    let lost = Bounds { twice: false, wipes: 1, ..bounds(OneWay) };
    breaks(lost, YoungHostAnswers, CONTINUED_ONCE);
}

#[test]
fn a_host_that_asks_no_vmrun_but_that_of_its_record() {
    let lost = Bounds { twice: false, wipes: 1, crashes: 0, ..bounds(OneWay) };
    let found = graph::explore(&HandoverModel::with(lost, AsksItsRecordsOnly));
    assert!(found.stuck.is_some(), "what runs here is found");
}

#[test]
fn never_heard_of_said_before_every_vmrun_was_asked() {
    let elsewhere = Bounds { twice: false, wipes: 1, crashes: 0, ..bounds(OneWay) };
    breaks(elsewhere, UnknownBeforeAllAreAsked, CONTINUED_ONCE);
    breaks(elsewhere, UnknownBeforeAllAreAsked, NEVER_TWO);
}

#[test]
fn a_refusal_told_though_the_guest_was_recorded_first() {
    let alone = Bounds { crashes: 0, ..bounds(OneWay) };
    breaks(alone, OvertakenIsRefused, CONTINUED_ONCE);
    breaks(alone, OvertakenIsRefused, NEVER_TWO);
}

#[test]
fn a_release_that_is_taken_for_go() {
    breaks(bounds(BothWays), ReleaseIsGo, NEVER_TWO);
    breaks(bounds(BothWays), ReleaseIsGo, GO_BEFORE_RUNNING);
}

#[test]
fn a_prepared_guest_that_is_given_up_by_the_lapse_of_time() {
    for mode in [BothWays, SeparateCommit] {
        breaks(bounds(mode), GivesUpByItself, KEPT);
    }
}

#[test]
fn a_source_that_releases_after_the_commit_when_it_is_asked_twice() {
    for mode in [BothWays, SeparateCommit, OneWay] {
        breaks(bounds(mode), ReleasesWhenAskedTwice, NEVER_TWO);
    }
}

#[test]
fn a_read_of_go_that_timed_out_taken_for_a_refusal() {
    breaks(bounds(BothWays), LateGoIsRefused, KEPT);
}

#[test]
fn a_source_that_forgets_a_client_that_went_away() {
    let found = graph::explore(&HandoverModel::with(bounds(BothWays), ForgetsClient));
    assert!(found.stuck.is_some(), "the guest is never lost");
}

#[test]
fn a_query_that_waits_for_a_go_that_nobody_sends() {
    let found = graph::explore(&HandoverModel::with(bounds(BothWays), QueryIsNotGo));
    assert!(found.circular > 0, "every run ends");
}
