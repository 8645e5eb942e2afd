use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);

/// 100 MB/s: 100 ms of it are 2441 pages.
const PATH: Path =
    Path { rate: BytesPerSec(100_000_000), backlog: Bytes(0), overhead: Duration::ZERO };

fn round(sent: u64, dirtied: u64) -> RoundStats {
    RoundStats { sent: Pages(sent), dirtied: Pages(dirtied), ..RoundStats::default() }
}

fn limits(on_stall: OnStall) -> Limits {
    Limits { on_stall, ..Limits::default() }
}

fn classic() -> Policy {
    Policy::new(Limits { classic: true, ..Limits::default() })
}

fn decide_all(policy: &mut Policy, rounds: &[(u64, u64)]) -> Vec<Next> {
    rounds.iter().map(|&(sent, dirtied)| policy.decide(&round(sent, dirtied), &PATH)).collect()
}

fn no_progress(rounds: u32, sent: u64, dirtied: u64, throttle: u8) -> Rule {
    Rule::NoProgress { rounds, sent: Pages(sent), dirtied: Pages(dirtied), throttle }
}

#[test]
fn the_talks_three_rules_alone_decide_a_classic_migration() {
    let converged =
        |left| Next::StopAndCopy(Rule::Converged { left: Pages(left), min_pages: Pages(50) });
    let stalled = Next::StopAndCopy(no_progress(2, 18_000, 18_002, 0));
    for (rounds, last) in [
        (&[(100_000, 50)][..], converged(50)),
        (&[(100_000, 51)], Next::Round),
        (&[(9000, 9001), (9000, 9001)], stalled),
        (&[(9000, 9000), (9000, 9001)], Next::Round),
        (&[(9000, 9001), (9000, 9000), (9000, 9001)], Next::Round),
    ] {
        let nexts = decide_all(&mut classic(), rounds);
        assert_eq!(*nexts.last().unwrap(), last, "{rounds:?}");
    }
}

#[test]
fn a_classic_migration_stops_at_the_hard_limit_whatever_downtime_comes_of_it() {
    let nexts = decide_all(&mut classic(), &[(1_000_000, 1_000_000); 30]);
    assert_eq!(nexts[..29], [Next::Round; 29]);
    assert_eq!(
        nexts[29],
        Next::StopAndCopy(Rule::HardLimit { rounds: 30, left: Pages(1_000_000) })
    );
}

#[test]
fn fills_are_pages_that_were_sent() {
    let mut policy = classic();
    let round = RoundStats { fills: Pages(9000), dirtied: Pages(9000), ..RoundStats::default() };
    for _ in 0..5 {
        assert_eq!(policy.decide(&round, &PATH), Next::Round);
    }
}

#[test]
fn what_fits_the_promised_downtime_is_sent_in_the_blackout() {
    let mut policy = Policy::new(Limits::default());
    assert_eq!(
        decide_all(&mut policy, &[(100_000, 2442), (2442, 2000)])[1],
        Next::StopAndCopy(Rule::FitsDowntime {
            left: Pages(2000),
            estimate: Duration::from_micros(81_920),
            max_downtime: 100 * MS,
        })
    );
}

#[test]
fn pages_that_wait_count_as_left() {
    let mut policy = Policy::new(Limits::default());
    let mut stats = round(5000, 1000);
    stats.deferred = Pages(1442);
    assert_eq!(policy.decide(&stats, &PATH), Next::Round);
    stats.deferred = Pages(1441);
    assert!(matches!(
        policy.decide(&stats, &PATH),
        Next::StopAndCopy(Rule::FitsDowntime { left: Pages(2441), .. })
    ));
}

#[test]
fn the_overhead_and_what_the_tunnel_holds_are_part_of_the_downtime() {
    for (path, left) in [
        (PATH, 2441),
        (Path { overhead: 50 * MS, ..PATH }, 1220),
        (Path { overhead: 50 * MS, backlog: Bytes(2_500_000), ..PATH }, 610),
    ] {
        assert_eq!(path.fits(100 * MS), Pages(left));
        assert!(path.downtime(Pages(left)) <= 100 * MS);
        assert!(path.downtime(Pages(left + 1)) > 100 * MS);
        let mut policy = Policy::new(Limits::default());
        let next = policy.decide(&round(100_000, left + 1), &path);
        assert_eq!(next, Next::Round, "{path:?}");
        let next = policy.decide(&round(100_000, left), &path);
        assert!(matches!(next, Next::StopAndCopy(_)), "{path:?}");
    }
}

#[test]
fn few_pages_do_not_break_the_promise_on_a_slow_path() {
    let slow = Path { rate: BytesPerSec(1_000_000), ..PATH };
    let mut policy = Policy::new(Limits::default());
    assert_eq!(policy.decide(&round(100_000, 40), &slow), Next::Round);
    assert!(matches!(
        policy.decide(&round(40, 20), &slow),
        Next::StopAndCopy(Rule::Converged { .. })
    ));
}

