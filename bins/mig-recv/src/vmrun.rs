//! The vmrun that takes the guest: one that waits for it, or one that is started for it.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use vm_control::{Client, ClientError, place};

use crate::NAME;
use crate::args::Args;

/// A vmrun that was just started answers within this time: it has nothing to do before.
const START: Duration = Duration::from_secs(20);

/// A vmrun that refused its guest ends within this time, unless the disk is slow.
const END: Duration = Duration::from_secs(5);

/// The vmrun that takes the guest.
#[derive(Debug)]
pub struct Vmrun {
    pub client: Client,
    /// The guest's name on this host.
    pub name: String,
    started: Option<Started>,
}

/// What belongs to a vmrun that we started.
#[derive(Debug)]
struct Started {
    process: Child,
    log: PathBuf,
    /// What was in the log before.
    log_start: u64,
}

impl Vmrun {
    /// Connects to `--vm`, or starts one for a guest that is to be called `name`.
    pub fn find(args: &Args, name: &str) -> anyhow::Result<Self> {
        match &args.vm {
            Some(vm) => {
                let client = Client::connect(&place::socket_of(vm)?, NAME)?;
                let name = client.name().to_owned();
                Ok(Self { client, name, started: None })
            }
            None => start(args, name),
        }
    }

    /// Waits until a vmrun that we started has ended, so that nothing is left over when we end.
    pub fn wait_end(self) {
        let Self { client, started, .. } = self;
        // Without its parent it has no purpose.
        drop(client);
        if let Some(mut started) = started {
            started.ends();
        }
    }

    /// What went wrong, if `error` is that the vmrun that we started is gone (its log knows) or
    /// does not answer.
    pub fn explain(&mut self, error: ClientError) -> anyhow::Error {
        let Some(started) = &mut self.started else { return error.into() };
        if !matches!(error, ClientError::Lost { .. }) {
            return error.into();
        }
        if started.ends()
            && let Some(line) = last_line(&started.log, started.log_start)
        {
            return anyhow::anyhow!("{line}");
        }
        anyhow::Error::from(error).context(format!("see {}", started.log.display()))
    }
}

impl Started {
    /// Whether it ends within [`END`].
    fn ends(&mut self) -> bool {
        let began = Instant::now();
        loop {
            match self.process.try_wait() {
                Ok(None) if began.elapsed() < END => thread::sleep(Duration::from_millis(2)),
                Ok(None) => return false,
                Ok(Some(_)) | Err(_) => return true,
            }
        }
    }
}

fn start(args: &Args, name: &str) -> anyhow::Result<Vmrun> {
    let socket = place::socket_of(name)?;
    if UnixStream::connect(&socket).is_ok() {
        bail!(
            "a guest named {name} is on this host already: give this one another --name, or end \
             that one (vmctl status {name})"
        );
    }
    let (ours, theirs) = UnixStream::pair().context("cannot make a socket pair")?;
    let log = log_file(name)?;
    let program = program();
    let log_start = log.0.metadata().map_or(0, |log| log.len());
    let mut command = Command::new(&program);
    command
        .args(["--name", name, "--incoming", "--control-stdin", "--go-timeout"])
        .arg(args.go_timeout.as_secs_f64().to_string())
        .arg(format!("--log={}", args.common.log))
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::from(log.0.try_clone()?))
        .stderr(Stdio::from(log.0));
    let process = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
    // It holds our socket pair's other end no more, or we would never see vmrun end.
    drop(command);
    let mut started = Started { process, log: log.1, log_start };
    match Client::over(ours, &socket, NAME, START) {
        Ok(client) => Ok(Vmrun { client, name: name.to_owned(), started: Some(started) }),
        Err(error) => {
            started.ends();
            match last_line(&started.log, started.log_start) {
                Some(line) => bail!("{line}"),
                None => Err(error)
                    .with_context(|| format!("vmrun did not start; see {}", started.log.display())),
            }
        }
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
