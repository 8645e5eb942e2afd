//! The report of a migration, and what is said of one that did not succeed.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::anyhow;
use mig_engine::handover::{Failure, FailureKind, HandoverMode, SourceEnding, SourceGuestState};
use mig_engine::report::{Location, Mode, Progress, Promise, Report, ReportOutcome, Totals};
use migpipe_units::MigrationId;
use nix::sys::resource::{UsageWho, getrusage};
use thiserror::Error;

use crate::NAME;
use crate::args::Args;
use crate::error::StepError;
use crate::events::Events;
use crate::outgoing::OutgoingMigration;
use crate::resolve::resolve_command;

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

/// The report from before anything is tried to the end, and the file that it is written to.
///
/// The file is opened first of all: later nothing can be opened any more, and a path that is wrong
/// is known at once. From then on what is in it is of this migration, and valid: a report of an
/// earlier one does not survive in it, whatever happens.
#[derive(Debug)]
pub struct Draft<'a> {
    args: &'a Args,
    file: Option<File>,
    /// Who reads progress.
    pub events: Events,
    /// What is known before the guest is looked at.
    pub report: Report,
}

impl<'a> Draft<'a> {
    /// A report that says nothing yet.
    pub fn new(args: &'a Args) -> Self {
        let limits = args.limits();
        let report = Report {
            version: Report::VERSION,
            guest: args.guest.clone(),
            migration: MigrationId::random(),
            mode: if args.one_way { Mode::OneWay } else { Mode::BothWays },
            format_version: mig_stream::FormatVersion::NEWEST.0,
            outcome: ReportOutcome::Unknown,
            reason: Some("the migration has not ended".to_owned()),
            location: None,
            needed_downtime: None,
            rounds: Vec::new(),
            blackout: None,
            histogram: Vec::new(),
            ended_by: None,
            throttle: Vec::new(),
            downtime: Default::default(),
            promise: Promise::new((!limits.classic).then_some(limits.max_downtime), None),
            totals: Totals::default(),
        };
        Self { args, file: None, events: Events::new(args), report }
    }

    /// Opens the file of `--report`, and writes that nothing is known yet.
    pub fn open(&mut self) -> Result<(), StepError> {
        let Some(path) = &self.args.report else { return Ok(()) };
        let file = File::options().write(true).create(true).truncate(true).open(path);
        let opened = file.map_err(|source| ReportError::Open { path: path.clone(), source });
        let file = opened.map_err(StepError::other)?;
        // A pipe or a terminal gets one report and no more.
        let keeps = file.metadata().is_ok_and(|there| there.is_file());
        self.file = Some(file);
        match keeps {
            true => self
                .write(&self.report)
                .map_err(|error| StepError::other(error).context("before the guest was touched")),
            false => Ok(()),
        }
    }

    /// Writes `report`.
    pub fn write(&self, report: &Report) -> Result<(), ReportError> {
        let (Some(path), Some(mut file)) = (&self.args.report, self.file.as_ref()) else {
            return Ok(());
        };
        let failed = |source| ReportError::Write { path: path.clone(), source };
        let mut text =
            serde_json::to_string_pretty(report).map_err(|error| failed(error.into()))?;
        text.push('\n');
        // What is no regular file has no length and no beginning.
        let emptied = match file.metadata().is_ok_and(|there| there.is_file()) {
            true => file.rewind().and_then(|()| file.set_len(0)),
            false => Ok(()),
        };
        emptied.and_then(|()| file.write_all(text.as_bytes())).map_err(failed)
    }

    /// Ends a migration that could not begin: writes the report, says why and where the guest is,
    /// and returns the exit status.
    ///
    /// `guest` is what became of it, where its vmrun was reached.
    pub fn not_begun(mut self, error: &StepError, guest: Option<SourceGuestState>) -> u8 {
        let name = &self.report.guest;
        let reason = error.reason();
        let complaint = match guest {
            Some(SourceGuestState::Gone) => ended(name, &reason),
            // Where its vmrun was not reached the reason says so.
            guest => stays(name, &reason, guest),
        };
        let is_cancelled = error.kind() == FailureKind::Cancelled;
        self.report.outcome = match is_cancelled {
            true => ReportOutcome::Cancelled,
            false => ReportOutcome::Failed,
        };
        self.report.reason = Some(reason);
        self.report.location = guest.and_then(location);
        self.report.totals.cpu = cpu_time();
        self.events.end(&self.report, &Progress::default());
        migpipe_cli::guest_is_at(&self.report.guest, self.report.location.map(Location::word));
        if let Err(error) = self.write(&self.report) {
            migpipe_cli::complain(NAME, &error.into());
        }
        migpipe_cli::complain(NAME, &anyhow!(complaint));
        match error.is_usage() {
            true => migpipe_cli::USAGE,
            false if is_cancelled => SourceEnding::Cancelled.exit_status(),
            false => SourceEnding::Stayed.exit_status(),
        }
    }
}