#[test]
fn nothing_is_promised_before_a_rate_is_known() {
    let mut policy = Policy::new(Limits::default());
    let next = policy.decide(&round(100, 1), &Path::default());
    assert_eq!(next, Next::Round);
    assert_eq!(policy.deferrable(&Path::default()), Pages(0));
}

#[test]
fn a_promise_that_is_changed_holds_from_the_next_decision_on() {
    let mut policy = Policy::new(Limits::default());
    let busy = round(100_000, 5000);
    assert_eq!(policy.decide(&busy, &PATH), Next::Round);
    policy.set_max_downtime(300 * MS);
    assert!(matches!(policy.decide(&busy, &PATH), Next::StopAndCopy(Rule::FitsDowntime { .. })));
    assert_eq!(policy.limits().max_downtime, 300 * MS);
}

#[test]
fn a_guest_that_outruns_the_path_is_throttled_step_by_step() {
    let mut policy = Policy::new(limits(OnStall::Throttle));
    let nexts = decide_all(&mut policy, &[(9000, 9500); 13]);
    let percents: Vec<u8> = nexts
        .iter()
        .filter_map(|next| match next {
            Next::Throttle { percent } => Some(*percent),
            _ => None,
        })
        .collect();
    assert_eq!(percents, [20, 30, 40, 50, 60, 70, 80, 90, 99]);
    assert_eq!(nexts[0], Next::Round, "one round alone is no stall");
    assert_eq!(nexts[10], Next::Round, "the last step is given its time");
    assert_eq!(
        nexts[11],
        Next::GiveUp {
            needed: PATH.downtime(Pages(9500)),
            rule: no_progress(2, 18_000, 19_000, 99),
        }
    );
    assert_eq!(policy.throttle(), 99);
}

#[test]
fn a_throttle_that_helps_goes_no_further_and_ends_within_the_promise() {
    let mut policy = Policy::new(limits(OnStall::Throttle));
    let nexts = decide_all(&mut policy, &[(9000, 9000), (9000, 9000), (9000, 7000), (7000, 2000)]);
    assert_eq!(nexts[..3], [Next::Round, Next::Throttle { percent: 20 }, Next::Round]);
    assert!(matches!(nexts[3], Next::StopAndCopy(Rule::FitsDowntime { .. })));
}

#[test]
fn a_guest_that_sweeps_a_fixed_working_set_is_throttled_though_it_never_gains_ground() {
    let mut policy = Policy::new(limits(OnStall::Throttle));
    assert_eq!(
        decide_all(&mut policy, &[(50_000, 50_000), (50_000, 49_000)])[1],
        Next::Throttle { percent: 20 }
    );
    let mut policy = Policy::new(limits(OnStall::Throttle));
    let shrinking = [(50_000, 45_000), (45_000, 40_500), (40_500, 36_450)];
    assert_eq!(decide_all(&mut policy, &shrinking), [Next::Round; 3]);
}

#[test]
fn no_progress_stops_or_gives_up_where_the_user_chose_that() {
    let stalled = [(9000, 9001), (9000, 9001)];
    let rule = no_progress(2, 18_000, 18_002, 0);
    assert_eq!(
        decide_all(&mut Policy::new(limits(OnStall::Stop)), &stalled),
        [Next::Round, Next::StopAndCopy(rule)]
    );
    let needed = PATH.downtime(Pages(9001));
    assert_eq!(
        decide_all(&mut Policy::new(limits(OnStall::Abort)), &stalled),
        [Next::Round, Next::GiveUp { needed, rule }]
    );
}

#[test]
fn at_the_hard_limit_a_promise_that_cannot_be_kept_ends_the_migration_with_the_figure() {
    for on_stall in [OnStall::Throttle, OnStall::Stop, OnStall::Abort] {
        let mut policy = Policy::new(limits(on_stall));
        let mut rounds = [(20_000, 16_000); 30];
        rounds[29] = (20_000, 19_000);
        assert_eq!(
            *decide_all(&mut policy, &rounds).last().unwrap(),
            Next::GiveUp {
                needed: PATH.downtime(Pages(19_000)),
                rule: Rule::HardLimit { rounds: 30, left: Pages(19_000) },
            },
            "{on_stall}"
        );
    }
}

#[test]
fn a_promise_shorter_than_an_empty_blackout_is_given_up_without_a_throttle() {
    let path = Path { overhead: 150 * MS, ..PATH };
    let rule = Rule::OutOfReach { fixed: 150 * MS, max_downtime: 100 * MS };
    for (on_stall, last) in [
        (OnStall::Throttle, Next::GiveUp { needed: path.downtime(Pages(9500)), rule }),
        (OnStall::Stop, Next::StopAndCopy(rule)),
    ] {
        let mut policy = Policy::new(limits(on_stall));
        assert_eq!(policy.decide(&round(9000, 9000), &path), Next::Round);
        assert_eq!(policy.decide(&round(9000, 9500), &path), last);
        assert_eq!(policy.throttle(), 0);
    }
}

