//! To whom a vmrun belongs that mig-recv starts as a child: to its host, and not to whoever brought the guest.
//!
//! A process belongs to the control group in which it was started, and ssh's is that of its login
//! session. logind ends what is left of a session (`KillUserProcesses=yes`), and a service manager
//! what is left of a service, however many sessions of its own (setsid(2)) such a process has. So
//! where systemd runs, the vmrun is started in a scope beside the session: `systemd-run --scope`
//! makes one and becomes the vmrun, which keeps the descriptors that it inherits.
//!
//! A user's scope is no better than the session unless the user's manager outlives the last login
//! (`loginctl enable-linger`): without that it ends with everything in it, while some distributions
//! let a session's processes live. Then the vmrun stays where it is, and that is said.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::bail;
use nix::unistd::{Uid, User, geteuid};

use crate::args::StartAs;

/// How long the service manager may take to make a scope.
const SCOPE_TIMEOUT: Duration = Duration::from_secs(5);

/// How often the end of a trial is looked for.
const SCOPE_POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Where systemd says that it runs (sd_booted(3)).
pub const BOOTED: &str = "/run/systemd/system";

/// What is stopped is stopped in the reverse order of its start (systemd.unit(5)). Without that unit it
/// means nothing.
const DRAINED_FIRST: &str = "--property=Before=mig-drain.service";

/// Who has a manager that outlives the last login.
const LINGERING: &str = "/var/lib/systemd/linger";

/// How a vmrun is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    /// As a child like any other: nobody ends it with this program.
    Child,
    /// In a scope of the system.
    SystemScope,
    /// In a scope of the user's manager.
    UserScope,
    /// As a child, though it may be ended with the session or the service.
    Mortal,
}

/// What decides that.
#[derive(Clone, Copy, Debug)]
struct SessionEnvironment<'a> {
    /// /proc/self/cgroup.
    cgroup: &'a str,
    root: bool,
    /// Whether systemd is the host's service manager.
    systemd: bool,
    /// Whether the user's manager outlives the last login.
    lingers: bool,
}

fn decide(asked: StartAs, here: SessionEnvironment<'_>) -> Start {
    match (asked, here.root) {
        (StartAs::Child, _) => return Start::Child,
        (StartAs::Scope, true) => return Start::SystemScope,
        (StartAs::Scope, false) => return Start::UserScope,
        (StartAs::Auto | StartAs::Unit, _) => {}
    }
    if !ends_with_somebody(control_group(here.cgroup)) {
        return Start::Child;
    }
    match (here.systemd, here.root, here.lingers) {
        (true, true, _) => Start::SystemScope,
        (true, false, true) => Start::UserScope,
        (true, false, false) | (false, ..) => Start::Mortal,
    }
}

/// The path of the control group that the service manager has made, in either hierarchy.
fn control_group(cgroup: &str) -> &str {
    let lines = || cgroup.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
    let of = |wanted: &str| lines().find(|(controllers, _)| *controllers == wanted);
    // Where both are there, the old one is in use.
    of("name=systemd").or_else(|| of("")).map_or("/", |(_, path)| path)
}

/// Whether what is in this control group ends with a login session or a service.
fn ends_with_somebody(path: &str) -> bool {
    path.split('/').any(|part| {
        let session = part.starts_with("session-") && part.ends_with(".scope");
        // Our own unit leaves its vmrun alone (KillMode=process).
        let service = part.ends_with(".service") && !part.starts_with("mig-recv@");
        session || service
    })
}

/// The command that starts `program` as the vmrun of the guest `name`, and what is to be said of it.
///
/// # Errors
/// If a scope was asked for and there is none.
pub fn command(
    asked: StartAs,
    program: &Path,
    name: &str,
) -> anyhow::Result<(Command, Option<String>)> {
    let user = geteuid();
    let here = SessionEnvironment {
        cgroup: &fs::read_to_string("/proc/self/cgroup").unwrap_or_default(),
        root: user.is_root(),
        systemd: Path::new(BOOTED).is_dir(),
        lingers: user_name(user).is_some_and(|user| Path::new(LINGERING).join(user).exists()),
    };
    let start = decide(asked, here);
    let child = || Command::new(program);
    Ok(match start {
        Start::Child => (child(), None),
        Start::Mortal => (child(), Some(warning(name, user, None))),
        Start::SystemScope | Start::UserScope => match try_out(scope(start, name)) {
            Ok(()) => {
                let mut command = scope(start, name);
                command.arg(program);
                (command, None)
            }
            Err(why) if asked == StartAs::Scope => bail!("no scope for {name}: {why} (--as)"),
            Err(why) => (child(), Some(warning(name, user, Some(&why)))),
        },
    })
}

