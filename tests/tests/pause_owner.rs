//! The guest is its vmrun's: a mig-send that does nothing, or that its operator overrules, does not
//! keep it standing still.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};
use std::{fs, thread};

use mig_engine::ownership::Input;
use migpipe_tests::{
    Guest, HANG_TIMEOUT, Host, assert_one_story, finish, needs_kvm, spec, wait, wait_within,
};
use migpipe_units::MigrationId;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vm_control::{Client, ClientError, Order, Refusal};

/// Sends the guest as far as its blackout, which lasts: what the destination says is held up.
fn into_blackout(host: &Host, guest: &str) -> Child {
    let destination =
        format!("exec:lossy-tunnel ack=stall 'mig-recv --quiet --name {guest}-there'");
    let sender = host
        .command("mig-send")
        .args(["-q", guest, &destination])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("mig-send starts");
    wait("the blackout", || host.state(guest).as_deref() == Some("migrating, paused"));
    sender
}

fn signal(process: &Child, signal: Signal) {
    kill(Pid::from_raw(process.id() as i32), signal).expect("it runs");
}

fn boot(host: &Host, name: &str) -> Guest {
    Guest::boot(host, name, &spec(64, "500", 8), &["--mem", "64M"])
}

#[test]
fn a_cancel_in_the_blackout_is_done_by_vmrun_though_the_sender_stands_still() {
    needs_kvm!();
    for order in ["cancel", "resume"] {
        let host = Host::new();
        let mut a = boot(&host, "a");
        let sender = into_blackout(&host, "a");
        signal(&sender, Signal::SIGSTOP);
        host.run("vmctl", &[order, "a"]).expect(0);
        // Status 0 means that it is done.
        assert_eq!(host.state("a").as_deref(), Some("running"), "after vmctl {order}");
        a.assert_runs();
        // It can be sent again, by another, while the first one sleeps.
        host.run("mig-send", &["-n", "a"]).expect(0);
        signal(&sender, Signal::SIGCONT);
        let done = finish(sender, Instant::now()).expect(3);
        assert!(done.stderr.contains("cancelled; a runs on here"), "{}", done.stderr);
        a.assert_runs();
        assert_one_story(&[&a.console]);
    }
}

#[test]
fn a_cancel_leaves_a_guest_paused_that_its_operator_paused() {
    needs_kvm!();
    let host = Host::new();
    let a = boot(&host, "a");
    host.run("vmctl", &["pause", "a"]).expect(0);
    let sender = into_blackout(&host, "a");
    host.run("vmctl", &["cancel", "a"]).expect(0);
    assert_eq!(host.state("a").as_deref(), Some("paused"));
    a.assert_stands_still();
    finish(sender, Instant::now()).expect(3);
}

/// How often the thread of a vmrun that watches over its pause has woken up, to look.
fn looks(vmrun: i32) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{vmrun}/task")).expect("it runs");
    let read = |task: &fs::DirEntry, name| fs::read_to_string(task.path().join(name));
    let mut tasks = tasks.flatten();
    let thread =
        tasks.find(|task| read(task, "comm").is_ok_and(|name| name.trim() == "client-watchdog"));
    let status = read(&thread.expect("a thread that looks"), "status").expect("it runs");
    let count = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    count.and_then(|count| count.trim().parse().ok()).expect("a count")
}

/// Waits for what a vmrun does after ten looks in vain. After fifty it will not; nor if it has not
/// looked once while we did six hundred times.
fn wait_for_watchdog(what: &str, vmrun: i32, mut done: impl FnMut() -> bool) {
    let before = looks(vmrun);
    let mut ours = 0;
    while !done() {
        let theirs = looks(vmrun) - before;
        assert!(theirs < 50, "waited in vain for {what}: it looked {theirs} times");
        assert!(theirs > 0 || ours < 600, "waited in vain for {what}: nobody looks");
        thread::sleep(Duration::from_millis(100));
        ours += 1;
    }
}

