//! At a terminal: the live line, a tunnel that asks questions there, Ctrl-C and Ctrl-Z.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use migpipe_tests::{Guest, HANG_TIMEOUT, Host, needs_kvm, run, spec, wait, wait_within};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

fn guest(host: &Host) -> Guest {
    Guest::boot(host, "a", &spec(64, "500", 32), &["--mem", "128M"])
}

/// A shell on a terminal of its own, on a host.
struct Terminal<'a> {
    host: &'a Host,
    socket: String,
}

impl<'a> Terminal<'a> {
    /// None, and loudly so, where tmux is missing.
    fn open(host: &'a Host, width: u16) -> Option<Self> {
        if Command::new("tmux").arg("-V").output().is_err() {
            println!("SKIPPED {}: tmux is not installed", module_path!());
            return None;
        }
        let socket = host.path("tmux").display().to_string();
        let terminal = Self { host, socket };
        let width = width.to_string();
        let shell = "env PS1='$ ' bash --norc --noprofile";
        terminal.tmux(&["new-session", "-d", "-x", &width, "-y", "24", shell]);
        terminal.wait_for("the prompt", |screen| screen.contains('$'));
        Some(terminal)
    }

    fn tmux(&self, args: &[&str]) -> String {
        let mut shell = self.host.shell("exec tmux \"$@\"");
        shell.args(["tmux", "-S", &self.socket, "-f", "/dev/null"]).args(args);
        run(&mut shell).expect(0).stdout
    }

    fn types(&self, line: &str) {
        self.tmux(&["send-keys", "-l", line]);
        self.tmux(&["send-keys", "Enter"]);
    }

    fn presses(&self, key: &str) {
        self.tmux(&["send-keys", key]);
    }

    fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p"])
    }

    #[track_caller]
    fn wait_for(&self, what: &str, found: impl Fn(&str) -> bool) {
        let mut last = String::new();
        let started = std::time::Instant::now();
        while started.elapsed() < HANG_TIMEOUT {
            last = self.screen();
            if found(&last) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        panic!("waited in vain for {what}; on the screen:\n{last}");
    }
}

impl Drop for Terminal<'_> {
    fn drop(&mut self) {
        let _ = Command::new("tmux").args(["-S", &self.socket, "kill-server"]).output();
    }
}

/// A tunnel that asks on the terminal before it carries anything, as ssh does: what is typed is not to
/// be seen. One that asks when it is not its turn is stopped by that, and has not asked yet.
fn asking(host: &Host) -> String {
    let script = "#!/bin/sh\nstty -echo < /dev/tty\nprintf 'the password, please: ' > /dev/tty\n\
                  read answer < /dev/tty\nstty echo < /dev/tty\nexec mig-recv --quiet --name b --console null\n";
    let path = host.path("ask");
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    format!("exec:{}", path.display())
}

/// A terminal at which the tunnel of `command` has asked its question; its status is said after it.
fn asked<'a>(host: &'a Host, command: &str) -> Option<Terminal<'a>> {
    let terminal = Terminal::open(host, 100)?;
    terminal.types(&format!("clear; {command}; echo \"status=$?\""));
    terminal.wait_for("the question", |screen| screen.contains("the password, please:"));
    Some(terminal)
}

fn lines_with(screen: &str, words: &str) -> usize {
    screen.lines().filter(|line| line.contains(words)).count()
}

#[test]
fn the_live_line_is_one_line_however_narrow_the_terminal() {
    needs_kvm!();
    let host = Host::new();
    let mut a = guest(&host);
    let Some(terminal) = Terminal::open(&host, 44) else { return };
    // Slow enough to last until it is cancelled.
    terminal.types("clear; mig-send -q --max-bandwidth 256K a exec:'mig-recv -q --name b'");
    // The first line may come before it is known how much there is, and is short.
    let is_whole = |screen: &str| screen.contains("pre-copy") && !screen.contains("of 0 B");
    terminal.wait_for("progress", is_whole);
    let shown = terminal.screen();
    terminal.wait_for("another line", |screen| screen.contains("pre-copy") && *screen != shown);
    for _ in 0..10 {
        assert!(lines_with(&terminal.screen(), "pre-copy") <= 1, "{}", terminal.screen());
    }
    assert!(!shown.contains("dirty"), "it is not cut: {shown}");
    // A wider one shows more at once.
    terminal.tmux(&["resize-window", "-x", "100"]);
    terminal.wait_for("all of it", |screen| screen.contains("dirty"));
    terminal.presses("C-c");
    terminal.wait_for("the end", |screen| screen.contains("cancelled; a runs on here"));
    a.assert_runs();
}

