//! A host sends all of its guests away (scripts/mig-drain).

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use migpipe_tests::{Console, Guest, Host, assert_one_story, needs_kvm, run, wait};

/// Of more guests, most would be waiting for a processor.
const GUESTS: usize = 20;

const KERNEL: &str = "builtin:dirty,pages=16,rate=200,tick-ms=50,fill=random,fill-mb=4";

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/mig-drain")
}

fn drain(host: &Host, args: &[&str]) -> Command {
    let mut command = host.shell("exec \"$0\" \"$@\"");
    command.arg(script()).args(args);
    command
}

fn tunnel(away: &Host) -> String {
    format!("exec:{}", away.remote("mig-recv -q"))
}

fn guests(home: &Host, count: usize) -> Vec<Guest> {
    let start = |n| Guest::start(home, &format!("g{n}"), KERNEL, &["--mem", "32M"]);
    let guests: Vec<_> = (0..count).map(start).collect();
    for guest in &guests {
        guest.console.wait_for("ready");
    }
    guests
}

/// Panics unless each guest runs on that host, and has run there alone since it left.
fn assert_all_moved(guests: &[Guest], away: &Host) {
    for guest in guests {
        let arrived =
            Console::at(&away.path(&format!("state/vmrun/guests/{}.serial0.log", guest.name)));
        arrived.wait_ticks(2);
        assert_one_story(&[&guest.console, &arrived]);
    }
}

fn list(host: &Host) -> String {
    host.run("vmctl", &["list"]).expect(0).stdout
}

#[test]
fn all_guests_leave_though_the_drain_is_killed_five_times() {
    needs_kvm!();
    let (home, away) = (Host::new(), Host::new());
    let guests = guests(&home, GUESTS);
    let to = tunnel(&away);
    let mut killed = 0;
    let mut left = GUESTS;
    while killed < 5 {
        let mut drain = drain(&home, &[&to]).stdout(Stdio::null()).spawn().unwrap();
        // Each time at another point of the way: when two or three more have gone.
        wait("some guests to leave", || list(&home).lines().count() - 1 <= left - 2 - killed % 2);
        left = list(&home).lines().count() - 1;
        assert!(left > 0, "they left before it was killed");
        drain.kill().unwrap();
        drain.wait().unwrap();
        killed += 1;
    }
    let done = run(&mut drain(&home, &[&to])).expect(0);
    assert!(!done.stdout.contains("stays"), "{done:#?}");
    assert_eq!(list(&home).lines().count(), 1, "only the head is left: {}", list(&home));
    assert_eq!(list(&away).lines().count(), 1 + GUESTS, "{}", list(&away));
    assert_all_moved(&guests, &away);
}

#[test]
fn no_more_guests_move_at_once_than_may() {
    needs_kvm!();
    let (home, away) = (Host::new(), Host::new());
    let guests = guests(&home, 4);
    // The first tunnel waits for the second, which is there only if two guests move at once.
    for dir in ["started", "running"] {
        std::fs::create_dir(home.path(dir)).unwrap();
    }
    let script = format!(
        "cd {}; touch started/$$ running/$$; until [ $(ls started | wc -l) -ge 2 ]; do sleep 0.05; done; \
         ls running | wc -l >>most; {}; rm running/$$",
        home.path("").display(),
        away.remote("mig-recv -q")
    );
    run(&mut drain(&home, &["--jobs", "2", &format!("exec:{script}")])).expect(0);
    let most = std::fs::read_to_string(home.path("most")).unwrap();
    assert_eq!(most.lines().count(), guests.len(), "{most}");
    assert!(most.lines().all(|number| ["1", "2"].contains(&number.trim())), "{most}");
    assert_all_moved(&guests, &away);
}

