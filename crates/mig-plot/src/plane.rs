//! The plane of a figure whose steps go to the right and whose counts go up.

use plotters::prelude::DrawingBackend;

use crate::axis::CountAxis;
use crate::palette::{FAINT, GREY, INK};
use crate::sheet::{Anchor, Drawn, Face, Sheet};
use crate::{HEIGHT, WIDTH};

const LEFT: i32 = 150;
const RIGHT: i32 = WIDTH as i32 - 40;
const TOP: i32 = 206;
const BOTTOM: i32 = HEIGHT as i32 - 88;

/// The gap between the names of two steps (pixels).
const GAP: i32 = 12;

/// A plane with a slot for each step.
pub struct Plane {
    slots: usize,
}

impl Plane {
    /// There is at least one slot.
    pub const fn new(slots: usize) -> Self {
        Self { slots }
    }

    pub const fn top(&self) -> i32 {
        TOP
    }

    pub const fn bottom(&self) -> i32 {
        BOTTOM
    }

    /// The edges of a slot.
    pub fn slot(&self, index: usize) -> (i32, i32) {
        let edge = |index: usize| {
            let share = index as f64 / self.slots as f64;
            LEFT + (share * f64::from(RIGHT - LEFT)).round() as i32
        };
        (edge(index), edge(index + 1))
    }

    /// The middle of a slot, and the height of a position on the axis.
    pub fn point(&self, index: usize, position: f64) -> (i32, i32) {
        let (from, to) = self.slot(index);
        ((from + to) / 2, BOTTOM - (position * f64::from(BOTTOM - TOP)).round() as i32)
    }

    /// How large a mark may be: those of many steps must not hide the lines. 0 is none.
    pub fn mark_radius(&self) -> i32 {
        ((RIGHT - LEFT) / self.slots as i32 / 5).min(8)
    }

    /// The counts beside the plane with a line for each, and what they count.
    pub fn grid<B: DrawingBackend>(
        &self,
        sheet: &Sheet<B>,
        axis: &CountAxis,
        what: &str,
    ) -> Drawn<B> {
        for (position, label) in axis.ticks() {
            let (_, y) = self.point(0, position);
            let colour = if position == 0.0 { GREY } else { FAINT };
            sheet.line(&[(LEFT, y), (RIGHT, y)], 1, colour)?;
            sheet.text((LEFT - 12, y), Anchor::Right, Face::Label, INK, &label)?;
        }
        let logarithmic = if axis.is_logarithmic() { " (logarithmic)" } else { "" };
        let what = format!("{what}{logarithmic}");
        sheet.text((crate::sheet::LEFT, TOP - 30), Anchor::Left, Face::Label, GREY, &what)
    }

    /// The names of the steps below the plane, as many as fit, and what they are.
    pub fn names<B: DrawingBackend>(
        &self,
        sheet: &Sheet<B>,
        what: &str,
        name: impl Fn(usize) -> String,
    ) -> Drawn<B> {
        let mut widest = 0;
        for index in 0..self.slots {
            widest = widest.max(sheet.room_for(Face::Label, &name(index))? + GAP);
        }
        let steps = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000];
        let fits = |step: &usize| (RIGHT - LEFT) * *step as i32 / self.slots as i32 >= widest;
        let step = steps.into_iter().find(fits).unwrap_or(self.slots);
        for index in (0..self.slots).step_by(step.max(1)) {
            let (x, _) = self.point(index, 0.0);
            sheet.text((x, BOTTOM + 22), Anchor::Centre, Face::Label, INK, &name(index))?;
        }
        let middle = (LEFT + RIGHT) / 2;
        sheet.text((middle, BOTTOM + 60), Anchor::Centre, Face::Label, GREY, what)
    }
}
