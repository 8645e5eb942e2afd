//! The figures of a migration, drawn from its report: what `vmctl plot` writes.
//!
//! Three figures, each [`WIDTH`] by [`HEIGHT`] pixels:
//!
//! - [`Figure::Rounds`]: pages per round, the curve of the KVM Forum 2007 talk *KVM Live Migration*;
//! - [`Figure::Sent`]: how often a page was sent, the talk's histogram;
//! - [`Figure::Downtime`]: how long the guest stood still, phase by phase.
//!
//! A report that lacks something (a migration that failed early, a one-way path whose destination
//! measured nothing) still has all three; each says what is not there. Nothing is needed of the
//! machine: the letters of a PNG come from the font in this crate, those of an SVG from whoever
//! shows it. The colours are told apart by the colour-blind, and shape or number says the same.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod axis;
mod downtime;
mod error;
mod palette;
mod plane;
mod raster;
mod rounds;
mod sent;
mod sheet;
#[cfg(test)]
mod tests;

use mig_engine::report::Report;
use plotters::drawing::IntoDrawingArea;
use plotters_svg::SVGBackend;

pub use error::PlotError;

use sheet::{Drawn, Medium, Sheet};

/// The width of a figure (pixels).
pub const WIDTH: u32 = 1200;

/// The height of a figure (pixels).
pub const HEIGHT: u32 = 675;

/// A viewer centres text by its own letters.
const SVG: Medium = Medium { scale: 1, text_below: 0.0 };

/// One figure of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Figure {
    /// Pages per round: sent, sent as a pattern, dirtied, deferred.
    Rounds,
    /// How many pages were sent once, twice, and so on.
    Sent,
    /// The downtime, phase by phase.
    Downtime,
}

impl Figure {
    /// Every figure there is.
    pub const ALL: [Self; 3] = [Self::Rounds, Self::Sent, Self::Downtime];

    /// A short name for its file: `rounds`, `sent` or `downtime`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rounds => "rounds",
            Self::Sent => "sent",
            Self::Downtime => "downtime",
        }
    }

    /// Draws it as an SVG document.
    ///
    /// # Errors
    /// [`PlotError::Draw`] says what the drawing library met.
    pub fn svg(self, report: &Report) -> Result<String, PlotError> {
        let mut text = String::new();
        let area = SVGBackend::with_string(&mut text, (WIDTH, HEIGHT)).into_drawing_area();
        self.draw(report, &Sheet::new(area, SVG)?).map_err(PlotError::draw)?;
        Ok(text)
    }

    /// Draws it as a PNG file: 8 bits of red, green and blue each.
    ///
    /// # Errors
    /// As [`Figure::svg`]; [`PlotError::Encode`] says why the pixels became no file.
    pub fn png(self, report: &Report) -> Result<Vec<u8>, PlotError> {
        raster::png(|sheet| self.draw(report, sheet))
    }

    fn draw<B: plotters::prelude::DrawingBackend>(
        self,
        report: &Report,
        sheet: &Sheet<B>,
    ) -> Drawn<B> {
        match self {
            Self::Rounds => rounds::draw(report, sheet),
            Self::Sent => sent::draw(report, sheet),
            Self::Downtime => downtime::draw(report, sheet),
        }?;
        sheet.present()
    }
}
