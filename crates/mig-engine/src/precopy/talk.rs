//! The talk's own example, replayed: an httpd guest that converged in 14 rounds.
//!
//! The talk gives the pages sent in the first three rounds, the number of rounds and how it ended.
//! The rounds in between are ours: a decreasing series that leads from the one to the other.

use std::time::Duration;

use migpipe_units::{PageRange, Pages, RegionId};

use super::*;

const FROM_THE_TALK: [u64; 3] = [133_168, 6_901, 2_345];
const OURS: [u64; 11] = [1_420, 1_010, 760, 590, 470, 380, 300, 230, 170, 120, 80];
const LEFT_AT_THE_END: u64 = 31;

fn rounds() -> Vec<RoundStats> {
    let sent: Vec<u64> = FROM_THE_TALK.into_iter().chain(OURS).collect();
    let found = sent[1..].iter().copied().chain([LEFT_AT_THE_END]);
    (0..)
        .zip(sent.iter().zip(found))
        .map(|(number, (&sent, found))| RoundStats {
            number,
            sent: Pages(sent),
            bytes: Pages(sent).bytes(),
            dirtied: Pages(found),
            ..RoundStats::default()
        })
        .collect()
}

#[test]
fn the_example_of_the_talk_converges_in_fourteen_rounds() {
    let mut policy = Policy::new(Limits { classic: true, ..Limits::default() });
    let rounds = rounds();
    assert_eq!(rounds.len(), 14);
    for round in &rounds[..13] {
        assert_eq!(policy.decide(round, &Path::default()), Next::Round);
    }
    let Next::StopAndCopy(rule) = policy.decide(&rounds[13], &Path::default()) else {
        panic!("the last round is the last");
    };
    assert_eq!(rule.to_string(), "converged: 31 pages left (at most 50)");
}

#[test]
fn the_example_of_the_talk_keeps_a_promise_of_100_ms_already_after_round_0_on_a_fast_path() {
    let mut policy = Policy::new(Limits::default());
    let path = Path {
        rate: migpipe_units::BytesPerSec(500_000_000),
        overhead: Duration::from_millis(20),
        ..Path::default()
    };
    assert_eq!(
        policy.decide(&rounds()[0], &path),
        Next::StopAndCopy(Rule::FitsDowntime {
            left: Pages(6901),
            estimate: path.downtime(Pages(6901)),
            max_downtime: Duration::from_millis(100),
        })
    );
}

#[test]
fn most_pages_of_the_example_are_sent_once() {
    let all = Pages(FROM_THE_TALK[0]);
    let mut sent = SentHistogram::new([all]);
    for round in rounds() {
        sent.record(PageRange { region: RegionId(0), first: 0, count: round.sent });
    }
    let times = sent.times();
    assert_eq!(times[0], Pages(133_168 - 6_901));
    assert_eq!(times.len(), 14);
    assert_eq!(times.into_iter().sum::<Pages>(), all);
}
