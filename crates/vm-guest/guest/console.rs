//! Lines of text.

use core::fmt;

/// The longest line; what does not fit is cut off.
const MAX: usize = 320;

/// One line under construction, so that it leaves at once and no other output gets between. Laid
/// out as vmrun's line port reads it.
#[repr(C)]
pub struct Line {
    len: u32,
    text: [u8; MAX],
}

impl Line {
    pub const fn new() -> Self {
        Self { len: 0, text: [0; MAX] }
    }

    /// Ends the line.
    pub fn finish(&mut self) -> &Self {
        self.text[self.len as usize] = b'\n';
        self.len += 1;
        self
    }

    pub fn text(&self) -> &[u8] {
        &self.text[..self.len as usize]
    }
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for &byte in text.as_bytes() {
            if (self.len as usize) < MAX - 1 {
                self.text[self.len as usize] = byte;
                self.len += 1;
            }
        }
        Ok(())
    }
}
