//! What is said when something went wrong is true, names the cause, and can be used.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use mig_engine::report::{Location, Report, ReportOutcome};
use migpipe_tests::{Guest, Host, needs_kvm, report, spec, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn small(host: &Host) -> Guest {
    Guest::boot(host, "a", &spec(64, "500", 8), &["--mem", "64M"])
}

#[test]
fn a_tunnel_that_copies_its_input_ends_with_the_migration() {
    needs_kvm!();
    let copiers =
        ["cat", "tee /dev/null", "dd bs=64k status=none", "pv -q", "socat - -", "mbuffer -q -m 1M"];
    for copier in copiers {
        let program = copier.split(' ').next().unwrap_or(copier);
        let host = Host::new();
        if host.sh(&format!("command -v {program}")).status != Some(0) {
            println!("SKIPPED {program}: it is not installed");
            continue;
        }
        let recv = "mig-recv --quiet --name b --console null";
        for (options, tunnel) in [
            (&[][..], format!("{copier} | {recv}")),
            (&[], format!("{copier} | {recv} | {copier}")),
            (&["--commit", "exec:mig-recv"], format!("{copier} | {recv} | cat")),
        ] {
            // It holds back what GO needs to get through it, both ways.
            if program == "mbuffer" && options.is_empty() {
                continue;
            }
            let mut a = small(&host);
            let tunnel = format!("exec:{tunnel}");
            let done =
                host.run("mig-send", &[&["-q"], options, &["a", &tunnel]].concat()).expect(0);
            assert_eq!(done.stderr, "", "{tunnel}");
            assert_eq!(host.state("b").as_deref(), Some("running"));
            assert_eq!(a.ended(), Some(0));
            host.run("vmctl", &["quit", "b"]).expect(0);
        }
    }
}

#[test]
fn text_in_front_of_the_answers_is_named_both_ways_and_cannot_drive_the_terminal() {
    needs_kvm!();
    let host = Host::new();
    let mut a = small(&host);
    for (banner, named) in [
        ("echo 'Welcome to hostb'", "Welcome to hostb"),
        ("printf 'Last login: \\033[2Jtoday and some more\\n'", "Last login:"),
        ("printf '\\037\\213\\010 compressed, for sure, all of it'", "gunzip"),
    ] {
        let tunnel = format!("exec:{banner}; mig-recv --quiet --name b");
        let done = host.run("mig-send", &["-q", "a", &tunnel]).expect(1);
        // What mig-recv says on its own comes in front.
        let said = done.stderr.lines().last().unwrap().to_owned();
        let without_command = said.split("tunnel command").next().unwrap();
        assert!(without_command.contains(named), "{said}");
        assert!(said.ends_with("; a runs on here"), "{said}");
        assert!(!done.stderr.contains('\u{1b}'), "{said}");
    }
    a.assert_runs();
}

#[test]
fn a_destination_whose_vmrun_was_killed_says_that_and_no_warning_of_its_log() {
    needs_kvm!();
    let host = Host::new();
    let mut a = Guest::boot(&host, "a", &spec(64, "500", 64), &["--mem", "128M"]);
    let started = std::time::Instant::now();
    let sending = host
        .command("mig-send")
        .args(["-q", "--max-bandwidth", "8M", "a", "exec:mig-recv --quiet --name b --log debug"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    wait("the pages to flow", || host.state("b").as_deref() == Some("receiving"));
    kill(Pid::from_raw(host.pid("b").unwrap()), Signal::SIGKILL).unwrap();
    host.run("vmctl", &["set-speed", "a", "0"]).expect(0);
    let done = migpipe_tests::finish(sending, started).expect(1);
    for end in ["mig-recv: ", "mig-send: "] {
        let said = done.stderr.lines().find(|line| line.starts_with(end)).unwrap_or_default();
        assert!(said.contains("its vmrun was killed (SIGKILL"), "{}", done.stderr);
    }
    assert!(!done.stderr.contains("huge"), "{}", done.stderr);
    a.assert_runs();
}

#[test]
fn a_migration_that_does_not_begin_leaves_a_report_of_its_own_and_says_where_the_guest_is() {
    needs_kvm!();
    let host = Host::new();
    let mut a = small(&host);
    let path = host.path("r.json");
    let file = path.to_str().unwrap();
    for (status, args) in [
        (1, &["exec:false"][..]),
        (1, &["exec:exit 3"]),
        (1, &["tcp:127.0.0.1:1"]),
        (1, &["unix:/nonexistent/socket"]),
        (1, &["file:/nonexistent/directory/a.mig"]),
        (1, &["--ready-timeout", "0.2", "exec:sleep 100"]),
        (2, &["fd:99"]),
        (2, &["--commit", "exec:true", "file:a.mig"]),
        (2, &["--one-way", "--return", "stdin", "exec:true"]),
    ] {
        fs::write(&path, "{\"old\": \"and longer than the new one, by far\"}".repeat(200)).unwrap();
        let all = [&["-q", "--report", file, "a"], args].concat();
        let done = host.run("mig-send", &all).expect(status);
        let said = done.stderr.lines().last().unwrap().to_owned();
        assert!(said.ends_with("; a runs on here"), "{args:?}: {said}");
        let written = report(&path);
        assert_eq!(written.outcome, ReportOutcome::Failed, "{args:?}");
        assert_eq!(written.location, Some(Location::Source), "{args:?}");
        let reason = written.reason.unwrap();
        assert!(said.contains(&reason), "{args:?}: {reason}");
    }
    host.run("mig-send", &["-q", "--report", file, "nobody", "exec:false"]).expect(1);
    assert_eq!(report(&path).guest, "nobody");
    assert_eq!(report(&path).location, None);
    a.assert_runs();
}

#[test]
fn a_sender_that_was_killed_leaves_no_report_of_an_earlier_migration() {
    needs_kvm!();
    let host = Host::new();
    let mut a = small(&host);
    let path = host.path("r.json");
    host.run("mig-send", &["-q", "--report", path.to_str().unwrap(), "a", "exec:false"]).expect(1);
    let before = report(&path).migration;
    let mut sending = host
        .command("mig-send")
        .args(["-q", "--report", path.to_str().unwrap(), "a", "exec:exec sleep 30"])
        .spawn()
        .unwrap();
    // It is empty for a moment before it is written.
    let migration = || {
        let text = fs::read_to_string(&path).unwrap();
        serde_json::from_str::<Report>(&text).map(|report| report.migration)
    };
    wait("the report to begin", || migration().is_ok_and(|id| id != before));
    sending.kill().unwrap();
    sending.wait().unwrap();
    assert_eq!(report(&path).outcome, ReportOutcome::Unknown);
    a.assert_runs();
}

#[test]
fn a_guest_that_does_not_run_here_is_not_said_to_run_here() {
    needs_kvm!();
    let host = Host::new();
    let a = small(&host);
    host.run("vmctl", &["pause", "a"]).expect(0);
    let done = host.run("mig-send", &["-q", "a", "exec:false"]).expect(1);
    assert!(done.stderr.contains("a is here, paused"), "{}", done.stderr);
    host.run("vmctl", &["resume", "a"]).expect(0);
    host.run("mig-send", &["-q", "--one-way", "a", "exec:cat > /dev/null; exit 1"]).expect(4);
    a.assert_stands_still();
    let done = host.run("mig-send", &["-q", "a", "exec:mig-recv --quiet --name b"]).expect(1);
    assert!(done.stderr.contains("a is handed-over"), "{}", done.stderr);
    assert!(!done.stderr.contains("runs on here"), "{}", done.stderr);
}

#[test]
fn the_command_that_an_error_prints_can_be_pasted_whatever_the_destination_is_called() {
    needs_kvm!();
    for destination in [
        "exec:cat >/dev/null; echo 'it is' \"$HOME\" `id -u` \\\\ !! >&2; false",
        "exec:cat >/dev/null; exit 3 # it's",
    ] {
        let host = Host::new();
        let _a = small(&host);
        let done = host.run("mig-send", &["-q", "--one-way", "a", destination]).expect(4);
        let said = done.stderr.lines().last().unwrap().to_owned();
        let command = said.split_once(": run ").expect("a command").1;
        let script = format!("mig-send() {{ printf '<%s>\\n' \"$@\"; }}; {command}");
        let words = host.sh(&script).expect(0).stdout;
        assert_eq!(words, format!("<--resolve>\n<a>\n<{destination}>\n"), "{said}");
    }
}

#[test]
fn a_connection_that_stays_open_behind_a_whole_guest_is_told_from_one_that_broke() {
    needs_kvm!();
    let host = Host::new();
    let _a = small(&host);
    let open = "exec:cat >/dev/null; exec sleep 30 2>/dev/null";
    let done = host.run("mig-send", &["-q", "--one-way", "--timeout", "1", "a", open]).expect(4);
    assert!(done.stderr.contains("nc -N"), "{}", done.stderr);

    let host = Host::new();
    let _a = small(&host);
    let open = "mig-recv --quiet --name b --timeout 1 \
                < <(mig-send -q --one-way a; exec sleep 30 2>/dev/null); kill $!";
    let done = host.sh(open);
    assert!(done.stderr.contains("the guest is complete"), "{done:#?}");
    assert!(done.stderr.contains("nc -N"), "{done:#?}");
}

/// An option that a message recommends is one that some program takes.
#[test]
fn every_option_that_a_message_names_exists() {
    let host = Host::new();
    let mut known: BTreeSet<String> = BTreeSet::new();
    let options = |text: &str| -> Vec<String> {
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'));
        let long = words.filter(|word| word.starts_with("--") && word.len() > 3);
        long.filter(|word| !word.ends_with('-')).map(str::to_owned).collect()
    };
    for program in ["vmrun", "mig-send", "mig-recv", "vmctl", "mig-inspect"] {
        known.extend(options(&host.run(program, &["--help"]).expect(0).stdout));
    }
    // With the options of its subcommands, in bold type.
    let page = host.run("vmctl", &["--man"]).expect(0).stdout;
    known.extend(options(&page.replace("\\-", "-").replace("\\fB", " ").replace("\\fR", " ")));
    // Of other programs, and those that are not for people.
    let others = [
        "--man",
        "--completions",
        "--broker",
        "--ask",
        "--about",
        "--control-stdin",
        "--examine",
        "--arrival",
        "--host-cpu",
        "--named",
        "--user",
        "--scope",
        "--slice",
        "--property",
        "--quiet",
        "--collect",
        "--no-ask-password",
        "--description",
        "--no-block",
        "--sync",
        "--no-pager",
        "--output",
        "--unit",
    ];
    known.extend(others.map(str::to_owned));
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut looked_at = 0;
    let mut dirs = vec![root.join("bins"), root.join("crates")];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let entry = entry.unwrap();
            let path = entry.path();
            if path.is_dir() {
                dirs.push(path);
                continue;
            }
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_source = name.ends_with(".rs") && !name.ends_with("tests.rs");
            if !is_source || !path.components().any(|part| part.as_os_str() == "src") {
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            // Up to the tests, which may name what does not exist.
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            for line in code.lines().filter(|line| !line.trim_start().starts_with("//")) {
                for option in options(line) {
                    looked_at += 1;
                    assert!(known.contains(&option), "{}: {option}", path.display());
                }
            }
        }
    }
    assert!(looked_at > 20, "only {looked_at} options were looked at");
}
