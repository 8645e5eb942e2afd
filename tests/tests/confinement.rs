//! What is left to the programs while a guest moves.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, chown, symlink};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use migpipe_tests::{Console, Done, Guest, Host, Image, finish, needs_kvm, run, spec, wait};

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

/// The processes of the programs that confine themselves, with their names.
fn confined(host: &Host) -> Vec<(&'static str, i32)> {
    let mut found = Vec::new();
    wait("all programs to run", || {
        let all = host.processes();
        let of = |name: &'static str| {
            all.iter().filter(move |(_, comm)| comm == name).map(move |(pid, _)| (name, *pid))
        };
        found = CONFINED.iter().flat_map(|name| of(name)).collect();
        // A vmrun on each side.
        found.len() == CONFINED.len() + 1
    });
    found
}

#[test]
fn every_thread_is_confined_while_a_guest_moves() {
    needs_kvm!();
    let host = Host::new();
    let mut guest = Guest::boot(&host, "a", &spec(64, "500", 48), &[]);
    let sending = slow(&host, "exec:mig-recv --name b");
    // Once the first page is on its way every program has done its set-up.
    wait("b to arrive", || host.state("b").is_some_and(|state| state.starts_with("receiving")));
    for (name, pid) in confined(&host) {
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
    // What the host remembers is the user's own, too.
    let memory = ["state/vmrun", "state/vmrun/migrations", "state/vmrun/migrations/host-id"];
    for dir in ["", "run", "state"].into_iter().chain(memory) {
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
    for (name, pid) in confined(&host) {
        let owner = fs::metadata(format!("/proc/{pid}/task")).expect("a process").uid();
        assert_eq!(owner, NOBODY, "of {name}");
        assert_eq!(unconfined(pid), [] as [String; 0], "of {name}");
    }
    finish(sending, Instant::now()).expect(0);
    assert_eq!(host.state("b").as_deref(), Some("running"));
    assert!(guest.wait().expect("a child").success());
}

/// The programs that confine themselves.
const CONFINED: &[&str] = &["mig-send", "mig-recv", "vmrun"];

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
    let all = names(&calls);
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
        let all = names(&calls);
        assert!(all.contains("write") && all.contains("clone"), "{command}: {all:?}");
    }
}

#[test]
fn an_inspector_keeps_to_its_filter_whatever_it_says() {
    needs_kvm!();
    let host = Host::new();
    let _guest = Guest::boot(&host, "a", &spec(64, "500", 16), &[]);
    let file = host.path("a.mig");
    let file = file.to_str().expect("UTF-8");
    host.run("mig-send", &["--quiet", "a", &format!("file:{file}")]).expect(0);
    for look in ["", "--json", "--records", "--records --json"] {
        let Some(calls) = traced(&host, "mig-inspect", |strace| {
            host.sh(&format!("{strace} mig-inspect {look} {file} >/dev/null")).expect(0);
        }) else {
            return;
        };
        assert_only(&calls, &host, "mig-inspect");
        assert!(names(&calls).contains("read"), "{look}");
    }
    // What is no stream, on stdin: it says so and is not killed for it.
    host.sh("mig-inspect </etc/passwd").expect(1);
}

/// What the threads of a process called after they were confined.
type Calls = BTreeMap<String, Vec<Called>>;

struct Called {
    name: String,
    /// It was answered as a call that is outside a filter is.
    refused: bool,
}

fn names(calls: &Calls) -> BTreeSet<&str> {
    calls.values().flatten().map(|called| called.name.as_str()).collect()
}

/// Runs `script` with the command that traces `program`, and returns what each of its threads
/// called after it was confined; nothing where there is no strace.
fn traced(host: &Host, program: &str, script: impl FnOnce(&str)) -> Option<Calls> {
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
fn calls_of(trace: &str) -> Calls {
    let mut calls = Calls::new();
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
            let called = Called { name: name.to_owned(), refused: result.starts_with("-1 ENOSYS") };
            calls.entry(thread.to_owned()).or_default().push(called);
        } else if name == "seccomp" && entering.contains(thread) {
            calls.insert(thread.to_owned(), Vec::new());
        }
    }
    calls
}

/// The names in the filters that `program` shows, and those of the calls that are answered without
/// being done.
fn tables(host: &Host, program: &str) -> [BTreeSet<String>; 2] {
    let shown = host.run(program, &["--show-confinement"]).expect(0).stdout;
    let (filters, answered) = shown.split_once("answered with").expect("the last table");
    [filters, answered].map(|text| {
        let lines = text.lines().filter_map(|line| line.strip_prefix("  "));
        lines.filter_map(|line| Some(line.split_whitespace().next()?.to_owned())).collect()
    })
}

