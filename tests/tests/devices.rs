//! A guest with a virtio console and a balloon, from its command line to another host.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

use migpipe_tests::{Guest, Host, assert_one_story, needs_kvm, spec};
use nix::fcntl::{FallocateFlags, fallocate};

const MIB: u64 = 1 << 20;
const MEMORY: u64 = 64 * MIB;
/// Memory that the guest of these tests does not touch.
const SPARE: u64 = 40 * MIB;

fn booted(host: &Host) -> Guest {
    let console = format!("--virtio-console=file:{}", host.path("a.hvc0").display());
    Guest::boot(host, "a", &spec(64, "2000", 8), &["--mem", "64M", "--balloon", &console])
}

/// What a guest was asked to do with, in bytes.
fn target(host: &Host, guest: &str) -> Option<u64> {
    let done = host.run("vmctl", &["status", guest, "--json"]);
    let value: serde_json::Value = serde_json::from_str(&done.stdout).ok()?;
    value["balloon"]["target_bytes"].as_u64()
}

/// The memory of a guest as its vmrun has it open.
fn memory_file(guest: &Guest) -> File {
    let all = fs::read_dir(format!("/proc/{}/fd", guest.pid())).unwrap();
    let is_memory = |path: &PathBuf| fs::metadata(path).is_ok_and(|file| file.len() == MEMORY);
    let path = all.map(|entry| entry.unwrap().path()).find(is_memory).unwrap();
    File::options().read(true).write(true).open(path).unwrap()
}

#[test]
fn a_guest_with_a_balloon_moves_whole_and_is_still_asked_for_what_it_was() {
    needs_kvm!();
    for way in ["--verify", "--zero-copy"] {
        let host = Host::new();
        let mut a = booted(&host);
        host.run("vmctl", &["balloon", "a", "48M"]).expect(0);
        assert_eq!(target(&host, "a"), Some(48 * MIB));
        let b = a.console_of("b");
        let there = host.path("b.hvc0");
        let destination = format!(
            "exec:mig-recv --name b --console file:{} --virtio-console file:{}",
            b.path().display(),
            there.display()
        );
        host.run("mig-send", &["a", &destination, way]).expect(0);
        assert_eq!(a.ended(), Some(0));
        b.wait_ticks(10);
        assert_one_story(&[&a.console, &b]);
        assert_eq!(target(&host, "b"), Some(48 * MIB));
        assert!(there.exists(), "its virtio console is where the destination says");
        host.run("vmctl", &["balloon", "b", "64M"]).expect(0);
        assert_eq!(target(&host, "b"), Some(MEMORY));
    }
}

#[test]
fn memory_that_was_given_back_is_not_sent_and_not_brought_back_by_the_look() {
    needs_kvm!();
    let host = Host::new();
    let a = booted(&host);
    let memory = memory_file(&a);
    let raw = || {
        let said = host.run("mig-send", &["-n", "a"]).expect(0).stderr;
        let sent = said.split_once("would send").unwrap().1;
        let pages = sent.split_once('(').unwrap().1.split_once(' ').unwrap().0;
        pages.replace(',', "").parse::<u64>().unwrap()
    };
    let before = raw();
    let junk: Vec<u8> = (0..4 * MIB).map(|at| (at % 251) as u8).collect();
    memory.write_all_at(&junk, SPARE).unwrap();
    let full = raw();
    assert!(full >= before + 1024, "{before} pages, then {full}");
    let with = memory.metadata().unwrap().blocks();
    let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&memory, hole, SPARE as i64, 4 * MIB as i64).unwrap();
    let without = memory.metadata().unwrap().blocks();
    assert!(with - without >= 3 * MIB / 512, "{with} blocks, then {without}");
    assert!(raw() <= full - 1024);
    let after = memory.metadata().unwrap().blocks();
    assert!(after < without + MIB / 512, "the look has brought it back: {without}, then {after}");
}

#[test]
fn what_cannot_be_is_refused_with_what_can() {
    needs_kvm!();
    let host = Host::new();
    let plain = Guest::boot(&host, "plain", &spec(0, "0", 0), &["--mem", "32M"]);
    let refused = host.run("vmctl", &["balloon", "plain", "16M"]).expect(1);
    assert!(refused.stderr.contains("--balloon"), "{}", refused.stderr);
    assert_eq!(target(&host, "plain"), None);
    drop(plain);

    let mut a = booted(&host);
    for size in ["0", "65M"] {
        let refused = host.run("vmctl", &["balloon", "a", size]).expect(1);
        assert!(refused.stderr.contains("64.0 MiB"), "{}", refused.stderr);
    }
    for console in ["--console", "--virtio-console"] {
        let destination = format!("exec:mig-recv --name b {console} stdio");
        let refused = host.run("mig-send", &["a", &destination]).expect(1);
        assert!(refused.stderr.contains("no terminal"), "{}", refused.stderr);
    }
    a.assert_runs();
    let kernel = spec(0, "0", 0);
    let twice = ["--name", "c", "--kernel", &kernel, "--console", "stdio", "--virtio-console"];
    let refused = host.run("vmrun", &[&twice[..], &["stdio"]].concat()).expect(2);
    assert!(refused.stderr.contains("one console's only"), "{}", refused.stderr);
    let huge = ["--name", "c", "--kernel", &kernel, "--hugepages", "--balloon"];
    host.run("vmrun", &huge).expect(2);
}