/// Fills in what is known at the end.
pub fn finish(
    outgoing: &mut OutgoingMigration<'_>,
    ending: SourceEnding,
    guest: Option<SourceGuestState>,
    why: Option<&StepError>,
) {
    let stream = outgoing.channel.stream.totals();
    let needed = match why {
        Some(StepError::GaveUp { needed, .. }) => Some(*needed),
        _ => None,
    };
    let report = &mut outgoing.report;
    report.outcome = match ending {
        SourceEnding::Moved => ReportOutcome::Completed,
        SourceEnding::Stayed if needed.is_some() => ReportOutcome::GaveUp,
        SourceEnding::Stayed | SourceEnding::Forced => ReportOutcome::Failed,
        SourceEnding::Cancelled => ReportOutcome::Cancelled,
        SourceEnding::Unknown => ReportOutcome::Unknown,
    };
    report.location = match ending {
        SourceEnding::Moved if report.mode == Mode::BothWays => Some(Location::Destination),
        SourceEnding::Moved | SourceEnding::Unknown => None,
        SourceEnding::Stayed | SourceEnding::Forced | SourceEnding::Cancelled => {
            guest.and_then(location)
        }
    };
    report.needed_downtime = needed;
    report.reason = why.map(StepError::reason);
    report.histogram = outgoing.precopy.pages.histogram.times();
    let promised = outgoing.precopy.policy.limits();
    report.promise =
        Promise::new((!promised.classic).then_some(promised.max_downtime), report.downtime.total);
    report.totals = Totals {
        bytes: stream.bytes,
        pages: stream.pages,
        fills: stream.filled,
        duration: outgoing.started.elapsed(),
        cpu: cpu_time(),
    };
}

/// The one line for stderr, if something has to be said.
pub fn complaint(
    ending: SourceEnding,
    guest: Option<SourceGuestState>,
    outgoing: &OutgoingMigration<'_>,
    why: Option<&StepError>,
) -> Option<String> {
    let name = &outgoing.guest.machine.name;
    let reason = match why {
        Some(StepError::GaveUp { needed, rule }) => format!(
            "{rule}; a downtime of {:.0} ms would have been needed and {:.0} ms are promised: \
             raise --max-downtime, or use --on-stall stop",
            needed.as_secs_f64() * 1e3,
            outgoing.precopy.policy.limits().max_downtime.as_secs_f64() * 1e3
        ),
        Some(error) => error.reason(),
        None => String::new(),
    };
    let gone = guest == Some(SourceGuestState::Gone);
    Some(match ending {
        SourceEnding::Moved => return None,
        SourceEnding::Stayed | SourceEnding::Cancelled if gone => ended(name, &reason),
        SourceEnding::Stayed | SourceEnding::Forced => stays(name, &reason, guest),
        SourceEnding::Cancelled => stays(name, "cancelled", guest),
        SourceEnding::Unknown if gone => format!(
            "{name} ended here in the moment of its handover: {reason}; the destination has it, \
             paused: vmctl commit --force there runs it, vmctl quit there ends it"
        ),
        SourceEnding::Unknown if outgoing.channel.mode == HandoverMode::Saved => {
            let guest = migpipe_cli::quoted(&outgoing.args.guest);
            format!(
                "{reason}; {name} is handed-over and stands still: if its file is whole \
                 (mig-inspect says so), vmctl quit --force {guest} ends it here, else mig-send \
                 --resolve --force {guest} runs it on"
            )
        }
        SourceEnding::Unknown => format!(
            "{reason}; {name} is handed-over and its outcome is not known: run {}",
            resolve_command(outgoing.args)
        ),
    })
}

fn ended(name: &str, reason: &str) -> String {
    format!("{name} ended while it was being sent: {reason}")
}

/// Why the guest is where it is, and where that is, as far as it is known.
fn stays(name: &str, reason: &str, guest: Option<SourceGuestState>) -> String {
    match guest {
        Some(guest) => format!("{reason}; {}", whereabouts(name, guest)),
        None => reason.to_owned(),
    }
}

/// Where the guest is, in words.
fn whereabouts(name: &str, guest: SourceGuestState) -> String {
    match guest {
        SourceGuestState::Runs => format!("{name} runs on here"),
        SourceGuestState::Paused => format!("{name} is here, paused as it was before"),
        SourceGuestState::HandedOver => format!("{name} is handed-over here"),
        SourceGuestState::Other(state) => format!("{name} is {state} here"),
        SourceGuestState::Gone => format!("{name} has ended here"),
        SourceGuestState::Silent => {
            format!("the vmrun of {name} does not answer, and {name} runs on here when it does")
        }
    }
}

/// Where the guest is, as far as that is its source.
const fn location(guest: SourceGuestState) -> Option<Location> {
    match guest {
        SourceGuestState::Runs | SourceGuestState::Paused | SourceGuestState::Silent => {
            Some(Location::Source)
        }
        SourceGuestState::HandedOver | SourceGuestState::Other(_) | SourceGuestState::Gone => None,
    }
}

fn cpu_time() -> Duration {
    getrusage(UsageWho::RUSAGE_SELF).map_or(Duration::ZERO, |usage| {
        let time = |value: nix::sys::time::TimeVal| {
            Duration::from_micros(
                (value.tv_sec() * 1_000_000 + value.tv_usec()).try_into().unwrap_or(0),
            )
        };
        time(usage.user_time()) + time(usage.system_time())
    })
}
