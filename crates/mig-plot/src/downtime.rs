//! How long the guest stood still, phase by phase.

use std::time::Duration;

use mig_engine::report::{Downtime, Report, Time};
use plotters::prelude::DrawingBackend;
use plotters::style::{RGBColor, WHITE};

use crate::WIDTH;
use crate::axis::TimeAxis;
use crate::palette::{
    BLUE, FAINT, GREEN, GREY, INK, ORANGE, PALE, PURPLE, SKY, VERMILLION, YELLOW,
};
use crate::sheet::{Anchor, Drawn, Face, LEFT, Sheet};

const RIGHT: i32 = WIDTH as i32 - 60;
const BAR: (i32, i32) = (148, 224);

/// The first line of the table below the bar, and the height of each.
const TABLE: i32 = 330;
const LINE: i32 = 43;

/// A promise further off than this many downtimes is said, not shown: the bar would be a speck.
const PROMISE_WITHIN: u32 = 2;

/// What is said of a phase, in the order of [`Downtime::phases`].
const PHASES: [(RGBColor, RGBColor, &str); 8] = [
    (SKY, INK, "source: the dirty log read for the last time"),
    (BLUE, WHITE, "source: what was left of the memory, sent"),
    (GREEN, WHITE, "source: vCPUs, chips and devices saved"),
    (YELLOW, INK, "between: state and all that was under way arrived"),
    (ORANGE, INK, "destination: the state loaded"),
    (GREY, WHITE, "source: what the guest had written put on its disks"),
    (VERMILLION, WHITE, "between: ACK back to the source, GO to the destination"),
    (PURPLE, INK, "destination: from GO to the first instruction"),
];

pub fn draw<B: DrawingBackend>(report: &Report, sheet: &Sheet<B>) -> Drawn<B> {
    let downtime = &report.downtime;
    let title = match downtime.total {
        Some(total) => format!("Downtime by phase: {}", Time(total)),
        None => "Downtime by phase: not known in all".to_owned(),
    };
    sheet.title(&title, &subtitle(report), &report.headline())?;
    if *downtime == Downtime::default() {
        return sheet.nothing("no downtime was measured");
    }
    bar(report, sheet)?;
    table(downtime, sheet)
}

fn bar<B: DrawingBackend>(report: &Report, sheet: &Sheet<B>) -> Drawn<B> {
    let known = report.downtime.phases().map(|(_, time)| time.unwrap_or_default());
    let whole = whole(&report.downtime);
    let promise =
        report.promise.max_downtime.filter(|&it| it <= whole.saturating_mul(PROMISE_WITHIN));
    let axis = TimeAxis::up_to(promise.map_or(whole, |promise| promise.max(whole)));
    let place = |time| LEFT + (axis.position(time) * f64::from(RIGHT - LEFT)).round() as i32;

    for (position, label) in axis.ticks() {
        let x = LEFT + (position * f64::from(RIGHT - LEFT)).round() as i32;
        sheet.line(&[(x, BAR.0 - 8), (x, BAR.1 + 8)], 1, FAINT)?;
        sheet.text((x, BAR.1 + 26), Anchor::Centre, Face::Label, INK, &label)?;
    }
    let unit = format!("{} since the last instruction at the source", axis.unit());
    sheet.text((WIDTH as i32 / 2, BAR.1 + 58), Anchor::Centre, Face::Label, GREY, &unit)?;

    sheet.rectangle((LEFT, BAR.0), (place(whole), BAR.1), PALE)?;
    let mut start = Duration::ZERO;
    for (index, time) in known.into_iter().enumerate() {
        let end = start.saturating_add(time);
        let (from, to) = (place(start), place(end));
        let (colour, ink, _) = PHASES[index];
        start = end;
        if time.is_zero() {
            continue;
        }
        // What is not nothing is seen; a phase that is wide enough stands off the next.
        let gap = if to - from > 6 { 2 } else { 0 };
        sheet.rectangle((from, BAR.0), ((to - gap).max(from + 1), BAR.1), colour)?;
        if to - from >= 28 {
            let middle = ((from + to) / 2, (BAR.0 + BAR.1) / 2);
            sheet.text(middle, Anchor::Centre, Face::Strong, ink, &(index + 1).to_string())?;
        }
    }
    if let Some(promise) = promise {
        let x = place(promise);
        sheet.dashed(&[(x, BAR.0 - 18), (x, BAR.1 + 8)], 2, INK)?;
        let anchor = if x < WIDTH as i32 / 2 { Anchor::Left } else { Anchor::Right };
        sheet.text((x, BAR.0 - 30), anchor, Face::Label, INK, "promised")?;
    }
    Ok(())
}

fn table<B: DrawingBackend>(downtime: &Downtime, sheet: &Sheet<B>) -> Drawn<B> {
    // A share of a whole that is not known would be a guess.
    let whole = downtime.total.map(|_| whole(downtime).as_nanos() as f64);
    for (index, (name, time)) in downtime.phases().into_iter().enumerate() {
        let y = TABLE + index as i32 * LINE;
        let (colour, ink, what) = PHASES[index];
        sheet.rectangle((LEFT, y - 15), (LEFT + 34, y + 15), colour)?;
        let number = (index + 1).to_string();
        sheet.text((LEFT + 17, y), Anchor::Centre, Face::Strong, ink, &number)?;
        sheet.text((LEFT + 52, y), Anchor::Left, Face::Label, INK, name)?;
        let shown = time.map_or_else(|| "not known".to_owned(), |time| Time(time).to_string());
        let face = if time.is_some() { Face::Strong } else { Face::Label };
        sheet.text((LEFT + 360, y), Anchor::Right, face, INK, &shown)?;
        if let Some((time, whole)) = time.zip(whole.filter(|&nanos| nanos > 0.0)) {
            let share = format!("{:.1}%", time.as_nanos() as f64 * 100.0 / whole);
            sheet.text((LEFT + 450, y), Anchor::Right, Face::Label, INK, &share)?;
        }
        sheet.text((LEFT + 490, y), Anchor::Left, Face::Label, GREY, what)?;
    }
    Ok(())
}

/// The length of the bar: all of the downtime, and never less than its phases.
fn whole(downtime: &Downtime) -> Duration {
    let known = downtime.phases().into_iter().filter_map(|(_, time)| time);
    let sum = known.fold(Duration::ZERO, Duration::saturating_add);
    downtime.total.unwrap_or_default().max(sum)
}

/// Which migration, and what was promised.
fn subtitle(report: &Report) -> String {
    let headline = report.headline();
    let promised = match (report.promise.max_downtime, report.promise.kept) {
        (None, _) => return headline,
        (Some(max), Some(true)) => format!("at most {} promised, and kept", Time(max)),
        (Some(max), Some(false)) => format!("at most {} promised, and NOT KEPT", Time(max)),
        (Some(max), None) => format!("at most {} promised", Time(max)),
    };
    format!("{headline}; {promised}")
}
