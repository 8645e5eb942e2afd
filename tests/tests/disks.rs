//! Disks of a guest that moves: the lock of an image is held by whoever may run the guest.

use std::fs;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use migpipe_tests::{
    Console, Guest, Host, Image, assert_one_story, finish, needs_kvm, report, run, spec, wait,
};

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
            "its sender killed" => kill(sender.id() as i32),
            _ => kill(host.pid("b").unwrap()),
        }
        let done = finish(sender, Instant::now());
        assert_ne!(done.status, Some(0), "{how}: {done:#?}");
        a.assert_runs();
        assert!(image.is_held_by(a.pid()), "{how}: the source has lost its image");
        wait("the destination to go", || host.state("b").is_none());
        assert_one_story(&[&a.console]);
    }
}

fn kill(pid: i32) {
    use nix::sys::signal::{Signal, kill};
    kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL).unwrap();
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
