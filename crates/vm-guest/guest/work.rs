//! The loop of one vCPU: stamp some hot pages, check some filled ones, sleep if there is time.

use core::sync::atomic::Ordering;

use crate::fill::{Content, Walk};
use crate::hot::Hot;
use crate::memory::Layout;
use crate::options::Options;
use crate::ports;
use crate::report::{self, Beat, Ticker};
use crate::shared::SHARED;
use crate::time::{self, Clock};

/// How many hot pages one step stamps at most, and how many filled pages it checks at most. Small,
/// for the longest gap between two steps is what the guest reports as its pause.
const HOT_STEP: u64 = 32;
const WALK_STEP: u64 = 16;
/// A walk over the filled memory takes this long, in microseconds,
const WALK_MICROS: u64 = 4_000_000;
/// unless that were more than so many pages per second on one vCPU (256 MiB/s).
const WALK_PAGES_PER_SECOND: u64 = 65_536;
/// One sleep is no longer than this; a shorter rest than the second figure is spun away, as
/// a port access may take 30 us.
const LONGEST_SLEEP: u64 = 1000;
const SHORTEST_SLEEP: u64 = 60;
/// A backlog longer than this many microseconds is dropped: pages that were not written during a
/// pause are not made up for.
const LONGEST_BACKLOG: u64 = 20_000;

/// One vCPU's part of everything.
pub struct Share {
    cpu: u32,
    cpus: u32,
    hot: Hot,
    walk: Walk,
}

impl Share {
    pub fn of(cpu: u32, cpus: u32, layout: &Layout, options: &Options) -> Self {
        let part = |pages: u64| {
            let at = |cpu: u32| (pages as u128 * u128::from(cpu) / u128::from(cpus)) as u64;
            (at(cpu), at(cpu + 1))
        };
        let content = Content::new(options);
        let (first, end) = part(layout.hot_pages);
        let table = layout.generations as *mut u64;
        let hot = Hot::new(layout.hot, table, content, first, end);
        let (first, end) = part(layout.fill_pages);
        let walk = Walk::new(layout.fill, content, first, end);
        Self { cpu, cpus, hot, walk }
    }

    /// Writes all of it once.
    pub fn fill(&self) {
        self.hot.fill();
        self.walk.fill();
    }
}

/// Turns time into a number of things that are due.
struct Pace {
    per_second: u64,
    clock: Clock,
    since: u64,
    done: u64,
}

impl Pace {
    const fn new(per_second: u64, clock: Clock, now: u64) -> Self {
        Self { per_second, clock, since: now, done: 0 }
    }

    fn due(&mut self, now: u64) -> u64 {
        let micros = self.clock.micros(now.saturating_sub(self.since));
        let total = (micros as u128 * self.per_second as u128 / 1_000_000) as u64;
        let due = total.saturating_sub(self.done);
        let backlog = (self.per_second * LONGEST_BACKLOG / 1_000_000).max(1);
        if now < self.since || due > backlog {
            self.since = now;
            self.done = 0;
            return due.min(backlog);
        }
        due
    }
}

/// Works for ever, or until something is found wrong.
pub fn run(mut share: Share, options: &Options) -> ! {
    let clock = Clock::new(options.tsc_khz);
    let start = time::now();
    let hot_pages = share.hot.pages();
    let rate = options.rate.map(|all| per_cpu(all, &share));
    let mut hot_pace = Pace::new(rate.unwrap_or(0), clock, start);
    let in_time = share.walk.pages() * 1_000_000 / WALK_MICROS;
    let walk_rate = in_time.clamp(1, WALK_PAGES_PER_SECOND);
    let mut walk_pace = Pace::new(walk_rate, clock, start);
    let mut beat = if share.cpu == 0 { Beat::new(clock, options, start) } else { None };
    let mut ticker = (share.cpu == 0).then(|| Ticker::new(clock, options, start));
    let counters = &SHARED.counters[share.cpu as usize];
    let mut last = time::now();
    let mut slept = 0;
    loop {
        let now = time::now();
        let gap = now.saturating_sub(last).saturating_sub(slept);
        last = now;
        counters.gap.fetch_max(gap, Ordering::Relaxed);

        let mut hot_due = if hot_pages == 0 { 0 } else { HOT_STEP };
        if rate.is_some() {
            hot_due = hot_due.min(hot_pace.due(now));
        }
        for _ in 0..hot_due {
            share.hot.visit();
        }
        hot_pace.done += hot_due;
        let walk_due = walk_pace.due(now).min(WALK_STEP);
        share.walk.check(walk_due);
        walk_pace.done += walk_due;

        counters.writes.store(share.hot.writes, Ordering::Relaxed);
        counters.checked.store(share.walk.checked, Ordering::Relaxed);
        counters.walks.store(share.walk.walks, Ordering::Relaxed);
        if SHARED.failed() {
            stop(share.cpu);
        }
        let mut wake = now + clock.cycles(LONGEST_SLEEP);
        if let Some(beat) = &mut beat {
            wake = wake.min(beat.poll(now));
        }
        if let Some(ticker) = &mut ticker {
            if now >= ticker.next() || ticker.next() - now > clock.cycles(3_600_000_000) {
                ticker.tick(now);
            }
            wake = wake.min(ticker.next());
        }
        let busy = hot_due == HOT_STEP || walk_due == WALK_STEP;
        slept = if busy || options.spin { 0 } else { rest(clock, wake) };
    }
}

fn per_cpu(all: u64, share: &Share) -> u64 {
    let (all, cpu, cpus) = (all as u128, u128::from(share.cpu), u128::from(share.cpus));
    (all * (cpu + 1) / cpus - all * cpu / cpus) as u64
}

/// Sleeps until `wake`, and returns how many cycles of sleep it asked for.
fn rest(clock: Clock, wake: u64) -> u64 {
    let micros = clock.micros(wake.saturating_sub(time::now()));
    let micros = micros.min(LONGEST_SLEEP);
    if micros < SHORTEST_SLEEP {
        core::hint::spin_loop();
        return 0;
    }
    ports::idle(micros as u32);
    clock.cycles(micros)
}

fn stop(cpu: u32) -> ! {
    if cpu == 0 {
        loop {
            if let Some(fault) = SHARED.fault() {
                report::fault(&fault);
                break;
            }
        }
    }
    ports::stop()
}
