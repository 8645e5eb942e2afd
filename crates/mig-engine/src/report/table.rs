//! The report as a table for the terminal.

use std::time::Duration;

use migpipe_units::{Bytes, BytesPerSec};

use super::text::{Time, bar, clean, grouped};
use super::{Downtime, Location, Mode, Report, ReportOutcome};
use crate::precopy::RoundStats;

/// No line is wider than this, in characters.
pub(super) const WIDTH: usize = 100;

const BAR: usize = 30;

/// How often a page was sent is told apart up to here; the rest share a line.
const TIMES: usize = 8;

impl Report {
    /// The report for a terminal, in plain ASCII but for names, at most 100 columns wide, with a
    /// line feed at the end of each line.
    pub fn table(&self) -> String {
        let mut lines = vec![self.headline()];
        lines.extend(self.reason_line());
        lines.extend(self.needed_downtime.map(|needed| {
            let needed = Time(needed);
            format!("  a downtime of {needed} would have been needed")
        }));
        if !self.rounds.is_empty() {
            lines.push(String::new());
            lines.extend(self.round_lines());
        }
        lines.extend(self.throttle_line());
        if let Some(ended) = &self.ended_by {
            lines.push(clean(&ended.text, WIDTH));
        }
        if !self.histogram.is_empty() {
            lines.push(String::new());
            lines.extend(self.histogram_lines());
        }
        if self.downtime != Downtime::default() {
            lines.push(String::new());
            lines.extend(self.downtime_lines());
        }
        lines.push(String::new());
        lines.extend(self.total_lines());
        lines.push(String::new());
        lines.join("\n")
    }

    fn reason_line(&self) -> Option<String> {
        let reason = self.reason.as_deref()?;
        let line = format!("  {}", clean(reason, WIDTH - 2));
        Some(line.trim_end().to_owned())
    }

    /// Which guest, how it ended and whether there was a return path: one line.
    pub fn headline(&self) -> String {
        let mode = match self.mode {
            Mode::OneWay => "one way",
            Mode::BothWays => "both ways",
        };
        let guest = clean(&self.guest, 24);
        // Nothing else completes and leaves the guest where it was.
        if (self.outcome, self.location) == (ReportOutcome::Completed, Some(Location::Source)) {
            return format!("{guest}: a snapshot was taken, and the guest stays");
        }
        let outcome = match self.outcome {
            ReportOutcome::Completed => match self.mode {
                Mode::OneWay => "stream complete",
                Mode::BothWays => "migrated",
            },
            ReportOutcome::Failed => "failed; the guest runs on at the source",
            ReportOutcome::GaveUp => "gave up; the guest runs on at the source",
            ReportOutcome::Cancelled => "cancelled; the guest runs on at the source",
            ReportOutcome::Unknown => "outcome not known",
        };
        format!("{guest}: {outcome}, {mode}")
    }

    fn round_lines(&self) -> Vec<String> {
        let head = ["round", "pages", "fills", "deferred", "dirtied", "bytes", "rate", "time"];
        let head = head.map(str::to_owned).to_vec();
        let rounds = self.rounds.iter();
        let rounds = rounds.map(|round| round_row(round.number.to_string(), round));
        let blackout = self.blackout.iter();
        let blackout = blackout.map(|last| round_row("last".to_owned(), last));
        aligned([head].into_iter().chain(rounds).chain(blackout).collect(), 8)
    }

    fn throttle_line(&self) -> Option<String> {
        let steps = self.throttle.iter();
        let steps: Vec<String> =
            steps.map(|step| format!("{}% after round {}", step.percent, step.round)).collect();
        match steps.as_slice() {
            [] => None,
            [only] => Some(format!("throttled: {only}")),
            [first, .., last] => {
                Some(format!("throttled in {} steps: {first} to {last}", steps.len()))
            }
        }
    }

