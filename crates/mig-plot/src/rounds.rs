//! Pages per round.

use mig_engine::precopy::RoundStats;
use mig_engine::report::{EndedBy, Report};
use plotters::prelude::DrawingBackend;
use plotters::style::RGBColor;

use crate::axis::CountAxis;
use crate::palette::{BLUE, GREEN, GREY, INK, PURPLE, SHADE, VERMILLION};
use crate::plane::Plane;
use crate::sheet::{Anchor, Drawn, Face, LEFT, Mark, Sheet, Stroke};

/// One curve of the figure.
struct Curve {
    name: &'static str,
    mark: Mark,
    stroke: Stroke,
    colour: RGBColor,
    pages: fn(&RoundStats) -> u64,
    /// Whether it has a meaning while the guest stands still.
    in_blackout: bool,
}

const CURVES: [Curve; 4] = [
    Curve {
        name: "sent as bytes",
        mark: Mark::Disc,
        stroke: Stroke::Solid,
        colour: BLUE,
        pages: |round| round.sent.0,
        in_blackout: true,
    },
    Curve {
        name: "sent as a pattern (fills)",
        mark: Mark::Square,
        stroke: Stroke::Solid,
        colour: GREEN,
        pages: |round| round.fills.0,
        in_blackout: true,
    },
    Curve {
        name: "dirtied meanwhile",
        mark: Mark::Triangle,
        stroke: Stroke::Dashed,
        colour: VERMILLION,
        pages: |round| round.dirtied.0,
        in_blackout: false,
    },
    Curve {
        name: "deferred to the blackout",
        mark: Mark::Diamond,
        stroke: Stroke::Dashed,
        colour: PURPLE,
        pages: |round| round.deferred.0,
        in_blackout: false,
    },
];

pub fn draw<B: DrawingBackend>(report: &Report, sheet: &Sheet<B>) -> Drawn<B> {
    let headline = report.headline();
    let (subtitle, shorter) = match &report.ended_by {
        Some(EndedBy { text, .. }) => {
            let rule = text.split(':').next().unwrap_or_default();
            (format!("{headline}; {text}"), format!("{headline}; {rule}"))
        }
        None => (headline.clone(), headline),
    };
    // Which migration, and what ended its rounds.
    sheet.title("Pages per round", &subtitle, &shorter)?;
    let rounds: Vec<_> = report.rounds.iter().chain(&report.blackout).collect();
    if rounds.is_empty() {
        return sheet.nothing("no round was sent");
    }
    // What never happened needs no curve; bytes are sent or it is no migration.
    let curves: Vec<_> = CURVES
        .iter()
        .enumerate()
        .filter(|(index, it)| *index == 0 || rounds.iter().any(|round| (it.pages)(round) > 0))
        .map(|(_, curve)| curve)
        .collect();
    legend(sheet, &curves)?;

    let counts = curves.iter().flat_map(|curve| rounds.iter().map(|round| (curve.pages)(round)));
    let axis = CountAxis::over(counts);
    let plane = Plane::new(rounds.len());
    if report.blackout.is_some() {
        let (from, to) = plane.slot(rounds.len() - 1);
        sheet.rectangle((from, plane.top()), (to, plane.bottom()), SHADE)?;
    }
    plane.grid(sheet, &axis, "pages of 4 KiB")?;
    plane.names(sheet, "round", |index| rounds[index].number.to_string())?;
    if report.blackout.is_some() {
        let (_, right) = plane.slot(rounds.len() - 1);
        sheet.text((right - 8, plane.top() + 16), Anchor::Right, Face::Label, GREY, "blackout")?;
    }

    for curve in curves {
        let shown = rounds.len() - usize::from(!curve.in_blackout && report.blackout.is_some());
        let points: Vec<_> = (0..shown)
            .map(|index| plane.point(index, axis.position((curve.pages)(rounds[index]))))
            .collect();
        if points.len() > 1 {
            sheet.curve(curve.stroke, &points, curve.colour)?;
        }
        // No mark where there was nothing: the ground would be full of them.
        let radius = plane.mark_radius();
        let marked = points.iter().zip(&rounds).filter(|(_, round)| (curve.pages)(round) > 0);
        for (point, _) in marked.filter(|_| radius > 0) {
            sheet.mark(curve.mark, *point, radius, curve.colour)?;
        }
    }
    Ok(())
}

fn legend<B: DrawingBackend>(sheet: &Sheet<B>, curves: &[&Curve]) -> Drawn<B> {
    const Y: i32 = 128;
    let mut x = LEFT;
    for curve in curves {
        sheet.curve(curve.stroke, &[(x, Y), (x + 44, Y)], curve.colour)?;
        sheet.mark(curve.mark, (x + 22, Y), 7, curve.colour)?;
        sheet.text((x + 54, Y), Anchor::Left, Face::Label, INK, curve.name)?;
        x += 54 + sheet.room_for(Face::Label, curve.name)? + 16;
    }
    Ok(())
}
