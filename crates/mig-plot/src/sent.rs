//! How often a page was sent.

use mig_engine::report::{Report, grouped};
use plotters::prelude::DrawingBackend;

use crate::axis::CountAxis;
use crate::palette::{BLUE, INK};
use crate::plane::Plane;
use crate::sheet::{Anchor, Drawn, Face, Sheet};

/// The last count there is: so often or more.
const HIGHEST: usize = 255;

pub fn draw<B: DrawingBackend>(report: &Report, sheet: &Sheet<B>) -> Drawn<B> {
    sheet.title("How often a page was sent", &subtitle(report), &report.headline())?;
    let counts: Vec<u64> = report.histogram.iter().map(|pages| pages.0).collect();
    if counts.is_empty() {
        return sheet.nothing("no page was sent");
    }
    let axis = CountAxis::over(counts.iter().copied());
    let plane = Plane::new(counts.len());
    plane.grid(sheet, &axis, "pages of 4 KiB")?;
    let what = if counts.len() < HIGHEST {
        "times that a page was sent"
    } else {
        "times that a page was sent; the last is 255 or more"
    };
    plane.names(sheet, what, |index| format!("{}x", index + 1))?;

    // Where the last label ended.
    let mut free_from = 0;
    for (index, &count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
        let (from, to) = plane.slot(index);
        let (middle, top) = plane.point(index, axis.position(count));
        // Few bars stay bars, many do not touch one another, and what is not nothing is seen.
        let width = ((to - from) * 7 / 10).clamp(1, 160);
        let left = middle - width / 2;
        let top = top.min(plane.bottom() - 2);
        sheet.rectangle((left, top), (left + width, plane.bottom()), BLUE)?;

        let label = grouped(count);
        let half = sheet.room_for(Face::Strong, &label)? / 2;
        let (start, end) = (middle - half, middle + half);
        let mut others = counts.iter().enumerate().filter(|(other, _)| *other != index);
        let alone = others.all(|(other, &count)| {
            let (from, to) = plane.slot(other);
            count == 0 || to <= start || end <= from
        });
        if alone && free_from <= start {
            sheet.text((middle, top - 16), Anchor::Centre, Face::Strong, INK, &label)?;
            free_from = end;
        }
    }
    Ok(())
}

/// Which migration, and the share of the pages that is worth saying.
fn subtitle(report: &Report) -> String {
    let all: u128 = report.histogram.iter().map(|pages| u128::from(pages.0)).sum();
    let once = report.histogram.first().map_or(0, |pages| u128::from(pages.0));
    let headline = report.headline();
    if all == 0 {
        return headline;
    }
    let share = if once < all { (once as f64 * 100.0 / all as f64).min(99.9) } else { 100.0 };
    let all = grouped(all.try_into().unwrap_or(u64::MAX));
    format!("{headline}; {all} pages, {share:.1}% of them sent only once")
}