    fn histogram_lines(&self) -> Vec<String> {
        let counts: Vec<u64> = self.histogram.iter().map(|pages| pages.0).collect();
        let (few, many) = counts.split_at(counts.len().min(TIMES));
        let mut shown: Vec<(String, u64)> =
            (1..).zip(few).map(|(times, count)| (format!("{times}x"), *count)).collect();
        if !many.is_empty() {
            let more = many.iter().fold(0u64, |sum, n| sum.saturating_add(*n));
            shown.push(("more".to_owned(), more));
        }
        let all: u128 = shown.iter().map(|(_, count)| u128::from(*count)).sum();
        let rows = shown.iter().map(|(times, count)| {
            let mut share = u128::from(*count) as f64 * 100.0 / (all.max(1) as f64);
            if all > 0 && u128::from(*count) < all {
                // Not all of them is never shown as all of them.
                share = share.min(99.9);
            }
            vec![
                times.clone(),
                grouped(*count),
                format!("{share:.1}%"),
                bar(u128::from(*count), all, BAR),
            ]
        });
        let head = ["sent", "pages", "share", ""].map(str::to_owned).to_vec();
        aligned([head].into_iter().chain(rows).collect(), 3)
    }

    fn downtime_lines(&self) -> Vec<String> {
        let judged = match (self.promise.max_downtime, self.promise.kept) {
            (None, _) => String::new(),
            (Some(max), Some(true)) => format!(" (at most {}: kept)", Time(max)),
            (Some(max), Some(false)) => format!(" (at most {}: NOT KEPT)", Time(max)),
            (Some(max), None) => format!(" (at most {})", Time(max)),
        };
        let phases = self.downtime.phases();
        // A share of a whole that is not known would be a guess, so there are no bars then.
        let whole = self.downtime.total.unwrap_or_default().as_nanos();
        let head = format!("downtime {}{judged}", time_or_unknown(self.downtime.total));
        let rows = phases.map(|(name, time)| {
            let nanos = time.unwrap_or_default().as_nanos();
            format!("  {name:<17}  {:>9}  {}", time_or_unknown(time), bar(nanos, whole, BAR))
                .trim_end()
                .to_owned()
        });
        [head].into_iter().chain(rows).collect()
    }

    fn total_lines(&self) -> Vec<String> {
        let totals = &self.totals;
        vec![
            format!(
                "total {} in {} ({}), {} of CPU",
                totals.bytes,
                Time(totals.duration),
                rate(totals.bytes, totals.duration),
                Time(totals.cpu)
            ),
            format!(
                "      {} pages and {} fills",
                grouped(totals.pages.0),
                grouped(totals.fills.0)
            ),
            format!("      migration {}, stream format {}", self.migration, self.format_version),
        ]
    }
}

fn round_row(name: String, round: &RoundStats) -> Vec<String> {
    vec![
        name,
        grouped(round.sent.0),
        grouped(round.fills.0),
        grouped(round.deferred.0),
        grouped(round.dirtied.0),
        round.bytes.to_string(),
        round.rate.to_string(),
        Time(round.duration).to_string(),
    ]
}

/// Rows as lines: the first `right` columns flush right, the others flush left, two blanks
/// apart or, where the terminal is too narrow for that, one.
fn aligned(rows: Vec<Vec<String>>, right: usize) -> Vec<String> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let wide = widths.iter().map(|width| width + 2).sum::<usize>() <= WIDTH + 2;
    let gap = if wide { "  " } else { " " };
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate();
        let cells = cells.map(|(column, (cell, &width))| {
            if column < right { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        });
        let line = cells.collect::<Vec<_>>().join(gap);
        line.trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

fn time_or_unknown(time: Option<Duration>) -> String {
    time.map_or_else(|| "not known".to_owned(), |time| Time(time).to_string())
}

fn rate(bytes: Bytes, time: Duration) -> BytesPerSec {
    if time.is_zero() {
        return BytesPerSec(0);
    }
    bytes.per(time)
}
