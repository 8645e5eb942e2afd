//! Every state against every input: what is listed happens, with exactly these effects, and all
//! else is denied.

use migpipe_units::{Acknowledged, HostId, MigrationId, Nonce};

use super::denied::Denied;
use super::input::Authority;
use super::input::Input::{
    self, Begin, Commit, Confirm, Go, Prepared, Quit, Receive, Refuse, Release, Restore, TakeBack,
};
use super::machine::Ownership;
use super::migration_status::MigrationStatus;
use super::state::State;
use super::transition::{Decision, Effect, Transition};

const ID: MigrationId = MigrationId::from_bytes([1; 16]);
const OTHER: MigrationId = MigrationId::from_bytes([2; 16]);
const NONCE: Option<Nonce> = Some(Nonce::from_bytes([3; 16]));
const ANOTHER: Option<Nonce> = Some(Nonce::from_bytes([5; 16]));
const TAKEN: Option<Acknowledged> =
    Some(Acknowledged { host: HostId::from_bytes([4; 16]), nonce: Nonce::from_bytes([3; 16]) });
const GO: Input = Go(ID, Authority::Source(NONCE));
const BY_WORD: Input = Go(ID, Authority::Operator);
/// GO for a saved guest, which nobody was told of.
const BARE_GO: Input = Go(ID, Authority::Source(None));
const FORCE: Input = Quit { force: true };
const QUIT: Input = Quit { force: false };

/// A vmrun that came to its state by these inputs.
fn came(from: Ownership, by: &[Input]) -> Ownership {
    let mut ownership = from;
    for &input in by {
        let transition = ownership.step(input).expect("the way is allowed");
        ownership.enter(input, &transition);
    }
    ownership
}

fn states() -> Vec<(&'static str, Ownership)> {
    let (booted, incoming) = (Ownership::booted(), Ownership::incoming());
    vec![
        ("owned", booted),
        ("migrating", came(booted, &[Begin(ID)])),
        ("handed over", came(booted, &[Begin(ID), Commit(ID, TAKEN)])),
        ("incoming", incoming),
        ("receiving", came(incoming, &[Receive(ID)])),
        ("restoring", came(incoming, &[Restore(ID)])),
        ("prepared", came(incoming, &[Receive(ID), Prepared(ID, NONCE)])),
        ("restored", came(incoming, &[Restore(ID), Prepared(ID, None)])),
        ("arrived", came(incoming, &[Receive(ID), Prepared(ID, NONCE), GO])),
        ("refused", came(incoming, &[Receive(ID), Refuse(ID)])),
        ("finished", came(booted, &[QUIT])),
    ]
}

fn inputs() -> Vec<Input> {
    let mut all = vec![QUIT, FORCE];
    for id in [ID, OTHER] {
        all.extend([Begin(id), Release(id), Confirm(id), TakeBack(id), Receive(id), Restore(id)]);
        all.extend([Refuse(id), Go(id, Authority::Operator)]);
        all.extend([TAKEN, None].map(|taken| Commit(id, taken)));
        all.extend([NONCE, ANOTHER, None].map(|nonce| Prepared(id, nonce)));
        all.extend([NONCE, ANOTHER, None].map(|nonce| Go(id, Authority::Source(nonce))));
    }
    all
}

