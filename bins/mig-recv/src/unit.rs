//! A guest that arrives as a unit, `vmrun@NAME.service`: it is the host's like one that was booted there,
//! with its log in the journal, started again when it asks for a reset, and stopped as its unit says.
//!
//! The unit boots a guest. For this one start it waits for one: an environment file beside the guest's
//! socket gives its vmrun other options, and that vmrun asks at a socket there for its control connection.
//! Both files are gone before the guest arrives. What the manager is asked goes by systemctl(1), which
//! knows how to reach it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use migpipe_cli::environment;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::geteuid;
use unix_socket::SocketFile;
use vm_paths::ArrivalFiles;

use crate::host::END_TIMEOUT;
use crate::last_words;
use crate::session::BOOTED;

/// The manager starts what it is asked to within this time, and what is started asks for its control
/// connection first of all.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// How often a unit is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// The variable of the unit in which its vmrun's options are.
const OPTIONS: &str = "VMRUN_OPTS";

/// CLD_EXITED of waitid(2), in the property ExecMainCode.
const EXITED: i32 = 1;

/// The unit of a guest.
#[derive(Debug)]
pub struct Unit {
    name: String,
    files: ArrivalFiles,
}

impl Unit {
    /// That of the guest `name`, whose control socket is to be `socket`.
    ///
    /// # Errors
    /// Why there is none that a guest can arrive as.
    pub fn of(name: &str, socket: &Path) -> Result<Self, String> {
        if !geteuid().is_root() {
            return Err("units are root's".to_owned());
        }
        if !Path::new(BOOTED).is_dir() {
            return Err("systemd is not its service manager".to_owned());
        }
        let unit =
            Self { name: format!("vmrun@{name}.service"), files: ArrivalFiles::beside(socket) };
        let properties = unit.show(&["LoadState", "EnvironmentFiles"])?;
        let is = |property: &str| properties.get(property).map_or("", String::as_str);
        if is("LoadState") != "loaded" {
            return Err(format!("{} is {}", unit.name, is("LoadState")));
        }
        // Of another release, or of one who looks for guests elsewhere, it would boot a guest.
        let definition = vm_paths::definitions_dir().join(format!("{name}.conf"));
        for file in [&unit.files.environment, &definition] {
            if !is("EnvironmentFiles").contains(&format!("{} (", file.display())) {
                return Err(format!("{} does not read {}", unit.name, file.display()));
            }
        }
        Ok(unit)
    }

    /// What the manager says of it.
    fn show(&self, properties: &[&str]) -> Result<BTreeMap<String, String>, String> {
        let mut command = Command::new("systemctl");
        command.args(["show", "--property"]).arg(properties.join(",")).arg(&self.name);
        let text = output(&mut command)?;
        let mut found: BTreeMap<String, String> = BTreeMap::new();
        for (property, value) in text.lines().filter_map(|line| line.split_once('=')) {
            // One that is there more than once is a list.
            let known = found.entry(property.to_owned()).or_default();
            if !known.is_empty() {
                known.push(' ');
            }
            known.push_str(value.trim());
        }
        Ok(found)
    }

    fn show_one(&self, property: &str) -> Result<String, String> {
        Ok(self.show(&[property])?.remove(property).unwrap_or_default())
    }

    fn state(&self) -> Result<String, String> {
        self.show_one("ActiveState")
    }

    /// Waits until nothing of it runs.
    ///
    /// # Errors
    /// What is in the way.
    pub fn await_rest(&self) -> Result<(), String> {
        let began = Instant::now();
        loop {
            let state = self.state()?;
            if is_at_rest(&state) {
                return Ok(());
            }
            // One whose vmrun ends may be active for a moment longer than its socket is there.
            let ends = matches!(&*state, "active" | "deactivating");
            if !ends || began.elapsed() > END_TIMEOUT {
                return Err(format!(
                    "{} is {state} on this host, and no guest of it answers: systemctl status {}",
                    self.name, self.name
                ));
            }
            thread::sleep(POLL_INTERVAL);
        }
    }
}

