//! The live line of progress on a terminal.

use std::io::{self, IsTerminal};

use crate::output;

/// How wide a terminal is that does not say so.
const WIDTH: usize = 80;

/// One line of a terminal that is drawn again and again, and gone when this is dropped. Whoever reads
/// it holds nothing up.
#[derive(Debug)]
pub struct LiveLine {
    wanted: bool,
    shown: bool,
}

impl LiveLine {
    /// A line on stderr if that is a terminal and the line is `wanted`.
    pub fn new(wanted: bool) -> Self {
        Self { wanted: wanted && io::stderr().is_terminal(), shown: false }
    }

    /// Draws what `line` says in at most so many columns.
    pub fn show(&mut self, line: impl FnOnce(usize) -> String) {
        if self.wanted
            && let Some(stderr) = output::stderr()
        {
            stderr.show(format!("\r\x1b[K{}", line(columns())).as_bytes());
            self.shown = true;
        }
    }
}

impl Drop for LiveLine {
    fn drop(&mut self) {
        if self.shown
            && let Some(stderr) = output::stderr()
        {
            stderr.replace(b"\r\x1b[K");
        }
    }
}

/// The last column stays free: a terminal may go to the next line with the character in it.
fn columns() -> usize {
    let width = terminal_size::terminal_size_of(io::stderr());
    width.map_or(WIDTH, |(width, _)| usize::from(width.0)).max(1) - 1
}