#[track_caller]
fn assert_only(calls: &Calls, host: &Host, program: &str) {
    assert!(!calls.is_empty(), "{program} was not confined");
    let [table, answered] = tables(host, program);
    assert!(table.contains("futex") && !table.contains("execve"), "{table:?}");
    let of_the_library = |called: &&Called| answered.contains(&called.name);
    let outside: BTreeSet<_> = calls
        .values()
        .flatten()
        .filter(|called| called.refused || !table.contains(&called.name))
        .filter(|called| !of_the_library(called))
        .map(|called| &called.name)
        .collect();
    assert!(outside.is_empty(), "outside the filter: {outside:?}");
}

/// A traced vmrun with every device that needs nothing of the host.
fn with_devices(host: &Host, strace: &str) -> Child {
    let image = Image::create(&host.path("web.raw"), 64);
    let script = format!(
        "exec {strace} vmrun --log=error --name a --mem 64M --cpus 2 --kernel {} --rng --balloon \
         --disk {} --console file:{} --virtio-console unix:{}",
        spec(1024, "max", 8),
        image.name(),
        host.path("a.console").display(),
        host.path("a.hvc0").display(),
    );
    host.shell(&script).spawn().expect("a shell starts")
}

#[test]
fn a_vmrun_keeps_to_its_filters_in_whatever_its_guest_goes_through() {
    needs_kvm!();
    let host = Host::new();
    let there = Host::new();
    let mut stays = None;
    let Some(calls) = traced(&host, "vmrun", |strace| {
        let guest = with_devices(&host, strace);
        let console = Console::at(&host.path("a.console"));
        console.wait_for("ready");
        let mut typist = UnixStream::connect(host.path("a.hvc0")).expect("its virtio console");
        typist.write_all(b"typed").expect("a socket takes it");
        for command in ["pause a", "resume a", "balloon a 48M", "status a"] {
            host.sh(&format!("vmctl {command}")).expect(0);
        }
        // Too slow for what the guest dirties, so that it is throttled; and then it is cancelled.
        let mut slow = host.command("mig-send");
        let limits =
            ["--quiet", "--max-bandwidth=16M", "--max-downtime=100", "a", "exec:cat >/dev/null"];
        let slow = slow.args(limits).arg("--one-way").stderr(Stdio::piped()).spawn();
        let slow = slow.expect("mig-send starts");
        wait("a throttled guest", || {
            let status = host.run("vmctl", &["status", "a"]).stdout;
            status.contains("throttle")
        });
        host.run("vmctl", &["cancel", "a"]).expect(0);
        finish(slow, Instant::now()).expect(3);
        console.wait_ticks(2);
        let script = format!(
            "mig-recv --quiet --name b --console null --disk disk0={} \
                              --virtio-console null",
            Image::create(&there.path("b.raw"), 64).name()
        );
        let recv = there.remote(&script);
        host.run("mig-send", &["--quiet", "--max-downtime=5000", "a", &format!("exec:{recv}")])
            .expect(0);
        stays = Some(guest);
    }) else {
        return;
    };
    assert!(stays.expect("set above").wait().expect("a child").success());
    assert_only(&calls, &host, "vmrun");
    let all = names(&calls);
    for call in ["ioctl", "tgkill", "epoll_wait", "accept4", "memfd_create"] {
        assert!(all.contains(call), "{call} is not in {all:?}");
    }
}

#[test]
fn a_vmrun_keeps_to_its_filters_while_a_guest_arrives() {
    needs_kvm!();
    let host = Host::new();
    let Some(calls) = traced(&host, "vmrun", |strace| {
        let incoming = "vmrun --log=error --name b --incoming --go-timeout 2";
        let files = host.path("").display().to_string();
        let script = format!("exec {strace} {incoming} --files-in {files}");
        let mut b = host.shell(&script).spawn().expect("a shell starts");
        wait("b to listen", || host.state("b").as_deref() == Some("incoming"));
        let image = Image::create(&host.path("web.raw"), 64);
        let console = format!("--virtio-console=file:{}", host.path("a.hvc0").display());
        let devices = ["--rng", "--balloon", "--disk", image.name(), &console];
        let _a = Guest::boot(&host, "a", &spec(64, "500", 16), &devices);
        // What it cannot have leaves it waiting for the next.
        let refused = host.sh("mig-send --quiet a exec:'mig-recv --vm b --disk disk0=/no/such'");
        refused.expect(1);
        assert_eq!(host.state("b").as_deref(), Some("incoming"));
        let socket = host.path("b.hvc0");
        host.sh(&format!(
            "mig-send --quiet a exec:'mig-recv --quiet --vm b --console null \
                          --virtio-console unix:{}'",
            socket.display()
        ))
        .expect(0);
        assert_eq!(host.state("b").as_deref(), Some("running"));
        let mut typist = UnixStream::connect(socket).expect("its virtio console");
        typist.write_all(b"typed").expect("a socket takes it");
        host.sh("vmctl pause b && vmctl resume b && vmctl quit b").expect(0);
        assert!(b.wait().expect("a child").success());
    }) else {
        return;
    };
    assert_only(&calls, &host, "vmrun");
    let all = names(&calls);
    for call in ["ioctl", "openat", "eventfd2", "fsync", "linkat", "rename"] {
        assert!(all.contains(call), "{call} is not in {all:?}");
    }
}

