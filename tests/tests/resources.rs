//! Where something of the host is scarce, or left over, the guest is at one place and runs there.

use std::fs;
use std::process::Stdio;

use migpipe_tests::{Guest, HANG_TIMEOUT, Host, needs_kvm, run, spec, wait, wait_within};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn guest(host: &Host) -> Guest {
    Guest::boot(host, "a", &spec(64, "500", 8), &["--mem", "64M"])
}

/// How many descriptors and threads a process has.
fn held(pid: i32) -> (usize, usize) {
    let count = |of| fs::read_dir(format!("/proc/{pid}/{of}")).map_or(0, Iterator::count);
    (count("fd"), count("task"))
}

#[test]
fn few_descriptors_on_either_side_never_lose_a_guest() {
    needs_kvm!();
    let host = Host::new();
    let mut a = guest(&host);
    let (mut stayed, mut moved) = (0, 0);
    for limit in [5, 8, 11, 14, 18, 24, 64] {
        for (here, there) in [(limit, 1024), (1024, limit)] {
            let script = format!(
                "ulimit -n {here} && exec mig-send -q --resolve-for 5 a \
                 'exec:ulimit -n {there}; exec mig-recv -q --name b --console null'"
            );
            let done = host.sh(&script);
            let arrived = host.state("b");
            let what = format!("{here} here, {there} there: {arrived:?}, {done:#?}");
            match (done.status, arrived.as_deref()) {
                (Some(0), Some("running")) => {
                    moved += 1;
                    assert_eq!(a.ended(), Some(0), "{what}");
                    host.run("vmctl", &["quit", "b"]).expect(0);
                    a = guest(&host);
                }
                (Some(1 | 126 | 127), None) => {
                    stayed += 1;
                    assert!(!done.stderr.is_empty(), "{what}");
                    assert_eq!(host.state("a").as_deref(), Some("running"), "{what}");
                    a.assert_runs();
                }
                _ => panic!("{what}"),
            }
        }
    }
    assert!(stayed > 0 && moved > 0, "{stayed} stayed, {moved} moved");
}

#[test]
fn what_a_tunnel_leaves_behind_holds_nobody_up() {
    needs_kvm!();
    let host = Host::new();
    let mut a = guest(&host);
    // As ssh's ControlPersist: it holds the tunnel's stdin, stdout and stderr for longer than any test
    // waits.
    let tunnel = "exec:sleep 100000 & exec mig-recv -q --name b --console null";
    let mut command = host.command("mig-send");
    // A pipe that it holds would keep the test itself waiting.
    let send = command.args(["-q", "a", tunnel]).stdout(Stdio::null()).stderr(Stdio::null());
    assert_eq!(wait_within(&mut send.spawn().unwrap(), HANG_TIMEOUT).code(), Some(0));
    assert_eq!(a.ended(), Some(0));
    assert_eq!(host.state("b").as_deref(), Some("running"));
    for (pid, name) in host.processes() {
        if name == "sleep" {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    host.run("vmctl", &["quit", "b"]).expect(0);
}

#[test]
fn moves_cancels_and_estimates_leave_no_descriptor_and_no_thread_behind() {
    needs_kvm!();
    let host = Host::new();
    let a = guest(&host);
    let arrive = |from: &str, to: &str| {
        let tunnel = format!("exec:mig-recv -q --name {to} --console null");
        host.run("mig-send", &["-q", from, &tunnel]).expect(0);
        host.pid(to).unwrap()
    };
    // Its record of how it came is written meanwhile.
    let settled = |pid| {
        let mut last = held(pid);
        wait("a vmrun that has nothing to do", || {
            std::thread::sleep(std::time::Duration::from_millis(200));
            std::mem::replace(&mut last, held(pid)) == last
        });
        last
    };
    let first = settled(arrive("a", "b"));
    drop(a);
    for (from, to) in [("b", "c"), ("c", "d"), ("d", "e"), ("e", "f")] {
        arrive(from, to);
    }
    let pid = host.pid("f").unwrap();
    assert_eq!(settled(pid), first, "after five moves");
    host.run("mig-send", &["-n", "f", "exec:mig-recv --name g --console null"]).expect(0);
    for _ in 0..3 {
        let slow = ["-q", "--max-bandwidth", "1M", "f", "exec:mig-recv -q --name g --console null"];
        let mut send = host.command("mig-send");
        let mut send = send.args(slow).stderr(Stdio::null()).spawn().unwrap();
        wait("the migration", || host.state("f").as_deref() == Some("migrating"));
        host.run("vmctl", &["cancel", "f"]).expect(0);
        assert_eq!(wait_within(&mut send, HANG_TIMEOUT).code(), Some(3));
    }
    wait("all of it to be given back", || held(pid) == first);
    host.run("vmctl", &["quit", "f"]).expect(0);
}

#[test]
fn a_socket_path_that_is_too_long_is_refused_at_the_destination_and_the_guest_runs_on() {
    needs_kvm!();
    let host = Host::new();
    let mut a = guest(&host);
    let deep = host.path(&"d".repeat(100));
    fs::create_dir(&deep).unwrap();
    let tunnel = format!("exec:XDG_RUNTIME_DIR={} exec mig-recv -q --name b", deep.display());
    for args in [&["-q"][..], &["-n"]] {
        let done = run(host.command("mig-send").args(args).args(["a", &tunnel])).expect(1);
        assert!(!done.stderr.is_empty());
    }
    let done = run(host.command("mig-send").args(["-q", "a", &tunnel])).expect(1);
    assert!(done.stderr.trim_end().ends_with("a runs on here"), "{done:#?}");
    assert_eq!(host.state("b"), None);
    a.assert_runs();
}
