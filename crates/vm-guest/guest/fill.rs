//! Memory whose content can be recomputed from its position: filled once, walked for ever.

use crate::memory::{Area, PAGE};
use crate::options::{Fill, Options};
use crate::shared::{Fault, SHARED};

/// The word at position `index`.
#[derive(Clone, Copy)]
pub struct Content {
    kind: Fill,
    seed: u64,
}

impl Content {
    pub const fn new(options: &Options) -> Self {
        Self { kind: options.fill, seed: options.seed }
    }

    /// splitmix64 of the position for random content, so that any part can be checked alone.
    #[inline(always)]
    pub const fn word(self, index: u64) -> u64 {
        match self.kind {
            Fill::Zero => 0,
            Fill::Pattern => 0x6d69_6770_6970_6531 ^ self.seed,
            Fill::Random => mix(self.seed.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15))),
        }
    }
}

const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Words per page.
pub const WORDS: u64 = PAGE / 8;

/// One vCPU's part of the filled pages, with the place that its walk has reached.
pub struct Walk {
    area: Area,
    content: Content,
    first: u64,
    end: u64,
    at: u64,
    pub checked: u64,
    pub walks: u64,
}

impl Walk {
    /// The walk over pages `first` to `end` (exclusive) of `area`.
    pub const fn new(area: Area, content: Content, first: u64, end: u64) -> Self {
        Self { area, content, first, end, at: first, checked: 0, walks: 0 }
    }

    pub const fn pages(&self) -> u64 {
        self.end - self.first
    }

    /// Writes every page.
    pub fn fill(&self) {
        for page in self.first..self.end {
            let words = self.area.page(page);
            for word in 0..WORDS {
                // SAFETY: `page` is a page of the area, which this vCPU alone writes.
                unsafe { words.add(word as usize).write(self.content.word(page * WORDS + word)) };
            }
        }
    }

    /// Checks up to `count` pages, going on where the last call ended.
    pub fn check(&mut self, count: u64) {
        if self.first == self.end {
            return;
        }
        for _ in 0..count {
            self.check_page(self.at);
            self.checked += 1;
            self.at += 1;
            if self.at == self.end {
                self.at = self.first;
                self.walks += 1;
            }
        }
    }

    fn check_page(&self, page: u64) {
        let words = self.area.page(page);
        let mut wrong = 0;
        for word in 0..WORDS {
            // SAFETY: `page` is a page of the area. Volatile: what is there is the question, not
            // what was written.
            let found = unsafe { words.add(word as usize).read_volatile() };
            wrong |= found ^ self.content.word(page * WORDS + word);
        }
        if wrong == 0 {
            return;
        }
        for word in 0..WORDS {
            // SAFETY: as above.
            let found = unsafe { words.add(word as usize).read_volatile() };
            let expected = self.content.word(page * WORDS + word);
            if found != expected {
                SHARED.fail(Fault {
                    gfn: words as u64 / PAGE,
                    word,
                    expected,
                    found,
                    what: "filled page",
                    index: page,
                });
                return;
            }
        }
    }
}
