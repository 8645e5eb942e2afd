//! A destination that cannot start the guest after GO does not say that it runs: not to its source,
//! and not by its exit status. The vmruns are scripted, and none needs KVM.

use std::fs;

use mig_engine::ownership::State;
use migpipe_tests::{Host, Scripted};

/// What a vmrun says that cannot start its guest.
const WHY: &str = "the vCPUs cannot be started";

fn broken_pair(host: &Host) -> (Scripted, Scripted) {
    let source = Scripted::running(host.path("a.sock"), &[1, 2, 3], |_, _| {});
    let destination = Scripted::incoming(host.path("b.sock"));
    destination.break_down();
    (source, destination)
}

/// What mig-recv said, and its status behind that.
fn ended(host: &Host) -> (String, String) {
    let said = fs::read_to_string(host.path("said")).unwrap();
    (said, fs::read_to_string(host.path("status")).unwrap().trim().to_owned())
}

#[test]
fn a_source_that_waits_for_running_never_hears_it() {
    let host = Host::new();
    let (a, b) = broken_pair(&host);
    let status = host.path("status").display().to_string();
    // Its status is there before mig-send ends, which waits for the tunnel.
    let receive = format!(
        "exec:mig-recv --vm {} 2>{}; echo $? >{status}.new; mv {status}.new {status}",
        b.socket().display(),
        host.path("said").display(),
    );
    let to = [a.socket().to_str().unwrap(), &receive];
    let done = host.run("mig-send", &["-q", "--resolve-for", "0", to[0], to[1]]);
    let (said, status) = ended(&host);
    assert_eq!(status, "4", "{said}");
    assert!(
        said.contains(WHY) && said.contains("paused") && !said.contains("scripted runs here"),
        "{said}"
    );
    done.refused_as(4, &["handed-over", "--resolve"]);
    // RUNNING would have ended it.
    assert!(matches!(a.state(), State::HandedOver(_)), "{:?}", a.state());
    assert!(matches!(b.state(), State::Prepared(_)), "{:?}", b.state());
}

#[test]
fn one_way_the_receiver_alone_says_so() {
    let host = Host::new();
    let (a, b) = broken_pair(&host);
    let (from, to) = (a.socket().display(), b.socket().display());
    let done = host.sh(&format!("mig-send -q {from} | mig-recv --vm {to}")).expect(4);
    assert!(done.stderr.contains(WHY) && done.stderr.contains("paused"), "{}", done.stderr);
    assert!(!done.stderr.contains("scripted runs here"), "{}", done.stderr);
    assert!(!b.may_run() && !a.may_run());
}
