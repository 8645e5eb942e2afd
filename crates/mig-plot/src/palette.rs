//! The colours: those of Okabe and Ito, which the colour-blind tell apart.

use plotters::style::RGBColor;

pub const SKY: RGBColor = RGBColor(86, 180, 233);
pub const BLUE: RGBColor = RGBColor(0, 114, 178);
pub const GREEN: RGBColor = RGBColor(0, 158, 115);
pub const YELLOW: RGBColor = RGBColor(240, 228, 66);
pub const ORANGE: RGBColor = RGBColor(230, 159, 0);
pub const VERMILLION: RGBColor = RGBColor(213, 94, 0);
pub const PURPLE: RGBColor = RGBColor(204, 121, 167);

/// Titles and figures.
pub const INK: RGBColor = RGBColor(32, 33, 36);
/// What explains.
pub const GREY: RGBColor = RGBColor(95, 99, 104);
/// What was not broken down.
pub const PALE: RGBColor = RGBColor(205, 208, 213);
/// Grid lines.
pub const FAINT: RGBColor = RGBColor(228, 230, 234);
/// The time in which the guest stood still.
pub const SHADE: RGBColor = RGBColor(244, 245, 247);
