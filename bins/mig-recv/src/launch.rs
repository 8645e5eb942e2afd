//! Starting a vmrun for a guest that arrives. Runs in the broker.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use mig_engine::ownership::Input;
use migpipe_units::Finding;
use nix::sys::signal::Signal;
use tracing::debug;
use vm_control::Client;
use vm_records::known_files;

use crate::NAME;
use crate::args::Args;
use crate::host::{END_TIMEOUT, options};
use crate::session;

/// A vmrun that we started.
#[derive(Debug)]
pub struct Launched {
    process: Child,
    pub socket: PathBuf,
    log: PathBuf,
    /// What was in the log before.
    log_start: u64,
}

impl Launched {
    /// Starts one for a guest that is to be called `name` and is called `guest` on its source; its
    /// control connection is our stdout.
    pub fn start(args: &Args, name: &str, guest: &str) -> anyhow::Result<Self> {
        let socket = vm_paths::socket_of(name)?;
        match NameUse::of(&socket) {
            NameUse::Free => {}
            NameUse::Held(held) => ensure!(give_way(&held), taken(name)),
            NameUse::Taken => bail!(taken(name)),
        }
        let control = io::stdout().as_fd().try_clone_to_owned().context("cannot take stdout")?;
        let log = log_file(name)?;
        let known = known(args, guest);
        remember(args, name, &known);
        let program = program();
        let log_start = log.0.metadata().map_or(0, |log| log.len());
        let (mut command, warning) = session::command(&program, name);
        if let Some(warning) = warning {
            tracing::warn!("{warning}");
        }
        command
            .args(["--name", name, "--incoming", "--control-stdin", "--go-timeout"])
            .arg(args.go_timeout.to_string())
            .arg(format!("--confine={}", args.confinement.confine))
            .arg(format!("--log={}", args.common.log))
            .args(places(args, &known))
            .stdin(Stdio::from(control))
            .stdout(Stdio::from(log.0.try_clone()?))
            .stderr(Stdio::from(log.0));
        // A service manager that watches us does not watch the vmrun.
        for name in ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"] {
            command.env_remove(name);
        }
        let started = command.spawn();
        drop(command);
        close_stdout()?;
        let process = started.with_context(|| format!("cannot start {}", program.display()))?;
        Ok(Self { process, socket, log: log.1, log_start })
    }

    /// How it ended, if it does within [`END_TIMEOUT`].
    pub fn ends(&mut self) -> Option<ExitStatus> {
        let began = Instant::now();
        loop {
            match self.process.try_wait() {
                Ok(None) if began.elapsed() < END_TIMEOUT => {
                    thread::sleep(Duration::from_millis(2))
                }
                Ok(ended) => return ended,
                Err(_) => return None,
            }
        }
    }

    /// Why it ended, if it has, and where its log is.
    pub fn last_words(&mut self) -> (Option<String>, PathBuf) {
        let why = self.ends().map(|status| {
            reason(status, &read_from(&self.log, self.log_start).unwrap_or_default())
        });
        (why, self.log.clone())
    }
}

/// The files that this user has named for the guest: on this command line, and when it was here
/// before. Where files may be says `--files-in` alone, if it says anything.
fn known(args: &Args, guest: &str) -> Vec<PathBuf> {
    let mut files = args.named();
    if args.files_in.is_empty() && !args.files_anywhere {
        files.extend(known_files::known(guest));
        files.dedup();
    }
    files
}

/// Keeps them under its new name, for when it moves on from here and comes back.
fn remember(args: &Args, name: &str, files: &[PathBuf]) {
    if args.files_in.is_empty()
        && !args.files_anywhere
        && let Err(error) = known_files::remember(name, files)
    {
        debug!("what files {name} has is not remembered: {error}");
    }
}

/// Where the files of the guest may be, as options of its vmrun.
fn places<'a>(args: &'a Args, known: &'a [PathBuf]) -> impl Iterator<Item = &'a OsStr> {
    let anywhere = args.files_anywhere.then_some(OsStr::new("--files-anywhere"));
    options("--files-in", &args.files_in).chain(options("--named", known)).chain(anywhere)
}

/// Who has the name of a guest that arrives.
enum NameUse {
    Free,
    /// A vmrun that holds its guest back, which has never run, since one of that name left this host:
    /// that one comes home now, or another takes the name.
    Held(Client),
    Taken,
}

impl NameUse {
    fn of(socket: &Path) -> Self {
        if UnixStream::connect(socket).is_err() {
            return Self::Free;
        }
        match Client::connect_within(socket, NAME, END_TIMEOUT) {
            Ok(client) if client.status().is_ok_and(|status| status.held.is_some()) => {
                Self::Held(client)
            }
            _ => Self::Taken,
        }
    }
}

fn taken(name: &str) -> String {
    format!(
        "a guest named {name} is on this host already: give this one another --name, or end that one \
         (vmctl status {name})"
    )
}

