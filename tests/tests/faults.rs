//! Faults at every step of the protocol: few enough cases for every day, with every fault and every
//! step of every form among them, and those that found something once. They are the same every day;
//! `scripts/faults` runs all of them, in any order.

use migpipe_tests::faults::{Case, Survey, cover, possible};
use migpipe_tests::needs_kvm;

/// So many at once: they wait most of the time.
const AT_ONCE: usize = 4;

/// Which of many covers.
const SEED: u64 = 1;

/// What each of these did wrong.
const ONCE_WRONG: &[(&str, &str)] = &[
    ("both/connect/kill-source/mended", "a guest that ended was only a vmrun that was lost"),
    ("both/ack/kill-source/mended", "a source that died was called handed-over"),
    ("both/go/freeze-recv/asked", "RUNNING was waited for longer than --timeout"),
    ("one-way/eof/exit-late/asked", "a tunnel that failed was status 0"),
    ("resolve/query/state-lost/mended", "records that cannot be read now: it may have run"),
    ("resolve/answer/kill-source/mended", "a guest that runs there was status 1"),
    ("file/eof/name-taken/mended", "a file that was not finished had the guest"),
    ("commit/eof/no-more-memory/asked", "a vmrun without a thread kept its mig-recv waiting"),
];

#[test]
fn every_fault_and_every_step_ends_as_the_table_says() {
    needs_kvm!();
    let mut cases = cover(SEED);
    for (name, wrong) in ONCE_WRONG {
        let case = Case::named(name).unwrap_or_else(|| panic!("{name}: {wrong}"));
        if !cases.contains(&case) {
            cases.push(case);
        }
    }
    let cases = possible(cases);
    println!("{} of {} cases", cases.len(), Case::all().len());
    let survey = Survey::of(&cases, SEED, AT_ONCE, |verdict| {
        if let Some(why) = verdict.failure() {
            println!("scripts/faults --seed {SEED} {}: {why}", verdict.case);
        }
    });
    println!("{}{}{:.0} s", survey.table(), survey.hit_lines(), survey.took.as_secs_f64());
    assert!(survey.failures().is_empty(), "{} cases failed", survey.failures().len());
}
