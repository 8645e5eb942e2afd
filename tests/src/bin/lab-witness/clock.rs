//! The clocks of the machine that this runs on, looked at from each of its processors.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

/// Between two looks: short against any blackout, long against what a look costs.
const LOOK: Duration = Duration::from_millis(20);

/// CLOCK_MONOTONIC in nanoseconds.
pub fn monotonic_ns() -> u64 {
    nanoseconds(ClockId::CLOCK_MONOTONIC)
}

/// CLOCK_REALTIME in nanoseconds since 1970.
pub fn realtime_ns() -> u64 {
    nanoseconds(ClockId::CLOCK_REALTIME)
}

fn nanoseconds(clock: ClockId) -> u64 {
    let now = clock_gettime(clock).expect("every Linux has this clock");
    u64::try_from(Duration::from(now).as_nanos()).expect("a clock of this century")
}

/// What all processors have seen together.
#[derive(Default)]
struct Seen {
    latest_ns: AtomicU64,
    gap_ns: AtomicU64,
    back_ns: AtomicU64,
}

impl Seen {
    fn look(&self) {
        // In this order: whatever is the latest was read before this reading began.
        let latest = self.latest_ns.load(Ordering::SeqCst);
        let now = monotonic_ns();
        self.latest_ns.fetch_max(now, Ordering::SeqCst);
        match now.checked_sub(latest) {
            Some(gap) => self.gap_ns.fetch_max(gap, Ordering::SeqCst),
            None => self.back_ns.fetch_max(latest - now, Ordering::SeqCst),
        };
    }
}

/// Prints a line each time `every` has gone by: its number, both clocks, and the longest time
/// since the last line in which no processor saw the clock. Ends when a clock goes back.
pub fn watch(every: Duration) -> Result<(), String> {
    let seen = Arc::new(Seen::default());
    seen.latest_ns.store(monotonic_ns(), Ordering::SeqCst);
    let processors = std::thread::available_parallelism().map_err(|error| error.to_string())?;
    for processor in 0..processors.get() {
        let seen = Arc::clone(&seen);
        pinned(processor, move || {
            loop {
                seen.look();
                std::thread::sleep(LOOK);
            }
        })
        .map_err(|error| format!("cannot watch processor {processor}: {error}"))?;
    }
    for number in 0_u64.. {
        std::thread::sleep(every);
        let back = seen.back_ns.load(Ordering::SeqCst);
        if back > 0 {
            return Err(format!("CLOCK_MONOTONIC went back by {back} ns"));
        }
        let gap = seen.gap_ns.swap(0, Ordering::SeqCst);
        let (monotonic, real) = (monotonic_ns(), realtime_ns());
        println!("clock {number} monotonic {monotonic} real {real} gap {gap} end");
    }
    Ok(())
}

/// Runs `work` on one processor for ever.
fn pinned(processor: usize, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let mut only = CpuSet::new();
    only.set(processor)?;
    std::thread::Builder::new().spawn(move || {
        sched_setaffinity(Pid::from_raw(0), &only).expect("a processor that is there");
        work();
    })?;
    Ok(())
}
