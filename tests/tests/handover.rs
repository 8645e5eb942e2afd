//! The handover where nobody looks: a name that leads to another host, memory that is lost, streams
//! that are copied, and hosts that crash at the worst moment. Never two, never lost.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use mig_engine::ownership::Authority;
use migpipe_tests::{
    Console, Guest, HANG_TIMEOUT, Host, assert_one_story, needs_kvm, spec, wait, wait_within,
};
use migpipe_units::{MigrationId, Nonce};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vm_control::Client;

fn small(host: &Host) -> Guest {
    Guest::boot(host, "a", &spec(64, "500", 8), &["--mem", "64M"])
}

fn kill_9(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
}

/// Receives `a` under the name b on `there`, and where its console is then.
fn recv(there: &Host) -> (String, Console) {
    let console = there.path("b.console");
    let command = format!("mig-recv --quiet --name b --console file:{}", console.display());
    (there.remote(&command), Console::at(&console))
}

/// A destination that is reached the first time through a tunnel that is cut at `message`, and later
/// as `later` says.
fn cut_once(source: &Host, message: &str, first: &str, later: &str) -> String {
    let flag = source.path("called").display().to_string();
    format!(
        "exec:if test -e {flag}; then {later}; else touch {flag}; \
         exec lossy-tunnel {message}=cut '{first}'; fi"
    )
}

/// Hands `a` over to b on `there`, which waits for a GO that was lost. Returns how to ask.
fn hand_over(source: &Host, there: &Host) -> (String, Console) {
    let (first, b) = recv(there);
    let destination = format!("exec:lossy-tunnel go=cut '{first}'");
    source.run("mig-send", &["-q", "--resolve-for", "0", "a", &destination]).expect(4);
    wait("the destination", || there.state("b").as_deref() == Some("prepared"));
    assert_eq!(source.state("a").as_deref(), Some("handed-over"));
    (format!("exec:{}", there.remote("mig-recv")), b)
}

fn id_of(host: &Host) -> String {
    let text = fs::read_to_string(host.migrations().join("host-id")).unwrap();
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    value["id"].as_str().unwrap().to_owned()
}

#[test]
fn a_name_that_leads_to_another_host_the_second_time_gives_nothing_back() {
    needs_kvm!();
    let (source, there, other) = (Host::new(), Host::new(), Host::new());
    let mut a = small(&source);
    let (first, b) = recv(&there);
    let destination = cut_once(&source, "running", &first, &other.remote("mig-recv"));
    let done = source.run("mig-send", &["-q", "--resolve-for", "2", "a", &destination]).expect(4);
    for host in [&there, &other] {
        assert!(done.stderr.contains(&id_of(host)), "both are named: {}", done.stderr);
    }
    assert_eq!(other.records(), [] as [PathBuf; 0], "it has nothing to do with it");
    b.wait_ticks(3);
    a.assert_stands_still();
    // The right one knows.
    let ask = format!("exec:{}", there.remote("mig-recv"));
    source.run("mig-send", &["--resolve", "a", &ask]).expect(0);
    assert_eq!(a.ended(), Some(0));
    assert_one_story(&[&a.console, &b]);
}

#[test]
fn a_refusal_of_another_host_is_no_answer() {
    needs_kvm!();
    let (source, there, other) = (Host::new(), Host::new(), Host::new());
    let a = small(&source);
    let (ask, b) = hand_over(&source, &there);
    // The same migration was refused elsewhere, whatever the reason.
    fs::copy(&there.records()[0], other.migrations().join(there.records()[0].file_name().unwrap()))
        .unwrap();
    let record = &other.records()[0];
    let text = fs::read_to_string(record).unwrap();
    let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
    (value["decision"], value["socket"]) = ("Refused".into(), "".into());
    fs::write(record, value.to_string()).unwrap();
    let elsewhere = format!("exec:{}", other.remote("mig-recv"));
    let asked = ["--resolve", "--resolve-for", "1", "a", &elsewhere];
    let done = source.run("mig-send", &asked).expect(4);
    assert!(done.stderr.contains(&id_of(&other)), "{}", done.stderr);
    a.assert_stands_still();
    source.run("mig-send", &["--resolve", "a", &ask]).expect(0);
    b.wait_ticks(3);
    assert_one_story(&[&a.console, &b]);
}

/// Sends `a` one way to b on `there`, where it runs.
fn one_way(source: &Host, there: &Host) -> Console {
    let (recv, b) = recv(there);
    source.sh(&format!("mig-send -q a | {recv}")).expect(0);
    b.wait_ticks(3);
    b
}