fn is_at_rest(state: &str) -> bool {
    matches!(state, "inactive" | "failed")
}

/// What a program prints that has to succeed.
fn output(command: &mut Command) -> Result<String, String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let done =
        command.stdin(Stdio::null()).output().map_err(|error| format!("{program}: {error}"))?;
    if !done.status.success() {
        let said = String::from_utf8_lossy(&done.stderr);
        let why = said.lines().next().map_or_else(|| done.status.to_string(), str::to_owned);
        return Err(format!("{program}: {why}"));
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

/// A unit that waits for a guest, or has one.
#[derive(Debug)]
pub struct StartedUnit {
    unit: Unit,
    /// Which start of it is ours.
    invocation: String,
    /// How it ended.
    ended: Option<ExitStatus>,
}

impl StartedUnit {
    /// Has the manager start a vmrun for the guest `name`, with these options and this control
    /// connection. If that fails nothing of it is left.
    pub fn start(
        unit: Unit,
        name: &str,
        options: &[OsString],
        control: OwnedFd,
    ) -> anyhow::Result<Self> {
        unit.await_rest().map_err(anyhow::Error::msg)?;
        let waiting = Waiting::begin(&unit.files, name, options)?;
        // How often it was started for others is not this guest's limit. There may be nothing to forget.
        let _ = output(Command::new("systemctl").args(["reset-failed", &unit.name]));
        let mut command = Command::new("systemctl");
        command.args(["--no-ask-password", "--no-block", "start", &unit.name]);
        output(&mut command).map_err(|why| anyhow!("cannot start {}: {why}", unit.name))?;
        let mut started = Self { unit, invocation: String::new(), ended: None };
        let passed = started.await_vmrun(&waiting.listener).and_then(|vmrun| {
            vm_control::pass_connection(&vmrun, &control)
                .with_context(|| format!("cannot speak to {}", started.unit.name))
        });
        if let Err(why) = passed {
            // While the start is one of a guest that arrives still: later it would boot one.
            let _ = output(Command::new("systemctl").args(["stop", &started.unit.name]));
            started.settle();
            return Err(why);
        }
        started.invocation = started.unit.show_one("InvocationID").unwrap_or_default();
        Ok(started)
    }

    pub fn name(&self) -> &str {
        &self.unit.name
    }

    /// The vmrun of the unit, which asks for its control connection.
    fn await_vmrun(&mut self, listener: &UnixListener) -> anyhow::Result<UnixStream> {
        let began = Instant::now();
        loop {
            match listener.accept() {
                Ok((vmrun, _)) if is_ours(&vmrun) => {
                    vmrun.set_nonblocking(false)?;
                    return Ok(vmrun);
                }
                Ok(_) => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
            let found = self.unit.show(&["ActiveState", "InvocationID", "Job"]);
            let found = found.map_err(anyhow::Error::msg)?;
            let is = |property: &str| found.get(property).map_or("", String::as_str);
            self.invocation = is("InvocationID").to_owned();
            // Before its start the manager has a job of it.
            if is_at_rest(is("ActiveState")) && matches!(is("Job"), "" | "0") {
                let (why, log) = self.last_words();
                let why = why.unwrap_or_else(|| format!("see {log}"));
                bail!("{} does not start: {why}", self.unit.name);
            }
            if began.elapsed() > START_TIMEOUT {
                bail!("{} does not start: see systemctl status {}", self.name(), self.name());
            }
            thread::sleep(POLL_INTERVAL);
        }
    }

    /// How its vmrun ended, if it does within [`END_TIMEOUT`]; a failure of it stays with whoever asked
    /// for the guest, and not with the manager.
    pub fn ends(&mut self) -> Option<ExitStatus> {
        let began = Instant::now();
        while self.ended.is_none() {
            let found = self.unit.show(&["ActiveState", "ExecMainCode", "ExecMainStatus"]).ok()?;
            let is = |property: &str| found.get(property).map_or("", String::as_str);
            if is_at_rest(is("ActiveState")) {
                let number = |property| is(property).parse().unwrap_or(0);
                let (code, status): (i32, i32) = (number("ExecMainCode"), number("ExecMainStatus"));
                let raw = if code == EXITED { status << 8 } else { status };
                self.ended = Some(ExitStatus::from_raw(raw));
            } else if began.elapsed() > END_TIMEOUT {
                return None;
            } else {
                thread::sleep(POLL_INTERVAL);
            }
        }
        self.ended
    }

    /// Why it ended, if it has, and where its log is.
    pub fn last_words(&mut self) -> (Option<String>, String) {
        let status = self.ends();
        let why = status.map(|status| last_words::reason(status, &self.said()));
        (why, format!("journalctl --unit {}", self.unit.name))
    }

    /// What this start of it has written to the journal.
    fn said(&self) -> String {
        if self.invocation.is_empty() {
            return String::new();
        }
        // What it wrote may be on its way still.
        let _ = output(Command::new("journalctl").arg("--sync"));
        let mut command = Command::new("journalctl");
        command.args(["--quiet", "--no-pager", "--output=cat"]);
        command.arg(format!("_SYSTEMD_INVOCATION_ID={}", self.invocation));
        output(&mut command).unwrap_or_default()
    }

    /// Waits until it is the unit of a guest that runs or waits for GO, or is at rest. A guest that did
    /// not come is no failure of the host's.
    pub fn settle(&mut self) {
        let began = Instant::now();
        while began.elapsed() < END_TIMEOUT {
            let Ok(found) = self.unit.show(&["ActiveState", "StatusText", "InvocationID"]) else {
                return;
            };
            let is = |property: &str| found.get(property).map_or("", String::as_str);
            if is("InvocationID") != self.invocation && !is("InvocationID").is_empty() {
                // It was started again: for another guest, or after a reset.
                return;
            }
            match is("ActiveState") {
                "active" | "inactive" => return,
                "failed" => {
                    let mut reset = Command::new("systemctl");
                    drop(output(reset.args(["reset-failed", &self.unit.name])));
                    return;
                }
                _ if is("StatusText").starts_with("prepared") => return,
                _ => thread::sleep(POLL_INTERVAL),
            }
        }
    }
}

/// Whether the process at the other end is of this user, who is root.
fn is_ours(peer: &UnixStream) -> bool {
    getsockopt(peer, PeerCredentials).is_ok_and(|peer| peer.uid() == geteuid().as_raw())
}

/// What tells the next start of the unit that it is for a guest that arrives; gone when this is.
struct Waiting {
    listener: UnixListener,
    _socket: SocketFile,
    environment: PathBuf,
}

impl Waiting {
    fn begin(files: &ArrivalFiles, name: &str, options: &[OsString]) -> anyhow::Result<Self> {
        if let Some(dir) = files.socket.parent() {
            vm_paths::ensure_dir(dir)?;
        }
        let mut words = vec!["--arrival".to_owned()];
        for word in options {
            let word = word.to_str();
            words.push(
                word.context("a path that is no UTF-8 text cannot be given to a unit")?.into(),
            );
        }
        let listener = listen(&files.socket)
            .with_context(|| format!("a guest named {name} is arriving on this host already"))?;
        let (socket, environment) = (SocketFile::new(&files.socket), files.environment.clone());
        let this = Self { listener, _socket: socket, environment };
        write(&this.environment, &environment::variable_of_words(OPTIONS, &words))
            .with_context(|| format!("cannot write {}", this.environment.display()))?;
        Ok(this)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.environment);
    }
}

/// Whoever listens there has the name.
fn listen(path: &Path) -> io::Result<UnixListener> {
    unix_socket::make_room(path).map_err(unix_socket::Taken::into_io)?;
    let listener = UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Writes a file of ours in place of an older one.
fn write(path: &Path, text: &str) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())
}
