//! Storage that hangs: a file system whose server never answers, as NFS does when its server is
//! gone. Whoever looks into it waits; nobody else may.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use migpipe_tests::{Guest, HANG_TIMEOUT, Host, finish, needs_kvm, spec, wait, wait_within};
use nix::libc;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};

/// A FUSE file system with nobody behind it: the first look at it waits for an answer to the
/// kernel's first question.
struct Hung {
    dir: PathBuf,
    _server: File,
}

impl Hung {
    fn on(host: &Host) -> Result<Self, String> {
        let dir = host.path("hung");
        fs::create_dir(&dir).expect("a directory");
        let server = OpenOptions::new().read(true).write(true).open("/dev/fuse");
        let server = server.map_err(|error| format!("/dev/fuse: {error}"))?;
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", server.as_raw_fd());
        mount(Some("hung"), &dir, Some("fuse"), MsFlags::empty(), Some(&*options))
            .map_err(|errno| format!("mount: {errno}"))?;
        Ok(Self { dir, _server: server })
    }

    fn file(&self) -> String {
        self.dir.join("file").display().to_string()
    }
}

impl Drop for Hung {
    fn drop(&mut self) {
        let _ = umount2(&self.dir, MntFlags::MNT_DETACH);
    }
}

macro_rules! hung_or_skip {
    ($host:expr) => {
        match Hung::on(&$host) {
            Ok(hung) => hung,
            Err(why) => {
                println!("SKIPPED {}: no file system that hangs: {why}", module_path!());
                return;
            }
        }
    };
}

/// A vmrun that waits for a guest.
fn incoming(host: &Host) -> Child {
    let vmrun = host
        .command("vmrun")
        .args(["--name", "b", "--incoming", "--files-anywhere"])
        .stderr(Stdio::null())
        .spawn()
        .expect("vmrun starts");
    wait("b to wait", || host.state("b").as_deref() == Some("incoming"));
    vmrun
}

/// Sends `a` to the vmrun `b`, with a console on storage that hangs.
fn send(host: &Host, hung: &Hung, ready: &str) -> Child {
    let destination =
        format!("exec:mig-recv --quiet --vm b --console file:{} 2>/dev/null", hung.file());
    let sender = host
        .command("mig-send")
        .args(["-q", "--ready-timeout", ready, "a", &destination])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("mig-send starts");
    wait("the builder to hang", || {
        host.pid("b").is_some_and(|vmrun| opens(vmrun, "builder", &hung.dir))
    });
    sender
}

/// Whether this thread of a process waits for the file system at `dir`.
fn opens(pid: i32, thread: &str, dir: &Path) -> bool {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    tasks.flatten().any(|task| {
        let read = |name| fs::read_to_string(task.path().join(name)).unwrap_or_default();
        // open(2) or openat(2), or a look at the path (stat and its kin) before it.
        let waits = ["fuse_", "request_wait"].iter().any(|part| read("wchan").contains(part));
        dir.is_absolute() && read("comm").trim() == thread && waits
    })
}

#[test]
fn a_vmrun_whose_console_hangs_is_seen_and_ends_with_whoever_brought_the_guest() {
    needs_kvm!();
    let host = Host::new();
    let mut a = Guest::boot(&host, "a", &spec(64, "500", 1), &["--mem", "64M"]);
    let hung = hung_or_skip!(host);
    let mut b = incoming(&host);
    let sender = send(&host, &hung, "3");
    assert_eq!(host.state("b").as_deref(), Some("incoming"));
    finish(sender, Instant::now()).expect(1);
    assert_eq!(wait_within(&mut b, HANG_TIMEOUT).code(), Some(1));
    assert_eq!(host.sockets().len(), 1, "the name is free again");
    a.assert_runs();
}

#[test]
fn a_vmrun_whose_console_hangs_is_ended_by_its_operator() {
    needs_kvm!();
    for how in ["vmctl quit b", "SIGTERM"] {
        let host = Host::new();
        let mut a = Guest::boot(&host, "a", &spec(64, "500", 1), &["--mem", "64M"]);
        let hung = hung_or_skip!(host);
        let mut b = incoming(&host);
        let sender = send(&host, &hung, "60");
        let vmrun = host.pid("b").expect("it answers");
        match how {
            "vmctl quit b" => drop(host.sh(how).expect(0)),
            _ => kill(Pid::from_raw(vmrun), Signal::SIGTERM).expect("it runs"),
        }
        assert_eq!(wait_within(&mut b, HANG_TIMEOUT).code(), Some(0));
        finish(sender, Instant::now()).expect(1);
        a.assert_runs();
    }
}

#[test]
fn a_vmrun_that_hangs_before_it_answers_ends_with_whoever_started_it() {
    needs_kvm!();
    let host = Host::new();
    let mut a = Guest::boot(&host, "a", &spec(64, "500", 1), &["--mem", "64M"]);
    let hung = hung_or_skip!(host);
    let destination =
        format!("exec:mig-recv --quiet --name b --console file:{} 2>/dev/null", hung.file());
    host.run("mig-send", &["-q", "--ready-timeout", "3", "a", &destination]).expect(1);
    wait("b to end", || host.processes().iter().all(|(pid, _)| *pid == a.pid()));
    a.assert_runs();
}

