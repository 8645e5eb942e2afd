//! What vCPU 0 prints.

use core::fmt::{Arguments, Write};
use core::sync::atomic::Ordering;

use crate::console::Line;
use crate::memory::Layout;
use crate::options::Options;
use crate::ports;
use crate::shared::{Fault, SHARED};
use crate::time::Clock;

/// Prints one line.
pub fn line(text: Arguments<'_>) {
    let mut line = Line::new();
    // A line that is too long is cut off; there is no other failure.
    let _ = line.write_fmt(text);
    ports::print(line.finish());
}

/// The first line: memory is filled.
pub fn ready(layout: &Layout, options: &Options) {
    line(format_args!(
        "ready pages {} fill-pages {} cpus {} hot-gfn {:#x} fill-gfn {:#x}",
        layout.hot_pages,
        layout.fill_pages,
        options.cpus,
        layout.hot.start() >> 12,
        layout.fill.start() >> 12,
    ));
}

/// The last line before the guest stops for ever.
pub fn fault(fault: &Fault) {
    line(format_args!(
        "ERROR page {:#x}: expected {:#018x} found {:#018x} ({} {}, word {})",
        fault.gfn, fault.expected, fault.found, fault.what, fault.index, fault.word
    ));
}

/// Prints an empty line at a steady pace, which whoever watches the console can take the time of.
/// A single byte by way of the UART, so that it costs the same under every hypervisor.
pub struct Beat {
    interval: u64,
    next: u64,
}

impl Beat {
    /// Nothing if none is asked for.
    pub fn new(clock: Clock, options: &Options, now: u64) -> Option<Self> {
        let interval = clock.cycles(options.beat_us);
        (interval > 0).then_some(Self { interval, next: now })
    }

    /// Prints the one that is due, if it is, and returns when the next is.
    pub fn poll(&mut self, now: u64) -> u64 {
        // A clock that went backwards starts anew.
        if now >= self.next || self.next > now + self.interval {
            ports::beat();
            self.next = now + self.interval;
        }
        self.next
    }
}

/// Prints a line at a steady pace.
pub struct Ticker {
    clock: Clock,
    interval: u64,
    next: u64,
    count: u64,
    last: u64,
    longest: u64,
    cpus: usize,
}

impl Ticker {
    pub fn new(clock: Clock, options: &Options, now: u64) -> Self {
        let interval = clock.cycles(options.tick_ms * 1000);
        Self {
            clock,
            interval,
            next: now + interval,
            count: 0,
            last: options.run_ticks,
            longest: 0,
            cpus: options.cpus as usize,
        }
    }

    /// When the next tick is due.
    pub const fn next(&self) -> u64 {
        self.next
    }

    /// Prints the tick that is due, and switches the machine off after the last.
    pub fn tick(&mut self, now: u64) {
        self.count += 1;
        // Ticks that a pause swallowed are not made up for. A clock that went backwards starts anew.
        self.next += self.interval;
        if self.next <= now || self.next > now + 2 * self.interval {
            self.next = now + self.interval;
        }
        let (mut writes, mut checked, mut walks, mut gap) = (0, 0, u64::MAX, 0);
        for counters in &SHARED.counters[..self.cpus] {
            writes += counters.writes.load(Ordering::Relaxed);
            checked += counters.checked.load(Ordering::Relaxed);
            walks = walks.min(counters.walks.load(Ordering::Relaxed));
            gap = gap.max(counters.gap.swap(0, Ordering::Relaxed));
        }
        self.longest = self.longest.max(gap);
        let (count, gap, longest) =
            (self.count, self.clock.micros(gap), self.clock.micros(self.longest));
        line(format_args!(
            "tick {count} cpu 0 writes {writes} checked {checked} walks {walks} gap-us {gap} max-gap-us {longest}"
        ));
        if self.count == self.last {
            line(format_args!(
                "done ticks {count} writes {writes} checked {checked} walks {walks} max-gap-us {longest}"
            ));
            ports::power_off();
        }
    }
}
