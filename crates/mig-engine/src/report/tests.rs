use std::time::Duration;

use migpipe_units::{BytesPerSec, MigrationId};

use super::*;

const MS: Duration = Duration::from_millis(1);

fn round(number: u32, sent: u64, fills: u64, deferred: u64, dirtied: u64, ms: u64) -> RoundStats {
    let bytes = Pages(sent).bytes();
    let duration = Duration::from_millis(ms);
    RoundStats {
        number,
        sent: Pages(sent),
        fills: Pages(fills),
        bytes,
        deferred: Pages(deferred),
        dirtied: Pages(dirtied),
        duration,
        rate: bytes.per(duration),
    }
}

fn migrated() -> Report {
    let total = Some(Duration::from_micros(23_400));
    Report {
        version: Report::VERSION,
        guest: "web".to_owned(),
        migration: MigrationId::from_bytes(*b"\x01\x92\x3fthe migration"),
        mode: Mode::BothWays,
        format_version: 1,
        outcome: ReportOutcome::Completed,
        reason: None,
        location: Some(Location::Destination),
        needed_downtime: None,
        rounds: vec![
            round(0, 98_304, 34_864, 0, 6_901, 312),
            round(1, 6_901, 0, 0, 2_345, 24),
            round(2, 2_001, 0, 344, 31, 8),
        ],
        blackout: Some(round(3, 375, 0, 0, 0, 2)),
        histogram: vec![Pages(126_267), Pages(4_556), Pages(2_345)],
        ended_by: Some(Rule::Converged { left: Pages(31), min_pages: Pages(50) }.into()),
        throttle: vec![ThrottleStep { round: 1, percent: 20 }],
        downtime: Downtime {
            total,
            last_harvest: Some(Duration::from_micros(520)),
            last_pages: Some(Duration::from_micros(1_700)),
            state_save: Some(Duration::from_micros(3_100)),
            transfer: Some(Duration::from_micros(9_080)),
            state_load: Some(Duration::from_micros(6_000)),
            disk_flush: Some(Duration::from_micros(300)),
            go: Some(Duration::from_micros(2_500)),
            first_instruction: Some(Duration::from_micros(200)),
        },
        promise: Promise::new(Some(100 * MS), total),
        totals: Totals {
            bytes: Bytes(441_000_000),
            pages: Pages(107_581),
            fills: Pages(34_864),
            duration: 380 * MS,
            cpu: 290 * MS,
        },
    }
}

fn given_up_one_way() -> Report {
    Report {
        guest: "a guest\nwith a name that does not end".to_owned(),
        mode: Mode::OneWay,
        outcome: ReportOutcome::GaveUp,
        reason: Some("the promised downtime of 100 ms cannot be kept".to_owned()),
        location: Some(Location::Source),
        needed_downtime: Some(412 * MS),
        rounds: vec![
            round(0, 98_304, 0, 0, 40_000, 1_500),
            round(29, 30_000, 12, 1_000, 9_000, 480),
        ],
        blackout: None,
        histogram: (0..20).map(|times| Pages(60_000 >> times)).collect(),
        ended_by: Some(Rule::HardLimit { rounds: 30, left: Pages(10_000) }.into()),
        throttle: (1..10)
            .map(|step| ThrottleStep { round: step, percent: (10 + step as u8 * 10).min(99) })
            .collect(),
        downtime: Downtime { last_harvest: Some(MS), ..Downtime::default() },
        promise: Promise::new(Some(100 * MS), None),
        ..migrated()
    }
}

#[test]
fn a_migration_is_shown_on_one_screen() {
    assert_eq!(migrated().table(), include_str!("golden/migrated.txt"));
}

#[test]
fn a_migration_that_was_given_up_says_what_was_missing() {
    assert_eq!(given_up_one_way().table(), include_str!("golden/given_up.txt"));
}

#[test]
fn the_json_of_a_report_is_stable() {
    let golden = include_str!("golden/migrated.json");
    assert_eq!(serde_json::to_string_pretty(&migrated()).unwrap() + "\n", golden);
    assert_eq!(
        serde_json::from_str::<Report>(golden).unwrap(),
        migrated(),
        "what was written is read back"
    );
}

