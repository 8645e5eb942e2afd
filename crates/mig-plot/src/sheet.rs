//! What all figures are drawn on: a white sheet with its title, text, lines and marks.

use mig_engine::report::clean;
use plotters::coord::Shift;
use plotters::drawing::DrawingAreaErrorKind;
use plotters::element::{Circle, DashedPathElement, PathElement, Polygon, Rectangle, Text};
use plotters::prelude::{DrawingArea, DrawingBackend};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{
    Color, FontFamily, FontStyle, RGBColor, ShapeStyle, TextStyle, WHITE, register_font,
};

use crate::palette::{GREY, INK};
use crate::{PlotError, WIDTH};

/// What drawing on a sheet comes to.
pub type Drawn<B, T = ()> = Result<T, DrawingAreaErrorKind<<B as DrawingBackend>::ErrorType>>;

/// The left edge of titles and legends (pixels).
pub const LEFT: i32 = 60;

/// The font of the sheet: viewers of an SVG have one of this name, and ours is registered by it.
const FAMILY: FontFamily<'static> = FontFamily::SansSerif;

/// How text looks. The sizes can be read when a figure is shown at its own width.
#[derive(Clone, Copy, Debug)]
pub enum Face {
    Title,
    Subtitle,
    Label,
    Strong,
}

impl Face {
    const fn size(self) -> u32 {
        match self {
            Self::Title => 38,
            Self::Subtitle => 24,
            Self::Label | Self::Strong => 23,
        }
    }

    const fn style(self) -> FontStyle {
        match self {
            Self::Title | Self::Strong => FontStyle::Bold,
            Self::Subtitle | Self::Label => FontStyle::Normal,
        }
    }
}

/// The point of a text that is put where it is wanted.
#[derive(Clone, Copy, Debug)]
pub enum Anchor {
    Left,
    Centre,
    Right,
}

/// The form of a point; it says the same as its colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    Disc,
    Triangle,
    Square,
    Diamond,
}

/// How a curve is drawn. One that may lie on another has gaps through which that is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stroke {
    Solid,
    Dashed,
}

/// What a figure becomes.
#[derive(Clone, Copy, Debug)]
pub struct Medium {
    /// Pixels of the backend for one of the figure.
    pub scale: u32,
    /// How far text is put below its place, as a share of its size, so that its capitals are
    /// around it: the library centres what it takes for the height of a line.
    pub text_below: f64,
}

/// A white sheet. Places and lengths are pixels of the figure, whatever it is drawn on.
pub struct Sheet<B: DrawingBackend> {
    area: DrawingArea<B, Shift>,
    scale: i32,
    text_below: f64,
}

impl<B: DrawingBackend> Sheet<B> {
    /// An empty sheet.
    pub fn new(area: DrawingArea<B, Shift>, medium: Medium) -> Result<Self, PlotError>
    where
        B::ErrorType: 'static,
    {
        for (style, bytes) in [
            (FontStyle::Normal, include_bytes!("../font/Roboto-Regular.ttf").as_slice()),
            (FontStyle::Bold, include_bytes!("../font/Roboto-Medium.ttf").as_slice()),
        ] {
            register_font(FAMILY.as_str(), style, bytes).map_err(|_| PlotError::Font)?;
        }
        area.fill(&WHITE).map_err(PlotError::draw)?;
        Ok(Self { area, scale: medium.scale as i32, text_below: medium.text_below })
    }

    /// Hands the whole of it to the backend.
    pub fn present(&self) -> Drawn<B> {
        self.area.present()
    }

    /// What the figure shows, and of which migration: `subtitle`, or `shorter` where that has no
    /// room.
    pub fn title(&self, title: &str, subtitle: &str, shorter: &str) -> Drawn<B> {
        self.text((LEFT, 42), Anchor::Left, Face::Title, INK, title)?;
        let has_room = |text: &str| -> Drawn<B, bool> {
            Ok(self.room_for(Face::Subtitle, text)? <= WIDTH as i32 - 2 * LEFT)
        };
        let mut shown = clean(subtitle, subtitle.len());
        // What comes from the report may be longer than the sheet is wide.
        let mut length = shorter.len();
        while !has_room(&shown)? {
            shown = clean(shorter, length);
            length = length.saturating_sub(1);
        }
        self.text((LEFT, 84), Anchor::Left, Face::Subtitle, GREY, &shown)
    }