#[test]
fn a_prompt_of_the_tunnel_stays_on_the_screen_and_can_be_answered() {
    needs_kvm!();
    let host = Host::new();
    let mut a = guest(&host);
    let send = format!("mig-send -q a {}", asking(&host));
    let Some(terminal) = asked(&host, &send) else { return };
    // Longer than several draws of the live line take.
    std::thread::sleep(std::time::Duration::from_secs(1));
    assert!(terminal.screen().contains("the password, please:"), "{}", terminal.screen());
    terminal.types("secret");
    terminal.wait_for("the end", |screen| screen.contains("status=0"));
    assert_eq!(a.ended(), Some(0));
    assert_eq!(host.state("b").as_deref(), Some("running"));
}

#[test]
fn ctrl_c_at_a_question_of_the_tunnel_cancels() {
    needs_kvm!();
    let host = Host::new();
    let mut a = guest(&host);
    let send = format!("mig-send -q a {}", asking(&host));
    let Some(terminal) = asked(&host, &send) else { return };
    terminal.presses("C-c");
    terminal.wait_for("the end", |screen| {
        screen.contains("cancelled; a runs on here") && screen.contains("status=3")
    });
    a.assert_runs();
}

#[test]
fn ctrl_c_at_a_question_of_a_resolve_ends_it_and_the_guest_stays_handed_over() {
    needs_kvm!();
    let host = Host::new();
    let a = guest(&host);
    host.run("mig-send", &["-q", "--one-way", "a", "exec:cat >/dev/null; exit 1"]).expect(4);
    let resolve = format!("mig-send --resolve a {}", asking(&host));
    let Some(terminal) = asked(&host, &resolve) else { return };
    terminal.presses("C-c");
    terminal.wait_for("the end", |screen| {
        screen.contains("cancelled; a stays handed-over") && screen.contains("status=4")
    });
    assert_eq!(lines_with(&terminal.screen(), "the password, please:"), 1);
    a.assert_stands_still();
}

#[test]
fn ctrl_z_at_a_question_of_the_tunnel_gives_the_shell_back_and_fg_goes_on() {
    needs_kvm!();
    let host = Host::new();
    let mut a = guest(&host);
    // No answer in time would end it, if the time that it is stopped counted.
    let send = format!("mig-send -q --ready-timeout 2 a {}", asking(&host));
    let Some(terminal) = asked(&host, &send) else { return };
    terminal.presses("C-z");
    terminal.types("echo 'the shell is 'back");
    terminal.wait_for("the shell", |screen| screen.contains("\nthe shell is back"));
    a.assert_runs();
    std::thread::sleep(std::time::Duration::from_secs(3));
    terminal.types("clear; fg");
    terminal.wait_for("the job", |screen| screen.contains("mig-send"));
    terminal.types("secret");
    wait("the guest to arrive", || host.state("b").as_deref() == Some("running"));
    assert_eq!(a.ended(), Some(0));
}

#[test]
fn a_tunnel_that_asks_late_gets_the_terminal_again() {
    needs_kvm!();
    let host = Host::new();
    let a = guest(&host);
    // The first program takes data at once, so that the stream flows; the second asks then.
    let tunnel = asking(&host).replace("exec:", "exec:cat | ");
    let send = format!("mig-send -q --one-way a '{tunnel}'");
    let Some(terminal) = asked(&host, &send) else { return };
    std::thread::sleep(std::time::Duration::from_secs(1));
    terminal.types("secret");
    terminal.wait_for("the end", |screen| screen.contains("status=0"));
    a.assert_stands_still();
    wait("the guest to arrive", || host.state("b").as_deref() == Some("running"));
}

#[test]
fn ctrl_c_in_a_pipeline_is_a_cancel_though_the_reader_dies_first() {
    needs_kvm!();
    for round in 0..8 {
        let host = Host::new();
        let mut a = Guest::boot(&host, "a", &spec(64, "500", 16), &["--mem", "64M"]);
        let status = host.path("status");
        // A script's shell has what it starts with '&' ignore the signal.
        let handler = if round % 2 == 0 { ":" } else { "''" };
        let script = format!(
            "trap {handler} INT; mig-send -q --max-bandwidth 5M a | cat >/dev/null; \
             echo ${{PIPESTATUS[0]}} > {0}.new; mv {0}.new {0}",
            status.display()
        );
        let mut shell = host.shell(&script);
        let mut shell = shell.process_group(0).stderr(Stdio::null()).spawn().unwrap();
        wait("the migration", || host.state("a").as_deref() == Some("migrating"));
        killpg(Pid::from_raw(shell.id() as i32), Signal::SIGINT).unwrap();
        wait_within(&mut shell, HANG_TIMEOUT);
        assert_eq!(fs::read_to_string(&status).unwrap().trim(), "3", "round {round}");
        a.assert_runs();
    }
}

