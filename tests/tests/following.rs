//! How a script follows a migration at its destination, and by single words on both sides.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use mig_engine::report::{ArrivalReport, Location, Report, ReportOutcome};
use migpipe_tests::{Guest, Host, assert_one_story, needs_kvm, report, spec, wait};
use serde_json::Value;

fn small(host: &Host) -> Guest {
    Guest::boot(host, "a", &spec(64, "500", 8), &["--mem", "64M"])
}

fn arrival(path: &Path) -> ArrivalReport {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn both_sides_report_the_same_migration_and_how_it_ended() {
    needs_kvm!();
    let host = Host::new();
    let a = small(&host);
    let b = a.console_of("b");
    let destination =
        format!("{} --report there --progress-fd 7 7>progress", b.as_destination("b"));
    let script =
        format!("cd {} && mig-send -q --report here a '{destination}'", host.path("").display());
    host.sh(&script).expect(0);
    let (here, there) = (report(&host.path("here")), arrival(&host.path("there")));
    assert_eq!(there.migration, Some(here.migration));
    assert_eq!((there.guest.as_deref(), there.outcome), (Some("b"), ReportOutcome::Completed));
    assert_eq!(there.location, Some(Location::Destination));
    assert_eq!((there.totals.pages, there.totals.fills), (here.totals.pages, here.totals.fills));
    let rounds = |it: &Report| it.rounds.iter().map(|it| (it.number, it.sent)).collect::<Vec<_>>();
    let came: Vec<_> = there.rounds.iter().map(|it| (it.number, it.pages)).collect();
    assert_eq!(came, rounds(&here));
    let down = there.downtime;
    let parts = [down.total, down.receive, down.state_load, down.go, down.first_instruction];
    assert!(parts.iter().all(Option::is_some), "{there:#?}");
    let progress = lines(&host.path("progress"));
    let (last, before) = progress.split_last().unwrap();
    assert_eq!((&last["side"], &last["outcome"]), (&"destination".into(), &"completed".into()));
    assert_eq!((&last["phase"], &last["guest"]), (&"done".into(), &"b".into()));
    assert!(last["sent_bytes"].as_u64() >= Some(8 << 20), "{last}");
    assert!(before.iter().all(|line| line["outcome"].is_null()));
    b.wait_ticks(3);
    assert_one_story(&[&a.console, &b]);
}

#[test]
fn a_guest_that_did_not_come_is_reported_too() {
    needs_kvm!();
    let host = Host::new();
    let (file, dir) = (host.path("r.json"), host.path("").display().to_string());
    let run = |source: &str, status| {
        fs::write(&file, "of an earlier one, and longer than that of this one".repeat(100))
            .unwrap();
        let script =
            format!("cd {dir} && mig-recv -q --report r.json --progress-fd 7 {source} 7>progress");
        let done = host.sh(&script).expect(status);
        let last = lines(&host.path("progress")).pop().unwrap();
        assert_eq!(last["phase"], "done");
        (done, arrival(&file), last)
    };
    // The header never comes.
    let (done, report, last) = run("exec:true", 1);
    assert_eq!((report.outcome, report.location), (ReportOutcome::Failed, None));
    assert!(done.stderr.contains(report.reason.as_ref().unwrap()), "{done:#?}");
    assert_eq!((&last["guest"], &last["outcome"]), (&Value::Null, &"failed".into()));
    // It breaks off.
    let mut a = small(&host);
    let saved = host.path("a.mig");
    host.run("mig-send", &["-q", "a", &format!("file:{}", saved.display())]).expect(0);
    assert_eq!(a.ended(), Some(0));
    let (_, report, last) = run("exec:'head -c 3000000 a.mig'", 1);
    assert_eq!((report.outcome, report.guest.as_deref()), (ReportOutcome::Failed, Some("a")));
    assert_eq!(last["migration"], report.migration.unwrap().to_string());
    // It comes, and no GO with it.
    let (_, report, last) = run("--name c file:a.mig", 0);
    assert_eq!((report.outcome, report.guest.as_deref()), (ReportOutcome::Completed, Some("c")));
    assert_eq!((report.downtime.total, &last["guest_is_at"]), (None, &"destination".into()));
    let send = "mig-send -q --resolve-for 0 c \"exec:lossy-tunnel go=cut 'mig-recv -q --name d \
                --report r.json'\"";
    host.sh(&format!("cd {dir} && {send}")).expect(4);
    let reason = || {
        let report: ArrivalReport = serde_json::from_slice(&fs::read(&file).unwrap()).ok()?;
        report.reason.filter(|_| report.outcome == ReportOutcome::Unknown && report.guest.is_some())
    };
    wait("the other side", || reason().is_some_and(|it| it.contains("waits for its source")));
    // What comes is a query.
    let ask = "mig-send --resolve c 'exec:mig-recv --report r.json'";
    host.sh(&format!("cd {dir} && {ask}")).expect(0);
    // It answers before it ends.
    let reason = || {
        let report: ArrivalReport = serde_json::from_slice(&fs::read(&file).unwrap()).ok()?;
        report.reason
    };
    wait("its report", || reason().is_some_and(|it| it.starts_with("no guest came")));
    assert_eq!(host.state("d").as_deref(), Some("running"));
    // Nobody can write it.
    host.run("mig-recv", &["--report", "/nonexistent/r.json", "file:a.mig"])
        .refused_with(&["cannot write the report"]);
}

/// What the lines of a file say, without the id.
fn words(path: &Path, id: &str) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap();
    let word = |line: &str| {
        let (word, of) = line.split_once(' ').unwrap();
        assert_eq!(of, id, "{text}");
        word.to_owned()
    };
    text.lines().map(word).collect()
}