#[test]
fn an_unknown_time_is_null_and_read_back_as_unknown() {
    let json = serde_json::to_value(given_up_one_way()).unwrap();
    assert_eq!(json["downtime"]["total_ns"], serde_json::Value::Null);
    assert_eq!(json["promise"]["kept"], serde_json::Value::Null);
    assert_eq!(json["needed_downtime_ns"], 412_000_000);
    let back: Report = serde_json::from_value(json).unwrap();
    assert_eq!(back, given_up_one_way());
}

#[test]
fn no_line_is_wider_than_the_terminal_even_for_the_largest_of_guests() {
    let mut huge = given_up_one_way();
    huge.rounds = vec![round(4_294_967_295, 1 << 32, 1 << 32, 1 << 32, 1 << 32, 86_400_000); 2];
    huge.histogram = vec![Pages(u64::MAX); 255];
    huge.totals.bytes = Bytes(u64::MAX);
    huge.reason = Some("no ".repeat(200));
    for report in [migrated(), given_up_one_way(), huge] {
        for line in report.table().lines() {
            assert!(line.chars().count() <= table::WIDTH, "{line}");
            assert!(!line.ends_with(' ') && !line.chars().any(char::is_control));
        }
    }
}

#[test]
fn a_promise_is_judged_only_by_a_downtime_that_is_known() {
    assert_eq!(Promise::new(Some(MS), Some(MS)).kept, Some(true));
    assert_eq!(Promise::new(Some(MS), Some(2 * MS)).kept, Some(false));
    assert_eq!(Promise::new(Some(MS), None).kept, None);
    assert_eq!(Promise::new(None, Some(MS)).kept, None);
    let mut broken = migrated();
    broken.promise.kept = Some(false);
    assert!(broken.table().contains("(at most 100 ms: NOT KEPT)"));
}

fn progress() -> Progress {
    Progress {
        phase: Phase::PreCopy,
        round: 3,
        sent: Bytes(412 << 20),
        total: Bytes(1 << 30),
        dirty: Pages(2_345),
        rate: BytesPerSec(1 << 30),
        eta: Some(598 * MS),
        throttle: 0,
    }
}

#[test]
fn progress_is_one_line() {
    assert_eq!(
        progress().line(),
        "pre-copy round 3  412 MiB of 1.0 GiB  40%  1.0 GiB/s  2,345 dirty  eta 598 ms"
    );
    let throttled = Progress { throttle: 30, eta: None, ..progress() };
    assert_eq!(
        throttled.line(),
        "pre-copy round 3  412 MiB of 1.0 GiB  40%  1.0 GiB/s  throttle 30%  2,345 dirty"
    );
    let connecting =
        Progress { phase: Phase::Connect, sent: Bytes(0), total: Bytes(0), ..progress() };
    assert_eq!(connecting.line(), "connect  0 B of 0 B");
}

#[test]
fn a_progress_line_never_wraps() {
    let largest = Progress {
        round: u32::MAX,
        sent: Bytes(u64::MAX),
        total: Bytes(1),
        dirty: Pages(u64::MAX),
        rate: BytesPerSec(u64::MAX),
        eta: Some(Duration::MAX),
        throttle: 99,
        ..progress()
    };
    assert!(largest.line().len() <= 79, "{}", largest.line());
    assert!(largest.line().contains("throttle 99%"));
    for width in 0..120 {
        for progress in [largest, progress()] {
            let line = progress.line_within(width);
            assert!(line.is_ascii() && line.len() <= width, "{width}: {line}");
        }
    }
    assert_eq!(progress().line_within(49), "pre-copy round 3  412 MiB of 1.0 GiB  40%");
}

#[test]
fn the_json_of_progress_is_stable() {
    let json = serde_json::to_string(&progress()).unwrap();
    assert_eq!(
        json,
        "{\"phase\":\"pre_copy\",\"round\":3,\"sent_bytes\":432013312,\"total_bytes\":1073741824,\
         \"dirty_pages\":2345,\"rate_bytes_per_sec\":1073741824,\"eta_ns\":598000000,\
         \"throttle_percent\":0}"
    );
    assert_eq!(serde_json::from_str::<Progress>(&json).unwrap(), progress());
}

#[test]
fn the_words_are_those_of_the_json() {
    use ReportOutcome::*;
    for outcome in [Completed, Failed, GaveUp, Cancelled, Unknown] {
        assert_eq!(serde_json::to_value(outcome).unwrap(), outcome.word());
    }
    for location in [Location::Source, Location::Destination] {
        assert_eq!(serde_json::to_value(location).unwrap(), location.word());
    }
}
