//! What ends pre-copy, and what steers it.

use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use mig_engine::report::{Report, ReportOutcome};
use migpipe_tests::{
    Console, Guest, Host, assert_one_story, finish, needs_kvm, report, spec, wait,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Moves a guest with these options and returns what came of it.
fn migrate(host: &Host, guest: &Guest, options: &[&str], status: i32) -> (Report, Console) {
    let file = host.path("report.json");
    let console = guest.console_of("b");
    let destination = console.as_destination("b");
    let mut args = vec![guest.name.as_str(), &destination, "--report", file.to_str().unwrap()];
    args.extend(options);
    host.run("mig-send", &args).expect(status);
    (report(&file), console)
}

fn rule(report: &Report) -> &str {
    &report.ended_by.as_ref().expect("a rule ended pre-copy").rule
}

#[test]
fn few_pages_left_end_it() {
    needs_kvm!();
    let host = Host::new();
    // The counters and the stack of the guest are dirty all the time: some ten pages.
    let a = Guest::boot(&host, "a", &spec(8, "100", 64), &["--mem", "128M"]);
    let (report, b) = migrate(&host, &a, &["--classic"], 0);
    assert_eq!(rule(&report), "converged");
    assert!(report.rounds.last().unwrap().left().0 <= 50);
    b.wait_ticks(3);
    assert_one_story(&[&a.console, &b]);
}

#[test]
fn what_fits_the_promise_ends_it() {
    needs_kvm!();
    let host = Host::new();
    let a = Guest::boot(&host, "a", &spec(1024, "20000", 64), &["--mem", "128M"]);
    let (report, b) = migrate(&host, &a, &["--min-pages", "0"], 0);
    assert_eq!(rule(&report), "fits_downtime");
    b.wait_ticks(3);
    assert_one_story(&[&a.console, &b]);
}

#[test]
fn two_rounds_without_progress_end_it() {
    needs_kvm!();
    let host = Host::new();
    // It writes 10,000 of 30,000 hot pages a second, over a path of 5,632. It stands still until
    // round 0 is nearly over: then each round sends fewer pages than become dirty meanwhile,
    // until the whole hot set is dirty.
    let a = Guest::boot(&host, "a", &spec(30_000, "10000", 4), &["--mem", "256M"]);
    host.run("vmctl", &["pause", "a"]).expect(0);
    let file = host.path("report.json");
    let b = a.console_of("b");
    let sender = host
        .command("mig-send")
        .args(["-q", "--classic", "--max-bandwidth", "22M", "a", "--report"])
        .arg(&file)
        .arg(b.as_destination("b"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait("the end of round 0", || {
        let text = host.run("vmctl", &["info", "a", "--json"]).stdout;
        let value: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        let (sent, total) = (value["sent_bytes"].as_u64(), value["total_bytes"].as_u64());
        sent.zip(total).is_some_and(|(sent, total)| total > 0 && sent * 100 > total * 90)
    });
    host.run("vmctl", &["resume", "a"]).expect(0);
    finish(sender, Instant::now()).expect(0);
    let report = report(&file);
    assert_eq!(rule(&report), "no_progress", "{:#?}", report.rounds);
    b.wait_ticks(3);
    assert_one_story(&[&a.console, &b]);
}

#[test]
fn thirty_rounds_end_it() {
    needs_kvm!();
    let host = Host::new();
    let a = Guest::boot(&host, "a", &spec(1024, "max", 4), &["--mem", "64M"]);
    // It dirties its hot set again and again in each round of 250 ms, and no more than that: on a
    // busy machine, too, it has a turn in each.
    let options =
        ["--classic", "--min-pages", "0", "--stall-rounds", "1000", "--max-bandwidth", "16M"];
    let (report, b) = migrate(&host, &a, &options, 0);
    assert_eq!(rule(&report), "hard_limit");
    assert_eq!(report.rounds.len(), 30);
    b.wait_ticks(3);
    assert_one_story(&[&a.console, &b]);
}

/// A guest that dirties 4,096 pages as fast as it can, over a path of 24 MiB/s: some 640 ms of
/// downtime unless it is throttled.
fn hopeless(host: &Host) -> Guest {
    Guest::boot(host, "a", &spec(4096, "max", 16), &["--mem", "64M"])
}

#[test]
fn a_stall_may_throttle_the_guest_until_the_promise_holds() {
    needs_kvm!();
    let host = Host::new();
    // Its hot set is written through some 9 times a second: throttled, it becomes slow enough. What
    // fits the promise is half of it, over a path that a busy machine has, too.
    let a = Guest::boot(&host, "a", &spec(2048, "20000", 16), &["--mem", "64M"]);
    let options = ["--max-bandwidth", "20M", "--max-downtime", "200", "--no-wws"];
    let (report, b) = migrate(&host, &a, &options, 0);
    assert!(!report.throttle.is_empty(), "it was not throttled: {:#?}", report.rounds);
    assert_eq!(report.outcome, ReportOutcome::Completed);
    b.wait_ticks(3);
    assert_one_story(&[&a.console, &b]);
    assert!(
        host.run("vmctl", &["status", "b", "--json"]).stdout.contains("\"throttle_percent\":0")
    );
}

#[test]
fn a_stall_may_stop_the_guest_and_send_the_rest() {
    needs_kvm!();
    let host = Host::new();
    let a = hopeless(&host);
    let options = ["--on-stall", "stop", "--max-bandwidth", "24M", "--max-downtime", "20"];
    let (report, b) = migrate(&host, &a, &options, 0);
    assert_eq!(rule(&report), "no_progress");
    assert_eq!(
        report.promise.kept,
        Some(false)
            .filter(|_| report.downtime.total.unwrap() > Duration::from_millis(20))
            .or(report.promise.kept)
    );
    b.wait_ticks(3);
    assert_one_story(&[&a.console, &b]);
}

#[test]
fn a_stall_may_abort() {
    needs_kvm!();
    let host = Host::new();
    let mut a = hopeless(&host);
    let options = ["--on-stall", "abort", "--max-bandwidth", "24M", "--max-downtime", "20"];
    let (report, _) = migrate(&host, &a, &options, 1);
    assert_eq!(report.outcome, ReportOutcome::GaveUp);
    assert!(report.needed_downtime.unwrap() > Duration::from_millis(20));
    a.assert_runs();
    assert_eq!(host.state("b"), None);
    assert_one_story(&[&a.console]);
}

#[test]
fn the_promise_is_kept_or_the_guest_stays() {
    needs_kvm!();
    let host = Host::new();
    let mut a = hopeless(&host);
    let options =
        ["--max-rounds", "4", "--max-bandwidth", "24M", "--max-downtime", "20", "--no-wws"];
    let (report, _) = migrate(&host, &a, &options, 1);
    assert_eq!(report.outcome, ReportOutcome::GaveUp);
    a.assert_runs();
    let throttled = host.run("vmctl", &["status", "a", "--json"]).stdout;
    assert!(throttled.contains("\"throttle_percent\":0"), "still throttled: {throttled}");
}

#[test]
fn a_blackout_that_overruns_may_be_given_up() {
    needs_kvm!();
    let host = Host::new();
    let mut a = Guest::boot(&host, "a", &spec(1024, "max", 16), &["--mem", "64M"]);
    // No blackout takes less than this, and on-stall stop begins one all the same.
    let options = ["--enforce-downtime", "--on-stall", "stop", "--max-downtime", "0.2"];
    let (report, b) = migrate(&host, &a, &options, 1);
    assert_eq!(report.outcome, ReportOutcome::Failed);
    a.assert_runs();
    wait("the destination to go", || host.state("b").is_none());
    assert_eq!(b.text(), "", "the guest ran at the destination");
    assert_one_story(&[&a.console]);
}

#[test]
fn set_speed_holds_from_the_next_second_on() {
    needs_kvm!();
    let host = Host::new();
    let mut a = Guest::boot(&host, "a", &spec(64, "500", 400), &["--mem", "512M"]);
    let mut sender = host
        .command("mig-send")
        .args(["-q", "--progress", "json", "--max-bandwidth", "100M", "a"])
        .arg("exec:mig-recv --quiet --name b")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let sent = || -> u64 {
        let text = host.run("vmctl", &["info", "a", "--json"]).stdout;
        let value: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        value["sent_bytes"].as_u64().unwrap_or(0)
    };
    wait("the first bytes", || sent() > 0);
    host.run("vmctl", &["set-speed", "a", "2M"]).expect(0);
    let (before, at) = (sent(), Instant::now());
    thread::sleep(Duration::from_secs(4));
    let (more, time) = (sent() - before, at.elapsed());
    println!("set-speed 2M: {more} bytes more in {time:?}");
    // A second of what was allowed before, and the rest as it is now: a busy machine sends less, and
    // never more.
    let allowed = f64::from(100 << 20) + f64::from(2 << 20) * time.as_secs_f64();
    assert!((more as f64) < allowed, "{more} bytes in {time:?} under a limit of 2 MiB/s");
    host.run("vmctl", &["cancel", "a"]).expect(0);
    let status = migpipe_tests::wait_within(&mut sender, migpipe_tests::HANG_TIMEOUT);
    assert_eq!(status.code(), Some(3));
    a.assert_runs();
}

#[test]
fn a_cancelled_guest_never_stood_still() {
    needs_kvm!();
    for how in ["order", "SIGINT", "SIGTERM"] {
        let host = Host::new();
        let mut a = Guest::boot(&host, "a", &spec(64, "500", 200), &["--mem", "256M"]);
        let events = host
            .command("vmctl")
            .args(["events", "a", "--until", "ended"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let sender = host
            .command("mig-send")
            .args(["-q", "--max-bandwidth", "20M", "a", "exec:mig-recv --quiet --name b"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let before = a.console.last_tick().unwrap();
        wait("the migration", || host.state("a").as_deref() == Some("migrating"));
        thread::sleep(Duration::from_millis(300));
        match how {
            "order" => {
                host.run("vmctl", &["cancel", "a"]).expect(0);
            }
            signal => {
                let signal: Signal = signal.parse().unwrap();
                kill(Pid::from_raw(sender.id() as i32), signal).unwrap();
            }
        }
        let done = finish(sender, Instant::now()).expect(3);
        assert!(done.stderr.contains("cancelled"), "{how}: {}", done.stderr);
        a.assert_runs();
        wait("the destination to go", || host.state("b").is_none());
        let gaps = a.console.ticks();
        let longest = gaps.iter().filter(|tick| tick.number > before.number).map(|t| t.gap_us);
        println!("cancelled by {how}: longest gap inside the guest {} us", longest.max().unwrap());
        assert_one_story(&[&a.console]);
        assert_eq!(host.state("a").as_deref(), Some("running"));
        host.run("vmctl", &["quit", "a"]).expect(0);
        let events = finish(events, Instant::now()).stdout;
        assert!(events.contains("ownership migrating"), "{events}");
        assert!(!events.contains("paused"), "the guest was stopped: {events}");
    }
}

#[test]
fn a_status_line_is_printed_on_sigusr1() {
    needs_kvm!();
    let host = Host::new();
    let _a = Guest::boot(&host, "a", &spec(64, "500", 64), &["--mem", "128M"]);
    let sender = host
        .command("mig-send")
        .args(["-q", "--max-bandwidth", "12M", "a", "exec:mig-recv --quiet --name b"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait("the migration", || host.state("a").as_deref() == Some("migrating"));
    thread::sleep(Duration::from_millis(300));
    kill(Pid::from_raw(sender.id() as i32), Signal::SIGUSR1).unwrap();
    let done = finish(sender, Instant::now()).expect(0);
    assert!(done.stderr.contains("mig-send: pre-copy round"), "{}", done.stderr);
}
