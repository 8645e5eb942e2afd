//! The parts put together as [`super`] says, around a simulated guest that sweeps over a working
//! set and a path of 100 MB/s. The destination's copy is compared page by page.

use std::time::Duration;

use migpipe_units::{Bytes, BytesPerSec, Pages, RegionId};
use page_bitmap::PageBitmap;

use super::*;

const REGION: RegionId = RegionId(0);
const GUEST: u64 = 100_000;
const RATE: BytesPerSec = BytesPerSec(100_000_000);

struct Guest {
    /// How often each page was written to.
    versions: Vec<u32>,
    hot: u64,
    /// Pages written to per second when nobody throttles.
    speed: u64,
    cursor: u64,
}

impl Guest {
    fn run(&mut self, time: Duration, throttle: u8, dirty: &PageBitmap) {
        let speed = self.speed as f64 * f64::from(100 - throttle) / 100.0;
        for _ in 0..(speed * time.as_secs_f64()) as u64 {
            self.versions[self.cursor as usize] += 1;
            dirty.insert(self.cursor, Pages(1));
            self.cursor = (self.cursor + 1) % self.hot;
        }
    }
}

struct Migrated {
    end: Next,
    time: Duration,
    rounds: u32,
    sent: Pages,
    throttle: u8,
    blackout: Pages,
}

/// Migrates a guest to its end and checks that no page was lost.
fn migrate(hot: u64, speed: u64, limits: Limits, mut wws: Wws) -> Migrated {
    let mut guest = Guest { versions: vec![1; GUEST as usize], hot, speed, cursor: 0 };
    let mut copy = vec![0; GUEST as usize];
    let mut sent = SentHistogram::new([Pages(GUEST)]);
    let mut policy = Policy::new(limits);
    let path = Path { rate: RATE, overhead: Duration::from_millis(10), ..Path::default() };
    let mut send = |pages: &PageBitmap, versions: &[u32]| -> (Bytes, Duration) {
        let bytes = pages.count().bytes();
        for run in pages.take_runs(Pages(256)) {
            let run_of_pages = run.first as usize..(run.first + run.count.0) as usize;
            copy[run_of_pages.clone()].copy_from_slice(&versions[run_of_pages]);
            sent.record(run);
        }
        (bytes, RATE.time_for(bytes))
    };

    let todo = [PageBitmap::new(REGION, Pages(GUEST))];
    todo[0].insert(0, Pages(GUEST));
    let mut total = Pages(0);
    let mut time = Duration::ZERO;
    let mut number = 0;
    let end = loop {
        let stats_sent = todo[0].count();
        let (bytes, duration) = send(&todo[0], &guest.versions);
        total += stats_sent;
        time += duration;
        guest.run(duration, policy.throttle(), &todo[0]);
        let plan = wws.plan(&todo, policy.deferrable(&path));
        let stats = RoundStats {
            number,
            sent: stats_sent,
            bytes,
            deferred: plan.were_waiting,
            dirtied: plan.became_dirty,
            duration,
            ..RoundStats::default()
        };
        number += 1;
        match policy.decide(&stats, &path) {
            Next::Round | Next::Throttle { .. } => {}
            end => break end,
        }
    };
    wws.release(&todo);
    let blackout = todo[0].count();
    let (_, last) = send(&todo[0], &guest.versions);
    assert!(copy == guest.versions, "a page was lost");
    assert_eq!(sent.times().into_iter().sum::<Pages>(), Pages(GUEST));
    time += last + path.overhead;
    Migrated { end, time, rounds: number, sent: total, throttle: policy.throttle(), blackout }
}

#[test]
fn a_guest_faster_than_the_path_is_throttled_until_the_promise_is_kept() {
    let run = migrate(20_000, 30_000, Limits::default(), Wws::new([Pages(GUEST)]));
    assert!(matches!(run.end, Next::StopAndCopy(Rule::FitsDowntime { .. })), "{:?}", run.end);
    assert!((20..99).contains(&run.throttle), "{}", run.throttle);
    assert!(run.rounds < 30, "{}", run.rounds);
    let downtime = RATE.time_for(run.blackout.bytes()) + Duration::from_millis(10);
    assert!(downtime <= Duration::from_millis(100), "{downtime:?}");
}