#[test]
fn a_guest_comes_back_by_itself_from_a_sender_that_does_nothing_and_not_from_one_that_waits() {
    needs_kvm!();
    let host = Host::new();
    let (mut a, b) = (boot(&host, "a"), boot(&host, "b"));
    let waits = into_blackout(&host, "b");
    let stopped = into_blackout(&host, "a");
    signal(&stopped, Signal::SIGSTOP);
    let runs = || host.state("a").as_deref() == Some("running");
    wait_for_watchdog("the guest to come back", a.pid(), runs);
    a.assert_runs();
    // The other has been in its blackout for longer.
    assert_eq!(host.state("b").as_deref(), Some("migrating, paused"));
    b.assert_stands_still();
    // One that wakes up finds that it is too late.
    signal(&stopped, Signal::SIGCONT);
    let done = finish(stopped, Instant::now()).expect(1);
    assert!(done.stderr.contains("a runs on here"), "{}", done.stderr);
    a.assert_runs();
    assert_one_story(&[&a.console]);
    host.run("vmctl", &["cancel", "b"]).expect(0);
    finish(waits, Instant::now()).expect(3);
}

#[test]
fn the_word_of_a_sender_that_was_given_up_counts_for_nothing() {
    needs_kvm!();
    let host = Host::new();
    let mut a = boot(&host, "a");
    let socket = host.runtime_dir().join("a.sock");
    let sender = Client::connect(&socket, "a sender").expect("vmrun listens");
    let operator = Client::connect(&socket, "an operator").expect("vmrun listens");
    let id = MigrationId::random();
    let machine = sender.describe().expect("a guest");
    sender.own(Input::Begin(id)).expect("the guest may go");
    sender.dirty_log_start(&machine).expect("a log");
    sender.pause().expect("a guest that can be paused");
    sender.save_state().expect("a paused guest");
    operator.order(Order::Cancel).expect("not committed");
    a.assert_runs();
    let cancelled = |answer: Result<(), ClientError>| {
        let cancelled = matches!(answer, Err(ClientError::Refused(Refusal::Cancelled)));
        assert!(cancelled, "{answer:?}");
    };
    cancelled(sender.own(Input::Commit(id, None)));
    cancelled(sender.pause().map(drop));
    cancelled(sender.save_state().map(drop));
    cancelled(sender.dirty_log_harvest().map(drop));
    cancelled(sender.throttle(50));
    cancelled(operator.post_progress(id, "{}".into()).map(drop));
    // What it wants is done already.
    sender.own(Input::Release(id)).expect("it is over");
    a.assert_runs();
    // Another migration is none of its business, even by the same id's owner.
    let again = MigrationId::random();
    operator.own(Input::Begin(again)).expect("the guest may go");
    cancelled(sender.pause().map(drop));
    operator.own(Input::Release(again)).expect("the migration is its own");
    a.assert_runs();
    assert_one_story(&[&a.console]);
}

#[test]
fn a_guest_is_committed_only_with_the_state_of_this_pause() {
    needs_kvm!();
    let host = Host::new();
    let mut a = boot(&host, "a");
    let sender = Client::connect(&host.runtime_dir().join("a.sock"), "a sender").unwrap();
    let id = MigrationId::random();
    let assert_refused = |when: &str| {
        let error = sender.own(Input::Commit(id, None)).expect_err(when).to_string();
        assert!(error.contains("before the state was saved"), "{when}: {error}");
        assert_eq!(host.state("a").as_deref(), Some("migrating, paused"), "{when}");
    };
    sender.own(Input::Begin(id)).unwrap();
    sender.pause().unwrap();
    assert_refused("without a state");
    sender.save_state().unwrap();
    sender.resume().unwrap();
    a.assert_runs();
    sender.pause().unwrap();
    assert_refused("with the state of an earlier pause");
    sender.save_state().unwrap();
    sender.own(Input::Commit(id, None)).unwrap();
    assert_eq!(host.state("a").as_deref(), Some("handed-over"));
    a.assert_stands_still();
}

/// Whether SIGHUP is ignored here, and so by every program that is started from here.
fn ignores_hangups() -> bool {
    let status = fs::read_to_string("/proc/self/status").expect("this process");
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).expect("a mask");
    let ignored = u64::from_str_radix(ignored.trim(), 16).expect("a mask");
    ignored & 1 << (Signal::SIGHUP as u32 - 1) != 0
}