#[test]
fn a_blackout_whose_fixed_part_fits_exactly_is_within_reach() {
    let path = Path { overhead: 100 * MS, ..PATH };
    let mut policy = Policy::new(limits(OnStall::Throttle));
    assert_eq!(policy.decide(&round(9000, 9500), &path), Next::Round);
    // What it is too long by is the guest's, and a throttle helps.
    assert!(matches!(policy.decide(&round(9000, 9500), &path), Next::Throttle { .. }));
}

#[test]
fn a_guest_is_not_throttled_for_what_is_not_its_fault() {
    let mut policy = Policy::new(limits(OnStall::Throttle));
    assert_eq!(policy.decide(&round(9000, 9500), &PATH), Next::Round);
    let out_of_reach = Path { overhead: 150 * MS, ..PATH };
    assert_eq!(policy.decide(&round(9000, 9500), &out_of_reach), Next::Round);
    assert_eq!(policy.throttle(), 0);
}

#[test]
fn half_of_what_fits_may_wait_for_the_blackout_and_nothing_in_a_classic_migration() {
    let policy = Policy::new(Limits::default());
    assert_eq!(policy.deferrable(&PATH), Pages(1220));
    assert_eq!(classic().deferrable(&PATH), Pages(0));
}

fn any_limits() -> impl Strategy<Value = Limits> {
    let on_stall = prop_oneof![Just(OnStall::Throttle), Just(OnStall::Stop), Just(OnStall::Abort)];
    (0u64..200, 0u32..5, 0u32..40, 0u64..500, any::<bool>(), on_stall).prop_map(
        |(min_pages, stall_rounds, max_rounds, downtime, classic, on_stall)| Limits {
            min_pages: Pages(min_pages),
            stall_rounds,
            max_rounds,
            max_downtime: Duration::from_millis(downtime),
            classic,
            on_stall,
        },
    )
}

fn any_round() -> impl Strategy<Value = (RoundStats, Path)> {
    let pages = || prop_oneof![0u64..20_000, Just(u64::MAX)];
    let path = (prop_oneof![0u64..10_000_000_000, Just(u64::MAX)], 0u64..1 << 22, 0u64..200_000);
    (pages(), pages(), pages(), 0u64..1000, path).prop_map(
        |(sent, fills, dirtied, deferred, (rate, backlog, overhead_us))| {
            let stats = RoundStats {
                sent: Pages(sent),
                fills: Pages(fills),
                dirtied: Pages(dirtied),
                deferred: Pages(deferred),
                ..RoundStats::default()
            };
            let path = Path {
                rate: BytesPerSec(rate),
                backlog: Bytes(backlog),
                overhead: Duration::from_micros(overhead_us),
            };
            (stats, path)
        },
    )
}

proptest! {
    #[test]
    fn pre_copy_ends_within_its_hard_limit_and_keeps_what_it_promised(
        limits in any_limits(),
        rounds in prop::collection::vec(any_round(), 41),
    ) {
        let mut policy = Policy::new(limits);
        let mut throttle = 0;
        let mut end = None;
        for (number, (stats, path)) in (1u32..).zip(&rounds) {
            match policy.decide(stats, path) {
                Next::Round => {}
                Next::Throttle { percent } => {
                    prop_assert!(percent > throttle && percent <= 99);
                    prop_assert!(!limits.classic && limits.on_stall == OnStall::Throttle);
                    throttle = percent;
                }
                next => {
                    end = Some((number, next, path.downtime(stats.left())));
                    break;
                }
            }
            prop_assert_eq!(policy.throttle(), throttle);
        }
        let (number, next, downtime) = end.expect("pre-copy ends");
        prop_assert!(number <= limits.max_rounds.max(1));
        match next {
            Next::StopAndCopy(_) if limits.classic || limits.on_stall == OnStall::Stop => {}
            Next::StopAndCopy(_) => prop_assert!(downtime <= limits.max_downtime),
            Next::GiveUp { needed, .. } => {
                prop_assert!(!limits.classic && needed > limits.max_downtime);
                prop_assert_eq!(needed, downtime);
            }
            other => prop_assert!(false, "{other:?} is no end"),
        }
    }

    #[test]
    fn what_is_said_to_fit_takes_no_longer_than_that(
        (_, path) in any_round(),
        room_us in 0u64..1_000_000,
    ) {
        let downtime = path.fixed().saturating_add(Duration::from_micros(room_us));
        let taken = path.downtime(path.fits(downtime));
        prop_assert!(taken <= downtime + Duration::from_nanos(10), "{taken:?} {downtime:?}");
    }
}
