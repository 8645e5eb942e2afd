//! What is left to the programs while a guest moves.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use migpipe_tests::{Guest, Host, finish, needs_kvm, run, spec, wait};

/// A migration that takes a while, so that it can be looked at.
fn slow(host: &Host, destination: &str) -> Child {
    host.command("mig-send")
        .args(["--quiet", "--max-bandwidth=20M", "--max-downtime=10000", "a"])
        .arg(destination)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("mig-send starts")
}

/// The value of a field in a thread's status (proc(5)).
fn field(status: &str, name: &str) -> Option<String> {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(line.trim().to_owned())
}

/// The threads of a process that are not confined.
fn unconfined(pid: i32) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("a process");
    let statuses =
        tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("status")).ok());
    statuses
        .filter(|status| {
            let is = |name, value: &str| field(status, name).as_deref() == Some(value);
            !(is("Seccomp", "2") && is("NoNewPrivs", "1"))
        })
        .map(|status| field(&status, "Name").unwrap_or_default())
        .collect()
}

fn process(host: &Host, name: &str) -> i32 {
    let mut found = None;
    wait(&format!("{name} to start"), || {
        found = host.processes().into_iter().find(|(_, comm)| comm == name);
        found.is_some()
    });
    found.expect("waited for").0
}

#[test]
fn every_thread_is_confined_while_a_guest_moves() {
    needs_kvm!();
    let host = Host::new();
    let mut guest = Guest::boot(&host, "a", &spec(64, "500", 48), &[]);
    let sending = slow(&host, "exec:mig-recv --name b");
    // Once the first page is on its way every program has done its set-up.
    wait("b to arrive", || host.state("b").is_some_and(|state| state.starts_with("receiving")));
    for (name, pid) in CONFINED.iter().map(|name| (*name, process(&host, name))) {
        assert_eq!(unconfined(pid), [] as [String; 0], "of {name}");
    }
    finish(sending, Instant::now()).expect(0);
    assert_eq!(guest.ended(), Some(0));
}

/// The user and the group nobody.
const NOBODY: u32 = 65534;

/// Runs `$SCRIPT` as nobody, who may open a /dev/kvm of its own.
const AS_NOBODY: &str = r#"exec unshare --mount bash -ec '
    [ -e "$KVM" ] || mknod --mode=666 "$KVM" c $(stat --format="0x%t 0x%T" /dev/kvm)
    mount --bind "$KVM" /dev/kvm
    exec setpriv --reuid=65534 --regid=65534 --clear-groups bash -c "$SCRIPT"'"#;

fn as_nobody(host: &Host, script: &str) -> Command {
    let mut command = host.shell(AS_NOBODY);
    command.env("KVM", host.path("kvm")).env("SCRIPT", script);
    command
}

/// Gives the host to nobody; says what is missing where that is not possible.
fn give_to_nobody(host: &Host) -> Result<(), String> {
    if fs::metadata("/proc/self").expect("this process").uid() != 0 {
        return Err("only root can become nobody".into());
    }
    for dir in ["", "run", "state"] {
        chown(host.path(dir), Some(NOBODY), Some(NOBODY)).expect("root gives directories away");
    }
    let tried = run(&mut as_nobody(host, "vmrun --version >/dev/null && : <>/dev/kvm"));
    if tried.status == Some(0) { Ok(()) } else { Err(tried.stderr) }
}

#[test]
fn an_ordinary_user_moves_a_guest_and_is_confined() {
    needs_kvm!();
    let host = Host::new();
    if let Err(why) = give_to_nobody(&host) {
        println!("SKIPPED a migration by nobody: {}", why.trim());
        return;
    }
    let kernel = spec(64, "500", 48);
    let vmrun = format!("exec vmrun --log=error --name a --kernel {kernel}");
    let mut guest = as_nobody(&host, &vmrun).spawn().expect("a shell starts");
    wait("a to run", || host.state("a").is_some_and(|state| state == "running"));
    let send = "exec mig-send --quiet --max-bandwidth=20M --max-downtime=10000 a \
                'exec:exec mig-recv --name b'";
    let sending = as_nobody(&host, send)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("a shell starts");
    wait("b to arrive", || host.state("b").is_some_and(|state| state.starts_with("receiving")));
    for (name, pid) in CONFINED.iter().map(|name| (*name, process(&host, name))) {
        let owner = fs::metadata(format!("/proc/{pid}/task")).expect("a process").uid();
        assert_eq!(owner, NOBODY, "of {name}");
        assert_eq!(unconfined(pid), [] as [String; 0], "of {name}");
    }
    finish(sending, Instant::now()).expect(0);
    assert_eq!(host.state("b").as_deref(), Some("running"));
    assert!(guest.wait().expect("a child").success());
}

/// The programs that confine themselves.
const CONFINED: &[&str] = &["mig-send", "mig-recv"];

#[test]
fn a_receiver_is_killed_for_nothing_and_keeps_to_its_filter() {
    needs_kvm!();
    let host = Host::new();
    let Some(calls) = traced(&host, "mig-recv", |strace| {
        let _guest = Guest::boot(&host, "a", &spec(64, "500", 16), &[]);
        let send = format!("mig-send --quiet a exec:'{strace} mig-recv --quiet --name b'");
        host.sh(&send).expect(0);
    }) else {
        return;
    };
    assert_only(&calls, &host, "mig-recv");
    // It did not keep to it by doing nothing.
    let all: BTreeSet<_> = calls.values().flatten().map(String::as_str).collect();
    assert!(all.contains("recvfrom") && all.contains("clone"), "{all:?}");
}

