//! Disks of a guest that moves: the lock of an image is held by whoever may run the guest.

use std::fs::{self, File};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use mig_engine::ownership::Input;
use migpipe_tests::{
    Console, Guest, Host, Image, assert_one_story, finish, needs_kvm, report, run, spec, wait,
};
use migpipe_units::MigrationId;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vm_control::Client;

const DISK_KIB: usize = 64;

/// A guest with a disk, and the disk's image.
fn boot(host: &Host) -> (Guest, Image) {
    let image = Image::create(&host.path("web.raw"), DISK_KIB);
    let a = Guest::boot(host, "a", &small(), &["--mem", "64M", "--disk", image.name()]);
    assert!(image.is_held_by(a.pid()), "who runs the guest holds its image");
    (a, image)
}

fn small() -> String {
    spec(64, "500", 16)
}

/// A mig-recv on the same host that calls the guest b.
fn to_b(guest: &Guest, options: &str) -> (String, Console) {
    let console = guest.console_of("b");
    let path = console.path().display();
    (format!("mig-recv --quiet --name b --console file:{path} {options}"), console)
}

/// The destination by a tunnel that brings GO late: whoever waits for the image has it by then.
fn late_go(recv: &str) -> String {
    format!("exec:lossy-tunnel ack=delay '{recv}'")
}

/// What mig-recv said into recv.err; it may do so after it has answered the source.
fn said(host: &Host) -> String {
    let read = || fs::read_to_string(host.path("recv.err")).unwrap_or_default();
    wait("a word of mig-recv", || read().ends_with('\n'));
    read()
}

#[test]
fn a_second_vmrun_on_an_image_is_refused_by_name() {
    needs_kvm!();
    let host = Host::new();
    let (mut a, image) = boot(&host);
    let second = ["--name", "second", "--kernel", "builtin:idle", "--disk", image.name()];
    host.run("vmrun", &second).refused_with(&["disk0", "web.raw", "is locked"]);
    a.assert_runs();

    // It is the destination's as soon as the guest is.
    let (recv, b) = to_b(&a, "");
    host.run("mig-send", &["-q", "a", &format!("exec:{recv}")]).expect(0);
    host.run("vmrun", &second).refused_with(&["disk0", "web.raw", "is locked"]);
    b.wait_ticks(3);
    host.run("vmctl", &["quit", "b"]).expect(0);
    wait("b to end", || host.state("b").is_none());
    let _second = Guest::start(&host, "second", "builtin:idle", &["--disk", image.name()]);
    wait("the second guest", || host.state("second").as_deref() == Some("running"));
}

#[test]
fn the_lock_goes_with_the_guest_while_its_source_still_lives() {
    needs_kvm!();
    let host = Host::new();
    let (mut a, image) = boot(&host);
    let (recv, b) = to_b(&a, "");
    // One way the source stays, handed-over.
    host.sh(&format!("mig-send -q a | {recv}")).expect(0);
    assert!(!image.is_held_by(a.pid()), "the source has let go");
    assert!(image.is_held_by(host.pid("b").unwrap()), "the destination holds it");
    assert!(a.lives());
    b.wait_ticks(3);
    assert_one_story(&[&a.console, &b]);
}

#[test]
fn an_image_elsewhere_is_named_at_the_destination() {
    needs_kvm!();
    let host = Host::new();
    let (mut a, image) = boot(&host);
    let copy = Image::create(&host.path("copy.raw"), DISK_KIB);
    let (recv, b) = to_b(&a, &format!("--disk disk0={}", copy.name()));
    host.run("mig-send", &["-q", "a", &format!("exec:{recv}")]).expect(0);
    assert_eq!(a.ended(), Some(0));
    let there = host.pid("b").unwrap();
    assert!(copy.is_held_by(there) && !image.is_held_by(there));
    b.wait_ticks(3);
    assert_one_story(&[&a.console, &b]);
}

#[test]
fn a_migration_that_does_not_come_to_its_commit_leaves_the_lock_with_its_source() {
    needs_kvm!();
    for how in ["cancelled", "its destination killed", "its sender killed"] {
        let host = Host::new();
        let (mut a, image) = boot(&host);
        let (recv, _) = to_b(&a, "");
        let mut sender = host.command("mig-send");
        sender.args(["-q", "--max-bandwidth", "8M", "a", &format!("exec:{recv}")]);
        let sender = sender.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        wait("the migration", || host.state("b").as_deref() == Some("receiving"));
        thread::sleep(Duration::from_millis(200));
        assert!(image.is_held_by(a.pid()), "the guest runs here until its commit");
        match how {
            "cancelled" => drop(host.run("vmctl", &["cancel", "a"]).expect(0)),
            "its sender killed" => signal(sender.id() as i32, Signal::SIGKILL),
            _ => signal(host.pid("b").unwrap(), Signal::SIGKILL),
        }
        let done = finish(sender, Instant::now());
        assert_ne!(done.status, Some(0), "{how}: {done:#?}");
        a.assert_runs();
        assert!(image.is_held_by(a.pid()), "{how}: the source has lost its image");
        wait("the destination to go", || host.state("b").is_none());
        assert_one_story(&[&a.console]);
    }
}

fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

#[test]
fn an_image_that_somebody_takes_in_the_handover_loses_no_guest() {
    needs_kvm!();
    let host = Host::new();
    let (mut a, image) = boot(&host);
    let (recv, b) = to_b(&a, "--go-timeout 3");
    let thief = image.take_when_free();
    let destination = late_go(&format!("{recv} 2>>recv.err"));
    let mut sender = host.command("mig-send");
    sender.current_dir(host.path("")).args(["-q", "--resolve-for", "0.2", "a", &destination]);
    let done = run(&mut sender).refused_as(4, &["a is handed-over", "mig-send --resolve a"]);
    println!("mig-send: {}", done.stderr.trim());
    let said = said(&host);
    println!("mig-recv: {}", said.trim());
    assert!(said.contains("web.raw is locked"), "{said}");
    assert_eq!(host.state("a").as_deref(), Some("handed-over"));
    assert_eq!(b.text(), "", "the guest ran without its disk");

    // The destination gives up, and the source cannot run the guest as long as it lacks the disk.
    wait("the destination to give up", || host.state("b").is_none());
    let resolve = ["--resolve", "a", "exec:mig-recv"];
    host.run("mig-send", &resolve).refused_as(4, &["web.raw", "is locked", "handed-over"]);
    assert_eq!(host.state("a").as_deref(), Some("handed-over"));
    a.assert_stands_still();

    assert!(thief.is_finished(), "the destination was faster");
    drop(thief.join().unwrap());
    let done = host.run("mig-send", &resolve).expect(1);
    assert!(done.stderr.contains("it runs here"), "{}", done.stderr);
    a.assert_runs();
    assert!(image.is_held_by(a.pid()));
    assert_one_story(&[&a.console]);
}

#[test]
fn an_image_that_is_free_again_in_time_is_no_reason_to_give_up() {
    needs_kvm!();
    let host = Host::new();
    let (a, image) = boot(&host);
    let (recv, b) = to_b(&a, "2>/dev/null");
    let thief = image.take_when_free();
    let sender = host
        .command("mig-send")
        .args(["-q", "a", &late_go(&recv)])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait("the lock", || thief.is_finished());
    let file = thief.join().unwrap();
    wait("the handover", || host.state("b").as_deref() == Some("prepared"));
    thread::sleep(Duration::from_millis(300));
    drop(file);
    finish(sender, Instant::now()).expect(0);
    b.wait_ticks(3);
    assert!(image.is_held_by(host.pid("b").unwrap()));
    assert_one_story(&[&a.console, &b]);
}

#[test]
fn a_wrong_image_is_refused_by_name_before_the_first_page() {
    needs_kvm!();
    let host = Host::new();
    let (mut a, image) = boot(&host);
    Image::create(&host.path("small.raw"), DISK_KIB / 2);
    Image::create(&host.path("large.raw"), DISK_KIB * 2);
    let file = host.path("report.json");
    let cases: [(&str, &[&str]); 5] = [
        ("disk0=nowhere.raw", &["block disk0", "nowhere.raw", "No such file"]),
        ("disk0=small.raw", &["block disk0", "small.raw has 32768 bytes", "guest's has 65536"]),
        ("disk0=large.raw", &["block disk0", "large.raw has 131072 bytes"]),
        ("disk0=.", &["block disk0"]),
        ("disk7=web.raw", &["disk7"]),
    ];
    for (disk, words) in cases {
        let (recv, _) = to_b(&a, &format!("--disk {disk} 2>/dev/null"));
        let mut sender = host.command("mig-send");
        sender.current_dir(host.path("")).args(["-q", "a", &format!("exec:{recv}"), "--report"]);
        let done = run(sender.arg(&file)).refused_with(words);
        println!("{}", done.stderr.trim());
        let report = report(&file);
        assert_eq!((report.rounds.len(), report.totals.pages.0), (0, 0), "{disk}: pages were sent");
        assert!(image.is_held_by(a.pid()));
    }
    a.assert_runs();
    assert_one_story(&[&a.console]);
}

