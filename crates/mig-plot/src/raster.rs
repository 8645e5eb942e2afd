//! A figure as pixels.

use plotters::drawing::IntoDrawingArea;
use plotters_bitmap::BitMapBackend;

use crate::sheet::{Drawn, Medium, Sheet};
use crate::{HEIGHT, PlotError, WIDTH};

/// The library draws no soft edges on slanted lines and puts letters on whole pixels. So it draws so
/// many times larger, and the mean of the pixels is taken.
const OVERSAMPLING: u32 = 3;

/// The share is that of this crate's font.
const PIXELS: Medium = Medium { scale: OVERSAMPLING, text_below: 0.19 };

/// Red, green, blue.
const CHANNELS: usize = 3;

/// What `draw` draws, as a PNG file.
pub fn png<F>(draw: F) -> Result<Vec<u8>, PlotError>
where
    F: for<'a> FnOnce(&Sheet<BitMapBackend<'a>>) -> Drawn<BitMapBackend<'a>>,
{
    let size = (WIDTH * OVERSAMPLING, HEIGHT * OVERSAMPLING);
    let mut large = vec![0; size.0 as usize * size.1 as usize * CHANNELS];
    let area = BitMapBackend::with_buffer(&mut large, size).into_drawing_area();
    let sheet = Sheet::new(area, PIXELS)?;
    draw(&sheet).map_err(PlotError::draw)?;
    drop(sheet);

    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, WIDTH, HEIGHT);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_compression(png::Compression::High);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&mean(&large))?;
    writer.finish()?;
    Ok(file)
}

/// The mean of each square of pixels.
fn mean(large: &[u8]) -> Vec<u8> {
    let factor = OVERSAMPLING as usize;
    let row = WIDTH as usize * factor * CHANNELS;
    let mut small = Vec::with_capacity(large.len() / factor / factor);
    for rows in large.chunks_exact(row * factor) {
        for x in 0..WIDTH as usize {
            for channel in 0..CHANNELS {
                let at = |dx, dy| rows[dy * row + (x * factor + dx) * CHANNELS + channel];
                let square = (0..factor).flat_map(|dy| (0..factor).map(move |dx| (dx, dy)));
                let sum: usize = square.map(|(dx, dy)| usize::from(at(dx, dy))).sum();
                small.push((sum / (factor * factor)) as u8);
            }
        }
    }
    small
}