/// Leads the records of `host` to a directory outside, and tries to bring a guest there to a vmrun
/// that was started before with `confine`. Says how mig-send ended and how much is outside then.
fn records_led_outside(confine: &str) -> (Done, usize) {
    let host = Host::new();
    let mut a = Guest::boot(&host, "a", &spec(64, "500", 16), &[]);
    let mut b = host.command("vmrun");
    let mut b = b
        .args(["--log=error", "--name=b", "--incoming", confine])
        .stderr(Stdio::piped())
        .spawn()
        .expect("vmrun starts");
    wait("b to listen", || host.state("b").as_deref() == Some("incoming"));
    let (records, outside) = (host.path("state/vmrun/migrations"), host.path("outside"));
    fs::rename(&records, host.path("state/vmrun/before")).expect("b has made it");
    fs::create_dir(&outside).expect("a directory");
    symlink(&outside, &records).expect("a link");
    let sent = host.run("mig-send", &["--quiet", "a", "exec:mig-recv --quiet --vm b"]);
    if sent.status != Some(0) {
        a.assert_runs();
    }
    let _ = b.kill();
    let _ = b.wait();
    let there = fs::read_dir(&outside).expect("a directory").count();
    (sent, there)
}

#[test]
fn a_running_vmrun_opens_no_file_outside_its_records() {
    needs_kvm!();
    if !migpipe_confine::restricts_files() {
        println!("SKIPPED the files of a running vmrun: this kernel has no landlock");
        return;
    }
    let (sent, there) = records_led_outside("--confine=off");
    assert_eq!((sent.status, there), (Some(0), 1), "the test would see it: {sent:?}");
    let (sent, there) = records_led_outside("--confine=enforce");
    let said = sent.expect(1).stderr;
    assert!(said.contains("Permission denied") && said.contains("a runs on here"), "{said}");
    assert_eq!(there, 0);
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
    // The vmrun that it started too, in its log.
    let log = fs::read_to_string(host.path("state/vmrun/log/b.log")).expect("the log of b");
    assert!(log.contains("--confine off"), "{log}");
    assert_ne!(unconfined(host.pid("b").expect("b runs")), [] as [String; 0]);
}

#[test]
fn files_that_a_stream_names_are_opened_where_they_may_be_and_nowhere_else() {
    needs_kvm!();
    let host = Host::new();
    let dir = |name: &str| {
        let path = host.path(name);
        fs::create_dir(&path).expect("a directory");
        path
    };
    let (images, links) = (dir("images"), dir("links"));
    let image = Image::create(&images.join("web.raw"), 64);
    let link = links.join("web.raw");
    symlink(image.name(), &link).expect("a link");
    let disk = link.to_str().expect("UTF-8");
    let mut a = Guest::boot(&host, "a", &spec(64, "500", 16), &["--mem", "64M", "--disk", disk]);
    let receive = |name: &str, files: &Path, options: &str| {
        let files = files.display();
        format!("exec:mig-recv --quiet --name {name} --files-in {files} {options}")
    };
    let send = |guest: &str, to: &str| host.run("mig-send", &["--quiet", guest, to]);

    let refused = send("a", &receive("b", &links, "")).expect(1).stderr;
    for word in ["serial console is at", "a.console", "--console", "--files-in"] {
        assert!(refused.contains(word), "{refused}");
    }
    let b = links.join("b.console");
    let console = format!("--console file:{}", b.display());
    let refused = send("a", &receive("b", &links, &console)).expect(1).stderr;
    for word in ["block disk0 is at", disk, "--disk", "--files-in"] {
        assert!(refused.contains(word), "{refused}");
    }
    assert!(!b.exists(), "nothing was made for a guest that was refused");
    a.assert_runs();

    // Where the link leads it may be, and what is named on the command line is meant.
    send("a", &receive("b", &images, &console)).expect(0);
    assert_eq!(a.ended(), Some(0));
    assert!(image.is_held_by(host.pid("b").expect("b runs")));
    Console::at(&b).wait_ticks(3);
    let copy = Image::create(&host.path("copy.raw"), 64);
    let named = format!("{console} --disk disk0={}", copy.name());
    send("b", &receive("c", &dir("empty"), &named)).expect(0);
    assert!(copy.is_held_by(host.pid("c").expect("c runs")));
}
