//! `mig-send -n DEST` knows before, and changes nothing at either host.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use migpipe_tests::{Done, Guest, Host, Scripted, needs_kvm, spec};
use serde_json::Value;

/// Every file of a host that holds something, with what it holds; but the console of a guest that runs.
fn files(host: &Host) -> BTreeMap<PathBuf, Vec<u8>> {
    let (mut found, mut dirs) = (BTreeMap::new(), vec![host.path("")]);
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_none_or(|it| it != "console") {
                let bytes = fs::read(&path).unwrap_or_default();
                found.insert(path, bytes);
            }
        }
    }
    found
}

/// A way from one host to a mig-recv on another.
fn way(there: &Host, options: &str) -> String {
    format!("exec:{}", there.remote(&format!("mig-recv --console null {options}")))
}

/// What is said of a move of `a` with these options; it ends with `status`.
#[track_caller]
fn asked(host: &Host, options: &[&str], dest: &str, status: i32) -> Value {
    let args = [&["-n", "--json"], options, &["a", dest]].concat();
    let Done { stdout, .. } = host.run("mig-send", &args).expect(status);
    serde_json::from_str(&stdout).unwrap()
}

/// The subjects of what is in the way.
fn in_the_way(said: &Value) -> Vec<String> {
    let findings = said["findings"].as_array().unwrap().iter();
    let bad = findings.filter(|finding| finding["in_the_way"] == true);
    bad.map(|finding| finding["subject"].as_str().unwrap().to_owned()).collect()
}

fn text_of(said: &Value, subject: &str) -> String {
    let findings = said["findings"].as_array().unwrap();
    let found = findings.iter().find(|finding| finding["subject"] == subject);
    found.unwrap_or_else(|| panic!("{subject}: {said}"))["text"].as_str().unwrap().to_owned()
}

#[test]
fn a_destination_that_would_take_the_guest_says_so_and_nothing_changes_at_either_host() {
    needs_kvm!();
    let (here, there) = (Host::new(), Host::fresh());
    let log = here.path("vmrun.console");
    let boot = format!(
        "exec vmrun --name a --kernel '{}' --mem 64M --console file:{} --log info 2>{}",
        spec(256, "2000", 32),
        here.path("a.console").display(),
        log.display()
    );
    let mut vmrun = here.shell(&boot).spawn().unwrap();
    let console = migpipe_tests::Console::at(&here.path("a.console"));
    console.wait_for("ready");
    let before = (files(&here), files(&there));
    let dest = way(&there, "");
    let said = asked(&here, &["--max-bandwidth", "16M"], &dest, 0);
    assert_eq!(said["possible"], true, "{said}");
    assert_eq!(in_the_way(&said), [""; 0], "{said}");
    for subject in ["programs", "guest", "name", "processor", "memory", "serial serial0"] {
        text_of(&said, subject);
    }
    assert_eq!((files(&here), files(&there)), before, "{said}");
    assert!(there.records().is_empty() && there.sockets().is_empty());
    assert_eq!(here.state("a").as_deref(), Some("running"));
    console.wait_ticks(3);
    // The log was on for that time alone, once.
    let logged = fs::read_to_string(&log).unwrap();
    let (on, off) = (logged.find("dirty log is on"), logged.find("dirty log is off"));
    assert!(on.is_some() && on < off, "{logged}");
    assert_eq!(logged.matches("dirty log is").count(), 2, "{logged}");
    // 33 MiB at 16 MiB/s: two seconds, give or take what a busy host takes for itself.
    let total = said["forecast"]["total_ns"].as_u64().unwrap();
    assert!((1_500_000_000..6_000_000_000).contains(&total), "{said}");
    let sent = said["forecast"]["sent_bytes"].as_u64().unwrap();
    assert!((33 << 20..48 << 20).contains(&sent), "{said}");
    assert!(said["forecast"]["downtime_ns"].as_u64().unwrap() < 100_000_000, "{said}");
    let written = said["dirtying"]["working_set_pages"].as_u64().unwrap();
    assert!((256..1024).contains(&written), "{said}");

    // It moves as if nothing had been.
    here.run("mig-send", &["-q", "a", &dest]).expect(0);
    assert_eq!(vmrun.wait().unwrap().code(), Some(0));
    assert_eq!(there.state("a").as_deref(), Some("running"));
    there.run("vmctl", &["quit", "a"]).expect(0);
}