#[test]
fn a_guest_goes_where_it_is_taken() {
    needs_kvm!();
    let (home, away) = (Host::new(), Host::new());
    let guests = guests(&home, 2);
    let full = format!("exec:{}", Host::new().remote("mig-recv -q --max-mem 1M"));
    let done = run(&mut drain(&home, &[&full, &tunnel(&away)])).expect(0);
    let at_least_one_was_refused = done.stdout.contains("--max-mem");
    assert!(at_least_one_was_refused, "{done:#?}");
    assert_all_moved(&guests, &away);
}

#[test]
fn what_nobody_takes_stays_is_ended_or_saved_as_told() {
    needs_kvm!();
    let home = Host::new();
    let mut guests = guests(&home, 1);
    let nowhere = "exec:false";
    let done = run(&mut drain(&home, &["--tries", "1", nowhere])).expect(1);
    assert!(done.stdout.contains("g0: nobody took it: it stays here"), "{done:#?}");
    guests[0].assert_runs();

    let dir = home.path("saved");
    std::fs::create_dir(&dir).unwrap();
    let save = format!("save:{}", dir.display());
    let done = run(&mut drain(&home, &["--tries", "1", "--left", &save, nowhere])).expect(0);
    let command = format!("mig-recv file:{}/g0.mig", dir.display());
    assert!(done.stdout.contains(&command), "{done:#?}");
    assert_eq!(guests[0].ended(), Some(0));
    home.sh(&format!("{command} -q")).expect(0);
    assert_eq!(home.state("g0").as_deref(), Some("running"));

    let done = run(&mut drain(&home, &["--tries", "1", "--left", "quit", nowhere])).expect(0);
    assert!(done.stdout.contains("g0: nobody took it: it was ended"), "{done:#?}");
    assert_eq!(home.state("g0"), None);
}

#[test]
fn a_guest_of_unknown_outcome_is_resolved() {
    needs_kvm!();
    let (home, away, other) = (Host::new(), Host::new(), Host::new());
    let guests = guests(&home, 1);
    let lost = format!("exec:lossy-tunnel go=cut '{}'", away.remote("mig-recv -q"));
    home.run("mig-send", &["-q", "--resolve-for", "0", "g0", &lost]).expect(4);
    wait("the destination", || away.state("g0").as_deref() == Some("prepared"));
    // A host that has nothing to do with it does not decide.
    let done =
        run(&mut drain(&home, &["--tries", "1", "--left", "quit", &tunnel(&other)])).expect(1);
    assert!(done.stdout.contains("g0: is handed-over, and nobody says"), "{done:#?}");
    assert_eq!(home.state("g0").as_deref(), Some("handed-over"));
    let done = run(&mut drain(&home, &[&tunnel(&other), &tunnel(&away)])).expect(0);
    assert!(done.stdout.contains("g0: has moved"), "{done:#?}");
    assert_all_moved(&guests, &away);
}

#[test]
fn a_guest_that_its_destination_gave_up_is_sent_again() {
    needs_kvm!();
    let (home, away) = (Host::new(), Host::new());
    let guests = guests(&home, 1);
    let lost = format!("exec:lossy-tunnel go=cut '{}'", away.remote("mig-recv -q"));
    home.run("mig-send", &["-q", "--resolve-for", "0", "g0", &lost]).expect(4);
    wait("the destination", || away.state("g0").as_deref() == Some("prepared"));
    away.run("vmctl", &["quit", "--force", "g0"]).expect(0);
    let done = run(&mut drain(&home, &["--tries", "1", &tunnel(&away)])).expect(0);
    assert!(done.stdout.contains("g0: runs here again"), "{done:#?}");
    assert_all_moved(&guests, &away);
}

/// A vmctl that fails for one of its commands.
fn failing_at(host: &Host, command: &str) -> String {
    let dir = host.path(&format!("without-{command}"));
    std::fs::create_dir(&dir).unwrap();
    let script = format!(
        "#!/bin/sh\nPATH=${{PATH#*:}}\n[ \"$1\" != {command} ] || {{ echo 'vmctl: no answer' >&2; exit 1; }}\n\
         exec vmctl \"$@\"\n"
    );
    std::fs::write(dir.join("vmctl"), script).unwrap();
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(dir.join("vmctl"), mode).unwrap();
    dir.display().to_string()
}

