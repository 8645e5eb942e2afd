//! The tools die at any instant, and nothing is lost.

use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use migpipe_tests::{
    Console, Guest, HANG_TIMEOUT, Host, assert_one_story, finish, needs_kvm, spec, wait,
    wait_within,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A guest, and a slow migration of it that has begun.
fn under_way(host: &Host) -> (Guest, Child) {
    let guest = Guest::boot(host, "a", &spec(64, "500", 128), &["--mem", "256M"]);
    let sender = host
        .command("mig-send")
        .args(["-q", "--max-bandwidth", "40M", "a", "exec:mig-recv --quiet --name b"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait("the migration", || host.state("a").as_deref() == Some("migrating"));
    thread::sleep(Duration::from_millis(200));
    (guest, sender)
}

/// Nothing but the source's own vmrun is left of this host.
fn assert_nothing_left(host: &Host, guest: &Guest) {
    wait("the rest to go", || host.processes().iter().all(|(pid, _)| *pid == guest.pid()));
    assert_eq!(host.sockets().len(), 1, "sockets: {:?}", host.sockets());
    let fds = std::fs::read_dir(format!("/proc/{}/fd", guest.pid())).unwrap();
    let memfds = fds
        .filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok())
        .filter(|target| target.to_string_lossy().contains("dirty-bitmap"))
        .count();
    assert_eq!(memfds, 0, "the bitmap of a dead client is still held");
}

fn kill_9(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
}

fn process_of(host: &Host, name: &str) -> i32 {
    let mut found = None;
    wait(name, || {
        found = host.processes().iter().find(|(_, comm)| comm == name).map(|(pid, _)| *pid);
        found.is_some()
    });
    found.unwrap()
}

#[test]
fn a_sender_killed_before_the_commit_leaves_the_source_running() {
    needs_kvm!();
    let host = Host::new();
    let (mut a, mut sender) = under_way(&host);
    sender.kill().unwrap();
    sender.wait().unwrap();
    a.assert_runs();
    assert_nothing_left(&host, &a);
    assert_eq!(host.state("a").as_deref(), Some("running"));
    assert_one_story(&[&a.console]);
}

#[test]
fn a_receiver_killed_before_the_commit_leaves_the_source_running() {
    needs_kvm!();
    let host = Host::new();
    let (mut a, sender) = under_way(&host);
    kill_9(process_of(&host, "mig-recv"));
    let done = finish(sender, Instant::now()).expect(1);
    assert!(done.stderr.contains("runs on here"), "{}", done.stderr);
    a.assert_runs();
    assert_nothing_left(&host, &a);
    assert_one_story(&[&a.console]);
}

#[test]
fn a_destination_vmrun_killed_before_the_commit_leaves_the_source_running() {
    needs_kvm!();
    let host = Host::new();
    let (mut a, sender) = under_way(&host);
    kill_9(host.pid("b").expect("b is receiving"));
    let done = finish(sender, Instant::now()).expect(1);
    assert!(done.stderr.contains("runs on here"), "{}", done.stderr);
    a.assert_runs();
    wait("mig-recv to go", || host.processes().iter().all(|(pid, _)| *pid == a.pid()));
    assert_one_story(&[&a.console]);
}

/// What a destination waits for its GO at most, in the tests where it is to give up by itself.
const GO_TIMEOUT: &str = "2";

/// Migrates through a tunnel that is cut at `message`, without asking for the outcome afterwards.
/// Returns the console at the destination.
fn cut_at(host: &Host, a: &Guest, message: &str, status: i32) -> Console {
    let b = a.console_of("b");
    let recv = format!(
        "mig-recv --quiet --go-timeout {GO_TIMEOUT} --name b --console file:{}",
        b.path().display()
    );
    let destination = format!("exec:lossy-tunnel {message}=cut '{recv}'");
    let done =
        host.run("mig-send", &["-q", "--resolve-for", "0", "a", &destination]).expect(status);
    if status == 4 {
        assert!(done.stderr.contains("mig-send --resolve"), "{}", done.stderr);
        assert_eq!(host.state("a").as_deref(), Some("handed-over"));
    }
    b
}

fn small(host: &Host) -> Guest {
    Guest::boot(host, "a", &spec(64, "500", 32), &["--mem", "64M"])
}

#[test]
fn a_lost_ready_or_ack_leaves_the_source_running() {
    needs_kvm!();
    for message in ["ready", "ack"] {
        let host = Host::new();
        let mut a = small(&host);
        let b = cut_at(&host, &a, message, 1);
        a.assert_runs();
        assert_nothing_left(&host, &a);
        assert_eq!(b.text(), "", "the guest ran at the destination");
        assert_one_story(&[&a.console]);
    }
}

#[test]
fn a_lost_go_is_resolved_by_running_the_destination() {
    needs_kvm!();
    let host = Host::new();
    let mut a = small(&host);
    let b = cut_at(&host, &a, "go", 4);
    assert_eq!(host.state("b").as_deref(), Some("prepared"));
    b.assert_silent(Duration::from_millis(100));
    a.assert_stands_still();
    host.run("mig-send", &["--resolve", "a", "exec:mig-recv"]).expect(0);
    assert_eq!(a.ended(), Some(0));
    b.wait_ticks(3);
    assert_one_story(&[&a.console, &b]);
}

#[test]
fn a_lost_go_is_resolved_by_taking_the_guest_back_once_the_destination_refused() {
    needs_kvm!();
    let host = Host::new();
    let mut a = small(&host);
    let b = cut_at(&host, &a, "go", 4);
    wait("the destination to refuse", || host.state("b").is_none());
    a.assert_stands_still();
    let done = host.run("mig-send", &["--resolve", "a", "exec:mig-recv"]).expect(1);
    assert!(done.stderr.contains("it runs here"), "{}", done.stderr);
    a.assert_runs();
    assert_nothing_left(&host, &a);
    assert_eq!(b.text(), "", "the guest ran at the destination");
    assert_one_story(&[&a.console]);
    // The guest is as good as new: it can be sent again.
    host.run("mig-send", &["-q", "a", "exec:mig-recv --quiet --name b --console null"]).expect(0);
}

#[test]
fn a_guest_that_ends_while_it_is_sent_ends_everywhere() {
    needs_kvm!();
    let host = Host::new();
    let (mut a, sender) = under_way(&host);
    host.run("vmctl", &["quit", "a"]).expect(0);
    assert_eq!(a.ended(), Some(0));
    let done = finish(sender, Instant::now()).expect(1);
    assert!(done.stderr.contains("a ended while it was being sent"), "{}", done.stderr);
    wait("the rest to go", || host.processes().is_empty());
    assert_eq!(host.sockets(), [] as [std::path::PathBuf; 0]);
}

#[test]
fn a_second_sender_is_turned_away_and_disturbs_nothing() {
    needs_kvm!();
    let host = Host::new();
    let (a, sender) = under_way(&host);
    host.run("mig-send", &["-q", "a", "exec:mig-recv --quiet --name c 2>/dev/null"])
        .refused_with(&["a migration of this guest is under way"]);
    finish(sender, Instant::now()).expect(0);
    assert_eq!(host.state("b").as_deref(), Some("running"));
    wait("c to go", || host.state("c").is_none());
    drop(a);
}

#[test]
fn a_lost_running_is_resolved_by_asking() {
    needs_kvm!();
    let host = Host::new();
    let mut a = small(&host);
    let b = cut_at(&host, &a, "running", 4);
    b.wait_ticks(3);
    a.assert_stands_still();
    host.run("vmctl", &["resolve", "a", "exec:mig-recv"]).expect(0);
    assert_eq!(a.ended(), Some(0));
    assert_one_story(&[&a.console, &b]);
}

#[test]
fn a_lost_go_is_resolved_by_the_sender_itself_when_the_network_comes_back() {
    needs_kvm!();
    let host = Host::new();
    let mut a = small(&host);
    let b = a.console_of("b");
    let flag = host.path("cut-once").display().to_string();
    let recv = format!("mig-recv --quiet --name b --console file:{}", b.path().display());
    // The first tunnel is cut, the next ones are whole.
    let destination = format!(
        "exec:if test -e {flag}; then exec mig-recv; else touch {flag}; \
         exec lossy-tunnel go=cut '{recv}'; fi"
    );
    host.run("mig-send", &["-q", "a", &destination]).expect(0);
    assert_eq!(a.ended(), Some(0));
    b.wait_ticks(3);
    assert_one_story(&[&a.console, &b]);
}

#[test]
fn a_source_stays_handed_over_while_the_destination_may_have_run() {
    needs_kvm!();
    let host = Host::new();
    let mut a = small(&host);
    let b = cut_at(&host, &a, "running", 4);
    b.wait_ticks(3);
    // The destination crashes before its record says "ran"... which it may have written by now:
    // then the answer is "it ran", and the source ends.
    let pid = host.pid("b").unwrap();
    let record = host.records().remove(0);
    wait("the record", || std::fs::read_to_string(&record).unwrap().contains("Ran"));
    let text = std::fs::read_to_string(&record).unwrap().replace("\"Ran\"", "\"MayRun\"");
    std::fs::write(&record, text).unwrap();
    kill_9(pid);
    let done =
        host.run("mig-send", &["--resolve", "--resolve-for", "1", "a", "exec:mig-recv"]).expect(4);
    assert!(done.stderr.contains("may have run"), "{}", done.stderr);
    a.assert_stands_still();
    host.run("mig-send", &["--resolve", "--force", "a", "exec:mig-recv"]).expect(1);
    a.assert_runs();
}

#[test]
fn a_one_way_stream_that_went_nowhere_is_refused_and_the_source_runs_again() {
    needs_kvm!();
    let host = Host::new();
    let mut a = small(&host);
    host.sh("mig-send -q a | cat > /dev/null").expect(0);
    assert_eq!(host.state("a").as_deref(), Some("handed-over"));
    a.assert_stands_still();
    let done = host.run("mig-send", &["--resolve", "a", "exec:mig-recv"]).expect(1);
    assert!(done.stderr.contains("runs here"), "{}", done.stderr);
    a.assert_runs();
    assert_one_story(&[&a.console]);
}

#[test]
fn a_sender_killed_after_the_commit_is_resolved() {
    needs_kvm!();
    let host = Host::new();
    let mut a = small(&host);
    let b = a.console_of("b");
    // The tunnel is cut at GO, and mig-send would go on asking for half a minute.
    let flag = host.path("network-down").display().to_string();
    let recv = format!("mig-recv --quiet --name b --console file:{}", b.path().display());
    let destination = format!(
        "exec:if test -e {flag}; then exit 255; else touch {flag}; \
         exec lossy-tunnel go=cut '{recv}'; fi"
    );
    let mut sender = host.command("mig-send").args(["-q", "a", &destination]).spawn().unwrap();
    wait("the commit", || host.state("a").as_deref() == Some("handed-over"));
    sender.kill().unwrap();
    wait_within(&mut sender, HANG_TIMEOUT);
    host.run("mig-send", &["--resolve", "a", "exec:mig-recv"]).expect(0);
    assert_eq!(a.ended(), Some(0));
    b.wait_ticks(3);
    assert_one_story(&[&a.console, &b]);
}

#[test]
fn a_receiver_killed_after_the_ack_is_resolved() {
    needs_kvm!();
    let host = Host::new();
    let mut a = small(&host);
    let b = cut_at(&host, &a, "go", 4);
    // mig-recv has ended with status 4 by itself; what it did lives in its vmrun.
    assert!(host.processes().iter().all(|(_, name)| name != "mig-recv"));
    host.run("mig-send", &["--resolve", "a", "exec:mig-recv"]).expect(0);
    assert_eq!(a.ended(), Some(0));
    b.wait_ticks(3);
    assert_one_story(&[&a.console, &b]);
}