#[test]
fn a_terminal_that_closes_ends_neither_the_last_copy_of_a_guest_nor_one_under_nohup() {
    needs_kvm!();
    if ignores_hangups() {
        println!(
            "SKIPPED a terminal that closes: these tests run under nohup, as would the guests"
        );
        return;
    }
    let host = Host::new();
    let mut a = boot(&host, "a");
    let mut b = boot(&host, "b");
    host.sh("mig-send -q a | cat > /dev/null").expect(0);
    assert_eq!(host.state("a").as_deref(), Some("handed-over"));
    for guest in [&a, &b] {
        kill(Pid::from_raw(guest.pid()), Signal::SIGHUP).expect("it runs");
    }
    assert_eq!(b.ended(), Some(0));
    assert!(a.lives(), "it may be the last copy");
    host.run("mig-send", &["--resolve", "a", "exec:mig-recv"]).expect(1);
    a.assert_runs();

    let kernel = spec(64, "500", 1);
    let nohup = format!("trap '' HUP; exec vmrun --name c --mem 64M --kernel {kernel}");
    let mut c = host.shell(&nohup).stderr(Stdio::null()).spawn().expect("a shell starts");
    wait("c to run", || host.state("c").as_deref() == Some("running"));
    signal(&c, Signal::SIGHUP);
    let destination = "exec:mig-recv --quiet --name d";
    host.run("mig-send", &["-q", "c", destination]).expect(0);
    assert_eq!(wait_within(&mut c, HANG_TIMEOUT).code(), Some(0));
}

/// The part of its time in which the guest's vCPU runs or waits for a CPU, over so many of its ticks:
/// what other programs take from it does not change that.
fn demand(guest: &Guest, ticks: usize) -> f64 {
    let spent = || {
        let tasks = fs::read_dir(format!("/proc/{}/task", guest.pid())).expect("its threads");
        let is_vcpu = |task: &fs::DirEntry| {
            fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.starts_with("vcpu"))
        };
        let vcpu = tasks.flatten().find(is_vcpu).expect("a thread of a vCPU").path();
        let text = fs::read_to_string(vcpu.join("schedstat")).expect("times of the scheduler");
        let times = text.split_whitespace().take(2).map(|time| time.parse::<f64>().unwrap());
        times.sum::<f64>() / 1e9
    };
    guest.console.wait_ticks(1);
    let (before, began) = (spent(), Instant::now());
    guest.console.wait_ticks(ticks);
    (spent() - before) / began.elapsed().as_secs_f64()
}

/// What the guest does, and by how much it is slowed down, in percent: at one moment.
fn status(host: &Host) -> (String, u64) {
    let status = host.run("vmctl", &["--json", "status", "a"]).expect(0).stdout;
    let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
    let throttle = status["throttle_percent"].as_u64().expect("a throttle");
    (status["state"].as_str().expect("a state").to_owned(), throttle)
}

#[test]
fn a_guest_is_as_fast_as_before_once_its_migration_has_failed() {
    needs_kvm!();
    for how in [Signal::SIGINT, Signal::SIGKILL, Signal::SIGSTOP] {
        let host = Host::new();
        let a = Guest::boot(&host, "a", &spec(2048, "max", 1), &["--mem", "64M"]);
        let sender = host
            .command("mig-send")
            .args(["-q", "--max-bandwidth=4M", "--max-rounds=1000", "a", "exec:mig-recv --name b"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("mig-send starts");
        wait("a slow guest", || status(&host).1 >= 90);
        let slow = demand(&a, 15);
        signal(&sender, how);
        if how == Signal::SIGSTOP {
            // Its migration may go on later; nobody waits for that.
            let is_lifted = || status(&host) == ("migrating".to_owned(), 0);
            wait_for_watchdog("the throttle to be lifted", a.pid(), is_lifted);
        } else {
            let mut now = status(&host);
            wait("the end of the migration", || {
                now = status(&host);
                now.0 != "migrating"
            });
            assert_eq!(now, ("running".to_owned(), 0), "after {how}");
        }
        let after = demand(&a, 50);
        println!("{slow:.2} and, after {how}, {after:.2} of the time");
        // One that is slowed down sleeps nine times as long as it runs. It never sleeps by itself.
        assert!(slow < 0.9 && after > 0.9, "{slow:.2} and, after {how}, {after:.2} of the time");
        if how == Signal::SIGSTOP {
            signal(&sender, Signal::SIGKILL);
        }
        finish(sender, Instant::now());
    }
}