#[test]
fn a_guest_that_cannot_be_asked_is_not_taken_for_one_that_has_gone() {
    needs_kvm!();
    let home = Host::new();
    let mut guests = guests(&home, 1);
    for command in ["list", "status"] {
        let mut shell = home.shell("PATH=$1:$PATH exec \"$0\" --tries 1 exec:false");
        let done = run(shell.arg(script()).arg(failing_at(&home, command))).expect(1);
        assert!(format!("{}{}", done.stdout, done.stderr).contains("no answer"), "{done:#?}");
    }
    guests[0].assert_runs();
}

#[test]
fn a_wrong_command_line_is_said_to_be_one() {
    let home = Host::new();
    for (args, word) in [
        (&["--jobs", "0", "x"][..], "--jobs"),
        (&["--left", "lose", "x"], "keep, quit or save:DIR"),
        (&["--all"], "--all"),
        (&[], "where are the guests to go"),
    ] {
        run(&mut drain(&home, args)).refused_as(2, &["mig-drain: ", word]);
    }
    let help = run(&mut drain(&home, &["--help"])).expect(0).stdout;
    assert!(help.starts_with("Usage: mig-drain"), "{help}");
    // Nothing to do is done.
    run(&mut drain(&home, &["exec:false"])).expect(0);
}

#[test]
fn how_long_it_will_take_is_said_before_and_on_the_way() {
    needs_kvm!();
    let (home, away) = (Host::new(), Host::new());
    let kernel = "builtin:dirty,pages=16,rate=200,tick-ms=50,fill=random,fill-mb=16";
    let boot = |name| Guest::boot(&home, name, kernel, &["--mem", "32M"]);
    let guests: Vec<_> = ["g0", "g1", "g2", "g3"].map(boot).into();
    let to = tunnel(&away);
    let args = ["--max-bandwidth", "6M", &to];
    let asked = run(&mut drain(&home, &[&["-n"], &args[..]].concat())).expect(0).stdout;
    for guest in &guests {
        assert!(asked.contains(&format!("{}: would move to", guest.name)), "{asked}");
        assert_eq!(home.state(&guest.name).as_deref(), Some("running"));
    }
    assert!(away.records().is_empty() && away.sockets().is_empty());
    let last = asked.lines().last().unwrap();
    let said = last.strip_prefix("4 guests would leave in ").unwrap_or_else(|| panic!("{asked}"));
    let said: f64 = said.split(' ').next().unwrap().parse().unwrap();

    let began = std::time::Instant::now();
    let done = run(&mut drain(&home, &args)).expect(0).stdout;
    let took = began.elapsed().as_secs_f64();
    // Two by two at 6 MiB/s each; whatever else the machine does meanwhile has its share.
    assert!((took / 3.0..took * 3.0).contains(&said), "{said} s were said, {took} s it took");
    let left: Vec<_> = done.lines().filter(|line| line.contains(" of 4 have left")).collect();
    assert_eq!(left.len(), 3, "{done}");
    assert!(left[2].starts_with("3 of 4 have left, the others in some "), "{done}");
    assert_all_moved(&guests, &away);

    // What would not leave is named, with what is in the way.
    let stays = Guest::boot(&home, "h", kernel, &["--mem", "32M"]);
    let refused = format!("{to} --max-mem 8M");
    let asked = run(&mut drain(&home, &["-n", &refused])).expect(1).stdout;
    assert!(asked.contains("h: would stay: ") && asked.contains("--max-mem"), "{asked}");
    assert_eq!(home.state(&stays.name).as_deref(), Some("running"));
}