#[test]
fn a_sender_keeps_to_its_filter_whatever_it_sends_to() {
    needs_kvm!();
    let host = Host::new();
    for command in [
        "mig-send --report r --verify a exec:'mig-recv --quiet --name b'",
        "mig-send --progress json a exec:'gzip -1 | gunzip | mig-recv --quiet --name b' \
         --commit exec:'vmctl commit b'",
        "mig-send --report r --zero-copy a | mig-recv --quiet --name b",
        "mig-send a file:b.mig",
    ] {
        let Some(calls) = traced(&host, "mig-send", |strace| {
            let _guest = Guest::boot(&host, "a", &spec(64, "500", 16), &[]);
            let dir = host.path("");
            host.sh(&format!("cd {} && {strace} {command}", dir.display())).expect(0);
            host.run("vmctl", &["quit", "--force", "a"]);
            host.run("vmctl", &["quit", "b"]);
        }) else {
            return;
        };
        assert_only(&calls, &host, "mig-send");
        let all: BTreeSet<_> = calls.values().flatten().map(String::as_str).collect();
        assert!(all.contains("write") && all.contains("clone"), "{command}: {all:?}");
    }
}

/// Runs `script` with the command that traces `program`, and returns what each of its threads
/// called after it was confined; nothing where there is no strace.
fn traced(
    host: &Host,
    program: &str,
    script: impl FnOnce(&str),
) -> Option<BTreeMap<String, Vec<String>>> {
    if Command::new("strace").arg("-V").stdout(Stdio::null()).status().is_err() {
        println!("SKIPPED the calls of {program}: there is no strace");
        return None;
    }
    let trace = host.path("trace");
    // What it starts is another program, with rights of its own.
    script(&format!("strace -f -b execve -qq -o {}", trace.display()));
    let text = fs::read_to_string(&trace).expect("strace writes what it saw");
    Some(calls_of(&text))
}

/// From the lines of `strace -f -o`: `PID CALL(...) = RESULT`, or `PID <... CALL resumed> ...`. The
/// threads and processes of a confined thread are confined too.
fn calls_of(trace: &str) -> BTreeMap<String, Vec<String>> {
    let mut calls: BTreeMap<String, Vec<String>> = BTreeMap::new();
    // Another thread may have its say in the middle of the call that confines this one.
    let mut entering = BTreeSet::new();
    for line in trace.lines() {
        let Some((thread, rest)) = line.split_once(' ') else { continue };
        let rest = rest.trim_start();
        let resumed = rest.strip_prefix("<... ").and_then(|rest| rest.split_once(" resumed>"));
        let (name, unfinished) = match (resumed, rest.split_once('(')) {
            (Some((name, _)), _) => (name, rest.ends_with("<unfinished ...>")),
            (None, Some((name, _))) => (name, rest.ends_with("<unfinished ...>")),
            (None, None) => continue,
        };
        let is_name = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if !is_name {
            continue;
        }
        if name == "seccomp" && rest.contains("SECCOMP_SET_MODE_FILTER") {
            entering.insert(thread);
        }
        if unfinished {
            continue;
        }
        let result = rest.rsplit_once(" = ").map_or("", |(_, result)| result);
        let born = result.split(' ').next().filter(|born| born.parse::<u32>().is_ok());
        let confined = calls.contains_key(thread);
        if let (true, "clone" | "clone3", Some(born)) = (confined, name, born) {
            calls.entry(born.to_owned()).or_default();
        }
        if confined {
            calls.entry(thread.to_owned()).or_default().push(name.to_owned());
        } else if name == "seccomp" && entering.contains(thread) {
            calls.insert(thread.to_owned(), Vec::new());
        }
    }
    calls
}

/// The names in the filters that `program` shows.
fn table(host: &Host, program: &str) -> BTreeSet<String> {
    let shown = host.run(program, &["--show-confinement"]).expect(0).stdout;
    let lines = shown.lines().filter_map(|line| line.strip_prefix("  "));
    lines.filter_map(|line| Some(line.split_whitespace().next()?.to_owned())).collect()
}

#[track_caller]
fn assert_only(calls: &BTreeMap<String, Vec<String>>, host: &Host, program: &str) {
    assert!(!calls.is_empty(), "{program} was not confined");
    let table = table(host, program);
    assert!(table.contains("futex") && !table.contains("execve"), "{table:?}");
    let outside: BTreeSet<_> =
        calls.values().flatten().filter(|name| !table.contains(*name)).collect();
    assert!(outside.is_empty(), "outside the filter: {outside:?}");
}

#[test]
fn confinement_can_be_switched_off_and_says_so() {
    needs_kvm!();
    let host = Host::new();
    let _guest = Guest::boot(&host, "a", &spec(64, "500", 16), &[]);
    let sent =
        host.sh("mig-send --quiet a exec:'mig-recv --quiet --confine=off --name b'").expect(0);
    assert!(sent.stderr.contains("--confine off"), "{}", sent.stderr);
    run(host.command("mig-recv").arg("--confine=sometimes")).expect(2);
}
