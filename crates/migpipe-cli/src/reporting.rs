//! The options by which a person or a script follows a migration.

use std::path::PathBuf;

use anyhow::anyhow;
use clap::{Args, ValueEnum};

use crate::json_lines::JsonLines;
use crate::milestones::Milestones;
use crate::usage::usage;

/// How a migration can be followed, on either side.
#[derive(Args, Clone, Debug)]
pub struct Reporting {
    /// Write the report to this file, as JSON
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Progress on stderr: a live line on a terminal (auto), JSON lines, or none
    #[arg(long, value_name = "HOW", value_enum, default_value_t = ProgressMode::Auto)]
    pub progress: ProgressMode,
    /// Write progress as JSON lines to this descriptor; a reader that is slow misses some
    #[arg(long, value_name = "FD")]
    pub progress_fd: Option<i32>,
    /// Write a line to this descriptor when something has happened: ready, committed, running, and
    /// how it ended (completed, failed, gave_up, cancelled or unknown), each with the id of the migration
    #[arg(long, value_name = "FD")]
    pub status_fd: Option<i32>,
}

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ProgressMode {
    /// A live line if stderr is a terminal, else nothing; none of a stream that comes by stdin, whose
    /// sender may draw there.
    Auto,
    /// JSON lines.
    Json,
    /// Nothing.
    None,
}

impl Reporting {
    /// Checks that what is said has descriptors of its own: among the pages it would break the
    /// stream, which `taken` carries with its answers, and a number that nobody passed may be
    /// anything. `claim` takes one that was passed, and says whether it was.
    ///
    /// # Errors
    /// Wrong usage.
    pub fn claim(&self, taken: &[i32], claim: impl Fn(i32) -> bool) -> anyhow::Result<()> {
        // Both may go to one.
        let status_fd = self.status_fd.filter(|fd| self.progress_fd != Some(*fd));
        for (said, fd) in [("progress", self.progress_fd), ("status", status_fd)] {
            let Some(fd) = fd else { continue };
            let reason = if taken.contains(&fd) {
                "it carries the stream or its answers"
            } else if !claim(fd) {
                "it was not passed to this program"
            } else {
                continue;
            };
            return Err(usage(anyhow!(
                "no {said} on descriptor {fd}: {reason}; open another one in the shell, as in 3>PATH"
            )));
        }
        Ok(())
    }

    /// Where progress goes as lines, if it is wanted.
    pub fn progress_lines(&self) -> JsonLines {
        match (self.progress_fd, self.progress) {
            (Some(fd), _) => JsonLines::to(fd),
            (None, ProgressMode::Json) => JsonLines::to_stderr(),
            (None, _) => JsonLines::default(),
        }
    }

    /// Where it is said what happened, if that is wanted.
    pub fn milestones(&self) -> Milestones {
        Milestones::to(self.status_fd)
    }

    /// Whether a live line is wanted where there is a terminal.
    pub fn wants_live_line(&self) -> bool {
        self.progress == ProgressMode::Auto
    }
}