#[test]
fn a_guest_whose_record_is_lost_is_found_where_it_runs() {
    needs_kvm!();
    for lost in ["wiped", "elsewhere"] {
        let (source, there) = (Host::new(), Host::new());
        let mut a = small(&source);
        let b = one_way(&source, &there);
        let mut ask = there.remote("mig-recv");
        if lost == "wiped" {
            fs::remove_dir_all(there.path("state")).unwrap();
        } else {
            let state = there.path("another-state").display().to_string();
            ask = there.remote(&format!("env XDG_STATE_HOME={state} mig-recv"));
        }
        source.run("mig-send", &["--resolve", "a", &format!("exec:{ask}")]).expect(0);
        assert_eq!(a.ended(), Some(0), "{lost}");
        b.wait_ticks(3);
        assert_one_story(&[&a.console, &b]);
    }
}

#[test]
fn a_prepared_guest_whose_record_is_lost_gets_its_go() {
    needs_kvm!();
    let (source, there) = (Host::new(), Host::new());
    let mut a = small(&source);
    let (ask, b) = hand_over(&source, &there);
    fs::remove_dir_all(there.path("state")).unwrap();
    source.run("mig-send", &["--resolve", "a", &ask]).expect(0);
    assert_eq!(a.ended(), Some(0));
    b.wait_ticks(3);
    assert_one_story(&[&a.console, &b]);
}

#[test]
fn a_host_that_lost_record_and_guest_answers_for_neither() {
    needs_kvm!();
    let (source, there) = (Host::new(), Host::new());
    let mut a = small(&source);
    let (ask, _) = hand_over(&source, &there);
    kill_9(there.pid("b").unwrap());
    fs::remove_file(&there.records()[0]).unwrap();
    let asked = ["--resolve", "--resolve-for", "1", "a", &ask];
    let done = source.run("mig-send", &asked).expect(4);
    assert!(done.stderr.contains("its record is lost"), "{}", done.stderr);
    // As after an installation: it is another host then.
    fs::remove_dir_all(there.path("state")).unwrap();
    let done = source.run("mig-send", &asked).expect(4);
    assert!(done.stderr.contains(&id_of(&there)), "{}", done.stderr);
    assert_eq!(there.records(), [] as [PathBuf; 0]);
    a.assert_stands_still();
    source.run("mig-send", &["--resolve", "--force", "a", &ask]).expect(1);
    a.assert_runs();
}

#[test]
fn a_memory_that_is_younger_than_the_migration_has_never_heard_of_nothing() {
    needs_kvm!();
    let (source, there) = (Host::new(), Host::fresh());
    let mut a = small(&source);
    source.sh("mig-send -q a | cat > /dev/null").expect(0);
    let ask = format!("exec:{}", there.remote("mig-recv"));
    let asked = ["--resolve", "--resolve-for", "1", "a", &ask];
    let done = source.run("mig-send", &asked).expect(4);
    assert!(done.stderr.contains("has remembered migrations for"), "{}", done.stderr);
    assert_eq!(there.records(), [] as [PathBuf; 0]);
    a.assert_stands_still();
    // One that was there before says so, and remembers that it did.
    there.remember_for(Duration::from_secs(3600));
    source.run("mig-send", &asked).expect(1);
    assert_eq!(there.records().len(), 1);
    a.assert_runs();
}

#[test]
fn a_vmrun_that_does_not_answer_may_be_the_one() {
    needs_kvm!();
    let (source, there) = (Host::new(), Host::new());
    let mut a = small(&source);
    let other = Guest::boot(&there, "other", &spec(64, "500", 8), &["--mem", "64M"]);
    source.sh("mig-send -q a | cat > /dev/null").expect(0);
    let ask = format!("exec:{}", there.remote("mig-recv"));
    let asked = ["--resolve", "--resolve-for", "1", "a", &ask];
    kill(Pid::from_raw(other.pid()), Signal::SIGSTOP).unwrap();
    let done = source.run("mig-send", &asked);
    kill(Pid::from_raw(other.pid()), Signal::SIGCONT).unwrap();
    let done = done.expect(4);
    assert!(done.stderr.contains("cannot be known now"), "{}", done.stderr);
    a.assert_stands_still();
    source.run("mig-send", &asked).expect(1);
    a.assert_runs();
}

