//! A guest that is saved by a program, and one of which a snapshot is taken.

use std::fs;
use std::process::Stdio;

use mig_engine::report::{Location, ReportOutcome};
use migpipe_tests::{Done, Guest, Host, assert_one_story, needs_kvm, report, spec, wait};

fn small(host: &Host) -> Guest {
    Guest::boot(host, "a", &spec(64, "500", 8), &["--mem", "64M"])
}

/// A script in the directory of the host.
fn sh(host: &Host, script: &str) -> Done {
    host.sh(&format!("cd {} && {script}", host.path("").display()))
}

/// The last line that a program said.
fn said(done: &Done) -> &str {
    done.stderr.lines().last().unwrap_or_default()
}

#[test]
fn a_guest_that_a_program_has_saved_ends_and_is_restored_once() {
    needs_kvm!();
    let host = Host::new();
    let mut a = small(&host);
    sh(&host, "mig-send -q --save --report r.json a exec:'gzip -1 >a.gz'").expect(0);
    assert_eq!(a.ended(), Some(0));
    assert_eq!(report(&host.path("r.json")).outcome, ReportOutcome::Completed);
    let b = a.console_of("b");
    let console = b.path().display();
    let restore = format!("mig-recv -q --name b --console file:{console} exec:'gunzip -c a.gz'");
    // What breaks off has used nothing up.
    sh(&host, "mig-recv -q exec:'gunzip -c a.gz | head -c 3000000'").expect(1);
    sh(&host, &restore).expect(0);
    b.wait_ticks(3);
    assert_one_story(&[&a.console, &b]);
    host.run("vmctl", &["quit", "b"]).expect(0);
    sh(&host, &restore).expect(1);
}

#[test]
fn a_program_that_does_not_say_that_it_has_all_leaves_the_guest_to_its_operator() {
    needs_kvm!();
    let host = Host::new();
    let mut a = small(&host);
    for early in ["exec:exit 3", "exec:head -c 1000000 >/dev/null", "exec:exec cat >/dev/full"] {
        let done = host.run("mig-send", &["-q", "--save", "a", early]).expect(1);
        assert!(said(&done).ends_with("; a runs on here"), "{done:#?}");
        a.assert_runs();
    }
    let late = sh(&host, "mig-send -q --save a exec:'cat >a.mig; exit 3'").expect(4);
    assert!(said(&late).contains("status 3") && said(&late).contains("mig-inspect"), "{late:#?}");
    a.assert_stands_still();
    // It was a lie.
    sh(&host, "mig-inspect a.mig").expect(0);
    host.run("mig-send", &["--resolve", "--force", "a"]).expect(1);
    a.assert_runs();
    for (args, words) in [
        (&["--save", "a", "tcp:127.0.0.1:1"][..], "no place to save a guest"),
        (&["--save", "a", "ssh:hostb"], "no place to save a guest"),
        (&["--save", "a"], "does not say when it has taken all"),
        (&["--snapshot", "a"], "does not say when it has taken all"),
    ] {
        host.run("mig-send", args).refused_as(2, &[words]);
    }
    for conflict in [&["--commit", "exec:true"][..], &["--return", "stdin"], &["--resolve"]] {
        let args = [&["--save"], conflict, &["a", "exec:true"]].concat();
        host.run("mig-send", &args).expect(2);
    }
    // Pages of a guest that runs on would change on their way.
    host.run("mig-send", &["--snapshot", "--zero-copy", "a", "exec:true"]).expect(2);
    a.assert_runs();
}

