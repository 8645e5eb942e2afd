//! The file of `--report`.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use serde::Serialize;
use thiserror::Error;

/// Why a report cannot be written.
#[derive(Debug, Error)]
pub enum ReportError {
    /// Its file cannot be opened.
    #[error("cannot write the report {}", .path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It was opened, and takes nothing.
    #[error("the report {} was not written", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The file of a report, if one is wanted.
///
/// It is opened first of all: later nothing can be opened any more, and a path that is wrong is known
/// at once. From then on what is in it is of this migration, and valid: a report of an earlier one does
/// not survive in it, whatever happens.
#[derive(Debug, Default)]
pub struct ReportFile(Option<Opened>);

#[derive(Debug)]
struct Opened {
    path: PathBuf,
    file: File,
    /// It is a regular file. What is none has no length and no beginning: a pipe or a terminal gets
    /// one report and no more.
    keeps: bool,
}

impl ReportFile {
    /// Opens the file, which is emptied.
    ///
    /// # Errors
    /// [`ReportError::Open`].
    pub fn open(path: Option<&Path>) -> Result<Self, ReportError> {
        let Some(path) = path.map(Path::to_owned) else { return Ok(Self(None)) };
        match File::options().write(true).create(true).truncate(true).open(&path) {
            Ok(file) => {
                let keeps = file.metadata().is_ok_and(|there| there.is_file());
                Ok(Self(Some(Opened { path, file, keeps })))
            }
            Err(source) => Err(ReportError::Open { path, source }),
        }
    }

    /// Writes a report that says that nothing is known yet, where another one can take its place.
    ///
    /// # Errors
    /// [`ReportError::Write`].
    pub fn begin(&self, report: &impl Serialize) -> Result<(), ReportError> {
        match &self.0 {
            Some(Opened { keeps: true, .. }) => self.write(report),
            _ => Ok(()),
        }
    }

    /// Writes the report, in place of the one before.
    ///
    /// # Errors
    /// [`ReportError::Write`].
    pub fn write(&self, report: &impl Serialize) -> Result<(), ReportError> {
        let Some(Opened { path, file, keeps }) = &self.0 else { return Ok(()) };
        let mut file = file;
        let failed = |source| ReportError::Write { path: path.clone(), source };
        let mut text =
            serde_json::to_string_pretty(report).map_err(|error| failed(error.into()))?;
        text.push('\n');
        let emptied = match keeps {
            true => file.rewind().and_then(|()| file.set_len(0)),
            false => Ok(()),
        };
        emptied.and_then(|()| file.write_all(text.as_bytes())).map_err(failed)
    }
}

/// The time of the processor that this program has taken, for its report.
pub fn cpu_time() -> Duration {
    let time = |value: TimeVal| {
        let microseconds = value.tv_sec() * 1_000_000 + value.tv_usec();
        Duration::from_micros(microseconds.try_into().unwrap_or(0))
    };
    getrusage(UsageWho::RUSAGE_SELF)
        .map_or(Duration::ZERO, |usage| time(usage.user_time()) + time(usage.system_time()))
}
