//! Lines of text.

use core::fmt;

/// The longest line; what does not fit is cut off.
const MAX: usize = 320;

/// One line under construction, so that it leaves in a single string instruction and no other
/// output gets between.
pub struct Line {
    text: [u8; MAX],
    len: usize,
}

impl Line {
    pub const fn new() -> Self {
        Self { text: [0; MAX], len: 0 }
    }

    /// The line with its end.
    pub fn finish(&mut self) -> &[u8] {
        self.text[self.len] = b'\n';
        &self.text[..=self.len]
    }
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for &byte in text.as_bytes() {
            if self.len < MAX - 1 {
                self.text[self.len] = byte;
                self.len += 1;
            }
        }
        Ok(())
    }
}
