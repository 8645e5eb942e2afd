//! A saved guest is in its file until it has run: a restore that fails uses nothing up.

use std::fs;
use std::io::Write;
use std::process::{Child, Stdio};

use migpipe_tests::{
    Console, Done, Guest, Host, Image, assert_one_story, finish, needs_kvm, spec, wait,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A guest named web that is in the file, and nowhere else.
fn saved(host: &Host, disk: Option<&Image>) -> (Guest, String) {
    let kernel = spec(64, "500", 32);
    let mut args = vec!["--mem", "128M"];
    args.extend(disk.iter().flat_map(|disk| ["--disk", disk.name()]));
    let mut a = Guest::boot(host, "web", &kernel, &args);
    let file = format!("file:{}", host.path("web.mig").display());
    host.run("mig-send", &["-q", "web", &file]).expect(0);
    assert_eq!(a.ended(), Some(0));
    (a, file)
}

/// Restores it for good: it goes on where it was.
#[track_caller]
fn assert_restorable(host: &Host, a: &Guest, file: &str) {
    let b = a.console_of("restored");
    restore(host, &b, file).expect(0);
    b.wait_ticks(3);
    assert_one_story(&[&a.console, &b]);
}

fn restore(host: &Host, console: &Console, file: &str) -> Done {
    let console = format!("file:{}", console.path().display());
    host.run("mig-recv", &["-q", "--console", &console, file])
}

/// A mig-recv that has got half of the file and waits for more.
fn half_way(host: &Host) -> Child {
    let bytes = fs::read(host.path("web.mig")).unwrap();
    let mut recv = host
        .command("mig-recv")
        .args(["-q", "--console", "null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let half = &bytes[..bytes.len() / 2];
    recv.stdin.as_mut().unwrap().write_all(half).unwrap();
    wait("the guest", || host.state("web").as_deref() == Some("receiving"));
    recv
}

fn assert_no_word_of_a_source(done: &Done) {
    for word in ["source", "--resolve", "GO"] {
        assert!(!done.stderr.contains(word), "'{word}' in: {}", done.stderr);
    }
}

fn send(signal: Signal, pid: i32) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

#[test]
fn a_restore_whose_vmrun_is_killed_has_not_run_and_is_tried_again() {
    needs_kvm!();
    let host = Host::new();
    let (a, file) = saved(&host, None);
    let mut recv = half_way(&host);
    send(Signal::SIGKILL, host.pid("web").unwrap());
    drop(recv.stdin.take());
    let done = finish(recv, std::time::Instant::now()).expect(1);
    assert_no_word_of_a_source(&done);
    assert_restorable(&host, &a, &file);
}

#[test]
fn a_restore_that_is_interrupted_is_tried_again() {
    needs_kvm!();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGKILL] {
        let host = Host::new();
        let (a, file) = saved(&host, None);
        let mut recv = half_way(&host);
        send(signal, recv.id() as i32);
        recv.wait().unwrap();
        wait("its vmrun to end", || host.state("web").is_none());
        assert_restorable(&host, &a, &file);
    }
}

#[test]
fn a_restore_whose_disk_another_has_is_given_up_and_tried_again() {
    needs_kvm!();
    let host = Host::new();
    let image = Image::create(&host.path("web.raw"), 64);
    let (a, file) = saved(&host, Some(&image));
    let mut other = Guest::start(&host, "other", "builtin:idle", &["--disk", image.name()]);
    wait("the other guest", || host.state("other").as_deref() == Some("running"));
    for _ in 0..2 {
        let b = a.console_of("refused");
        let done = restore(&host, &b, &file);
        assert_no_word_of_a_source(&done);
        done.refused_with(&["web", "web.raw", "is locked"]);
        assert_eq!(host.state("web"), None, "it is not here");
    }
    host.run("vmctl", &["quit", "other"]).expect(0);
    other.ended();
    assert_restorable(&host, &a, &file);
}

#[test]
fn of_two_restores_at_once_the_second_is_told_of_the_first() {
    needs_kvm!();
    let host = Host::new();
    let (a, file) = saved(&host, None);
    let mut first = half_way(&host);
    let done = host.run("mig-recv", &["-q", "--name", "two", "--console", "null", &file]);
    done.refused_with(&["being restored as web", "two"]);
    assert_eq!(host.state("two"), None);
    first.kill().unwrap();
    first.wait().unwrap();
    wait("its vmrun to end", || host.state("web").is_none());
    assert_restorable(&host, &a, &file);
}

#[test]
fn a_restored_guest_whose_vmrun_was_killed_is_not_run_again() {
    needs_kvm!();
    let host = Host::new();
    let (a, file) = saved(&host, None);
    let b = a.console_of("restored");
    restore(&host, &b, &file).expect(0);
    b.wait_ticks(3);
    send(Signal::SIGKILL, host.pid("web").unwrap());
    wait("its end", || host.state("web").is_none());
    restore(&host, &a.console_of("again"), &file).refused_with(&["as web", "twice", "--clone"]);
}

#[test]
fn stdout_that_is_a_file_is_a_save() {
    needs_kvm!();
    for redirect in ["web >", "web - >", "web fd:5 5>"] {
        let host = Host::new();
        let mut a = Guest::boot(&host, "web", &spec(64, "500", 16), &["--mem", "64M"]);
        let path = host.path("web.mig");
        host.sh(&format!("exec mig-send -q {redirect}{}", path.display())).expect(0);
        assert_eq!(a.ended(), Some(0), "the guest is in the file and nowhere else");
        host.run("mig-inspect", &[&path.display().to_string()]).expect(0);
        assert_restorable(&host, &a, &format!("file:{}", path.display()));
    }
}

#[test]
fn a_file_that_holds_something_is_no_place_for_a_guest() {
    needs_kvm!();
    let host = Host::new();
    let mut a = Guest::boot(&host, "web", &spec(64, "500", 16), &["--mem", "64M"]);
    let path = host.path("log");
    fs::write(&path, "something").unwrap();
    for redirect in [">>", "1<>"] {
        host.sh(&format!("exec mig-send -q web {redirect}{}", path.display()))
            .refused_as(2, &["stdout", "not with >>"]);
    }
    assert_eq!(fs::read(&path).unwrap(), b"something");
    a.assert_runs();
}

#[test]
fn a_stream_that_nobody_would_have_is_refused_before_the_guest_is_touched() {
    needs_kvm!();
    let host = Host::new();
    let mut a = Guest::boot(&host, "web", &spec(64, "500", 16), &["--mem", "64M"]);
    for to in ["web >&-", "web >/dev/null", "web >/dev/zero", "web fd:5 5>/dev/null", "web fd:5"] {
        let done = host.sh(&format!("exec mig-send -q {to}")).expect(2);
        assert!(done.stderr.contains("cat >/dev/null") || to == "web fd:5", "{}", done.stderr);
        assert!(done.stderr.contains("stdout") || done.stderr.contains("descriptor 5"));
    }
    for back in ["--return stdin <&-", "--return stdin </dev/null", "--return fd:5 5</dev/null"] {
        let done = host.sh(&format!("mig-send -q web {back} | cat >/dev/null")).expect(2);
        assert!(done.stderr.contains("is closed, or a device"), "{}", done.stderr);
    }
    for (options, why) in [
        ("--progress-fd 1 web - | cat >/dev/null", "carries the stream"),
        ("--progress-fd 5 web fd:5 5>&1 | cat >/dev/null", "carries the stream"),
        ("--progress-fd 7 web | cat >/dev/null", "was not passed"),
    ] {
        let done = host.sh(&format!("mig-send -q {options}")).expect(2);
        assert!(done.stderr.contains(why), "{}", done.stderr);
    }
    a.assert_runs();
    let done = host.sh("exec mig-recv <&-").expect(2);
    assert!(done.stderr.contains("stdin is closed"), "{}", done.stderr);
    // What is really meant can be said.
    host.run("mig-send", &["-q", "--one-way", "web", "exec:cat >/dev/null"]).expect(0);
}
