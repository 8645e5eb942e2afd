//! `ssh:HOST` through a real sshd on loopback.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use migpipe_tests::{Console, Guest, Host, Sshd, assert_one_story, needs_kvm, spec, wait};

fn small(host: &Host) -> Guest {
    Guest::boot(host, "web", &spec(64, "500", 16), &["--mem", "64M"])
}

/// `mig-send` by this sshd to the loopback, with `dest` behind `ssh:USER@`.
fn arguments(sshd: &Sshd, before: &[&str], dest: &str, behind: &[&str]) -> Vec<String> {
    let mut all: Vec<String> = before.iter().map(|it| (*it).to_owned()).collect();
    all.extend(["web".to_owned(), format!("ssh:{dest}")]);
    all.extend(sshd.send_options());
    all.extend(behind.iter().map(|it| (*it).to_owned()));
    all
}

fn strings(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

#[test]
fn a_guest_moves_by_ssh_alone_under_another_name_and_to_a_file_that_is_named() {
    needs_kvm!();
    let (home, away) = (Host::new(), Host::new());
    let Some(sshd) = Sshd::open(&away) else { return };
    let mut web = small(&home);
    let console = away.path("a b's.console");
    let option = format!("file:{}", console.display());
    let words = arguments(&sshd, &["-q"], "127.0.0.1/w2", &["--", "-q", "--console", &option]);
    let done = home.run("mig-send", &strings(&words)).expect(0);
    assert_eq!(done.stderr, "", "{}", sshd.log());
    assert_eq!(web.ended(), Some(0));
    assert_eq!(away.state("w2").as_deref(), Some("running"));
    let there = Console::at(&console);
    there.wait_ticks(3);
    away.run("vmctl", &["quit", "w2"]).expect(0);
    assert_one_story(&[&web.console, &there]);
}

#[test]
fn a_guest_goes_through_a_jump_host() {
    needs_kvm!();
    let (home, gate, away) = (Host::new(), Host::new(), Host::new());
    let (Some(to_gate), Some(sshd)) = (Sshd::open(&gate), Sshd::open(&away)) else { return };
    let mut web = small(&home);
    let options: Vec<_> = to_gate.options().iter().map(|it| format!("-o '{it}'")).collect();
    let jump = format!("--ssh-option=ProxyCommand=ssh {} -W %h:%p 127.0.0.1", options.join(" "));
    let words = arguments(&sshd, &["-q", &jump], "127.0.0.1", &["--", "-q", "--console", "null"]);
    let done = home.run("mig-send", &strings(&words)).expect(0);
    assert_eq!(done.stderr, "", "{} {}", to_gate.log(), sshd.log());
    assert_eq!(logins(&to_gate), 1, "{}", to_gate.log());
    assert_eq!(web.ended(), Some(0));
    assert_eq!(away.state("web").as_deref(), Some("running"));
}

/// How often somebody has logged in.
fn logins(sshd: &Sshd) -> usize {
    sshd.log().lines().filter(|line| line.contains("Accepted publickey")).count()
}

#[test]
fn a_connection_that_is_open_already_is_used_and_left_open() {
    needs_kvm!();
    let (home, away) = (Host::new(), Host::new());
    let Some(sshd) = Sshd::open(&away) else { return };
    let mut web = small(&home);
    let path = format!("ControlPath={}", home.path("master").display());
    let ssh = |words: &[&str]| {
        let mut shell = home.shell("exec ssh \"$@\"");
        shell.args(["ssh", "-o", &path]);
        for option in sshd.options() {
            shell.args(["-o", &option]);
        }
        migpipe_tests::run(shell.args(words).stdin(std::process::Stdio::null()))
    };
    // The master goes on in the background, without the pipes of the test.
    ssh(&["-M", "-N", "-f", "-E", "/dev/null", "-o", "StdinNull=yes", "127.0.0.1"]).expect(0);
    let option = format!("--ssh-option={path}");
    let words = arguments(&sshd, &["-q", &option], "127.0.0.1", &["--", "-q", "--console", "null"]);
    home.run("mig-send", &strings(&words)).expect(0);
    assert_eq!(web.ended(), Some(0));
    assert_eq!(away.state("web").as_deref(), Some("running"));
    assert_eq!(logins(&sshd), 1, "{}", sshd.log());
    ssh(&["-O", "check", "127.0.0.1"]).expect(0);
    ssh(&["-O", "exit", "127.0.0.1"]).expect(0);
}

#[test]
fn a_stream_one_way_and_one_with_a_commit_of_its_own_go_by_ssh_too() {
    needs_kvm!();
    let (home, away) = (Host::new(), Host::new());
    let Some(sshd) = Sshd::open(&away) else { return };
    let mut web = small(&home);
    let words = arguments(
        &sshd,
        &["-q", "--one-way"],
        "127.0.0.1",
        &["--", "--quiet", "--console", "null"],
    );
    home.run("mig-send", &strings(&words)).expect(0);
    assert_eq!(away.state("web").as_deref(), Some("running"));
    // Nobody has answered, and nothing is asked there unless somebody says where.
    home.run("mig-send", &["--resolve", "web"])
        .refused_as(2, &["needs the destination", "ssh:HOST"]);
    let words = arguments(&sshd, &["--resolve"], "127.0.0.1", &[]);
    home.run("mig-send", &strings(&words)).expect(0);
    assert_eq!(web.ended(), Some(0));

    let web =
        Guest::boot_at(&home, "web", &home.path("second"), &spec(64, "500", 16), &["--mem", "64M"]);
    let back =
        format!("exec:gzip | (gunzip | {})", away.remote("mig-recv -q --name w3 --console null"));
    let mut words = vec!["-q", "--commit", "ssh:127.0.0.1", "web", &back];
    let options = sshd.send_options();
    words.extend(options.iter().map(String::as_str));
    home.run("mig-send", &words).expect(0);
    assert_eq!(away.state("w3").as_deref(), Some("running"));
    drop(web);
}

#[test]
fn a_failure_of_ssh_is_told_from_one_of_mig_recv_and_says_what_to_do() {
    needs_kvm!();
    let (home, away) = (Host::new(), Host::new());
    // Nothing of this build is in the PATH there.
    let Some(sshd) = Sshd::start(&away, Path::new("/nonexistent"), str::to_owned) else { return };
    let mut web = small(&home);
    let program = |name: &str| migpipe_tests::bin_dir().join(name).display().to_string();
    let failed = |options: &[&str], behind: &[&str]| {
        // ssh takes the first of two values.
        let first: Vec<_> = options.iter().map(|it| format!("--ssh-option={it}")).collect();
        let before = [&["-q"][..], &strings(&first)].concat();
        let words = arguments(&sshd, &before, "127.0.0.1", behind);
        let done = home.run("mig-send", &strings(&words)).expect(1);
        done.stderr.lines().last().unwrap().to_owned()
    };
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let closed = format!("Port={port}");
    for (options, behind, words) in [
        (&[][..], &[][..], &["found no mig-recv there", "--recv-path /"][..]),
        (&[], &["--recv-path", "/nowhere/mig-recv"], &["found no /nowhere/mig-recv there"]),
        (&[], &["--recv-path", "/etc/passwd"], &["may not run /etc/passwd there"]),
        (&[&*closed], &[], &["could not reach it", "'ssh 127.0.0.1 true'"]),
        (&["UserKnownHostsFile=none"], &[], &["host key"]),
        (&["PubkeyAuthentication=no"], &[], &["could not log in"]),
        // What mig-recv itself says of its command line is on stderr.
        (&[], &["--recv-path", &program("mig-recv"), "--", "--nonsense"], &["ended with status 2"]),
    ] {
        let said = failed(options, behind);
        for word in words.iter().chain(&["ssh to 127.0.0.1", "; web runs on here"]) {
            assert!(said.contains(word), "{options:?} {behind:?}: {said}");
        }
    }
    // The destination's own word counts more than that it ended with 1.
    let said = failed(&[], &["--recv-path", &program("mig-recv"), "--", "--max-mem", "1M"]);
    assert!(said.contains("the destination") && said.contains("64.0 MiB"), "{said}");
    web.assert_runs();
    let words = arguments(
        &sshd,
        &["-q", "--recv-path", &program("mig-recv")],
        "127.0.0.1",
        &["--", "-q", "--console", "null"],
    );
    home.run("mig-send", &strings(&words)).expect(0);
    assert_eq!(web.ended(), Some(0));
}

#[test]
fn a_key_with_a_command_of_its_own_takes_guests_and_does_nothing_else() {
    needs_kvm!();
    let (home, away) = (Host::new(), Host::new());
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/ssh/authorized_keys");
    let example = fs::read_to_string(example).unwrap();
    let guests = away.path("guests");
    fs::create_dir(&guests).unwrap();
    let authorized = |key: &str| {
        let given = example.split("ssh-ed25519 ").nth(1).expect("a key to replace").trim();
        example
            .replace(&format!("ssh-ed25519 {given}"), key)
            .replace("/srv/guests", guests.to_str().unwrap())
    };
    let Some(sshd) = Sshd::start(&away, &migpipe_tests::bin_dir(), authorized) else { return };
    let mut web = small(&home);
    // Another command, and another name and other files: none of them gets there.
    let there = away.path("done");
    let touch = format!("touch {}", there.display());
    let mut ssh = std::process::Command::new("ssh");
    for option in sshd.options() {
        ssh.args(["-o", &option]);
    }
    ssh.args(["127.0.0.1", &touch]).stdin(std::process::Stdio::null());
    assert!(!ssh.output().unwrap().status.success());
    assert!(!there.exists());
    let words = arguments(&sshd, &["-q"], "127.0.0.1/w2", &["--", "--files-anywhere"]);
    let done = home.run("mig-send", &strings(&words)).expect(1);
    assert!(done.stderr.contains("the destination refused: its serial console"), "{}", done.stderr);
    web.assert_runs();
    home.run("vmctl", &["quit", "web"]).expect(0);
    let console = guests.join("web.console");
    let memory = ["--mem", "64M"];
    let mut web = Guest::boot_at(&home, "web", &console, &spec(64, "500", 16), &memory);
    home.run("mig-send", &strings(&words)).expect(0);
    assert_eq!(web.ended(), Some(0));
    assert_eq!(away.state("w2"), None);
    assert_eq!(away.state("web").as_deref(), Some("running"));
    away.run("vmctl", &["quit", "web"]).expect(0);
    // A guest that is too large for it is refused.
    let mut large =
        Guest::boot_at(&home, "web", &guests.join("large"), &spec(64, "500", 1), &["--mem", "9G"]);
    let words = arguments(&sshd, &["-q"], "127.0.0.1", &[]);
    let done = home.run("mig-send", &strings(&words)).expect(1);
    assert!(done.stderr.contains("9.0 GiB") || done.stderr.contains("9 GiB"), "{}", done.stderr);
    large.assert_runs();
}

#[test]
fn a_guest_of_unknown_outcome_is_resolved_where_it_was_sent() {
    needs_kvm!();
    let (home, away) = (Host::new(), Host::new());
    let Some(sshd) = Sshd::open(&away) else { return };
    let mut web = small(&home);
    // The first time GO is lost.
    let (flag, wrapper) = (away.path("called"), away.path("mig-recv"));
    let script = format!(
        "#!/bin/sh\nif test -e {0}; then exec mig-recv; fi\ntouch {0}\n\
         exec lossy-tunnel go=cut 'mig-recv -q --name w2 --console null'\n",
        flag.display()
    );
    fs::write(&wrapper, script).unwrap();
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).unwrap();
    let before = ["-q", "--resolve-for", "0", "--recv-path", wrapper.to_str().unwrap()];
    let words = arguments(&sshd, &before, "127.0.0.1/w2", &[]);
    let done = home.run("mig-send", &strings(&words)).expect(4);
    let told = done.stderr.lines().last().unwrap().to_owned();
    for word in ["mig-send --resolve web ssh:127.0.0.1/w2", "--ssh-option=", "--recv-path="] {
        assert!(told.contains(word), "{told}");
    }
    wait("the destination", || away.state("w2").as_deref() == Some("prepared"));
    let status = home.run("vmctl", &["status", "web"]).expect(0).stdout;
    assert!(status.contains("it was sent to ssh:127.0.0.1/w2; mig-send --resolve web"), "{status}");
    // Options of ssh can run commands, and the vmrun that remembers them may be anybody's by now.
    let done = home.run("mig-send", &["--resolve", "web"]).expect(2);
    let command = done.stderr.trim().split("run it: ").nth(1).unwrap().to_owned();
    assert_eq!(home.sh(&command).status, Some(0), "{command}");
    assert_eq!(web.ended(), Some(0));
    assert_eq!(away.state("w2").as_deref(), Some("running"));
}