/// The order that a busy machine makes of it now and then.
#[test]
fn a_signal_that_comes_when_the_reader_has_gone_is_a_cancel_too() {
    needs_kvm!();
    let host = Host::new();
    let mut a = Guest::boot(&host, "a", &spec(64, "500", 16), &["--mem", "64M"]);
    let reader = host.path("reader");
    let script = format!(
        "mig-send -q --max-bandwidth 5M a | sh -c 'echo $$ > {}; exec cat >/dev/null'; \
         exit ${{PIPESTATUS[0]}}",
        reader.display()
    );
    let mut shell = host.shell(&script).spawn().unwrap();
    wait("the migration", || host.state("a").as_deref() == Some("migrating"));
    let reader = fs::read_to_string(&reader).unwrap().trim().parse().unwrap();
    let sender = host.processes().into_iter().find(|(_, name)| name == "mig-send").unwrap().0;
    kill(Pid::from_raw(reader), Signal::SIGINT).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(50));
    kill(Pid::from_raw(sender), Signal::SIGINT).unwrap();
    assert_eq!(wait_within(&mut shell, HANG_TIMEOUT).code(), Some(3));
    a.assert_runs();
}

#[test]
fn top_shows_guests_and_their_migrations_as_they_change_and_gives_the_terminal_back() {
    needs_kvm!();
    let host = Host::new();
    let mut a = guest(&host);
    let Some(terminal) = Terminal::open(&host, 140) else { return };
    terminal.types("clear; vmctl top --interval 0.1; echo \"status=$?\"");
    let line_of = |screen: &str, name: &str| {
        let begins = format!("{name} ");
        screen.lines().find(|line| line.starts_with(&begins)).map(str::to_owned)
    };
    terminal.wait_for("the guest", |screen| {
        line_of(screen, "a").is_some_and(|line| line.contains("running"))
    });
    assert!(terminal.screen().contains("q ends it"), "{}", terminal.screen());
    let tunnel = "exec:mig-recv -q --name b --console null";
    let mut send = host.command("mig-send");
    let send = send.args(["-q", "--max-bandwidth", "1M", "a", tunnel]);
    let mut send = send.stderr(Stdio::null()).spawn().unwrap();
    terminal.wait_for("its migration", |screen| {
        line_of(screen, "a").is_some_and(|line| {
            line.contains("migrating") && line.contains("pre-copy") && line.contains("MiB/s")
        })
    });
    terminal.wait_for("where it arrives", |screen| {
        line_of(screen, "b").is_some_and(|line| line.contains("receiving"))
    });
    // It goes on with no key pressed: the guest goes back to what it was.
    host.run("vmctl", &["cancel", "a"]).expect(0);
    assert_eq!(wait_within(&mut send, HANG_TIMEOUT).code(), Some(3));
    terminal.wait_for("the end of it", |screen| {
        line_of(screen, "a").is_some_and(|line| line.contains("running"))
            && line_of(screen, "b").is_none()
    });
    terminal.presses("x");
    terminal.presses("q");
    terminal.wait_for("the shell", |screen| screen.contains("status=0"));
    assert!(!terminal.screen().contains("q ends it"), "{}", terminal.screen());
    // The shell's terminal is as it was: what is typed is seen and taken.
    terminal.types("echo as$((1 + 1))before");
    terminal.wait_for("an answer", |screen| screen.lines().any(|line| line == "as2before"));
    // A signal ends it no other way than a key.
    terminal.types("clear; vmctl top; echo \"status=$?\"");
    terminal.wait_for("the guest", |screen| line_of(screen, "a").is_some());
    let (top, _) =
        host.processes().into_iter().find(|(_, name)| name == "vmctl").expect("vmctl runs");
    kill(Pid::from_raw(top), Signal::SIGTERM).unwrap();
    terminal.wait_for("the shell", |screen| screen.contains("status=0"));
    a.assert_runs();
}

#[test]
fn top_says_what_to_use_where_there_is_no_terminal() {
    let host = Host::new();
    host.run("vmctl", &["top"]).refused_with(&["needs a terminal", "vmctl list"]);
}