#[test]
fn what_is_in_the_way_is_named_all_of_it_at_once_and_the_guest_runs_on() {
    needs_kvm!();
    let (here, there) = (Host::new(), Host::new());
    let image = here.path("disk.raw");
    fs::write(&image, vec![0; 1 << 20]).unwrap();
    let disk = image.to_str().unwrap();
    let mut a = Guest::boot(&here, "a", &spec(64, "500", 8), &["--mem", "64M", "--disk", disk]);
    let mut taken = Guest::boot(&there, "a", &spec(64, "500", 8), &["--mem", "64M"]);
    let before = (files(&here), files(&there));
    // The name, and a disk that is where none may be.
    let said = asked(&here, &[], &way(&there, ""), 1);
    assert_eq!(in_the_way(&said), ["name", "block disk0"], "{said}");
    assert!(text_of(&said, "name").contains("on this host already"), "{said}");
    assert!(text_of(&said, "block disk0").contains("--files-in"), "{said}");
    assert_eq!((&said["possible"], &said["forecast"]), (&Value::Bool(false), &Value::Null));
    // A disk that is not there, or is of another length; a console that cannot be made.
    let gone = way(&there, "--name b --disk disk0=/nonexistent/disk.raw");
    let said = asked(&here, &[], &gone, 1);
    assert_eq!(in_the_way(&said), ["block disk0"], "{said}");
    let short = there.path("short.raw");
    fs::write(&short, vec![0; 1 << 16]).unwrap();
    let shorter = format!("--name b --disk disk0={}", short.display());
    assert_eq!(in_the_way(&asked(&here, &[], &way(&there, &shorter), 1)), ["block disk0"]);
    let console = "mig-recv --name b --files-anywhere --console file:/nonexistent/b.log";
    let dest = format!("exec:{}", there.remote(console));
    assert_eq!(in_the_way(&asked(&here, &[], &dest, 1)), ["serial serial0"]);
    // What the receiver was told to refuse.
    let small = way(&there, "--name b --max-mem 32M --files-anywhere");
    assert!(text_of(&asked(&here, &[], &small, 1), "guest").contains("--max-mem"));
    fs::remove_file(short).unwrap();
    assert_eq!((files(&here), files(&there)), before);
    // And where nothing is.
    let said = asked(&here, &[], &way(&there, "--name b --files-anywhere"), 0);
    assert_eq!(said["possible"], true, "{said}");
    a.assert_runs();
    taken.assert_runs();
    assert_eq!(here.state("a").as_deref(), Some("running"));
}

#[test]
fn each_part_of_a_processor_that_is_not_there_is_named() {
    needs_kvm!();
    let host = Host::new();
    // Its guest has a processor of no manufacturer, and no device at all.
    let scripted = Scripted::running(host.path("scripted.sock"), &[1], |_, _| {});
    let socket = scripted.socket().to_str().unwrap().to_owned();
    let done = host.run("mig-send", &["-n", &socket, &way(&host, "--name b")]).expect(1);
    for words in ["NO  processor", "by", "NO  devices", "serial", "would not move"] {
        assert!(done.stderr.contains(words), "{}: {done:#?}", words);
    }
    assert!(host.records().is_empty());
}

#[test]
fn a_downtime_that_cannot_be_kept_is_in_the_way_too() {
    needs_kvm!();
    let (here, there) = (Host::new(), Host::new());
    let mut a = Guest::boot(&here, "a", &spec(4096, "max", 24), &["--mem", "64M"]);
    let narrow = ["--max-bandwidth", "16M", "--max-downtime", "50", "--on-stall", "abort"];
    let said = asked(&here, &narrow, &way(&there, ""), 1);
    assert_eq!(in_the_way(&said), ["downtime"], "{said}");
    assert_eq!(said["forecast"]["ended_by"], "no_progress", "{said}");
    let more = [&narrow[..4], &["--on-stall", "stop"]].concat();
    let said = asked(&here, &more, &way(&there, ""), 0);
    // 16 MiB at no less than that rate.
    assert!(said["forecast"]["downtime_ns"].as_u64().unwrap() > 5_000_000, "{said}");
    a.assert_runs();
}

#[test]
fn a_destination_that_cannot_answer_is_no_answer() {
    needs_kvm!();
    let host = Host::new();
    let mut a = Guest::boot(&host, "a", &spec(64, "500", 8), &["--mem", "64M"]);
    for (dest, words) in [
        ("exec:exit 3", "status 3"),
        // As a release that knows no such stream: what it says comes back.
        ("exec:mig-recv --vm nobody", "--vm"),
        ("tcp:127.0.0.1:1", "127.0.0.1:1"),
    ] {
        let done = host.run("mig-send", &["-n", "a", dest]);
        assert_eq!(done.status, Some(1), "{dest}: {done:#?}");
        assert!(done.stderr.contains(words), "{dest}: {done:#?}");
    }
    // A filter that holds data back is named, and a DEST without a way back is not asked.
    let held = host
        .run("mig-send", &["-n", "--ready-timeout", "1", "a", "exec:gzip | gunzip | mig-recv"])
        .expect(1);
    assert!(held.stderr.contains("holds data back"), "{held:#?}");
    for dest in [&["-"][..], &["file:a.mig"], &["--one-way", "exec:exit 3"]] {
        let done = host.run("mig-send", &[&["-n", "a"], dest].concat()).expect(0);
        assert!(done.stderr.contains("round 0 would send"), "{done:#?}");
    }
    assert!(!Path::new("a.mig").exists());
    a.assert_runs();
}

#[test]
fn a_guest_is_measured_by_one_at_a_time_and_a_migration_goes_first() {
    needs_kvm!();
    let host = Host::new();
    let mut a = Guest::boot(&host, "a", &spec(64, "500", 8), &["--mem", "64M"]);
    let socket = host.runtime_dir().join("a.sock");
    // One that measures keeps the next from it, for as long as its connection lasts.
    let client = vm_control::Client::connect(&socket, "test").unwrap();
    let machine = client.describe().unwrap();
    client.measure_dirtying(&machine).unwrap();
    client.dirty_log_harvest().unwrap();
    host.run("mig-send", &["-n", "a", "exec:mig-recv --name b --console null"])
        .refused_with(&["measured already"]);
    // A migration takes the log away.
    host.run("mig-send", &["-q", "a", "exec:mig-recv -q --name b --console null"]).expect(0);
    client.dirty_log_harvest().unwrap_err();
    assert_eq!(a.ended(), Some(0));
    host.run("vmctl", &["quit", "b"]).expect(0);
}