#[test]
fn a_small_working_set_is_left_for_the_blackout_and_keeps_the_promise() {
    let limits = Limits { min_pages: Pages(50), ..Limits::default() };
    let run = migrate(1_000, 1_000_000, limits, Wws::new([Pages(GUEST)]));
    assert!(matches!(run.end, Next::StopAndCopy(_)), "{:?}", run.end);
    assert_eq!((run.rounds, run.sent), (1, Pages(GUEST)));
    assert_eq!((run.throttle, run.blackout), (0, Pages(1_000)));
}

#[test]
fn pages_that_wait_are_not_sent_again_and_again() {
    let limits =
        Limits { on_stall: OnStall::Abort, max_rounds: 12, stall_rounds: 100, ..Limits::default() };
    let patient = migrate(6_000, 1_000_000, limits, Wws::new([Pages(GUEST)]));
    let eager = migrate(6_000, 1_000_000, limits, Wws::off());
    assert_eq!(patient.rounds, 12, "6,000 pages do not fit 100 ms");
    assert_eq!(eager.sent, Pages(GUEST + 11 * 6_000));
    // From the third round on, half of the 2,197 pages that fit 90 ms wait.
    assert_eq!(patient.sent, Pages(GUEST + 6_000 + 10 * (6_000 - 1_098)));
    assert!(matches!(patient.end, Next::GiveUp { .. }));
}

/// Watches a guest as one is watched before it is sent, and says what would come of sending it.
fn foretell(hot: u64, speed: u64, limits: Limits) -> Forecast {
    let mut guest = Guest { versions: vec![1; GUEST as usize], hot, speed, cursor: 0 };
    let region = || PageBitmap::new(REGION, Pages(GUEST));
    let (sum, mut meter, mut before) = (region(), DirtyingMeter::default(), Duration::ZERO);
    let mut last = region();
    for time in HARVESTS {
        let piece = region();
        guest.run(time - before, 0, &piece);
        sum.merge(piece.words());
        let again = piece.words().zip(last.words()).map(|(a, b)| (a & b).count_ones()).sum::<u32>();
        meter.note(time, piece.count(), Pages(again.into()), sum.count());
        last = piece;
        before = time;
    }
    let overhead = Duration::from_millis(10);
    Outlook {
        limits,
        defers: true,
        first: Pages(GUEST),
        dirtying: &meter.curve(Pages(GUEST)),
        path: Path { rate: RATE, overhead, ..Path::default() },
        blackout_rate: RATE,
        round_trip: Duration::ZERO,
    }
    .forecast()
}

#[test]
fn what_is_foretold_comes_true() {
    let stop = Limits { on_stall: OnStall::Stop, ..Limits::default() };
    let abort = Limits { on_stall: OnStall::Abort, ..Limits::default() };
    let close = |found: f64, real: f64, what: &str| {
        assert!((found - real).abs() <= 0.1 * real, "{what}: {found} was foretold, {real} came");
    };
    for (hot, speed, limits) in [
        // Next to nothing; one round.
        (100, 50, Limits::default()),
        // A hot set that fits the downtime, and one that does not but is written slowly.
        (1_000, 1_000_000, Limits::default()),
        (50_000, 5_000, Limits::default()),
        // Rounds that become shorter geometrically.
        (90_000, 10_000, Limits::default()),
        (90_000, 20_000, Limits::default()),
        // No headway: throttled, stopped, given up.
        (20_000, 30_000, Limits::default()),
        (20_000, 30_000, stop),
        (20_000, 30_000, abort),
        (60_000, 100_000, stop),
    ] {
        let what = format!("{hot} pages, {speed} a second, {}", limits.on_stall);
        let real = migrate(hot, speed, limits, Wws::new([Pages(GUEST)]));
        let found = foretell(hot, speed, limits);
        assert_eq!(
            std::mem::discriminant(&found.end),
            std::mem::discriminant(&real.end),
            "{what}: {found:?}, {:?}",
            real.end
        );
        if let Next::StopAndCopy(_) = real.end {
            close(found.duration.as_secs_f64(), real.time.as_secs_f64(), &what);
            let sent = (real.sent + real.blackout).bytes().0 as f64;
            close(found.bytes.0 as f64, sent, &what);
            let downtime = RATE.time_for(real.blackout.bytes()) + Duration::from_millis(10);
            let off = found.downtime.abs_diff(downtime);
            assert!(off < Duration::from_millis(30).max(downtime / 5), "{what}: {off:?} off");
        }
    }
}
