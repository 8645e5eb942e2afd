//! Nobody can read what the programs say: stderr is full, gone, or not read any more. What is done
//! does not depend on it.

use std::fs::OpenOptions;
use std::io::pipe;
use std::os::fd::OwnedFd;
use std::process::{Child, Stdio};
use std::time::Instant;

use migpipe_tests::{
    Console, Guest, HANG_TIMEOUT, Host, assert_one_story, finish, needs_kvm, spec, wait,
    wait_within,
};
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::Signal;

/// The writing end of something that cannot be written to.
#[derive(Clone, Copy, Debug)]
enum Bad {
    /// A disk without room.
    Full,
    /// A pipe whose reader has gone.
    Gone,
    /// A pipe whose reader has stopped reading, and which is full.
    Stopped,
}

const ALL: [Bad; 3] = [Bad::Full, Bad::Gone, Bad::Stopped];

/// Something bad to write to, and what has to be kept for it to stay so.
fn bad(how: Bad) -> (OwnedFd, Option<OwnedFd>) {
    if let Bad::Full = how {
        return (OpenOptions::new().write(true).open("/dev/full").unwrap().into(), None);
    }
    let (reader, writer) = pipe().unwrap();
    let writer = OwnedFd::from(writer);
    if let Bad::Gone = how {
        return (writer, None);
    }
    let room = fcntl(&writer, FcntlArg::F_SETPIPE_SZ(4096)).unwrap() as usize;
    assert_eq!(nix::unistd::write(&writer, &vec![b'x'; room]), Ok(room));
    (writer, Some(reader.into()))
}

fn console(host: &Host, name: &str) -> Console {
    Console::at(&host.path(&format!("{name}.console")))
}

/// A vmrun that says everything that there is to say on `stderr`.
fn talkative(host: &Host, name: &str, kernel: &str, stderr: OwnedFd) -> Child {
    let child = host
        .command("vmrun")
        .args(["--name", name, "--kernel", kernel, "--mem", "128M", "--log=trace"])
        .arg(format!("--console=file:{}", console(host, name).path().display()))
        .stderr(Stdio::from(stderr))
        .spawn()
        .expect("vmrun starts");
    console(host, name).wait_ticks(2);
    child
}

fn end(host: &Host, name: &str, vmrun: &mut Child) {
    host.run("vmctl", &["quit", "--force", name]).expect(0);
    wait_within(vmrun, HANG_TIMEOUT);
}

/// Sends `a` as far as its blackout, which lasts: what the destination says is held up.
fn into_blackout(host: &Host) -> Child {
    let destination = "exec:lossy-tunnel ack=stall 'mig-recv --quiet --name b 2>/dev/null'";
    let sender = host
        .command("mig-send")
        .args(["-q", "a", destination])
        .stderr(Stdio::null())
        .spawn()
        .expect("mig-send starts");
    wait("the blackout", || host.state("a").as_deref() == Some("migrating, paused"));
    sender
}

#[test]
fn a_vmrun_whose_words_cannot_be_written_takes_its_guest_back_from_a_sender_that_dies() {
    needs_kvm!();
    for how in ALL {
        let host = Host::new();
        let (stderr, kept) = bad(how);
        let mut vmrun = talkative(&host, "a", &spec(64, "500", 4), stderr);
        let mut sender = into_blackout(&host);
        sender.kill().expect("it runs");
        wait_within(&mut sender, HANG_TIMEOUT);
        wait("the guest to be back", || host.state("a").as_deref() == Some("running"));
        console(&host, "a").wait_ticks(3);
        assert_one_story(&[&console(&host, "a")]);
        end(&host, "a", &mut vmrun);
        drop(kept);
    }
}

#[test]
fn a_guest_moves_though_no_program_can_say_anything() {
    needs_kvm!();
    for how in ALL {
        let host = Host::new();
        let mut a = Guest::boot(&host, "a", &spec(64, "500", 8), &["--mem", "64M"]);
        let b = console(&host, "b");
        let (stderr, kept) = bad(how);
        // mig-recv shares the stderr of the tunnel; its vmrun has a log of its own.
        let destination =
            format!("exec:mig-recv --log trace --name b --console file:{}", b.path().display());
        let mut sender = host
            .command("mig-send")
            .args(["--log=trace", "--progress=json", "a", &destination])
            .stderr(Stdio::from(stderr))
            .spawn()
            .expect("mig-send starts");
        assert_eq!(wait_within(&mut sender, HANG_TIMEOUT).code(), Some(0), "{how:?}");
        assert_eq!(a.ended(), Some(0));
        b.wait_ticks(3);
        assert_one_story(&[&a.console, &b]);
        host.run("vmctl", &["quit", "b"]).expect(0);
        drop(kept);
    }
}

