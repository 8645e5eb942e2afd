//! A guest that left a host is not started there a second time by mistake.

use migpipe_tests::{Guest, Host, needs_kvm, spec, wait};

fn small() -> String {
    spec(64, "500", 16)
}

/// A guest named web that has moved from the first host to the second.
fn moved() -> (Host, Host) {
    let (home, away) = (Host::new(), Host::new());
    let mut a = Guest::boot(&home, "web", &small(), &["--mem", "64M"]);
    let to = format!("exec:{}", away.remote("mig-recv -q --console null"));
    home.run("mig-send", &["-q", "web", &to]).expect(0);
    assert_eq!(a.ended(), Some(0));
    (home, away)
}

fn start(home: &Host, options: &[&str]) -> Guest {
    let mut args = vec!["--mem", "64M"];
    args.extend(options);
    let guest = Guest::start_unless_it_left(home, "web", &small(), &args);
    wait("its vmrun", || home.state("web").is_some_and(|state| state != "migrating"));
    guest
}

#[test]
fn a_guest_that_moved_away_is_held_back_at_home_until_the_operator_says_so() {
    needs_kvm!();
    let (home, away) = moved();
    let held = start(&home, &[]);
    assert_eq!(home.state("web").as_deref(), Some("held"));
    let status = home.run("vmctl", &["status", "web"]).expect(0).stdout;
    for word in ["it went to exec:", "mig-recv", "vmctl resume web", "--again"] {
        assert!(status.contains(word), "'{word}' is not in {status}");
    }
    home.run("mig-send", &["-q", "--one-way", "web", "exec:cat >/dev/null"])
        .refused_with(&["held back"]);
    held.assert_stands_still();
    assert_eq!(away.state("web").as_deref(), Some("running"));
    home.run("vmctl", &["resume", "web"]).expect(0);
    assert_eq!(home.state("web").as_deref(), Some("running"));
    home.run("vmctl", &["quit", "web"]).expect(0);
    // That was the operator's word.
    let _web = start(&home, &[]);
    wait("the guest", || home.state("web").as_deref() == Some("running"));
}

#[test]
fn a_guest_that_moved_within_its_host_may_be_started_again_when_it_has_ended() {
    needs_kvm!();
    let home = Host::new();
    let mut a = Guest::boot(&home, "web", &small(), &["--mem", "64M"]);
    home.run("mig-send", &["-q", "web", "exec:mig-recv -q --name b --console null"]).expect(0);
    assert_eq!(a.ended(), Some(0));
    // It runs here under another name.
    let held = start(&home, &[]);
    assert_eq!(home.state("web").as_deref(), Some("held"));
    home.run("vmctl", &["quit", "web"]).expect(0);
    drop(held);
    home.run("vmctl", &["quit", "b"]).expect(0);
    let _web = start(&home, &[]);
    wait("the guest", || home.state("web").as_deref() == Some("running"));
}

#[test]
fn a_word_beforehand_is_as_good() {
    needs_kvm!();
    let (home, _away) = moved();
    drop(start(&home, &["--again"]));
    let (home, _away) = moved();
    let records = home.run("vmctl", &["records"]).expect(0).stdout;
    assert!(records.contains("web left: it went to exec:"), "{records}");
    home.run("vmctl", &["forget", "web"]).expect(0);
    home.run("vmctl", &["forget", "web"]).refused_with(&["nothing of web"]);
    let _web = start(&home, &[]);
    wait("the guest", || home.state("web").as_deref() == Some("running"));
}

#[test]
fn a_guest_that_comes_home_is_not_held_back_and_takes_its_name_from_one_that_is() {
    needs_kvm!();
    let (home, away) = moved();
    let mut held = start(&home, &[]);
    let back = format!("exec:{}", home.remote("mig-recv -q --console null"));
    away.run("mig-send", &["-q", "web", &back]).expect(0);
    assert_eq!(held.ended(), Some(0), "it gave way");
    assert_eq!(home.state("web").as_deref(), Some("running"));
    home.run("vmctl", &["quit", "web"]).expect(0);
    let _web = start(&home, &[]);
    wait("the guest", || home.state("web").as_deref() == Some("running"));
}

#[test]
fn a_guest_that_stayed_is_not_held_back() {
    needs_kvm!();
    let home = Host::new();
    let mut a = Guest::boot(&home, "web", &small(), &["--mem", "64M"]);
    home.run("mig-send", &["-q", "web", "exec:exit 7"]).expect(1);
    a.assert_runs();
    home.run("vmctl", &["quit", "web"]).expect(0);
    a.ended();
    let _web = start(&home, &[]);
    wait("the guest", || home.state("web").as_deref() == Some("running"));
}

#[test]
fn a_guest_whose_vmrun_was_killed_on_its_way_may_have_left() {
    needs_kvm!();
    let home = Host::new();
    let a = Guest::boot(&home, "web", &small(), &["--mem", "64M"]);
    home.sh("mig-send -q web | cat >/dev/null").expect(0);
    assert_eq!(home.state("web").as_deref(), Some("handed-over"));
    drop(a);
    let _held = start(&home, &[]);
    assert_eq!(home.state("web").as_deref(), Some("held"));
    let status = home.run("vmctl", &["status", "web"]).expect(0).stdout;
    assert!(status.contains("may be there"), "{status}");
}

#[test]
fn a_saved_guest_is_held_back_until_it_was_restored() {
    needs_kvm!();
    let home = Host::new();
    let mut a = Guest::boot(&home, "web", &small(), &["--mem", "64M"]);
    let file = format!("file:{}", home.path("web.mig").display());
    home.run("mig-send", &["-q", "web", &file]).expect(0);
    assert_eq!(a.ended(), Some(0));
    let _held = start(&home, &[]);
    let status = home.run("vmctl", &["status", "web"]).expect(0).stdout;
    assert!(status.contains("it went to file:"), "{status}");
    home.run("mig-recv", &["-q", "--console", "null", &file]).expect(0);
    home.run("vmctl", &["quit", "web"]).expect(0);
    let _web = start(&home, &[]);
    wait("the guest", || home.state("web").as_deref() == Some("running"));
}
