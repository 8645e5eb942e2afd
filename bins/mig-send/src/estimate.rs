//! What `mig-send -n` has to say, for a person and for a script.

use std::fmt::Write;
use std::time::Duration;

use mig_engine::precopy::{Forecast, Next, Outlook, Path};
use mig_engine::report::{Time, grouped};
use migpipe_units::{Bytes, BytesPerSec, Finding, Pages};
use serde::Serialize;
use vm_state::MachineDescription;

use crate::args::Args;
use crate::content::Content;
use crate::dirtying::Watched;
use crate::precopy::BLACKOUT_OVERHEAD;
use crate::probe::MeasuredPath;

/// What the programs of a migration take to end, beside all that is reckoned.
const ENDING: Duration = Duration::from_millis(50);

/// What a migration would send and come to. What was not looked at is `None`.
#[derive(Debug, Serialize)]
pub struct Estimate {
    version: u32,
    guest: String,
    destination: String,
    /// Whether the guest would move so.
    pub possible: Option<bool>,
    findings: Vec<Finding>,
    memory_bytes: Bytes,
    vcpus: u32,
    raw_pages: Pages,
    fill_pages: Pages,
    hole_pages: Pages,
    limit_bytes_per_sec: Option<BytesPerSec>,
    max_downtime_ns: u64,
    path: Option<PathFigures>,
    dirtying: Option<DirtyingFigures>,
    forecast: Option<ForecastFigures>,
}

#[derive(Debug, Serialize)]
struct PathFigures {
    rate_bytes_per_sec: BytesPerSec,
    blackout_rate_bytes_per_sec: BytesPerSec,
    round_trip_ns: u64,
    setup_ns: u64,
}

#[derive(Debug, Serialize)]
struct DirtyingFigures {
    watched_ns: u64,
    written_pages: Pages,
    in_a_second_pages: Pages,
    working_set_pages: Pages,
    harvest_ns: u64,
}

#[derive(Debug, Serialize)]
struct ForecastFigures {
    total_ns: u64,
    sent_bytes: Bytes,
    downtime_ns: u64,
    rounds: u32,
    blackout_pages: Pages,
    throttle_percent: u8,
    ended_by: &'static str,
    #[serde(skip)]
    rule: String,
}

/// All that was measured.
#[derive(Debug)]
pub struct Measured {
    pub path: MeasuredPath,
    pub watched: Watched,
    pub setup: Duration,
}

impl Estimate {
    const VERSION: u32 = 1;

    /// What is known without the destination.
    pub fn new(args: &Args, machine: &MachineDescription, content: &Content) -> Self {
        Self {
            version: Self::VERSION,
            guest: machine.name.clone(),
            destination: args.destination.to_string(),
            possible: None,
            findings: Vec::new(),
            memory_bytes: machine.pages().bytes(),
            vcpus: machine.vcpus,
            raw_pages: content.raw,
            fill_pages: content.fills,
            hole_pages: content.holes,
            limit_bytes_per_sec: args.bandwidth(),
            max_downtime_ns: nanoseconds(args.max_downtime),
            path: None,
            dirtying: None,
            forecast: None,
        }
    }

    /// What the destination finds.
    pub fn found(&mut self, findings: &[Finding]) {
        self.findings = findings.to_vec();
        self.possible = Some(!findings.iter().any(|finding| finding.in_the_way));
    }

