//! Memory that is made to exist ahead of the stream, by another thread: the kernel clears a page
//! before its first use, which takes longer than to fill it.
//!
//! The stream says beforehand which pages its source has (its extents), and not which of them are
//! zeros: those are never written here, and to make them exist would cost the host what the guest does
//! not use. So the thread goes no further ahead than a window, which doubles with each run of pages
//! that come as they are and halves with each that comes as a pattern.

use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use migpipe_units::{PageRange, Pages};
use vm_mapping::Populator;

/// How much is made to exist at a time: small enough to stop soon after the stream does.
const STEP: Pages = Pages(2048);

/// The window at the beginning, the least and the most of it (pages): 8 MiB, nothing, 1 GiB.
const FIRST_WINDOW: u64 = 2048;
const LEAST_WINDOW: u64 = 512;
const MAX_WINDOW: u64 = 1 << 18;

/// Where the stream is, and how far ahead of it memory may exist.
#[derive(Debug)]
struct Ahead {
    /// The first page behind the last record, by its place in memory.
    position: u64,
    window: u64,
    ended: bool,
}

/// A page by its place among all of them: regions follow each other far apart.
const fn place(range: PageRange, page: u64) -> u64 {
    ((range.region.0 as u64) << 48) + page
}

impl Ahead {
    const fn new() -> Self {
        Self { position: 0, window: FIRST_WINDOW, ended: false }
    }

    /// A run has come.
    fn pass(&mut self, range: PageRange, is_pattern: bool) {
        self.position = place(range, range.first + range.count.0);
        self.window = match is_pattern {
            true if self.window <= LEAST_WINDOW => 0,
            true => self.window / 2,
            false => (self.window * 2).clamp(LEAST_WINDOW, MAX_WINDOW),
        };
    }

    /// Whether to populate a step now, to leave it out, or to wait.
    fn decide(&self, step: PageRange) -> Decision {
        let (first, end) = (place(step, step.first), place(step, step.first + step.count.0));
        match () {
            () if self.ended || end <= self.position => Decision::LeaveOut,
            () if self.window > 0 && first < self.position + self.window => Decision::Populate,
            () => Decision::Wait,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decision {
    Populate,
    LeaveOut,
    Wait,
}

/// What the stream's reader and the thread share.
#[derive(Debug)]
struct Shared {
    ahead: Mutex<Ahead>,
    moved: Condvar,
}

impl Shared {
    fn ahead(&self) -> MutexGuard<'_, Ahead> {
        self.ahead.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until it is known whether `step` is to be populated.
    fn wants(&self, step: PageRange) -> bool {
        let waiting = |ahead: &mut Ahead| ahead.decide(step) == Decision::Wait;
        let ahead = self.moved.wait_while(self.ahead(), waiting);
        ahead.unwrap_or_else(PoisonError::into_inner).decide(step) == Decision::Populate
    }
}

/// The thread, from the side of the stream. It ends with this.
#[derive(Debug)]
pub struct Populate {
    shared: Arc<Shared>,
    extents: Sender<Vec<PageRange>>,
}

impl Populate {
    pub fn start(populator: Populator) -> Self {
        let (extents, receiver) = channel::<Vec<PageRange>>();
        let shared = Arc::new(Shared { ahead: Mutex::new(Ahead::new()), moved: Condvar::new() });
        let this = Arc::clone(&shared);
        thread::spawn(move || {
            let steps = receiver.into_iter().flatten().flat_map(steps);
            steps.filter(|step| this.wants(*step)).for_each(|step| populator.populate(step));
        });
        Self { shared, extents }
    }

    /// These pages exist at the source. What waits in the queue are the extents as they came, which are
    /// bounded: not their pages, which are not.
    pub fn expect(&self, extents: Vec<PageRange>) {
        let _ = self.extents.send(extents);
    }

    /// A run has come, as it is or as a pattern.
    pub fn pass(&self, range: PageRange, is_pattern: bool) {
        self.shared.ahead().pass(range, is_pattern);
        self.shared.moved.notify_all();
    }
}

impl Drop for Populate {
    fn drop(&mut self) {
        self.shared.ahead().ended = true;
        self.shared.moved.notify_all();
    }
}

/// The pages of `range`, so many at a time.
fn steps(range: PageRange) -> impl Iterator<Item = PageRange> {
    let end = range.first + range.count.0;
    (range.first..end).step_by(STEP.0 as usize).map(move |first| {
        let count = Pages(STEP.0.min(end - first));
        PageRange { first, count, ..range }
    })
}

#[cfg(test)]
mod tests {
    use migpipe_units::RegionId;

    use super::*;

    fn run(first: u64, count: u64) -> PageRange {
        PageRange { region: RegionId(0), first, count: Pages(count) }
    }

    #[test]
    fn a_guest_of_zeros_is_hardly_populated_and_one_of_data_is_populated_far_ahead() {
        let populated = |is_pattern: bool| {
            let (mut ahead, mut populated) = (Ahead::new(), 0);
            let mut steps = steps(run(0, 1 << 20)).peekable();
            for first in (0..1 << 20).step_by(256) {
                while let Some(step) = steps.next_if(|step| ahead.decide(*step) != Decision::Wait) {
                    if ahead.decide(step) == Decision::Populate {
                        populated += step.count.0;
                    }
                }
                ahead.pass(run(first, 256), is_pattern);
            }
            (populated, ahead.window)
        };
        assert_eq!(populated(true), (STEP.0, 0));
        let (pages, window) = populated(false);
        assert_eq!(window, MAX_WINDOW);
        assert!(pages >= (1 << 20) - STEP.0, "{pages}");
    }

    #[test]
    fn what_the_stream_has_passed_is_left_out_and_what_is_far_waits() {
        let mut ahead = Ahead::new();
        assert_eq!(ahead.decide(run(0, 2048)), Decision::Populate);
        assert_eq!(ahead.decide(run(FIRST_WINDOW, 2048)), Decision::Wait);
        let other = PageRange { region: RegionId(1), ..run(0, 2048) };
        assert_eq!(ahead.decide(other), Decision::Wait);
        ahead.pass(run(4096, 256), false);
        assert_eq!(ahead.decide(run(0, 2048)), Decision::LeaveOut);
        assert_eq!(ahead.decide(run(4096, 2048)), Decision::Populate);
        ahead.pass(PageRange { region: RegionId(1), ..run(0, 1) }, false);
        assert_eq!(ahead.decide(other), Decision::Populate);
        ahead.ended = true;
        assert_eq!(ahead.decide(other), Decision::LeaveOut);
    }

    #[test]
    fn pages_as_they_are_open_a_window_that_patterns_have_closed() {
        let mut ahead = Ahead::new();
        for _ in 0..20 {
            ahead.pass(run(0, 256), true);
        }
        assert_eq!(ahead.window, 0);
        ahead.pass(run(256, 256), false);
        assert_eq!(ahead.window, LEAST_WINDOW);
    }
}