/// Ends a vmrun that holds its guest back.
fn give_way(held: &Client) -> bool {
    held.own(Input::Quit { force: false }).is_ok() && held.await_end(END_TIMEOUT)
}

/// Has a vmrun say what of a guest that is to be called `name` this host could not take: our stdout is
/// what it talks to. Nothing is kept of it. Returns whether the name can be had.
pub fn examine(args: &Args, name: &str, guest: &str) -> anyhow::Result<Finding> {
    let socket = vm_paths::socket_of(name)?;
    let control = io::stdout().as_fd().try_clone_to_owned().context("cannot take stdout")?;
    let program = program();
    let mut command = Command::new(&program);
    command
        .args(["--name", name, "--incoming", "--examine"])
        .arg(format!("--confine={}", args.confinement.confine))
        .arg(format!("--log={}", args.common.log))
        .args(places(args, &known(args, guest)))
        .stdin(Stdio::from(control.try_clone().context("cannot take stdout")?))
        .stdout(Stdio::from(control));
    let started = command.spawn();
    drop(command);
    close_stdout()?;
    started.with_context(|| format!("cannot start {}", program.display()))?;
    if let Err(error) = SocketAddr::from_pathname(&socket) {
        let why = format!("its control socket cannot be {}: {error}", socket.display());
        return Ok(Finding::in_the_way("name", why));
    }
    Ok(match NameUse::of(&socket) {
        NameUse::Free => Finding::fine("name", format!("{name} is free")),
        NameUse::Held(_) => {
            Finding::fine("name", format!("the {name} that is held back there gives way"))
        }
        NameUse::Taken => Finding::in_the_way("name", taken(name)),
    })
}

/// We hold the control connection of a vmrun no more, or nobody would see it end.
fn close_stdout() -> anyhow::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null");
    Ok(nix::unistd::dup2_stdout(null.context("cannot open /dev/null")?)?)
}

/// vmrun beside this program, else in PATH.
fn program() -> PathBuf {
    std::env::current_exe()
        .ok()
        .map(|own| own.with_file_name("vmrun"))
        .filter(|beside| beside.is_file())
        .unwrap_or_else(|| PathBuf::from("vmrun"))
}

fn log_file(name: &str) -> anyhow::Result<(File, PathBuf)> {
    let dir = vm_paths::state_dir().join("log");
    vm_paths::ensure_dir(&dir)?;
    let path = dir.join(format!("{name}.log"));
    let file = File::options()
        .append(true)
        .create(true)
        .open(&path)
        .with_context(|| format!("cannot open the log {}", path.display()))?;
    Ok((file, path))
}

/// Why a vmrun ended: by a signal, or for the reason with which it ends itself. That is the line
/// with its name in front; a line of its log is no reason, least of all the last one.
fn reason(status: ExitStatus, log: &str) -> String {
    if let Some(number) = status.signal() {
        return match Signal::try_from(number) {
            Ok(Signal::SIGKILL) => {
                "its vmrun was killed (SIGKILL; the kernel does that where memory runs out)".into()
            }
            Ok(signal) => format!("its vmrun was ended by {signal}"),
            Err(_) => format!("its vmrun was ended by signal {number}"),
        };
    }
    let own = log.lines().rev().find_map(|line| line.strip_prefix("vmrun: "));
    match (own, status.code()) {
        (Some(why), Some(1..)) => why.to_owned(),
        (_, Some(code)) => format!("its vmrun ended with status {code}"),
        (_, None) => format!("its vmrun ended: {status}"),
    }
}

fn read_from(path: &Path, start: u64) -> io::Result<String> {
    let bytes = fs::read(path)?;
    let from = usize::try_from(start).unwrap_or(usize::MAX).min(bytes.len());
    Ok(String::from_utf8_lossy(&bytes[from..]).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "2026-11-28T10:00:00Z  WARN no huge pages\nvmrun: b: no /dev/kvm\n\
                       2026-11-28T10:00:01Z  WARN something else\n";

    #[test]
    fn a_signal_is_named_and_no_line_of_the_log() {
        let killed = reason(ExitStatus::from_raw(9), LOG);
        assert!(killed.contains("killed (SIGKILL"), "{killed}");
        assert!(!killed.contains("huge"), "{killed}");
        assert!(reason(ExitStatus::from_raw(11), LOG).contains("SIGSEGV"));
    }

    #[test]
    fn the_reason_is_the_line_with_which_a_vmrun_ends_itself() {
        assert_eq!(reason(ExitStatus::from_raw(1 << 8), LOG), "b: no /dev/kvm");
        let silent =
            reason(ExitStatus::from_raw(1 << 8), "2026-11-28T10:00:00Z  WARN no huge pages\n");
        assert_eq!(silent, "its vmrun ended with status 1");
        assert_eq!(reason(ExitStatus::from_raw(0), LOG), "its vmrun ended with status 0");
    }
}
