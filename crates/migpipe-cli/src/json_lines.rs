//! Lines for a program that reads them, as they come about.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::libc;
use serde::Serialize;
use tracing::warn;

use crate::output::{self, Loss, Output};

/// JSON, an object in each line, if anybody wants it. Whoever reads it holds nothing up.
#[derive(Clone, Debug, Default)]
pub struct JsonLines(Option<Output>);

impl JsonLines {
    /// Lines on stderr.
    pub fn to_stderr() -> Self {
        Self(output::stderr().cloned())
    }

    /// Lines on a descriptor that the caller passed; a warning and none where it cannot be written to.
    pub fn to(fd: i32) -> Self {
        Self(passed(fd))
    }

    /// Has a line written, if it is wanted.
    pub fn push<T: Serialize>(&self, line: impl FnOnce() -> T) {
        if let Some(output) = &self.0
            && let Ok(text) = serde_json::to_string(&line())
        {
            output.push(format!("{text}\n").as_bytes());
        }
    }

    /// How many lines were not read in time.
    pub fn lost(&self) -> u64 {
        self.0.as_ref().map_or(0, Output::lost)
    }
}

/// The time since 1970 began, by the clock of this host.
pub fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// A descriptor that the caller passed, as a file description of our own: without waiting for its
/// reader to open it, where it is a FIFO.
pub(crate) fn passed(fd: i32) -> Option<Output> {
    let mut options = File::options();
    let file = options.append(true).custom_flags(libc::O_NONBLOCK);
    let opened = file.open(format!("/proc/self/fd/{fd}"));
    let output = opened.and_then(|file| Output::start(file, Loss::Silent));
    output.inspect_err(|error| warn!("nothing is said on descriptor {fd}: {error}")).ok()
}