#[test]
fn an_image_that_cannot_be_written_is_refused_by_name_before_the_first_page() {
    needs_kvm!();
    let host = Host::new();
    let (mut a, image) = boot(&host);
    fs::create_dir(host.path("ro")).unwrap();
    Image::create(&host.path("ro/web.raw"), DISK_KIB);
    // Root writes what it may not: a file system that cannot be written stops even root.
    let mount =
        "unshare -m sh -c 'mount --bind ro ro && mount -o remount,bind,ro ro && exec \"$@\"' -";
    let cd = format!("cd {}", host.path("").display());
    let can = host.sh(&format!("{cd}; {mount} true"));
    if can.status != Some(0) {
        println!("SKIPPED the read-only image: no mount of its own: {}", can.stderr.trim());
        return;
    }
    let (recv, _) = to_b(&a, "--disk disk0=ro/web.raw 2>/dev/null");
    let script = format!("{cd}; exec {mount} {recv}");
    host.run("mig-send", &["-q", "a", &format!("exec:{script}")]).refused_with(&[
        "block disk0",
        "ro/web.raw",
        "Read-only file system",
        "a runs on here",
    ]);
    a.assert_runs();
    assert!(image.is_held_by(a.pid()));
}

/// A guest with a disk whose vmrun runs under `strace`, which sees its flushes in the file `trace`;
/// nothing where there is no strace.
fn boot_traced(host: &Host, strace: &str) -> Option<(Console, Child)> {
    if Command::new("strace").arg("-V").stdout(Stdio::null()).status().is_err() {
        println!("SKIPPED a look at the flushes of a disk: there is no strace");
        return None;
    }
    let image = Image::create(&host.path("web.raw"), DISK_KIB);
    let console = Console::at(&host.path("a.console"));
    let script = format!(
        "exec strace -f -y -qq -o {} {strace} vmrun --log=error --name a --mem 64M --kernel {} \
         --disk {} --console file:{}",
        host.path("trace").display(),
        small(),
        image.name(),
        console.path().display(),
    );
    let vmrun = host.shell(&script).spawn().expect("a shell starts");
    console.wait_for("ready");
    Some((console, vmrun))
}

#[test]
fn the_last_flush_of_a_disk_lies_between_the_pause_and_the_end_of_its_lock() {
    needs_kvm!();
    for pipeline in ["mig-send -q a exec:'RECV'", "mig-send -q a | RECV"] {
        let host = Host::new();
        let calls = "-e trace=fdatasync,fcntl,ioctl -e raw=ioctl";
        let Some((_, mut vmrun)) = boot_traced(&host, calls) else { return };
        let recv = "mig-recv -q --name b --console null";
        host.sh(&pipeline.replace("RECV", recv)).expect(0);
        host.run("vmctl", &["quit", "--force", "a"]);
        vmrun.wait().unwrap();
        let trace = fs::read_to_string(host.path("trace")).unwrap();
        let calls: Vec<&str> = trace.lines().collect();
        let last = |what: &dyn Fn(&str) -> bool| calls.iter().rposition(|line| what(line)).unwrap();
        let of_image = |line: &str, call: &str| line.contains(call) && line.contains("web.raw");
        let flush = last(&|line| of_image(line, "fdatasync("));
        let released = last(&|line| of_image(line, "F_OFD_SETLK") && line.contains("F_UNLCK"));
        // KVM_RUN: no vCPU has run since, and so no device has had anything to write.
        let ran = last(&|line| line.contains("ioctl(") && line.contains(", 0xae80,"));
        let order = format!("ran {ran}, flushed {flush}, released {released}");
        assert!(ran < flush && flush < released, "{pipeline}: {order}");
        let flushes = calls.iter().filter(|line| of_image(line, "fdatasync("));
        assert!(flushes.count() >= 2, "the first goes on while the guest runs");
    }
}

#[test]
fn a_disk_that_cannot_be_flushed_keeps_its_guest_at_the_source() {
    needs_kvm!();
    // In pre-copy, and in the blackout: the second is the last of an idle disk.
    for (which, pipeline) in [
        ("1+", "mig-send -q a exec:'RECV'"),
        ("2+", "mig-send -q a exec:'RECV'"),
        ("2+", "mig-send -q a | RECV; exit ${PIPESTATUS[0]}"),
    ] {
        let host = Host::new();
        let inject = format!("-e trace=fdatasync -e inject=fdatasync:error=EIO:when={which}");
        let Some((console, mut vmrun)) = boot_traced(&host, &inject) else { return };
        let recv = "mig-recv -q --name b --console null 2>/dev/null";
        let done = host.sh(&pipeline.replace("RECV", recv));
        println!("{}", done.stderr.trim());
        done.refused_with(&["block disk0", "cannot flush", "web.raw", "a runs on here"]);
        assert_eq!(host.state("a").as_deref(), Some("running"));
        console.wait_ticks(3);
        wait("the destination to go", || host.state("b").is_none());
        host.run("vmctl", &["quit", "a"]).expect(0);
        vmrun.wait().unwrap();
    }
}