/// A mig-send whose progress goes into a pipe that is full and that nobody reads.
fn unread_progress(host: &Host, rate: &str) -> (Child, Option<OwnedFd>) {
    let (writer, reader) = bad(Bad::Stopped);
    // A shell passes it on, as a script would.
    let script = format!(
        "exec 7>&0; exec mig-send -q --max-bandwidth {rate} --progress-fd 7 a \
         'exec:mig-recv --quiet --name b 2>/dev/null' </dev/null"
    );
    let mut shell = host.shell(&script);
    let sender = shell.stdin(Stdio::from(writer)).stderr(Stdio::piped()).spawn();
    (sender.expect("a shell starts"), reader)
}

#[test]
fn a_reader_of_progress_that_stops_reading_holds_up_neither_orders_nor_the_end() {
    needs_kvm!();
    let host = Host::new();
    let mut a = Guest::boot(&host, "a", &spec(64, "500", 64), &["--mem", "128M"]);
    let (sender, reader) = unread_progress(&host, "4M");
    wait("the migration", || host.state("a").as_deref() == Some("migrating"));
    host.run("vmctl", &["cancel", "a"]).expect(0);
    finish(sender, Instant::now()).expect(3);
    a.assert_runs();
    drop(reader);
    wait("b to go", || host.state("b").is_none());

    let (sender, reader) = unread_progress(&host, "16M");
    finish(sender, Instant::now()).expect(0);
    assert_eq!(a.ended(), Some(0));
    drop(reader);
}

#[test]
fn a_limit_of_the_file_size_is_said_like_a_full_disk_and_the_guest_runs_on() {
    needs_kvm!();
    let host = Host::new();
    let mut a = Guest::boot(&host, "a", &spec(64, "500", 8), &["--mem", "64M"]);
    let file = host.path("a.mig");
    let save = format!("ulimit -f 1000; exec mig-send -q a file:{}", file.display());
    host.sh(&save).refused_with(&["a.mig", "File too large", "a runs on here"]);
    assert!(!file.exists());
    a.assert_runs();
}

#[test]
fn a_guest_whose_console_reaches_the_limit_of_the_file_size_runs_on() {
    needs_kvm!();
    let host = Host::new();
    let mut a = Guest::boot(&host, "a", &spec(64, "500", 1), &["--mem", "64M"]);
    // From the start it would be a limit of the guest's memory too, which is a file.
    let limit = a.console.text().len() + 500;
    host.sh(&format!("prlimit --pid {} --fsize={limit}:", a.pid())).expect(0);
    wait("a full console", || a.console.text().len() == limit);
    assert!(a.lives());
    host.sh(&format!("prlimit --pid {} --fsize=unlimited:", a.pid())).expect(0);
    a.assert_runs();
    assert_one_story(&[&a.console]);
}

#[test]
fn a_program_that_is_started_from_here_has_its_signals_as_any_other() {
    needs_kvm!();
    let host = Host::new();
    let mut a = Guest::boot(&host, "a", &spec(64, "500", 1), &["--mem", "64M"]);
    let said = host.path("signals");
    let tunnel = format!("exec:grep -E '^Sig(Blk|Ign)' /proc/self/status > {}", said.display());
    host.run("mig-send", &["-q", "--ready-timeout", "1", "a", &tunnel]).expect(1);
    let text = std::fs::read_to_string(&said).expect("what the tunnel said");
    for line in text.lines() {
        let (name, set) = line.split_once(':').expect("a field of proc(5)");
        let set = u64::from_str_radix(set.trim(), 16).expect("a set of signals");
        for signal in [Signal::SIGXFSZ, Signal::SIGXCPU, Signal::SIGPIPE, Signal::SIGTERM] {
            assert_eq!(set >> (signal as i32 - 1) & 1, 0, "{signal} is in {name}");
        }
    }
    assert_eq!(text.lines().count(), 2);
    a.assert_runs();
}

#[test]
fn an_answer_that_cannot_be_printed_is_an_error_in_one_line() {
    let host = Host::new();
    for asked in ["vmctl list", "vmctl --json list", "vmctl --completions bash", "vmrun --man"] {
        host.sh(&format!("{asked} > /dev/full")).refused_with(&["No space left"]);
    }
}

#[test]
fn events_end_with_their_reader() {
    needs_kvm!();
    let host = Host::new();
    let _a = Guest::boot(&host, "a", &spec(64, "500", 1), &["--mem", "64M"]);
    let events = host
        .shell("vmctl events a | head -1")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("a shell starts");
    wait("the end of vmctl events", || {
        for order in ["pause", "resume"] {
            host.run("vmctl", &[order, "a"]).expect(0);
        }
        host.processes().iter().all(|(_, name)| name != "vmctl")
    });
    let done = finish(events, Instant::now()).expect(0);
    assert_eq!(done.stdout.lines().count(), 1, "{done:?}");
    assert_eq!(done.stderr, "");
}
