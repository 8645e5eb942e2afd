//! The handover as it is, within bounds: no rule is broken in any state, every run ends, and from
//! every state the pair can come to rest well.
#![allow(clippy::print_stdout, reason = "what a test says is for whoever runs it")]

use std::time::Instant;

use mig_engine::handover::HandoverMode::{self, BothWays, OneWay, Saved, SeparateCommit};
use mig_model::bounds::{Bounds, HandoverModel, UNBOUNDED};
use mig_model::graph;
use stateright::{Checker, Model};

const ALONE: Bounds = Bounds {
    modes: [Some(BothWays), None],
    at_once: false,
    twice: false,
    other_host: false,
    wipes: 0,
    go_timeout: false,
    reads: 0,
    snapshot: false,
    resolvers: 1,
    crashes: 0,
    quits: 0,
    cuts: false,
    faults: UNBOUNDED,
};

const fn alone(mode: HandoverMode) -> Bounds {
    Bounds { modes: [Some(mode), None], ..ALONE }
}

const fn two(first: HandoverMode, second: HandoverMode) -> Bounds {
    Bounds { modes: [Some(first), Some(second)], ..ALONE }
}

fn holds(bounds: Bounds) {
    let model = HandoverModel::new(bounds);
    let started = Instant::now();
    let checker = model.checker().spawn_bfs().join();
    let found = graph::explore(&model);
    println!(
        "{bounds:?}: {} states, {} steps, depth {}, {} good ends, {:.1} s",
        checker.unique_state_count(),
        found.steps,
        checker.max_depth(),
        found.settled,
        started.elapsed().as_secs_f32()
    );
    checker.assert_properties();
    assert_eq!(checker.unique_state_count(), found.states, "the two searches disagree");
    assert_eq!(found.circular, 0, "a run need not end");
    if let Some((actions, state)) = found.stuck {
        panic!(
            "{} states have no good end; the first: {actions:?}\n{state:#?}",
            found.stuck_states
        );
    }
}

#[test]
fn both_ways_with_tunnels_that_break_anywhere() {
    holds(Bounds { cuts: true, go_timeout: true, ..alone(BothWays) });
}

#[test]
fn both_ways_with_a_crash_anywhere_and_a_guest_that_is_ended() {
    holds(Bounds { crashes: 1, quits: 1, ..alone(BothWays) });
}

#[test]
fn both_ways_with_two_crashes() {
    holds(Bounds { crashes: 2, faults: 2, ..alone(BothWays) });
}

#[test]
fn both_ways_with_two_resolvers_at_once() {
    holds(Bounds { resolvers: 2, ..alone(BothWays) });
}

#[test]
fn a_separate_commit_with_a_crash_anywhere_and_a_guest_that_is_ended() {
    holds(Bounds { crashes: 1, quits: 1, ..alone(SeparateCommit) });
}

#[test]
fn one_way_with_a_stream_that_is_delivered_twice() {
    holds(Bounds { twice: true, ..alone(OneWay) });
}

#[test]
fn one_way_with_a_stream_that_is_delivered_twice_and_a_crash_anywhere() {
    holds(Bounds { twice: true, crashes: 1, faults: 1, ..alone(OneWay) });
}

#[test]
fn one_way_with_two_resolvers_at_once_and_a_crash_anywhere() {
    holds(Bounds { resolvers: 2, crashes: 1, quits: 1, faults: 1, ..alone(OneWay) });
}

#[test]
fn into_a_file_that_may_be_given_up_with_a_crash_anywhere() {
    holds(Bounds { reads: 1, crashes: 1, faults: 2, ..alone(Saved) });
}

#[test]
fn out_of_a_file_that_is_read_twice_with_a_crash_anywhere() {
    holds(Bounds { reads: 2, crashes: 1, faults: 0, ..alone(Saved) });
}

#[test]
fn a_snapshot_with_two_crashes_anywhere_and_a_guest_that_is_ended() {
    holds(Bounds { snapshot: true, reads: 1, crashes: 2, quits: 1, ..alone(Saved) });
}

#[test]
fn both_ways_with_a_second_host_that_may_be_asked_and_a_crash_anywhere() {
    holds(Bounds { other_host: true, crashes: 1, faults: 2, ..alone(BothWays) });
}

#[test]
fn a_separate_commit_with_a_second_host_that_may_be_asked() {
    holds(Bounds { other_host: true, ..alone(SeparateCommit) });
}

#[test]
fn both_ways_with_a_copy_of_the_stream_on_another_host() {
    holds(Bounds { twice: true, other_host: true, faults: 1, ..alone(BothWays) });
}

#[test]
fn both_ways_with_a_copy_of_the_stream_on_the_same_host() {
    holds(Bounds { twice: true, faults: 1, ..alone(BothWays) });
}

#[test]
fn both_ways_with_records_that_are_lost_and_a_crash_anywhere() {
    holds(Bounds { wipes: 1, crashes: 1, faults: 1, ..alone(BothWays) });
}

#[test]
fn one_way_with_records_that_are_lost_and_a_crash_anywhere() {
    holds(Bounds { wipes: 1, crashes: 1, faults: 1, ..alone(OneWay) });
}

#[test]
fn two_senders_at_once() {
    holds(Bounds { at_once: true, faults: 1, ..two(BothWays, BothWays) });
}

#[test]
fn a_second_migration_after_a_first_one() {
    holds(Bounds { faults: 1, ..two(BothWays, SeparateCommit) });
}

#[test]
fn a_second_migration_after_a_one_way_stream() {
    holds(Bounds { faults: 1, ..two(OneWay, BothWays) });
}
