//! A guest that arrived belongs to its host, not to the session that brought it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use migpipe_tests::{Guest, Host, needs_kvm, spec, wait};
use nix::unistd::geteuid;

/// A control group that is called like a login session's, in the hierarchy of the service manager.
struct Session(PathBuf);

impl Session {
    fn new(test: &str) -> Option<Self> {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let mount = match own.contains(":name=systemd:") {
            true => Path::new("/sys/fs/cgroup/systemd"),
            false => Path::new("/sys/fs/cgroup"),
        };
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::SeqCst);
        let dir = mount.join(format!("session-{}-{number}.scope", std::process::id()));
        if !geteuid().is_root() || fs::create_dir(&dir).is_err() {
            println!("SKIPPED {test}: needs root and control groups that can be made");
            return None;
        }
        Some(Self(dir))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Whatever is left in it is gone with its host.
        for _ in 0..500 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

/// A tunnel into `session` of a host whose service manager is systemd, with this `systemd-run`.
fn tunnel(host: &Host, session: &Session, systemd_run: &str) -> String {
    let bin = host.path("bin");
    fs::create_dir_all(&bin).unwrap();
    let stub = bin.join("systemd-run");
    fs::write(&stub, systemd_run).unwrap();
    fs::set_permissions(&stub, fs::Permissions::from_mode(0o755)).unwrap();
    format!(
        "exec:echo $$ > {}/cgroup.procs && exec unshare --mount sh -c '\
         mount -t tmpfs none /run && mkdir -p /run/systemd/system && \
         PATH={}:$PATH exec mig-recv --quiet --name b --console null'",
        session.0.display(),
        bin.display()
    )
}

#[test]
fn the_vmrun_of_a_guest_that_came_by_a_login_is_started_in_a_scope_of_the_system() {
    needs_kvm!();
    let Some(session) = Session::new(module_path!()) else { return };
    let host = Host::new();
    let mut a = Guest::boot(&host, "a", &spec(64, "500", 1), &["--mem", "64M"]);
    let log = host.path("systemd-run.log");
    let stub = format!(
        "#!/bin/sh\necho \"$*\" >> {}\nwhile [ \"$1\" != -- ]; do shift; done; shift; exec \"$@\"\n",
        log.display()
    );
    let done = host.run("mig-send", &["-q", "a", &tunnel(&host, &session, &stub)]).expect(0);
    assert_eq!(done.stderr, "");
    assert_eq!(a.ended(), Some(0));
    assert_eq!(host.state("b").as_deref(), Some("running"));
    let asked = fs::read_to_string(&log).unwrap();
    let last = asked.lines().last().unwrap();
    for word in ["--scope", "--slice=system.slice", "--collect", "--name b", "--incoming"] {
        assert!(last.contains(word), "{last}");
    }
    host.run("vmctl", &["quit", "b"]).expect(0);
    wait("the session to be empty", || {
        fs::read_to_string(session.0.join("cgroup.procs")).unwrap().is_empty()
    });
}

#[test]
fn where_no_scope_can_be_had_the_guest_arrives_and_its_end_is_told() {
    needs_kvm!();
    let Some(session) = Session::new(module_path!()) else { return };
    let host = Host::new();
    let mut a = Guest::boot(&host, "a", &spec(64, "500", 1), &["--mem", "64M"]);
    let stub = "#!/bin/sh\necho 'no bus' >&2; exit 1\n";
    let done = host.run("mig-send", &["-q", "a", &tunnel(&host, &session, stub)]).expect(0);
    assert_eq!(done.stderr.lines().count(), 1, "{}", done.stderr);
    assert!(done.stderr.contains("KillUserProcesses"), "{}", done.stderr);
    assert_eq!(a.ended(), Some(0));
    assert_eq!(host.state("b").as_deref(), Some("running"));
    host.run("vmctl", &["quit", "b"]).expect(0);
}

/// A unit that waits for a guest without a limit keeps its host from being shut down.
#[test]
fn every_unit_ends_in_bounded_time() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/systemd");
    let mut services = 0;
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|end| end != "service") {
            continue;
        }
        services += 1;
        let unit = fs::read_to_string(&path).unwrap();
        let limits = unit.lines().filter_map(|line| line.strip_prefix("TimeoutStopSec="));
        for limit in limits {
            let seconds: Option<u32> = limit.parse().ok();
            assert!(seconds.is_some_and(|it| (1..=1800).contains(&it)), "{}", path.display());
        }
    }
    assert!(services >= 2, "only {services} units");
}
