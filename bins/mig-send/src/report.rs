//! The report of a migration, and what is said of one that did not succeed.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow};
use mig_engine::handover::{Form, SourceEnding, SourceStep};
use mig_engine::precopy::Limits;
use mig_engine::report::{Mode, Outcome, Promise, Report, Totals};
use nix::sys::resource::{UsageWho, getrusage};
use units::MigrationId;
use vm_state::MachineDescription;

use crate::fate::Fate;
use crate::migration::Migration;
use crate::stop::Stop;

/// A report that says nothing yet.
pub fn begin(
    machine: &MachineDescription,
    migration: MigrationId,
    form: Form,
    limits: &Limits,
) -> Report {
    Report {
        version: Report::VERSION,
        guest: machine.name.clone(),
        migration,
        mode: if form == Form::OneWay { Mode::OneWay } else { Mode::BothWays },
        format_version: mig_stream::FormatVersion::NEWEST.0,
        outcome: Outcome::Unknown,
        reason: None,
        needed_downtime: None,
        rounds: Vec::new(),
        blackout: None,
        histogram: Vec::new(),
        ended_by: None,
        throttle: Vec::new(),
        downtime: Default::default(),
        promise: Promise::new((!limits.classic).then_some(limits.max_downtime), None),
        totals: Totals::default(),
    }
}

/// Fills in what is known at the end.
pub fn finish(migration: &mut Migration<'_>, ending: SourceEnding, why: Option<Stop>) {
    let stream = migration.stream.totals();
    let gave_up = matches!(why, Some(Stop::GaveUp { .. }));
    let report = &mut migration.report;
    report.outcome = match ending {
        SourceEnding::Moved => Outcome::Completed,
        SourceEnding::Stayed if gave_up => Outcome::GaveUp,
        SourceEnding::Stayed => Outcome::Failed,
        SourceEnding::Cancelled => Outcome::Cancelled,
        SourceEnding::Unknown => Outcome::Unknown,
    };
    if let Some(Stop::GaveUp { needed, .. }) = why {
        report.needed_downtime = Some(needed);
    }
    report.reason = why.and_then(|stop| match stop {
        Stop::Failed(error) | Stop::Undone(error) => Some(cli::one_line(&error)),
        Stop::Refused(reason) => Some(reason),
        Stop::GaveUp { rule, .. } => Some(rule.to_string()),
        Stop::Cancelled => None,
    });
    report.histogram = migration.pages.histogram.times();
    let promised = migration.policy.limits();
    report.promise =
        Promise::new((!promised.classic).then_some(promised.max_downtime), report.downtime.total);
    report.totals = Totals {
        bytes: stream.bytes,
        pages: stream.pages,
        fills: stream.filled,
        duration: migration.started.elapsed(),
        cpu: cpu_time(),
    };
}

/// Opens the file that the report will be written to; what is in it stays until then. Before
/// anything is sent: later nothing can be opened any more, and a path that is wrong is known at
/// once.
pub fn open(path: &Path) -> anyhow::Result<File> {
    let file = File::options().write(true).create(true).truncate(false).open(path);
    file.with_context(|| format!("cannot write the report {}", path.display()))
}

/// Writes `report` as JSON.
pub fn write(report: &Report, mut file: &File, path: &Path) -> anyhow::Result<()> {
    let mut text = serde_json::to_string_pretty(report)?;
    text.push('\n');
    // What is no regular file has no length.
    let emptied = match file.metadata().is_ok_and(|there| there.is_file()) {
        true => file.set_len(0),
        false => Ok(()),
    };
    emptied.and_then(|()| file.write_all(text.as_bytes())).with_context(|| {
        format!("the migration is over, but its report {} was not written", path.display())
    })
}

/// The one line for stderr, if something has to be said.
pub fn complaint(
    ending: SourceEnding,
    migration: &Migration<'_>,
    why: Option<&Stop>,
) -> Option<anyhow::Error> {
    let name = &migration.machine.name;
    let reason = match why {
        Some(Stop::Failed(error) | Stop::Undone(error)) => cli::one_line(error),
        Some(Stop::Refused(reason)) => format!("the destination refused: {reason}"),
        Some(Stop::GaveUp { needed, rule }) => format!(
            "{rule}; a downtime of {:.0} ms would have been needed and {:.0} ms are promised: \
             raise --max-downtime, or use --on-stall stop",
            needed.as_secs_f64() * 1e3,
            migration.policy.limits().max_downtime.as_secs_f64() * 1e3
        ),
        Some(Stop::Cancelled) | None => String::new(),
    };
    match ending {
        SourceEnding::Moved => None,
        SourceEnding::Stayed | SourceEnding::Cancelled if migration.fate == Fate::Gone => {
            Some(anyhow!("{name} ended while it was being sent: {reason}"))
        }
        SourceEnding::Stayed | SourceEnding::Cancelled if migration.fate == Fate::Silent => {
            Some(anyhow!(
                "{reason}; the vmrun of {name} does not answer, and {name} runs on here when it does"
            ))
        }
        SourceEnding::Stayed => Some(anyhow!("{reason}; {name} runs on here")),
        SourceEnding::Cancelled => Some(anyhow!("cancelled; {name} runs on here")),
        SourceEnding::Unknown if migration.fate == Fate::Gone => Some(anyhow!(
            "{name} ended here in the moment of its handover: {reason}; the destination has it, \
             paused, until its --go-timeout: vmctl commit --force there runs it"
        )),
        SourceEnding::Unknown => Some(anyhow!(
            "{reason}; {name} is handed-over and its outcome is not known: run mig-send --resolve \
             {name} {}",
            resolve_hint(migration)
        )),
    }
}

fn resolve_hint(migration: &Migration<'_>) -> String {
    use mig_channel::Endpoint;
    match &migration.args.destination {
        Endpoint::Exec(command) => format!("exec:'{command}'"),
        Endpoint::Standard | Endpoint::File(_) | Endpoint::Fd(_) => {
            "exec:'ssh HOST mig-recv'".to_owned()
        }
        other => other.to_string(),
    }
}

/// What a step was for, in front of the reason why it failed.
pub const fn doing(step: SourceStep) -> &'static str {
    match step {
        SourceStep::Open => "cannot send the header",
        SourceStep::AwaitReady => "the destination did not say that it is ready",
        SourceStep::PreCopy => "pre-copy failed",
        SourceStep::Blackout | SourceStep::End => "stop-and-copy failed",
        SourceStep::Close => "the end of the stream may not have arrived",
        SourceStep::AwaitAck => "the destination did not acknowledge the guest",
        SourceStep::Commit => "the commit failed",
        SourceStep::Go | SourceStep::AwaitRunning => "the destination did not say that it runs",
        SourceStep::Resolve => "the destination could not be asked",
        SourceStep::Confirm | SourceStep::TakeBack | SourceStep::Release => {
            "the source's vmrun could not be told"
        }
        SourceStep::Finished(_) => "the migration is over",
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
