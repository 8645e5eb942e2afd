//! The rules that carry the safety of the handover.

use migpipe_units::{Acknowledged, HostId, MigrationId, Nonce};

use super::denied::Denied;
use super::input::{Authority, Input};
use super::machine::Ownership;
use super::migration_status::MigrationStatus;
use super::state::State;
use super::transition::{Decision, Effect};

const ID: MigrationId = MigrationId::from_bytes([1; 16]);
const OTHER: MigrationId = MigrationId::from_bytes([2; 16]);
const NONCE: Option<Nonce> = Some(Nonce::from_bytes([3; 16]));
const ACKNOWLEDGED: Option<Acknowledged> =
    Some(Acknowledged { host: HostId::from_bytes([4; 16]), nonce: Nonce::from_bytes([3; 16]) });
const COMMIT: Input = Input::Commit(ID, ACKNOWLEDGED);
const GO: Input = Input::Go(ID, Authority::Source(NONCE));
const TO_PREPARED: [Input; 2] = [Input::Receive(ID), Input::Prepared(ID, NONCE)];

fn drive(mut ownership: Ownership, inputs: &[Input]) -> Ownership {
    for input in inputs {
        let transition = ownership.step(*input).expect("the path is allowed");
        ownership.enter(*input, &transition);
    }
    ownership
}

fn every_input(id: MigrationId) -> [Input; 14] {
    use Input::*;
    [
        Begin(id),
        Release(id),
        Commit(id, ACKNOWLEDGED),
        Confirm(id),
        TakeBack(id),
        Receive(id),
        Restore(id),
        Prepared(id, NONCE),
        Go(id, Authority::Source(NONCE)),
        Go(id, Authority::Source(None)),
        Go(id, Authority::Operator),
        Refuse(id),
        Quit { force: false },
        Quit { force: true },
    ]
}

#[test]
fn only_the_destinations_refusal_leads_back_from_handed_over() {
    let source = drive(Ownership::booted(), &[Input::Begin(ID), COMMIT]);
    assert!(!source.may_run());
    for input in every_input(ID).into_iter().chain(every_input(OTHER)) {
        if let Ok(transition) = source.step(input) {
            let runs = matches!(transition.next, State::Owned | State::Migrating(_));
            assert_eq!(runs, input == Input::TakeBack(ID), "{input:?}");
        }
    }
}

#[test]
fn a_destination_runs_after_go_alone() {
    for path in [&[][..], &TO_PREPARED[..1], &TO_PREPARED] {
        let destination = drive(Ownership::incoming(), path);
        assert!(!destination.may_run());
        for input in every_input(ID).into_iter().chain(every_input(OTHER)) {
            if let Ok(transition) = destination.step(input) {
                let runs = matches!(transition.next, State::Owned | State::Migrating(_));
                let go = [GO, Input::Go(ID, Authority::Operator)].contains(&input);
                assert_eq!(runs, path.len() == 2 && go, "{input:?}");
            }
        }
    }
}

#[test]
fn a_refusal_is_recorded_before_it_takes_effect_and_is_for_ever() {
    let prepared = drive(Ownership::incoming(), &TO_PREPARED);
    for input in [Input::Refuse(ID), Input::Quit { force: false }] {
        let transition = prepared.step(input).unwrap();
        assert_eq!(transition.before, Some(Effect::Record(ID, Decision::Refused)));
        let mut refused = prepared;
        refused.enter(input, &transition);
        assert_eq!(refused.migration_status(ID, NONCE), MigrationStatus::Refused);
        assert_eq!(refused.step(GO), Err(Denied::Refused(ID)));
    }
}