#[test]
fn a_vmrun_that_stops_while_its_disk_is_flushed_is_given_up() {
    needs_kvm!();
    let host = Host::new();
    // For ever, as far as this test is concerned.
    let delay = "-e trace=fdatasync -e inject=fdatasync:delay_enter=3600000000";
    let Some((console, mut vmrun)) = boot_traced(&host, delay) else { return };
    let pid = host.pid("a").expect("a guest");
    let mut sender = host.command("mig-send");
    sender.args(["--timeout", "2", "--progress", "json", "a"]);
    sender.arg("exec:mig-recv -q --name b --console null");
    // Everybody whom it starts holds its stderr as well, so that it has no end.
    let said = host.path("said");
    sender.stdout(Stdio::null()).stderr(File::create(&said).unwrap());
    let mut sender = sender.spawn().unwrap();
    let said = || fs::read_to_string(&said).unwrap();
    // Ten times a second it says how far it is: pre-copy takes a fraction of that, and then the
    // flush is waited for, however long that takes.
    wait("the flush to be waited for", || said().matches(r#""phase":"pre_copy""#).count() > 30);
    console.wait_ticks(3);
    signal(pid, Signal::SIGSTOP);
    wait("mig-send to give up", || sender.try_wait().unwrap().is_some());
    assert!(said().contains("the vmrun of a does not answer"), "{}", said());
    assert_eq!(sender.wait().unwrap().code(), Some(1));
    signal(pid, Signal::SIGKILL);
    // It waits for the end of its delay.
    vmrun.kill().unwrap();
    vmrun.wait().unwrap();
}

#[test]
fn a_slow_disk_counts_in_the_downtime_that_is_promised() {
    needs_kvm!();
    let flush = Duration::from_millis(300);
    let host = Host::new();
    let delay = format!("inject=fdatasync:delay_enter={}", flush.as_micros());
    let Some((console, mut vmrun)) = boot_traced(&host, &format!("-e trace=fdatasync -e {delay}"))
    else {
        return;
    };
    let file = host.path("report.json");
    let recv = "exec:mig-recv -q --name b --console null";
    let send = |options: &[&str]| {
        let mut sender = host.command("mig-send");
        run(sender.args(["-q", "a", recv, "--report"]).arg(&file).args(options))
    };
    send(&["--max-downtime", "100", "--on-stall", "abort"]).refused_with(&["a runs on here"]);
    let needed = report(&file).needed_downtime.expect("what would have been needed");
    assert!(needed >= flush, "the flush alone takes {flush:?} and {needed:?} are said");
    console.wait_ticks(3);

    send(&["--max-downtime", "30000"]).expect(0);
    let downtime = report(&file).downtime;
    let waited = downtime.disk_flush.expect("how long the flush was waited for");
    // It began with the pause and went on beside what was done before.
    assert!(downtime.total.unwrap() >= flush, "{downtime:?}");
    assert!(waited > Duration::ZERO && waited <= downtime.total.unwrap(), "{downtime:?}");
    vmrun.wait().unwrap();
}

#[test]
fn a_commit_takes_a_flush_that_began_after_the_pause() {
    needs_kvm!();
    let host = Host::new();
    let (mut a, image) = boot(&host);
    let socket = host.runtime_dir().join("a.sock");
    let client = Client::connect(&socket, "test").unwrap();
    let id = MigrationId::random();
    let refused = || client.own(Input::Commit(id, None)).unwrap_err().to_string();
    client.own(Input::Begin(id)).unwrap();
    client.flush_disks().unwrap();
    client.pause().unwrap();
    client.save_state().unwrap();
    assert!(refused().contains("before the disks were flushed"), "one of before: {}", refused());
    // Whoever asks for it, the disks are flushed.
    Client::connect(&socket, "test").unwrap().flush_disks().unwrap();
    client.resume().unwrap();
    client.pause().unwrap();
    client.save_state().unwrap();
    assert!(refused().contains("before the disks were flushed"), "in another pause: {}", refused());
    client.flush_disks().unwrap();
    assert!(image.is_held_by(a.pid()));
    client.own(Input::Commit(id, None)).unwrap();
    assert!(!image.is_held_by(a.pid()));
    assert!(a.lives());
}
