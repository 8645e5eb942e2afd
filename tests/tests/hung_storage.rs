//! Storage that hangs: a file system whose server never answers, as NFS does when its server is
//! gone. Whoever looks into it waits; nobody else may.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Instant;

use migpipe_tests::{Guest, HANG_TIMEOUT, Host, finish, needs_kvm, spec, wait, wait_within};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

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
