//! The exit status says what became of the guest, whatever else goes wrong.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::Stdio;
use std::thread;
use std::time::Instant;

use mig_stream::{Message, ReturnWriter, StreamReader};
use migpipe_tests::{Guest, Host, finish, needs_kvm, spec, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn small(host: &Host) -> Guest {
    Guest::boot(host, "a", &spec(64, "500", 8), &["--mem", "64M"])
}

/// Hands `a` over to a destination that waits for a GO which was lost.
fn hand_over(host: &Host) {
    let destination = "exec:lossy-tunnel go=cut 'mig-recv --quiet --name b'";
    host.run("mig-send", &["-q", "--resolve-for", "0", "a", destination]).expect(4);
    wait("the other side", || host.state("b").as_deref() == Some("prepared"));
}

#[test]
fn a_one_way_tunnel_that_fails_leaves_the_outcome_open() {
    needs_kvm!();
    let host = Host::new();
    let mut a = small(&host);
    let done =
        host.run("mig-send", &["-q", "--one-way", "a", "exec:cat >/dev/null; exit 3"]).expect(4);
    assert!(done.stderr.contains("ended with status 3"), "{}", done.stderr);
    assert!(done.stderr.contains("--resolve"), "{}", done.stderr);
    a.assert_stands_still();
    host.run("mig-send", &["--resolve", "a", "exec:mig-recv"]).expect(1);
    a.assert_runs();
}

#[test]
fn a_one_way_tunnel_that_is_slow_is_left_to_bring_the_end_of_the_stream() {
    needs_kvm!();
    let host = Host::new();
    let a = small(&host);
    let there = host.path("there");
    let slow = format!("exec:cat >/dev/null; sleep 4; touch {}", there.display());
    let done = host.run("mig-send", &["-q", "--one-way", "--timeout", "1", "a", &slow]).expect(4);
    assert!(done.stderr.contains("may not have arrived"), "{}", done.stderr);
    a.assert_stands_still();
    wait("the tunnel to finish", || there.exists());
}

#[test]
fn a_vmrun_that_hangs_is_waited_for_as_long_as_the_timeout_says() {
    needs_kvm!();
    let host = Host::new();
    let mut a = small(&host);
    let vmrun = Pid::from_raw(a.pid());
    kill(vmrun, Signal::SIGSTOP).unwrap();
    let done = host.run("mig-send", &["-q", "--timeout", "1", "a", "exec:mig-recv"]).expect(1);
    kill(vmrun, Signal::SIGCONT).unwrap();
    assert!(done.stderr.contains("does not answer"), "{}", done.stderr);
    a.assert_runs();
}

/// Where a host keeps its memory of migrations.
fn records(host: &Host) -> PathBuf {
    host.path("state/vmrun/migrations")
}

#[test]
fn a_destination_that_cannot_read_its_records_says_that_and_nothing_of_the_guest() {
    needs_kvm!();
    let host = Host::new();
    let a = small(&host);
    hand_over(&host);
    // Nobody is left who knows better.
    kill(Pid::from_raw(host.pid("b").unwrap()), Signal::SIGKILL).unwrap();
    let away = records(&host).with_extension("away");
    fs::rename(records(&host), &away).unwrap();
    fs::write(records(&host), "").unwrap();
    let ask = ["--resolve", "--resolve-for", "1", "a", "exec:mig-recv"];
    let done = host.run("mig-send", &ask).expect(4);
    assert!(done.stderr.contains("state/vmrun/migrations"), "{}", done.stderr);
    assert!(!done.stderr.contains("may have run"), "{}", done.stderr);
    fs::remove_file(records(&host)).unwrap();
    fs::rename(&away, records(&host)).unwrap();
    let done = host.run("mig-send", &ask).expect(4);
    assert!(done.stderr.contains("may have run"), "{}", done.stderr);
    a.assert_stands_still();
}

#[test]
fn a_query_that_the_destination_cannot_use_is_no_refusal_of_the_guest() {
    needs_kvm!();
    let host = Host::new();
    let a = small(&host);
    host.sh("mig-send -q a | cat >/dev/null").expect(0);
    let path = host.path("destination");
    let listener = UnixListener::bind(&path).unwrap();
    thread::spawn(move || {
        for connection in listener.incoming() {
            let connection = connection.unwrap();
            let id = StreamReader::open(&connection).unwrap().preamble().id;
            let reason = "too many questions".to_owned();
            let mut back = ReturnWriter::new(&connection, id).unwrap();
            back.send(&Message::Refused { reason }).unwrap();
        }
    });
    let ask = format!("unix:{}", path.display());
    let done = host.run("mig-send", &["--resolve", "--resolve-for", "1", "a", &ask]).expect(4);
    assert!(done.stderr.contains("too many questions"), "{}", done.stderr);
    assert_eq!(host.state("a").as_deref(), Some("handed-over"));
    a.assert_stands_still();
}

#[test]
fn a_cancelled_question_says_how_the_guest_stands() {
    needs_kvm!();
    let host = Host::new();
    let mut a = small(&host);
    hand_over(&host);
    let asked = host.path("asked");
    let silent = format!("exec:touch {}; cat >/dev/null; exec cat", asked.display());
    let started = Instant::now();
    let question = host
        .command("mig-send")
        .args(["--resolve", "a", &silent])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait("the question", || asked.exists());
    kill(Pid::from_raw(question.id() as i32), Signal::SIGINT).unwrap();
    let done = finish(question, started).expect(4);
    assert!(done.stderr.contains("cancelled; a stays handed-over"), "{}", done.stderr);
    host.run("mig-send", &["--resolve", "a", "exec:mig-recv"]).expect(0);
    assert_eq!(a.ended(), Some(0));
    host.run("vmctl", &["quit", "b"]).expect(0);
}

#[test]
fn a_report_that_cannot_be_written_changes_nothing() {
    needs_kvm!();
    let host = Host::new();
    let mut a = small(&host);
    let recv = "exec:mig-recv --quiet --name b";
    let done = host.run("mig-send", &["-q", "--report", "/dev/full", "a", recv]).expect(0);
    assert!(done.stderr.contains("/dev/full was not written"), "{}", done.stderr);
    assert_eq!(a.ended(), Some(0));
    host.run("vmctl", &["quit", "b"]).expect(0);
}
