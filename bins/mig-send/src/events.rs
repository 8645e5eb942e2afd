//! Progress for a program that reads it, a JSON line each.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mig_engine::report::{Progress, ProgressEvent, Report};
use migpipe_cli::output::{self, Loss, Output};
use nix::libc;
use tracing::{debug, warn};

use crate::args::{Args, ProgressMode};

/// Where the lines go, if they are wanted. Whoever reads them holds nothing up.
#[derive(Clone, Debug)]
pub struct Events(Option<Output>);

impl Events {
    /// As the command line says.
    pub fn new(args: &Args) -> Self {
        Self(match (args.progress_fd, args.progress) {
            (Some(fd), _) => passed(fd)
                .inspect_err(|error| warn!("no progress on descriptor {fd}: {error}"))
                .ok(),
            (None, ProgressMode::Json) => output::stderr().cloned(),
            (None, _) => None,
        })
    }

    /// Where the migration is; what of it does not change stands in the report.
    pub fn show(&self, report: &Report, progress: &Progress) {
        self.push(|| ProgressEvent::new(report, *progress, now()));
    }

    /// What became of it.
    pub fn end(&self, report: &Report, progress: &Progress) {
        self.push(|| ProgressEvent::last(report, *progress, now()));
        if let Some(lost) = self.0.as_ref().map(Output::lost).filter(|lost| *lost > 0) {
            debug!("{lost} lines of progress were not read in time");
        }
    }

    fn push(&self, event: impl FnOnce() -> ProgressEvent) {
        if let Some(output) = &self.0
            && let Ok(text) = serde_json::to_string(&event())
        {
            output.push(format!("{text}\n").as_bytes());
        }
    }
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// The descriptor that the caller passed, as a file description of our own: without waiting for its
/// reader to open it, where it is a FIFO.
fn passed(fd: i32) -> io::Result<Output> {
    let mut options = File::options();
    let file = options.append(true).custom_flags(libc::O_NONBLOCK);
    Output::start(file.open(format!("/proc/self/fd/{fd}"))?, Loss::Silent)
}
