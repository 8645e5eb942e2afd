//! The hot pages: each is stamped with its index and a generation at every visit, and every visit
//! checks the stamp of the one before. The expected generation is in a table of its own, so that
//! a page that stayed behind in an older state is seen.

use crate::fill::{Content, WORDS};
use crate::memory::{Area, PAGE};
use crate::shared::{Fault, SHARED};

/// The words that hold the stamp: the first two and the last, so that a page that is half old
/// and half new is seen too.
const INDEX: u64 = 0;
const GENERATION: u64 = 1;
const TAIL: u64 = WORDS - 1;

/// One vCPU's part of the hot pages.
pub struct Hot {
    area: Area,
    generations: *mut u64,
    content: Content,
    first: u64,
    end: u64,
    at: u64,
    pub writes: u64,
}

impl Hot {
    /// Pages `first` to `end` (exclusive) of `area`; `generations` has one word for each page of
    /// the whole area.
    pub const fn new(
        area: Area,
        generations: *mut u64,
        content: Content,
        first: u64,
        end: u64,
    ) -> Self {
        Self { area, generations, content, first, end, at: first, writes: 0 }
    }

    pub const fn pages(&self) -> u64 {
        self.end - self.first
    }

    /// Gives every page its content and its first stamp.
    pub fn fill(&self) {
        for page in self.first..self.end {
            for word in GENERATION + 1..TAIL {
                self.write(page, word, self.content.word(page * WORDS + word));
            }
            self.stamp(page, 0);
        }
    }

    /// Checks and stamps the next page.
    pub fn visit(&mut self) {
        let page = self.at;
        // SAFETY: the table has a word for every page; this vCPU alone uses that of `page`.
        let generation = unsafe { self.generations.add(page as usize).read_volatile() };
        let inner = GENERATION + 1 + generation % (TAIL - GENERATION - 1);
        let sound = self.check(page, INDEX, page)
            && self.check(page, GENERATION, generation)
            && self.check(page, TAIL, page ^ generation)
            && self.check(page, inner, self.content.word(page * WORDS + inner));
        if !sound {
            return;
        }
        self.stamp(page, generation + 1);
        self.writes += 1;
        self.at += 1;
        if self.at == self.end {
            self.at = self.first;
        }
    }

    fn stamp(&self, page: u64, generation: u64) {
        self.write(page, INDEX, page);
        self.write(page, GENERATION, generation);
        self.write(page, TAIL, page ^ generation);
        // SAFETY: as in `visit`.
        unsafe {
            self.generations.add(page as usize).write_volatile(generation);
        }
    }

    fn write(&self, page: u64, word: u64, value: u64) {
        // SAFETY: `page` is a page of the area, which this vCPU alone writes.
        unsafe {
            self.area.page(page).add(word as usize).write_volatile(value);
        }
    }

    fn check(&self, page: u64, word: u64, expected: u64) -> bool {
        let words = self.area.page(page);
        // SAFETY: `page` is a page of the area.
        let found = unsafe { words.add(word as usize).read_volatile() };
        if found != expected {
            SHARED.fail(Fault {
                gfn: words as u64 / PAGE,
                word,
                expected,
                found,
                what: "hot page",
                index: page,
            });
        }
        found == expected
    }
}