/// `systemd-run` up to the program that it is to become.
fn scope(start: Start, name: &str) -> Command {
    let mut command = Command::new("systemd-run");
    match start {
        Start::UserScope => command.args(["--user", "--scope"]),
        // A host that goes down ends it only when its guests have been sent away.
        _ => command.args(["--slice=system.slice", "--scope", DRAINED_FIRST]),
    };
    command.args(["--quiet", "--collect", "--no-ask-password"]);
    command.arg(format!("--description=KVM guest {name}")).arg("--");
    command
}

/// Whether a scope can be had: once a vmrun has been started it is too late to find that out.
fn try_out(mut command: Command) -> Result<(), String> {
    command.arg("true").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(|error| format!("no systemd-run ({error})"))?;
    let began = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => return Err(format!("systemd-run makes no scope ({status})")),
            Ok(None) if began.elapsed() < SCOPE_TIMEOUT => thread::sleep(SCOPE_POLL_INTERVAL),
            Ok(None) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err("systemd-run does not answer".to_owned());
            }
            Err(error) => return Err(format!("systemd-run is lost ({error})")),
        }
    }
}

fn warning(name: &str, user: Uid, why: Option<&str>) -> String {
    let remedy = match (why, user.is_root()) {
        (Some(why), _) => format!(": {why}"),
        (None, true) => String::new(),
        (None, false) => format!(
            "; loginctl enable-linger {} has it belong to the host",
            user_name(user).unwrap_or_else(|| user.to_string())
        ),
    };
    format!(
        "{name} belongs to the session or service that brought it, and ends with it where the host \
         ends what is left of one (logind: KillUserProcesses=yes){remedy}"
    )
}

fn user_name(user: Uid) -> Option<String> {
    Some(User::from_uid(user).ok()??.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SSH: &str = "0::/user.slice/user-1000.slice/session-3.scope\n";
    const OLD: &str =
        "12:memory:/a\n1:name=systemd:/user.slice/user-0.slice/session-c1.scope\n0::/\n";
    const MANAGER: &str = "0::/user.slice/user-1000.slice/user@1000.service/app.slice/tmux.scope\n";
    const AGENT: &str = "0::/system.slice/deploy-agent.service\n";
    const OURS: &str =
        "0::/system.slice/system-mig\\x2drecv.slice/mig-recv@3-10.0.0.1:4444.service\n";
    const BESIDE: &str = "0::/system.slice/run-r1.scope\n";
    const CONTAINER: &str = "9:name=systemd:/\n0::/\n";

    #[test]
    fn a_guest_belongs_to_the_host_wherever_that_can_be_had() {
        // Control group, root, systemd, lingers.
        for (cgroup, root, systemd, lingers, expected) in [
            (SSH, true, true, false, Start::SystemScope),
            (OLD, true, true, false, Start::SystemScope),
            (SSH, false, true, true, Start::UserScope),
            (SSH, false, true, false, Start::Mortal),
            (SSH, true, false, false, Start::Mortal),
            (MANAGER, false, true, true, Start::UserScope),
            (MANAGER, false, true, false, Start::Mortal),
            (AGENT, true, true, false, Start::SystemScope),
            (OURS, true, true, false, Start::Child),
            (BESIDE, true, true, false, Start::Child),
            (CONTAINER, true, false, false, Start::Child),
            ("", true, true, false, Start::Child),
        ] {
            let here = SessionEnvironment { cgroup, root, systemd, lingers };
            assert_eq!(decide(StartAs::Auto, here), expected, "{here:?}");
            assert_eq!(decide(StartAs::Child, here), Start::Child);
            let scope = if root { Start::SystemScope } else { Start::UserScope };
            assert_eq!(decide(StartAs::Scope, here), scope);
        }
    }

    #[test]
    fn a_scope_is_asked_for_without_a_question_and_leaves_nothing_behind() {
        let words = |start| -> Vec<String> {
            let command = scope(start, "web");
            command.get_args().map(|word| word.to_string_lossy().into_owned()).collect()
        };
        let system = words(Start::SystemScope);
        for word in
            ["--scope", "--slice=system.slice", DRAINED_FIRST, "--collect", "--no-ask-password"]
        {
            assert!(system.iter().any(|it| it == word), "{system:?}");
        }
        assert_eq!(system.last().unwrap(), "--", "{system:?}");
        assert!(words(Start::UserScope).iter().any(|it| it == "--user"));
    }
}