#[test]
fn the_page_on_ssh_has_every_option_that_ssh_gets_and_what_is_said_of_its_failures() {
    needs_kvm!();
    let (home, fake) = (Host::new(), Host::new());
    // An ssh that shows what it was given.
    let (bin, given) = (fake.path("bin"), fake.path("given"));
    fs::create_dir(&bin).unwrap();
    let script = format!("#!/bin/sh\nprintf '%s\\n' \"$@\" >{}\nexit 255\n", given.display());
    fs::write(bin.join("ssh"), script).unwrap();
    fs::set_permissions(bin.join("ssh"), fs::Permissions::from_mode(0o755)).unwrap();
    let _web = small(&home);
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let mut send = home.command("mig-send");
    let done =
        migpipe_tests::run(send.env("PATH", path).args(["-q", "web", "ssh:hostb"])).expect(1);
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/ssh.md");
    let page = fs::read_to_string(page).unwrap();
    let given = fs::read_to_string(given).unwrap();
    let options: Vec<_> = given.lines().filter(|line| line.contains('=')).collect();
    assert!(options.len() > 5, "{given}");
    for option in options {
        assert!(page.contains(&format!("`{option}`")), "{option} is not in docs/ssh.md");
    }
    let said = done.stderr.split("ssh to hostb ").nth(1).unwrap().split(';').next().unwrap();
    assert!(page.contains(&format!("`{said}`")), "{said}");
}