#[test]
fn each_step_of_a_migration_is_a_word_on_both_sides() {
    needs_kvm!();
    for (options, recv, here, there) in [
        (
            "",
            "exec:'RECV'",
            &["ready", "committed", "running", "completed"][..],
            &["ready", "committed", "running", "completed"][..],
        ),
        (
            "--commit exec:mig-recv",
            "exec:'cat | RECV | cat'",
            &["ready", "committed", "running", "completed"],
            &["ready", "committed", "running", "completed"],
        ),
        (
            "",
            "| RECV",
            &["committed", "completed"],
            &["ready", "committed", "running", "completed"],
        ),
        // GO is lost, and the destination asked.
        (
            "",
            "exec:'lossy-tunnel go=cut \"RECV\"'",
            &["ready", "committed", "running", "completed"],
            &[],
        ),
        ("", "exec:'RECV --max-mem 1M'", &["failed"], &["failed"]),
        ("--timeout 1 --ready-timeout 1", "exec:'sleep 30'", &["failed"], &[]),
    ] {
        let host = Host::new();
        let a = small(&host);
        let recv =
            recv.replace("RECV", "mig-recv -q --name b --console null --status-fd 8 8>>there");
        let script = format!(
            "cd {} && mig-send -q --status-fd 9 9>here --report r.json {options} a {recv}",
            host.path("").display()
        );
        let done = host.sh(&script);
        assert!(done.status.is_some(), "{done:#?}");
        let id = report(&host.path("r.json")).migration.to_string();
        let mut here: Vec<_> = here.to_vec();
        if options.contains("--commit") {
            // Nobody waits for READY.
            here.remove(0);
        }
        assert_eq!(words(&host.path("here"), &id), here, "{script}: {done:#?}");
        if !there.is_empty() {
            wait("the other side", || words(&host.path("there"), &id).len() >= there.len());
            assert_eq!(words(&host.path("there"), &id), there, "{script}");
        }
        drop(a);
    }
}

#[test]
fn the_words_come_as_it_happens_and_a_resolved_guest_has_its_own() {
    needs_kvm!();
    let host = Host::new();
    let mut a = small(&host);
    let mut sending = host
        .shell("exec mig-send -q --status-fd 9 --max-bandwidth 4M a 'exec:mig-recv -q --name b' 9>here")
        .current_dir(host.path(""))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let text = || fs::read_to_string(host.path("here")).unwrap_or_default();
    wait("ready", || text().starts_with("ready "));
    assert_eq!(text().lines().count(), 1);
    host.run("vmctl", &["cancel", "a"]).expect(0);
    assert_eq!(sending.wait().unwrap().code(), Some(3));
    assert!(text().lines().nth(1).unwrap().starts_with("cancelled "), "{}", text());
    a.assert_runs();
    host.run("mig-send", &["-q", "--one-way", "a", "exec:cat >/dev/null; exit 1"]).expect(4);
    let dir = host.path("").display().to_string();
    let resolve = format!("cd {dir} && mig-send --status-fd 9 --resolve a exec:mig-recv 9>here");
    host.sh(&resolve).expect(1);
    assert!(text().starts_with("failed "), "{}", text());
    a.assert_runs();
}

#[test]
fn who_does_not_read_holds_nothing_up_and_the_guest_holds_nothing_open() {
    needs_kvm!();
    let host = Host::new();
    let mut name = "a".to_owned();
    let a = small(&host);
    let mut move_with = |redirect: &str| {
        let next = format!("{name}x");
        let script = format!(
            "cd {}; [ -p full ] || mkfifo full; exec 6<>full; timeout 1 head -c 65536 /dev/zero >&6; \
             mig-send -q --status-fd 8 --progress-fd 9 {name} \
             'exec:mig-recv -q --name {next} --console null --status-fd 8 --progress-fd 9 {redirect}' \
             {redirect}",
            host.path("").display()
        );
        host.sh(&script).expect(0);
        name = next;
    };
    // A pipe that nobody reads, and a disk that is full.
    move_with("8>full 9>full");
    move_with("8>/dev/full 9>/dev/full");
    // The reader sees the end of it though the guest lives on.
    let script = format!(
        "mig-send -q {name} 'exec:mig-recv -q --name z --console null --status-fd 8 --progress-fd 9 \
         8>&2 9>&2 2>/dev/null' 2>&1 | cat"
    );
    let done = host.sh(&script).expect(0);
    assert!(done.stdout.contains("running "), "{done:#?}");
    assert_eq!(host.state("z").as_deref(), Some("running"));
    drop(a);
}

#[test]
fn a_descriptor_that_carries_the_stream_or_was_not_passed_is_wrong_usage() {
    let host = Host::new();
    for (program, args, words) in [
        ("mig-send", &["--status-fd", "1", "a"][..], "it carries the stream"),
        ("mig-send", &["--status-fd", "77", "a", "exec:true"], "was not passed"),
        ("mig-recv", &["--status-fd", "0"], "it carries the stream"),
        ("mig-recv", &["--progress-fd", "1"], "it carries the stream"),
        ("mig-recv", &["--progress-fd", "77", "exec:true"], "was not passed"),
    ] {
        host.run(program, args).refused_as(2, &[words]);
    }
}