#[test]
fn a_stream_that_comes_after_its_refusal_runs_nowhere() {
    needs_kvm!();
    let (source, there) = (Host::new(), Host::new());
    let mut a = small(&source);
    let stream = source.path("stream");
    source.sh(&format!("mig-send -q a | cat > {}", stream.display())).expect(0);
    let ask = format!("exec:{}", there.remote("mig-recv"));
    source.run("mig-send", &["--resolve", "a", &ask]).expect(1);
    a.assert_runs();
    let (recv, b) = recv(&there);
    let done = there.sh(&format!("{recv} < {}", stream.display())).expect(1);
    assert!(done.stderr.contains("has refused the migration"), "{}", done.stderr);
    assert_eq!(there.state("b"), None);
    assert_eq!(b.text(), "", "it ran");
    a.assert_runs();
    assert_one_story(&[&a.console]);
}

#[test]
fn a_copy_of_the_stream_runs_nowhere() {
    needs_kvm!();
    let (source, there, elsewhere) = (Host::new(), Host::new(), Host::new());
    let mut a = small(&source);
    let (to_b, b) = recv(&there);
    let copy = source.path("copy");
    let destination = format!("exec:tee {} | {to_b}", copy.display());
    source.run("mig-send", &["-q", "a", &destination]).expect(0);
    assert_eq!(a.ended(), Some(0));
    b.wait_ticks(3);
    // It holds a GO, for another copy of the guest than any that comes of it.
    let (to_c, c) = recv(&elsewhere);
    let replay =
        |to: &str| source.sh(&format!("{to} < {} | cat > /dev/null", copy.display())).expect(1);
    let done = replay(&to_c);
    assert!(done.stderr.contains("another copy"), "{}", done.stderr);
    assert_eq!((elsewhere.state("b"), c.text().as_str()), (None, ""));
    // And where it was received the migration is known.
    let done = replay(&to_b.replace("--name b", "--name c"));
    assert!(done.stderr.contains("has run the migration"), "{}", done.stderr);
    assert_eq!(there.state("c"), None);
    b.wait_ticks(3);
    assert_one_story(&[&a.console, &b]);
}

#[test]
fn a_copy_that_waits_for_go_does_not_take_that_of_another() {
    needs_kvm!();
    let (source, there, elsewhere) = (Host::new(), Host::new(), Host::new());
    let mut a = small(&source);
    let (to_b, b) = recv(&there);
    let (to_c, c) = recv(&elsewhere);
    // Both receive at once, and neither sees the other; GO reaches nobody.
    let both = source.path("both");
    let err = elsewhere.path("err").display().to_string();
    fs::write(&both, format!("tee >({to_c} 2> {err} | cat > /dev/null) | {to_b}\n")).unwrap();
    let destination = format!("exec:lossy-tunnel go=cut 'bash {}'", both.display());
    source.run("mig-send", &["-q", "--resolve-for", "0", "a", &destination]).expect(4);
    wait("both", || {
        [&there, &elsewhere].iter().all(|host| host.state("b").as_deref() == Some("prepared"))
    });
    let ask = |host: &Host| format!("exec:{}", host.remote("mig-recv"));
    let wrong = ask(&elsewhere);
    source.run("mig-send", &["--resolve", "--resolve-for", "1", "a", &wrong]).expect(4);
    assert_eq!(elsewhere.state("b").as_deref(), Some("prepared"));
    source.run("mig-send", &["--resolve", "a", &ask(&there)]).expect(0);
    assert_eq!(a.ended(), Some(0));
    b.wait_ticks(3);
    assert_eq!(c.text(), "", "the copy ran");
    elsewhere.run("vmctl", &["quit", "b"]).expect(0);
    assert_one_story(&[&a.console, &b]);
}

#[test]
fn a_vmrun_takes_no_go_that_is_for_another_copy() {
    needs_kvm!();
    let (source, there) = (Host::new(), Host::new());
    let mut a = small(&source);
    let (ask, b) = hand_over(&source, &there);
    let record = there.records()[0].file_stem().unwrap().to_str().unwrap().to_owned();
    let id: MigrationId = record.parse().unwrap();
    let vmrun = Client::connect(&there.runtime_dir().join("b.sock"), "a receiver").unwrap();
    for nonce in [Some(Nonce::random()), None] {
        let error = vmrun.go(id, Authority::Source(nonce)).unwrap_err().to_string();
        assert!(error.contains("another copy"), "{error}");
    }
    assert_eq!(there.state("b").as_deref(), Some("prepared"));
    assert_eq!(b.text(), "", "it ran");
    source.run("mig-send", &["--resolve", "a", &ask]).expect(0);
    assert_eq!(a.ended(), Some(0));
    b.wait_ticks(3);
    assert_one_story(&[&a.console, &b]);
}

