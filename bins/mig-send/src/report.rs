//! The report of a migration, and what is said of one that did not succeed.

use anyhow::anyhow;
use mig_engine::handover::{Failure, FailureKind, HandoverMode, SourceEnding, SourceGuestState};
use mig_engine::report::{
    Location, Mode, Progress, ProgressEvent, Promise, Report, ReportOutcome, Totals,
};
use migpipe_cli::{JsonLines, Milestones, ReportFile, cpu_time, now};
use migpipe_units::MigrationId;
use tracing::debug;

use crate::NAME;
use crate::args::Args;
use crate::error::StepError;
use crate::outgoing::OutgoingMigration;
use crate::resolve::resolve_command;

/// The report from before anything is tried to the end, and who is told.
#[derive(Debug)]
pub struct Draft<'a> {
    args: &'a Args,
    file: ReportFile,
    /// Who reads progress.
    pub events: JsonLines,
    /// Who waits for something to happen.
    pub milestones: Milestones,
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
        Self {
            args,
            file: ReportFile::default(),
            events: args.reporting.progress_lines(),
            milestones: args.reporting.milestones(),
            report,
        }
    }

    /// Opens the file of `--report`, and writes that nothing is known yet.
    pub fn open(&mut self) -> Result<(), StepError> {
        self.file =
            ReportFile::open(self.args.reporting.report.as_deref()).map_err(StepError::other)?;
        let begun = self.file.begin(&self.report);
        begun.map_err(|error| StepError::other(error).context("before the guest was touched"))
    }

    /// Tells everybody how it ended.
    pub fn end(&self, report: &Report, progress: Progress) {
        migpipe_cli::guest_is_at(&report.guest, report.location.map(Location::word));
        // Before anybody is told that it ended, who may look at it then.
        if let Err(error) = self.file.write(report) {
            // The status says what became of the guest, and that alone.
            migpipe_cli::complain(NAME, &error.into());
        }
        self.events.push(|| ProgressEvent::last(report, progress, now()));
        if self.events.lost() > 0 {
            debug!("{} lines of progress were not read in time", self.events.lost());
        }
        self.milestones.ended(report.outcome.word(), report.migration);
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
        self.end(&self.report, Progress::default());
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
        SourceEnding::Stayed if needed.is_some() => ReportOutcome::GaveUp,
        ending => ending.into(),
    };
    report.location = match ending {
        SourceEnding::Moved if report.mode == Mode::BothWays => Some(Location::Destination),
        SourceEnding::Moved | SourceEnding::Unknown => None,
        SourceEnding::Snapshot => Some(Location::Source),
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
        SourceEnding::Moved | SourceEnding::Snapshot => return None,
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