    /// What was measured, and what follows from it.
    pub fn measured(&mut self, args: &Args, content: &Content, measured: Measured) {
        let Measured { path, watched, setup } = measured;
        let outlook = Outlook {
            limits: args.limits(),
            defers: !args.no_wws && !args.classic,
            first: content.raw,
            dirtying: &watched.dirtying,
            path: Path {
                rate: path.rate,
                backlog: Bytes(0),
                overhead: watched.harvest + BLACKOUT_OVERHEAD,
            },
            blackout_rate: path.blackout_rate,
            round_trip: path.round_trip,
        };
        let forecast = outlook.forecast();
        self.path = Some(PathFigures {
            rate_bytes_per_sec: path.rate,
            blackout_rate_bytes_per_sec: path.blackout_rate,
            round_trip_ns: nanoseconds(path.round_trip),
            setup_ns: nanoseconds(setup),
        });
        self.dirtying = Some(DirtyingFigures {
            watched_ns: nanoseconds(watched.time),
            written_pages: watched.written,
            in_a_second_pages: watched.dirtying.within(Duration::from_secs(1)),
            working_set_pages: watched.dirtying.working_set(),
            harvest_ns: nanoseconds(watched.harvest),
        });
        let (rule, kept) = match forecast.end {
            Next::StopAndCopy(rule) => (Some(rule), true),
            Next::GiveUp { rule, .. } => (Some(rule), false),
            Next::Round | Next::Throttle { .. } => (None, false),
        };
        if !kept {
            self.give_up(&forecast, args.max_downtime);
        }
        self.forecast = Some(ForecastFigures {
            total_ns: nanoseconds(setup + forecast.duration + ENDING),
            sent_bytes: forecast.bytes,
            downtime_ns: nanoseconds(forecast.downtime),
            rounds: forecast.rounds,
            blackout_pages: forecast.left,
            throttle_percent: forecast.throttle,
            ended_by: rule.map_or("", |rule| rule.tag()),
            rule: rule.map_or_else(String::new, |rule| rule.to_string()),
        });
    }

    /// The promise could not be kept, and the guest would stay.
    fn give_up(&mut self, forecast: &Forecast, promised: Duration) {
        self.possible = Some(false);
        self.findings.push(Finding::in_the_way(
            "downtime",
            format!(
                "{} would be needed, and {} are promised: raise --max-downtime, or use --on-stall \
                 stop",
                Time(forecast.downtime),
                Time(promised)
            ),
        ));
    }

    /// What is in the way, in one line.
    pub fn in_the_way(&self) -> Option<String> {
        let bad = self.findings.iter().filter(|finding| finding.in_the_way);
        let said: Vec<_> =
            bad.map(|finding| format!("{}: {}", finding.subject, finding.text)).collect();
        (!said.is_empty()).then(|| said.join("; "))
    }

    /// For a person.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = self.write(&mut text);
        text
    }

    fn write(&self, text: &mut String) -> std::fmt::Result {
        let plural = if self.vcpus == 1 { "" } else { "s" };
        writeln!(
            text,
            "{}: {} of memory for {} vCPU{plural}, to {}",
            self.guest, self.memory_bytes, self.vcpus, self.destination
        )?;
        for (what, pages) in [
            ("round 0 would send ", self.raw_pages),
            ("as one pattern each", self.fill_pages),
            ("holes, not sent    ", self.hole_pages),
        ] {
            writeln!(text, "  {what} {:>10} ({pages})", pages.bytes().to_string())?;
        }
        if self.possible.is_none() {
            if let Some(limit) = self.limit_bytes_per_sec {
                let time = limit.time_for(self.raw_pages.bytes()).as_secs_f64();
                writeln!(text, "  at {limit} that takes {time:.1} s")?;
            }
            return Ok(());
        }
        writeln!(text, "the destination says")?;
        for finding in &self.findings {
            let verdict = if finding.in_the_way { "NO" } else { "ok" };
            writeln!(text, "  {verdict}  {:<16} {}", finding.subject, finding.text)?;
        }
        if let (Some(path), Some(dirtying)) = (&self.path, &self.dirtying) {
            writeln!(
                text,
                "the path carries {}, {} there and back; the guest writes to {} pages in a second, \
                 to {} in the long run",
                path.rate_bytes_per_sec,
                Time(Duration::from_nanos(path.round_trip_ns)),
                grouped(dirtying.in_a_second_pages.0),
                grouped(dirtying.working_set_pages.0)
            )?;
        }
        match (&self.forecast, self.possible) {
            (Some(forecast), Some(true)) => {
                let throttled = match forecast.throttle_percent {
                    0 => String::new(),
                    percent => format!(", throttled by {percent}%"),
                };
                writeln!(
                    text,
                    "{} would move in {}: {} in {} round{}{throttled}, and stand still for {}",
                    self.guest,
                    Time(Duration::from_nanos(forecast.total_ns)),
                    forecast.sent_bytes,
                    forecast.rounds,
                    if forecast.rounds == 1 { "" } else { "s" },
                    Time(Duration::from_nanos(forecast.downtime_ns))
                )?;
                writeln!(text, "  {}", forecast.rule)
            }
            _ => writeln!(text, "{} would not move: see NO above", self.guest),
        }
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
