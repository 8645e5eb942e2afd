//! What systemd is given: messages of vmrun, units, and what they call.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use migpipe_tests::{Guest, HANG_TIMEOUT, Host, needs_kvm, run, spec, wait, wait_within};

/// The most that `systemd-analyze security` may count against a unit, in tenths: 10 is everything.
const MOST_EXPOSED: u32 = 40;

fn units() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/systemd")
}

fn small() -> String {
    spec(16, "200", 4)
}

/// The service manager, as far as it reads.
struct Manager(UnixDatagram);

impl Manager {
    fn of(host: &Host) -> (Self, PathBuf) {
        let path = host.path("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(HANG_TIMEOUT)).unwrap();
        (Self(socket), path)
    }

    fn next(&self) -> String {
        let mut room = [0; 4096];
        let length = self.0.recv(&mut room).expect("a message");
        String::from_utf8(room[..length].to_vec()).unwrap()
    }

    /// The next message with `text` in it.
    fn wait_for(&self, text: &str) -> String {
        loop {
            let message = self.next();
            if message.contains(text) {
                return message;
            }
        }
    }

    /// All that has come and was not read, of processes that have ended.
    fn rest(&self) -> Vec<String> {
        self.0.set_nonblocking(true).unwrap();
        let mut room = [0; 4096];
        let mut messages = Vec::new();
        while let Ok(length) = self.0.recv(&mut room) {
            messages.push(String::from_utf8_lossy(&room[..length]).into_owned());
        }
        messages
    }
}

#[test]
fn the_service_manager_hears_how_the_guest_is_until_it_ends() {
    needs_kvm!();
    let host = Host::new();
    let (manager, socket) = Manager::of(&host);
    let console = host.path("web.console");
    let mut vmrun = host
        .command("vmrun")
        .args(["--name", "web", "--kernel", &small(), "--mem", "32M"])
        .arg(format!("--console=file:{}", console.display()))
        .env("NOTIFY_SOCKET", &socket)
        .env("WATCHDOG_USEC", "100000")
        .spawn()
        .unwrap();
    assert_eq!(manager.next(), "READY=1\nSTATUS=running");
    host.run("vmctl", &["pause", "web"]).expect(0);
    manager.wait_for("STATUS=paused");
    host.run("vmctl", &["resume", "web"]).expect(0);
    manager.wait_for("STATUS=running");
    // Again and again.
    manager.wait_for("WATCHDOG=1");
    manager.wait_for("WATCHDOG=1");
    // What it starts there is not watched by whoever watches mig-recv here.
    let to = format!("exec:NOTIFY_SOCKET={} mig-recv -q --name b --console null", socket.display());
    // Slowly enough for the state to be seen, and with a reader: what does not fit its socket is lost.
    let mut send = host.command("mig-send");
    let mut send = send.args(["-q", "--max-bandwidth", "8M", "web", &to]).spawn().unwrap();
    manager.wait_for("STATUS=migrating");
    assert_eq!(
        manager.wait_for("STOPPING=1"),
        "STOPPING=1\nSTATUS=the guest runs at its destination"
    );
    assert_eq!(wait_within(&mut send, HANG_TIMEOUT).code(), Some(0));
    assert_eq!(wait_within(&mut vmrun, HANG_TIMEOUT).code(), Some(0));
    host.run("vmctl", &["quit", "b"]).expect(0);
    assert!(!manager.rest().iter().any(|message| message.contains("READY")), "b said so");
}

#[test]
fn a_guest_that_is_held_back_says_why_and_a_unit_of_a_start_that_fails_is_not_ready() {
    needs_kvm!();
    let host = Host::new();
    let (manager, socket) = Manager::of(&host);
    let mut web = Guest::boot(&host, "web", &small(), &["--mem", "32M"]);
    host.run("mig-send", &["-q", "web", "exec:mig-recv -q --name b --console null"]).expect(0);
    assert_eq!(web.ended(), Some(0));
    let start = |kernel: &str| {
        let mut vmrun = host.command("vmrun");
        vmrun.args(["--name", "web", "--kernel", kernel, "--mem", "32M"]);
        vmrun.env("NOTIFY_SOCKET", &socket);
        vmrun
    };
    let mut held = start(&small()).spawn().unwrap();
    let message = manager.next();
    assert!(message.starts_with("READY=1\nSTATUS=web is held back"), "{message}");
    host.run("vmctl", &["quit", "web"]).expect(0);
    assert_eq!(wait_within(&mut held, HANG_TIMEOUT).code(), Some(0));
    manager.wait_for("STOPPING=1");
    run(&mut start("/no/such/kernel")).refused_with(&["/no/such/kernel"]);
    assert!(!manager.rest().iter().any(|message| message.contains("READY")), "it was never ready");
}

#[test]
fn a_manager_that_is_not_there_keeps_no_guest_from_running() {
    needs_kvm!();
    let host = Host::new();
    let log = host.path("web.log");
    let mut vmrun = host
        .command("vmrun")
        .args(["--name", "web", "--kernel", &small(), "--mem", "32M"])
        .env("NOTIFY_SOCKET", "/no/such/socket")
        .env("WATCHDOG_USEC", "0")
        .stderr(fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    host.run("vmctl", &["wait", "web", "running"]).expect(0);
    let said = fs::read_to_string(&log).unwrap();
    assert!(said.contains("no service manager at NOTIFY_SOCKET /no/such/socket"), "{said}");
    host.run("vmctl", &["quit", "web"]).expect(0);
    assert_eq!(wait_within(&mut vmrun, HANG_TIMEOUT).code(), Some(0));
}

/// What the unit does when it is stopped.
fn stop(host: &Host, policy: &str) -> Command {
    let mut stop = host.shell("exec \"$0\" \"$@\"");
    stop.arg(units().join("vmrun-stop")).arg("web").env("GUEST_STOP", policy);
    stop
}

#[test]
fn a_unit_that_stops_does_with_its_guest_what_its_definition_says() {
    needs_kvm!();
    let (host, away) = (Host::new(), Host::new());
    let boot = || Guest::boot(&host, "web", &small(), &["--mem", "32M"]);
    // The service manager ends it.
    let mut web = boot();
    run(&mut stop(&host, "quit")).expect(0);
    run(host.shell("exec \"$0\" web").arg(units().join("vmrun-stop"))).expect(0);
    let done = run(&mut stop(&host, "forget")).expect(0);
    assert!(done.stderr.contains("GUEST_STOP=forget is neither"), "{done:#?}");
    web.assert_runs();
    // It is saved.
    let file = host.path("web.mig");
    run(&mut stop(&host, &format!("save:{}", file.display()))).expect(0);
    assert_eq!(web.ended(), Some(0));
    host.run("mig-recv", &["-q", &format!("file:{}", file.display())]).expect(0);
    // It moves.
    let receive = away.remote("mig-recv -q --console null");
    run(&mut stop(&host, &format!("send:exec:{receive}"))).expect(0);
    assert_eq!(host.state("web"), None);
    assert_eq!(away.state("web").as_deref(), Some("running"));
    // Nothing is left to stop.
    run(&mut stop(&host, "quit")).expect(0);
    drop(web);
}

/// Receives at a socket of `host`, the first time through a tunnel that loses GO.
fn receiver_that_loses_go(host: &Host) -> PathBuf {
    let path = host.path("receiver");
    let listener = UnixListener::bind(&path).unwrap();
    let receive = host.remote("mig-recv -q --console null");
    let first = host.shell(&format!("exec lossy-tunnel go=cut '{receive}'"));
    let second = host.shell(&format!("exec {receive}"));
    thread::spawn(move || {
        for (mut command, stream) in [first, second].into_iter().zip(listener.incoming()) {
            let stream = OwnedFd::from(stream.unwrap());
            command.stdout(stream.try_clone().unwrap()).stdin(stream);
            command.spawn().unwrap().wait().unwrap();
        }
    });
    path
}

#[test]
fn a_unit_that_stops_resolves_a_guest_of_unknown_outcome() {
    needs_kvm!();
    let (host, away) = (Host::new(), Host::new());
    let mut web = Guest::boot(&host, "web", &small(), &["--mem", "32M"]);
    let to = format!("unix:{}", receiver_that_loses_go(&away).display());
    host.run("mig-send", &["-q", "--resolve-for", "0", "web", &to]).expect(4);
    wait("the destination", || away.state("web").as_deref() == Some("prepared"));
    run(&mut stop(&host, "quit")).expect(0);
    assert_eq!(web.ended(), Some(0));
    assert_eq!(away.state("web").as_deref(), Some("running"));
}

fn systemd_analyze(args: &[&str]) -> Option<Command> {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        println!("SKIPPED what systemd says of the units: systemd-analyze is not installed");
        return None;
    }
    let mut analyze = Command::new("systemd-analyze");
    analyze.args(args);
    Some(analyze)
}

/// The units as they are installed, with programs that are there.
fn installed(dir: &Path) -> Vec<PathBuf> {
    let bin = dir.join("bin");
    fs::create_dir(&bin).unwrap();
    let program = run(Command::new("which").arg("true")).expect(0).stdout.trim().to_owned();
    let mut found = Vec::new();
    for entry in fs::read_dir(units()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if !name.ends_with(".service") && !name.ends_with(".socket") {
            continue;
        }
        let text: Vec<_> = fs::read_to_string(&path)
            .unwrap()
            .lines()
            .map(|line| match line.find("/usr/local/") {
                Some(at) => {
                    let words = line[at..].split_once(' ').map_or("", |(_, rest)| rest);
                    format!("{}{program} {words}", &line[..at])
                }
                None => line.to_owned(),
            })
            .collect();
        // A socket looks for the template.
        for name in [name.clone(), name.replace("@.", "@web.")] {
            fs::write(dir.join(name), text.join("\n")).unwrap();
        }
        found.push(dir.join(name.replace("@.", "@web.")));
    }
    assert!(found.len() >= 4, "{found:?}");
    found
}

#[test]
fn systemd_finds_nothing_wrong_with_the_units() {
    let dir = tempfile::tempdir().unwrap();
    for unit in installed(dir.path()) {
        let Some(mut verify) = systemd_analyze(&["verify", "--man=no"]) else { return };
        let done = run(verify.arg(&unit)).expect(0);
        assert_eq!(done.stderr, "", "{}", unit.display());
    }
}

#[test]
fn the_units_that_run_guests_are_hardened() {
    for unit in ["vmrun@.service", "mig-recv@.service"] {
        let limit = format!("--threshold={MOST_EXPOSED}");
        let Some(mut security) =
            systemd_analyze(&["security", "--offline=true", "--no-pager", &limit])
        else {
            return;
        };
        let done = run(security.arg(units().join(unit)));
        let all = &done.stdout;
        assert_eq!(done.status, Some(0), "{unit}: {all}");
        assert!(all.contains("Overall exposure level"), "{all}");
    }
}