#[test]
fn a_source_that_dies_between_its_commit_and_go_leaves_the_guest_whole() {
    needs_kvm!();
    let (source, there) = (Host::new(), Host::new());
    let mut a = small(&source);
    let (_, b) = hand_over(&source, &there);
    // Its host crashes: nobody is left who could ask, or send GO.
    kill_9(a.pid());
    a.ended();
    b.assert_silent(Duration::from_secs(3));
    assert_eq!(there.state("b").as_deref(), Some("prepared"), "nobody has decided");
    there.run("vmctl", &["commit", "--force", "b"]).expect(0);
    b.wait_ticks(3);
    assert_one_story(&[&a.console, &b]);
}

#[test]
fn a_destination_is_told_that_the_guest_stays() {
    needs_kvm!();
    let (source, there) = (Host::new(), Host::new());
    let mut a = small(&source);
    let (first, b) = recv(&there);
    // ACK is lost with the tunnel: the destination is prepared, and the source does not know.
    let destination = cut_once(&source, "ack", &first, &there.remote("mig-recv"));
    source.run("mig-send", &["-q", "a", &destination]).expect(1);
    assert_eq!(there.state("b"), None, "it waits for a GO that never comes");
    a.assert_runs();
    assert_eq!(b.text(), "");
    assert_one_story(&[&a.console]);
}

#[test]
fn a_destination_that_could_not_be_told_hears_it_with_the_next_migration() {
    needs_kvm!();
    let (source, there) = (Host::new(), Host::new());
    let mut a = small(&source);
    let (first, b) = recv(&there);
    let destination = format!("exec:lossy-tunnel ack=cut '{first}'");
    source.run("mig-send", &["-q", "--resolve-for", "0", "a", &destination]).expect(1);
    wait("the destination", || there.state("b").as_deref() == Some("prepared"));
    a.assert_runs();
    // Its name is taken by a guest that nobody wants any more.
    source.run("mig-send", &["-q", "a", &format!("exec:{first}")]).expect(0);
    assert_eq!(a.ended(), Some(0));
    b.wait_ticks(3);
    assert_one_story(&[&a.console, &b]);
}

#[test]
fn a_destination_that_was_given_a_time_limit_refuses_by_itself() {
    needs_kvm!();
    let (source, there) = (Host::new(), Host::new());
    let mut a = small(&source);
    let (first, _) = recv(&there);
    let first = format!("{first} --go-timeout 1");
    let destination = format!("exec:lossy-tunnel go=cut '{first}'");
    source.run("mig-send", &["-q", "--resolve-for", "0", "a", &destination]).expect(4);
    wait("the destination to give up", || there.state("b").is_none());
    let ask = format!("exec:{}", there.remote("mig-recv"));
    source.run("mig-send", &["--resolve", "a", &ask]).expect(1);
    a.assert_runs();
    assert_one_story(&[&a.console]);
}

#[test]
fn a_receiver_whose_stream_stalls_ends_and_its_guest_waits() {
    needs_kvm!();
    let (source, there) = (Host::new(), Host::new());
    let mut a = small(&source);
    let (first, b) = recv(&there);
    let destination = format!("exec:lossy-tunnel go=stall '{first} --timeout 2'");
    let mut sender = source
        .command("mig-send")
        .args(["-q", "--resolve-for", "0", "--timeout", "6", "a", &destination])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait("the receiver to end", || {
        there.state("b").as_deref() == Some("prepared")
            && there.processes().iter().all(|(_, name)| name != "mig-recv")
    });
    wait_within(&mut sender, HANG_TIMEOUT);
    let ask = format!("exec:{}", there.remote("mig-recv"));
    source.run("mig-send", &["--resolve", "a", &ask]).expect(0);
    assert_eq!(a.ended(), Some(0));
    b.wait_ticks(3);
    assert_one_story(&[&a.console, &b]);
}

#[test]
fn a_memory_that_ends_with_the_boot_is_named_when_a_guest_arrives() {
    needs_kvm!();
    let (source, there) = (Host::new(), Host::fresh());
    let dir = there.path("state").display().to_string();
    let can = there.sh(&format!("unshare -m mount -t tmpfs tmpfs {dir}"));
    if can.status != Some(0) {
        println!("SKIPPED a state directory in memory: no mount of its own: {}", can.stderr.trim());
        return;
    }
    let mut a = small(&source);
    let (recv, b) = recv(&there);
    let script = format!("unshare -m bash -c \"mount -t tmpfs tmpfs {dir} && exec {recv}\"");
    let done = source.run("mig-send", &["-q", "a", &format!("exec:{script}")]).expect(0);
    assert!(done.stderr.contains("is in memory"), "{}", done.stderr);
    assert!(done.stderr.contains(&dir), "{}", done.stderr);
    assert_eq!(a.ended(), Some(0));
    b.wait_ticks(3);
    assert_one_story(&[&a.console, &b]);
}