#[test]
fn a_vmrun_that_waits_for_its_own_disk_ends_when_it_is_told_to() {
    needs_kvm!();
    let host = Host::new();
    let hung = hung_or_skip!(host);
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut vmrun = host
            .command("vmrun")
            .args(["--name", "a", "--mem", "64M", "--kernel", &spec(64, "500", 1), "--disk"])
            .arg(hung.file())
            .stderr(Stdio::null())
            .spawn()
            .expect("vmrun starts");
        let pid = vmrun.id() as i32;
        wait("it to hang", || opens(pid, "vmrun", &hung.dir));
        kill(Pid::from_raw(pid), signal).expect("it runs");
        assert_eq!(wait_within(&mut vmrun, HANG_TIMEOUT).code(), Some(1));
    }
}

/// A disk that never answers an fsync(2): strace(1) holds whoever calls it. Everything else goes on.
struct HungFsync(Child);

impl HungFsync {
    /// Whether that can be had here.
    fn is_possible() -> bool {
        let strace = Command::new("strace").arg("-V").stdout(Stdio::null()).status().is_ok();
        if !strace || !geteuid().is_root() {
            println!("SKIPPED {}: it takes strace, and root to attach it", module_path!());
        }
        strace && geteuid().is_root()
    }

    /// For this process from now on.
    fn of(pid: i32) -> Self {
        let mut strace = Command::new("strace")
            .args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync"])
            .args(["-e", "inject=fsync:delay_enter=3600000000", "-p", &pid.to_string()])
            .spawn()
            .expect("strace starts");
        wait("strace", || {
            let ended = strace.try_wait().expect("a child can be waited for");
            assert_eq!(ended, None, "strace does not attach");
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            status.lines().any(|it| it.starts_with("TracerPid:") && !it.ends_with("\t0"))
        });
        Self(strace)
    }

    /// Waits until a thread of this process hangs there.
    fn holds(&self, pid: i32) {
        wait("an fsync that hangs", || {
            let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return false };
            tasks.flatten().any(|task| {
                let call = fs::read_to_string(task.path().join("syscall")).unwrap_or_default();
                let number = call.split(' ').next().and_then(|number| number.parse().ok());
                number == Some(libc::SYS_fsync)
            })
        });
    }
}

/// Runs a `vmctl` that is to end `b`. What a tracer holds it holds to the end, so that it has to let go
/// once the rest of the process is gone.
fn quits(host: &Host, args: &[&str], hung: HungFsync, vmrun: i32) {
    let mut quit = host.command("vmctl");
    quit.args(args).stdout(Stdio::piped()).stderr(Stdio::piped());
    let quit = quit.spawn().expect("vmctl starts");
    let ended = || {
        let status = fs::read_to_string(format!("/proc/{vmrun}/status")).unwrap_or_default();
        status.is_empty() || status.lines().any(|line| line.starts_with("State:\tZ"))
    };
    wait("b to end", ended);
    drop(hung);
    finish(quit, Instant::now()).expect(0);
}

impl Drop for HungFsync {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Every look at the guests of this host is answered, and `b` is in this state.
fn assert_is_answered(host: &Host, state: &str) {
    assert_eq!(host.state("b").as_deref(), Some(state));
    let list = host.run("vmctl", &["list"]).expect(0).stdout;
    assert!(list.lines().any(|line| line.starts_with("b ")), "{list}");
    // The state of this guest takes no orders, and what hangs takes none either: but it is said.
    host.run("vmctl", &["cancel", "b"]).refused_with(&["storage hangs", "not carried out"]);
}

#[test]
fn a_vmrun_whose_first_record_hangs_is_seen_and_ended() {
    needs_kvm!();
    if !HungFsync::is_possible() {
        return;
    }
    let host = Host::new();
    let mut a = Guest::boot(&host, "a", &spec(64, "500", 1), &["--mem", "64M"]);
    let mut b = incoming(&host);
    let vmrun = b.id() as i32;
    let hung = HungFsync::of(vmrun);
    let mut sender = host.command("mig-send");
    sender.args(["-q", "a", "exec:mig-recv --quiet --vm b 2>/dev/null"]);
    let sender = sender.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    hung.holds(vmrun);
    assert_is_answered(&host, "incoming");
    // The guest that was to move there is its source's meanwhile.
    a.assert_runs();
    quits(&host, &["quit", "b"], hung, vmrun);
    assert_eq!(wait_within(&mut b, HANG_TIMEOUT).code(), Some(0));
    finish(sender, Instant::now()).expect(1);
    a.assert_runs();
}

#[test]
fn a_vmrun_whose_refusal_hangs_throws_its_copy_away_only_at_a_clear_word() {
    needs_kvm!();
    if !HungFsync::is_possible() {
        return;
    }
    let host = Host::new();
    let mut a = Guest::boot(&host, "a", &spec(64, "500", 1), &["--mem", "64M"]);
    let mut sender = host.command("mig-send");
    let destination = "exec:lossy-tunnel ack=stall 'mig-recv --quiet --name b --go-timeout 20'";
    sender.args(["-q", "a", destination]).stdout(Stdio::null()).stderr(Stdio::null());
    let mut sender = sender.spawn().unwrap();
    wait("b to be prepared", || host.state("b").as_deref() == Some("prepared"));
    let vmrun = host.pid("b").expect("it answers");
    let hung = HungFsync::of(vmrun);
    // Its time is over, and it refuses: that is on the disk first.
    hung.holds(vmrun);
    assert_is_answered(&host, "prepared");
    host.run("vmctl", &["quit", "b"]).refused_with(&["storage hangs", "--force"]);
    assert_eq!(host.state("b").as_deref(), Some("prepared"));
    quits(&host, &["quit", "--force", "b"], hung, vmrun);
    assert_eq!(host.pid("b"), None);
    // It may have heard of it by itself.
    host.run("vmctl", &["cancel", "a"]);
    wait_within(&mut sender, HANG_TIMEOUT);
    a.assert_runs();
}
