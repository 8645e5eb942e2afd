//! The live line of progress on a terminal.

use std::io;

use mig_engine::report::{Phase, Progress};

/// How wide a terminal is that does not say so.
const WIDTH: usize = 80;

/// What to draw, or nothing yet. While the channel is being set up a tunnel may ask its questions on
/// the terminal, and may have asked one before it is known that it wants to.
pub fn line(progress: &Progress) -> Option<String> {
    let width = terminal_size::terminal_size_of(io::stderr())
        .map_or(WIDTH, |(width, _)| usize::from(width.0))
        .max(1);
    // The last column stays free: a terminal may go to the next line with the character in it.
    (progress.phase != Phase::Connect).then(|| progress.line_within(width - 1))
}
