//! Starting a vmrun for a guest that arrives. Runs in the broker.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use vm_control::place;

use crate::args::Args;
use crate::host::END;

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
    /// Starts one for a guest that is to be called `name`; its control connection is our stdout.
    pub fn start(args: &Args, name: &str) -> anyhow::Result<Self> {
        let socket = place::socket_of(name)?;
        if UnixStream::connect(&socket).is_ok() {
            bail!(
                "a guest named {name} is on this host already: give this one another --name, or \
                 end that one (vmctl status {name})"
            );
        }
        let control = io::stdout().as_fd().try_clone_to_owned().context("cannot take stdout")?;
        let log = log_file(name)?;
        let program = program();
        let log_start = log.0.metadata().map_or(0, |log| log.len());
        let mut command = Command::new(&program);
        command
            .args(["--name", name, "--incoming", "--control-stdin", "--go-timeout"])
            .arg(args.go_timeout.as_secs_f64().to_string())
            .arg(format!("--confine={}", args.confinement.confine))
            .arg(format!("--log={}", args.common.log))
            .args(args.files_in.iter().flat_map(|place| [OsStr::new("--files-in"), place.as_ref()]))
            .stdin(Stdio::from(control))
            .stdout(Stdio::from(log.0.try_clone()?))
            .stderr(Stdio::from(log.0));
        let started = command.spawn();
        // We hold its control connection no more, or nobody would see vmrun end.
        drop(command);
        let null = File::options().read(true).write(true).open("/dev/null");
        nix::unistd::dup2_stdout(null.context("cannot open /dev/null")?)?;
        let process = started.with_context(|| format!("cannot start {}", program.display()))?;
        Ok(Self { process, socket, log: log.1, log_start })
    }

    /// Whether it ends within [`END`].
    pub fn ends(&mut self) -> bool {
        let began = Instant::now();
        loop {
            match self.process.try_wait() {
                Ok(None) if began.elapsed() < END => thread::sleep(Duration::from_millis(2)),
                Ok(None) => return false,
                Ok(Some(_)) | Err(_) => return true,
            }
        }
    }

    /// What it said last, if it has ended, and where its log is.
    pub fn last_words(&mut self) -> (Option<String>, PathBuf) {
        let line = self.ends().then(|| last_line(&self.log, self.log_start)).flatten();
        (line, self.log.clone())
    }
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
    let dir = place::state_dir().join("log");
    place::ensure_dir(&dir)?;
    let path = dir.join(format!("{name}.log"));
    let file = File::options()
        .append(true)
        .create(true)
        .open(&path)
        .with_context(|| format!("cannot open the log {}", path.display()))?;
    Ok((file, path))
}

/// The last line that was written to the log after `start`.
fn last_line(log: &Path, start: u64) -> Option<String> {
    let text = read_from(log, start).ok()?;
    text.lines().rev().find(|line| !line.trim().is_empty()).map(str::to_owned)
}

fn read_from(path: &Path, start: u64) -> io::Result<String> {
    let bytes = fs::read(path)?;
    let from = usize::try_from(start).unwrap_or(usize::MAX).min(bytes.len());
    Ok(String::from_utf8_lossy(&bytes[from..]).into_owned())
}