    /// One line instead of a figure that would be empty.
    pub fn nothing(&self, why: &str) -> Drawn<B> {
        self.text((WIDTH as i32 / 2, 360), Anchor::Centre, Face::Subtitle, GREY, why)
    }

    /// One line of text around a height.
    pub fn text(
        &self,
        at: (i32, i32),
        anchor: Anchor,
        face: Face,
        colour: RGBColor,
        text: &str,
    ) -> Drawn<B> {
        let anchor = match anchor {
            Anchor::Left => HPos::Left,
            Anchor::Centre => HPos::Center,
            Anchor::Right => HPos::Right,
        };
        let style = self.style(face).color(&colour).pos(Pos::new(anchor, VPos::Center));
        let (x, y) = self.point(at);
        let below = f64::from(face.size()) * self.text_below * f64::from(self.scale);
        self.area.draw(&Text::new(text, (x, y + below.round() as i32), style))
    }

    /// The width to keep for a text (pixels): the viewer of an SVG may have a wider font than ours.
    pub fn room_for(&self, face: Face, text: &str) -> Drawn<B, i32> {
        let (width, _) = self.area.estimate_text_size(text, &self.style(face))?;
        Ok(width as i32 / self.scale * 6 / 5)
    }

    /// A line through points.
    pub fn line(&self, points: &[(i32, i32)], width: u32, colour: RGBColor) -> Drawn<B> {
        let points: Vec<_> = points.iter().map(|point| self.point(*point)).collect();
        self.area.draw(&PathElement::new(points, self.stroke(width, colour)))
    }

    /// A line with gaps.
    pub fn dashed(&self, points: &[(i32, i32)], width: u32, colour: RGBColor) -> Drawn<B> {
        const DASH: i32 = 10;
        const GAP: i32 = 7;
        let points: Vec<_> = points.iter().map(|point| self.point(*point)).collect();
        let (dash, gap) = (DASH * self.scale, GAP * self.scale);
        let style = self.stroke(width, colour);
        self.area.draw(&DashedPathElement::new(points, dash, gap, style))
    }

    /// A curve of a figure or of its legend.
    pub fn curve(&self, stroke: Stroke, points: &[(i32, i32)], colour: RGBColor) -> Drawn<B> {
        const WIDTH: u32 = 3;
        match stroke {
            Stroke::Solid => self.line(points, WIDTH, colour),
            Stroke::Dashed => self.dashed(points, WIDTH, colour),
        }
    }

    /// A filled rectangle between two corners.
    pub fn rectangle(&self, from: (i32, i32), to: (i32, i32), colour: RGBColor) -> Drawn<B> {
        self.area.draw(&Rectangle::new([self.point(from), self.point(to)], colour.filled()))
    }

    /// A point of a curve.
    pub fn mark(&self, mark: Mark, at: (i32, i32), radius: i32, colour: RGBColor) -> Drawn<B> {
        let (x, y) = self.point(at);
        let r = radius * self.scale;
        let corners = match mark {
            Mark::Disc => return self.area.draw(&Circle::new((x, y), r, colour.filled())),
            Mark::Triangle => vec![(x - r, y + r), (x + r, y + r), (x, y - r)],
            Mark::Square => vec![(x - r, y - r), (x + r, y - r), (x + r, y + r), (x - r, y + r)],
            Mark::Diamond => vec![(x, y - r), (x + r, y), (x, y + r), (x - r, y)],
        };
        self.area.draw(&Polygon::new(corners, colour.filled()))
    }

    const fn point(&self, (x, y): (i32, i32)) -> (i32, i32) {
        (x * self.scale, y * self.scale)
    }

    fn stroke(&self, width: u32, colour: RGBColor) -> ShapeStyle {
        colour.stroke_width(width * self.scale as u32)
    }

    fn style(&self, face: Face) -> TextStyle<'static> {
        let size = face.size() * self.scale as u32;
        TextStyle::from((FAMILY, size, face.style()))
    }
}