#[test]
fn a_guest_of_which_a_snapshot_is_taken_runs_on_and_only_a_copy_is_run() {
    needs_kvm!();
    let host = Host::new();
    let mut a = small(&host);
    for (number, place) in ["file:a.mig", "- >a.mig", "exec:'gzip >a.gz && gunzip <a.gz >a.mig'"]
        .into_iter()
        .enumerate()
    {
        let _ = fs::remove_file(host.path("a.mig"));
        let taken = a.console.last_tick().unwrap().number;
        let snapshot = "mig-send -q --snapshot --status-fd 7 --report r.json";
        sh(&host, &format!("{snapshot} a {place} 7>words")).expect(0);
        a.assert_runs();
        let report = report(&host.path("r.json"));
        assert_eq!(report.location, Some(Location::Source), "{place}");
        assert_eq!(report.outcome, ReportOutcome::Completed, "{place}");
        assert!(report.downtime.total.is_some(), "{place}");
        let words = fs::read_to_string(host.path("words")).unwrap();
        assert_eq!(words, format!("completed {}\n", report.migration), "{place}");
        assert_eq!(host.state("a").as_deref(), Some("running"));
        // It is not the guest.
        for options in ["", "--name c"] {
            let done = sh(&host, &format!("mig-recv -q {options} file:a.mig")).expect(1);
            assert!(said(&done).contains("snapshot of a") && said(&done).contains("--clone"));
        }
        assert_eq!(host.sockets().len(), 1, "nothing was started for it");
        let inspected = sh(&host, "mig-inspect a.mig").expect(0);
        assert!(inspected.stdout.contains("a snapshot"), "{}", inspected.stdout);
        let name = format!("b{number}");
        let copy = a.console_of(&name);
        let console = copy.path().display();
        sh(
            &host,
            &format!("mig-recv -q --clone --name {name} --console file:{console} file:a.mig"),
        )
        .expect(0);
        copy.wait_ticks(3);
        // Both count, from the moment of the snapshot on.
        let first = copy.ticks()[0].number;
        assert!(first > taken && first <= a.console.last_tick().unwrap().number);
        a.assert_runs();
        host.run("vmctl", &["quit", &name]).expect(0);
    }
    let left = host.run("vmctl", &["records"]).expect(0).stdout;
    assert!(!left.contains("a left"), "{left}");
    // It can still go.
    let z = a.console_of("z");
    host.run("mig-send", &["-q", "a", &z.as_destination("z")]).expect(0);
    assert_eq!(a.ended(), Some(0));
    z.wait_ticks(3);
    assert_one_story(&[&a.console, &z]);
}

#[test]
fn a_paused_guest_stays_paused_and_its_copy_is_paused_too() {
    needs_kvm!();
    let host = Host::new();
    let mut a = small(&host);
    host.run("vmctl", &["pause", "a"]).expect(0);
    let done = sh(&host, "mig-send --snapshot a file:a.mig").expect(0);
    assert!(done.stderr.starts_with("a: a snapshot was taken"), "{done:#?}");
    assert_eq!(host.state("a").as_deref(), Some("paused"));
    a.assert_stands_still();
    let b = a.console_of("b");
    let console = b.path().display();
    sh(&host, &format!("mig-recv -q --clone --name b --console file:{console} file:a.mig"))
        .expect(0);
    assert_eq!(host.state("b").as_deref(), Some("paused"));
    host.run("vmctl", &["resume", "b"]).expect(0);
    b.wait_ticks(3);
    // The copy goes on where the guest stands.
    assert_one_story(&[&a.console, &b]);
    host.run("vmctl", &["resume", "a"]).expect(0);
    a.assert_runs();
}

#[test]
fn a_snapshot_that_fails_or_is_cancelled_leaves_the_guest_and_no_file() {
    needs_kvm!();
    let host = Host::new();
    let mut a = small(&host);
    for (place, status) in [
        ("file:/nonexistent/a.mig", 1),
        ("exec:'exit 3'", 1),
        // All of it was taken, and not saved.
        ("exec:'cat >/dev/null; exit 3'", 1),
        ("exec:'exec cat >/dev/full'", 1),
    ] {
        let done = sh(&host, &format!("mig-send -q --snapshot a {place}")).expect(status);
        assert!(said(&done).ends_with("; a runs on here"), "{done:#?}");
        a.assert_runs();
    }
    let done = sh(&host, "ulimit -f 1000; mig-send -q --snapshot a file:a.mig").expect(1);
    assert!(said(&done).ends_with("; a runs on here"), "{done:#?}");
    let mut taking = host
        .command("mig-send")
        .args(["-q", "--snapshot", "--max-bandwidth", "4M", "a", "file:a.mig"])
        .current_dir(host.path(""))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait("the pages to flow", || host.state("a").as_deref() == Some("migrating"));
    host.run("vmctl", &["cancel", "a"]).expect(0);
    assert_eq!(taking.wait().unwrap().code(), Some(3));
    assert!(!host.path("a.mig").exists());
    a.assert_runs();
    assert_one_story(&[&a.console]);
}
