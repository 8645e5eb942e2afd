//! The report of a migration, and what is said of one that did not succeed.

use std::fs::File;
use std::io::{Seek, Write};
use std::time::Duration;

use anyhow::{Context, anyhow};
use mig_engine::handover::{HandoverMode, SourceEnding, SourceGuestState};
use mig_engine::report::{Location, Mode, Promise, Report, ReportOutcome, Totals};
use migpipe_units::MigrationId;
use nix::sys::resource::{UsageWho, getrusage};

use crate::NAME;
use crate::args::Args;
use crate::error::StepError;
use crate::outgoing::Outgoing;
use crate::resolve::resolve_command;

/// The report from before anything is tried to the end, and the file that it is written to.
///
/// The file is opened first of all: later nothing can be opened any more, and a path that is wrong
/// is known at once. From then on what is in it is of this migration, and valid: a report of an
/// earlier one does not survive in it, whatever happens.
#[derive(Debug)]
pub struct Draft<'a> {
    args: &'a Args,
    file: Option<File>,
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
        Self { args, file: None, report }
    }

    /// Opens the file of `--report`, and writes that nothing is known yet.
    pub fn open(&mut self) -> anyhow::Result<()> {
        let Some(path) = &self.args.report else { return Ok(()) };
        let file = File::options().write(true).create(true).truncate(true).open(path);
        let file = file.with_context(|| format!("cannot write the report {}", path.display()))?;
        // A pipe or a terminal gets one report and no more.
        let keeps = file.metadata().is_ok_and(|there| there.is_file());
        self.file = Some(file);
        match keeps {
            true => self.write(&self.report).context("before the guest was touched"),
            false => Ok(()),
        }
    }

    /// Writes `report`.
    pub fn write(&self, report: &Report) -> anyhow::Result<()> {
        let (Some(path), Some(mut file)) = (&self.args.report, self.file.as_ref()) else {
            return Ok(());
        };
        let mut text = serde_json::to_string_pretty(report)?;
        text.push('\n');
        // What is no regular file has no length and no beginning.
        let emptied = match file.metadata().is_ok_and(|there| there.is_file()) {
            true => file.rewind().and_then(|()| file.set_len(0)),
            false => Ok(()),
        };
        emptied
            .and_then(|()| file.write_all(text.as_bytes()))
            .with_context(|| format!("the report {} was not written", path.display()))
    }

    /// Ends a migration that could not begin: writes the report, says why and where the guest is,
    /// and returns the exit status.
    ///
    /// `fate` is the guest's, where its vmrun was reached.
    pub fn not_begun(mut self, stop: &StepError, fate: Option<SourceGuestState>) -> u8 {
        let name = &self.report.guest;
        let reason = stop.reason();
        let complaint = match fate {
            Some(SourceGuestState::Gone) => ended(name, &reason),
            Some(fate) => anyhow!("{reason}; {}", whereabouts(name, fate)),
            // Its vmrun was not reached, and the reason says so.
            None => anyhow!("{reason}"),
        };
        self.report.outcome = match stop {
            StepError::Cancelled => ReportOutcome::Cancelled,
            _ => ReportOutcome::Failed,
        };
        self.report.reason = Some(reason);
        self.report.location = fate.and_then(location);
        self.report.totals.cpu = cpu_time();
        if let Err(error) = self.write(&self.report) {
            migpipe_cli::complain(NAME, &error);
        }
        migpipe_cli::complain(NAME, &complaint);
        match stop {
            StepError::Cancelled => SourceEnding::Cancelled.exit_status(),
            StepError::Failed(error) if migpipe_cli::is_usage(error) => migpipe_cli::USAGE,
            _ => SourceEnding::Stayed.exit_status(),
        }
    }
}

/// Fills in what is known at the end.
pub fn finish(
    outgoing: &mut Outgoing<'_>,
    ending: SourceEnding,
    guest: SourceGuestState,
    why: Option<StepError>,
) {
    let stream = outgoing.channel.stream.totals();
    let gave_up = matches!(why, Some(StepError::GaveUp { .. }));
    let report = &mut outgoing.report;
    report.outcome = match ending {
        SourceEnding::Moved => ReportOutcome::Completed,
        SourceEnding::Stayed if gave_up => ReportOutcome::GaveUp,
        SourceEnding::Stayed | SourceEnding::Forced => ReportOutcome::Failed,
        SourceEnding::Cancelled => ReportOutcome::Cancelled,
        SourceEnding::Unknown => ReportOutcome::Unknown,
    };
    report.location = match ending {
        SourceEnding::Moved if report.mode == Mode::BothWays => Some(Location::Destination),
        SourceEnding::Moved | SourceEnding::Unknown => None,
        SourceEnding::Stayed | SourceEnding::Forced | SourceEnding::Cancelled => location(guest),
    };
    if let Some(StepError::GaveUp { needed, .. }) = why {
        report.needed_downtime = Some(needed);
    }
    report.reason = why.map(|stop| stop.reason());
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
    guest: SourceGuestState,
    outgoing: &Outgoing<'_>,
    why: Option<&StepError>,
) -> Option<anyhow::Error> {
    let name = &outgoing.guest.machine.name;
    let reason = match why {
        Some(StepError::GaveUp { needed, rule }) => format!(
            "{rule}; a downtime of {:.0} ms would have been needed and {:.0} ms are promised: \
             raise --max-downtime, or use --on-stall stop",
            needed.as_secs_f64() * 1e3,
            outgoing.precopy.policy.limits().max_downtime.as_secs_f64() * 1e3
        ),
        Some(stop) => stop.reason(),
        None => String::new(),
    };
    match ending {
        SourceEnding::Moved => None,
        SourceEnding::Stayed | SourceEnding::Cancelled if guest == SourceGuestState::Gone => {
            Some(ended(name, &reason))
        }
        SourceEnding::Stayed | SourceEnding::Forced => {
            Some(anyhow!("{reason}; {}", whereabouts(name, guest)))
        }
        SourceEnding::Cancelled => Some(anyhow!("cancelled; {}", whereabouts(name, guest))),
        SourceEnding::Unknown if guest == SourceGuestState::Gone => Some(anyhow!(
            "{name} ended here in the moment of its handover: {reason}; the destination has it, \
             paused: vmctl commit --force there runs it, vmctl quit there ends it"
        )),
        SourceEnding::Unknown if outgoing.channel.mode == HandoverMode::Saved => Some(anyhow!(
            "{reason}; {name} is handed-over and stands still: if its file is whole (mig-inspect \
             says so), vmctl quit --force {name} ends it here, else mig-send --resolve --force \
             {name} runs it on"
        )),
        SourceEnding::Unknown => Some(anyhow!(
            "{reason}; {name} is handed-over and its outcome is not known: run {}",
            resolve_command(outgoing.args)
        )),
    }
}

fn ended(name: &str, reason: &str) -> anyhow::Error {
    anyhow!("{name} ended while it was being sent: {reason}")
}

/// Where the guest is, in words.
fn whereabouts(name: &str, fate: SourceGuestState) -> String {
    match fate {
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
const fn location(fate: SourceGuestState) -> Option<Location> {
    match fate {
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