#[test]
fn a_saved_guest_may_be_restored_again_until_it_may_have_run() {
    let receiving = drive(Ownership::incoming(), &[Input::Restore(ID)]);
    let prepared = drive(receiving, &[Input::Prepared(ID, None)]);
    for here in [receiving, prepared] {
        for input in [Input::Refuse(ID), Input::Quit { force: false }] {
            let transition = here.step(input).unwrap();
            assert_eq!(transition.before, Some(Effect::Forget(ID)));
            let mut ended = here;
            ended.enter(input, &transition);
            // Whoever asks now must find the record, or that there is none.
            assert_eq!(ended.migration_status(ID, None), MigrationStatus::NotMine);
        }
    }
    let runs = prepared.step(Input::Go(ID, Authority::Source(None))).unwrap();
    assert_eq!(runs.before, Some(Effect::Record(ID, Decision::MayRun)));
    assert_eq!(runs.later, Some(Effect::Record(ID, Decision::Ran)));
}

#[test]
fn may_run_is_on_disk_before_the_first_page_is_taken() {
    let transition = Ownership::incoming().step(Input::Receive(ID)).unwrap();
    assert_eq!(transition.before, Some(Effect::Record(ID, Decision::MayRun)));
}

#[test]
fn a_second_go_is_answered_as_the_first_and_changes_nothing() {
    let here = drive(drive(Ownership::incoming(), &TO_PREPARED), &[GO]);
    let again = here.step(GO).unwrap();
    assert_eq!((again.next, again.after), (State::Owned, None));
    let gone_on = drive(here, &[Input::Begin(OTHER), Input::Commit(OTHER, None)]);
    let again = gone_on.step(GO).unwrap();
    assert_eq!((again.next, again.after), (State::HandedOver(OTHER), None));
    assert_eq!(gone_on.migration_status(ID, None), MigrationStatus::Running);
}

#[test]
fn go_is_for_the_copy_that_was_acknowledged() {
    let prepared = drive(Ownership::incoming(), &TO_PREPARED);
    let one_way = [Input::Receive(ID), Input::Prepared(ID, None)];
    let one_way = drive(Ownership::incoming(), &one_way);
    let another = Some(Nonce::from_bytes([9; 16]));
    for (ownership, mine, others) in
        [(prepared, NONCE, [another, None]), (one_way, None, [another, NONCE])]
    {
        assert_eq!(ownership.migration_status(ID, mine), MigrationStatus::Prepared);
        let right = Input::Go(ID, Authority::Source(mine));
        let runs = drive(ownership, &[right]);
        for other in others {
            let wrong = Input::Go(ID, Authority::Source(other));
            assert_eq!(ownership.step(wrong), Err(Denied::NotAcknowledged(ID)));
            assert_eq!(ownership.migration_status(ID, other), MigrationStatus::PreparedForAnother);
            assert_eq!(runs.step(wrong), Err(Denied::NotAcknowledged(ID)), "a second GO");
        }
    }
}

#[test]
fn a_source_knows_who_took_its_guest_for_as_long_as_it_is_handed_over() {
    let source = drive(Ownership::booted(), &[Input::Begin(ID)]);
    assert_eq!(source.taken_by(), None);
    let source = drive(source, &[COMMIT]);
    assert_eq!(source.taken_by(), ACKNOWLEDGED);
    assert!(source.step(COMMIT).is_ok(), "the answer was lost");
    assert!(source.step(Input::Commit(ID, None)).is_err(), "another commit");
    assert_eq!(drive(source, &[Input::TakeBack(ID)]).taken_by(), None);
}

#[test]
fn a_late_message_of_another_migration_does_nothing() {
    let source = drive(Ownership::booted(), &[Input::Begin(ID)]);
    for input in [Input::Release(OTHER), Input::Commit(OTHER, None), Input::TakeBack(OTHER)] {
        assert!(matches!(source.step(input), Err(Denied::OtherMigration { .. })), "{input:?}");
    }
    assert_eq!(source.step(Input::Begin(OTHER)), Err(Denied::AlreadyMigrating(ID)));
}

#[test]
fn the_last_copy_is_thrown_away_by_force_alone() {
    let source = drive(Ownership::booted(), &[Input::Begin(ID), COMMIT]);
    assert_eq!(source.step(Input::Quit { force: false }), Err(Denied::MayBeLastCopy(ID)));
    assert!(source.step(Input::Quit { force: true }).is_ok());
}
