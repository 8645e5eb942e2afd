//! A vmrun that is a child of mig-recv, in a scope of its own where the service manager makes one.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::args::StartAs;
use crate::host::END_TIMEOUT;
use crate::last_words;
use crate::session;

/// A vmrun that was started so.
#[derive(Debug)]
pub struct StartedChild {
    process: Child,
    log: PathBuf,
    /// What was in the log before.
    log_start: u64,
}

impl StartedChild {
    /// Starts one for a guest called `name`, with these options and this control connection.
    pub fn start(
        start_as: StartAs,
        name: &str,
        options: &[OsString],
        control: OwnedFd,
    ) -> anyhow::Result<Self> {
        let log = log_file(name)?;
        let program = program();
        let log_start = log.0.metadata().map_or(0, |log| log.len());
        let (mut command, warning) = session::command(start_as, &program, name)?;
        if let Some(warning) = warning {
            tracing::warn!("{warning}");
        }
        command
            .args(["--name", name, "--control-stdin"])
            .args(options)
            .stdin(Stdio::from(control))
            .stdout(Stdio::from(log.0.try_clone()?))
            .stderr(Stdio::from(log.0));
        // A service manager that watches us does not watch the vmrun.
        for name in ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"] {
            command.env_remove(name);
        }
        let process =
            command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
        Ok(Self { process, log: log.1, log_start })
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
    pub fn last_words(&mut self) -> (Option<String>, String) {
        let why = self.ends().map(|status| {
            let said = read_from(&self.log, self.log_start).unwrap_or_default();
            last_words::reason(status, &said)
        });
        (why, self.log.display().to_string())
    }
}

/// vmrun beside this program, else in PATH.
pub fn program() -> PathBuf {
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

fn read_from(path: &Path, start: u64) -> io::Result<String> {
    let bytes = fs::read(path)?;
    let from = usize::try_from(start).unwrap_or(usize::MAX).min(bytes.len());
    Ok(String::from_utf8_lossy(&bytes[from..]).into_owned())
}