/// All that is allowed.
fn table() -> Vec<(&'static str, Input, Transition)> {
    let to = |next| Transition { before: None, next, after: None, later: None };
    let exit = |next| Transition { after: Some(Effect::Exit), ..to(next) };
    let run = || Transition { after: Some(Effect::Run), ..to(State::Owned) };
    let record = |decision| Some(Effect::Record(ID, decision));
    let refuse = || Transition { before: record(Decision::Refused), ..exit(State::Refused(ID)) };
    let forget = || Transition { before: Some(Effect::Forget(ID)), ..exit(State::Finished) };
    let go = || Transition { later: record(Decision::Ran), ..run() };
    let go_from_file = || Transition { before: record(Decision::MayRun), ..go() };
    let arrive = |id, decision| Transition {
        before: Some(Effect::Record(id, decision)),
        ..to(State::Receiving(id))
    };
    let mut table = vec![
        ("owned", Begin(ID), to(State::Migrating(ID))),
        ("owned", Begin(OTHER), to(State::Migrating(OTHER))),
        ("migrating", Release(ID), run()),
        ("migrating", Commit(ID, TAKEN), to(State::HandedOver(ID))),
        ("migrating", Commit(ID, None), to(State::HandedOver(ID))),
        // The answer to the first was lost.
        ("handed over", Commit(ID, TAKEN), to(State::HandedOver(ID))),
        ("handed over", Confirm(ID), exit(State::Finished)),
        ("handed over", TakeBack(ID), run()),
        ("incoming", Receive(ID), arrive(ID, Decision::MayRun)),
        ("incoming", Receive(OTHER), arrive(OTHER, Decision::MayRun)),
        ("incoming", Restore(ID), arrive(ID, Decision::Restoring)),
        ("incoming", Restore(OTHER), arrive(OTHER, Decision::Restoring)),
        ("receiving", Refuse(ID), refuse()),
        ("prepared", Refuse(ID), refuse()),
        ("restoring", Refuse(ID), forget()),
        ("restored", Refuse(ID), forget()),
        ("prepared", GO, go()),
        ("prepared", BY_WORD, go()),
        ("restored", BARE_GO, go_from_file()),
        ("restored", BY_WORD, go_from_file()),
        ("arrived", GO, to(State::Owned)),
        ("arrived", BY_WORD, to(State::Owned)),
        ("arrived", Begin(ID), to(State::Migrating(ID))),
        ("arrived", Begin(OTHER), to(State::Migrating(OTHER))),
        ("refused", Refuse(ID), to(State::Refused(ID))),
        // It may be the last copy: not without force.
        ("handed over", FORCE, exit(State::Finished)),
    ];
    for nonce in [NONCE, ANOTHER, None] {
        for from in ["receiving", "restoring"] {
            table.push((from, Prepared(ID, nonce), to(State::Prepared(ID))));
        }
    }
    for quit in [QUIT, FORCE] {
        for from in ["owned", "migrating", "incoming", "arrived", "refused", "finished"] {
            table.push((from, quit, exit(State::Finished)));
        }
        for from in ["receiving", "prepared"] {
            table.push((from, quit, refuse()));
        }
        for from in ["restoring", "restored"] {
            table.push((from, quit, forget()));
        }
    }
    table
}

#[test]
fn what_the_table_lists_happens_and_all_else_is_denied() {
    let table = table();
    let mut found = 0;
    for (name, ownership) in states() {
        for input in inputs() {
            let listed = table.iter().find(|(from, asked, _)| (*from, *asked) == (name, input));
            let step = ownership.step(input);
            assert_eq!(step.as_ref().ok(), listed.map(|row| &row.2), "{name}: {input:?}");
            found += usize::from(listed.is_some());
        }
    }
    assert_eq!(found, table.len(), "every row was tried");
}

#[test]
fn a_go_for_another_copy_is_told_so() {
    for (name, ownership) in states() {
        let wrong = ownership.step(Go(ID, Authority::Source(ANOTHER)));
        let is_here = ["prepared", "restored", "arrived"].contains(&name);
        assert_eq!(wrong == Err(Denied::NotAcknowledged(ID)), is_here, "{name}: {wrong:?}");
    }
}

#[test]
fn a_vmrun_says_of_a_migration_what_it_is_to_it() {
    for (name, ownership) in states() {
        let expected = match name {
            "receiving" | "restoring" => MigrationStatus::Receiving,
            "prepared" => MigrationStatus::Prepared,
            "restored" => MigrationStatus::PreparedForAnother,
            "arrived" => MigrationStatus::Running,
            "refused" => MigrationStatus::Refused,
            _ => MigrationStatus::NotMine,
        };
        assert_eq!(ownership.migration_status(ID, NONCE), expected, "{name}");
        assert_eq!(ownership.migration_status(OTHER, NONCE), MigrationStatus::NotMine, "{name}");
        let runs = ["owned", "migrating", "arrived"].contains(&name);
        assert_eq!(ownership.may_run(), runs, "{name}");
        let is_saved = ["restoring", "restored"].contains(&name);
        assert_eq!(ownership.is_saved(), is_saved, "{name}");
    }
}
