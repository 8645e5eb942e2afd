//! The built-in guest on this host's KVM.
#![allow(clippy::print_stdout, reason = "what a test says is for whoever runs it")]

mod common;

use std::time::{Duration, Instant};

use common::{Guest, HANG_TIMEOUT, has_kvm};
use vm_machine::MachineEvent;

#[test]
fn the_built_in_guest_becomes_ready_and_ticks_on_one_and_two_vcpus() {
    if !has_kvm("the_built_in_guest_becomes_ready_and_ticks_on_one_and_two_vcpus") {
        return;
    }
    for cpus in [1, 2] {
        let dir = tempfile::tempdir().unwrap();
        let spec = "builtin:dirty,pages=512,rate=20000,fill-mb=16,tick-ms=20";
        let mut guest = Guest::boot(dir.path(), spec, "64M", cpus);
        assert!(!guest.machine.is_running());
        guest.machine.resume().unwrap();
        guest.wait_until_ready();
        assert_eq!(guest.ready("pages"), 512);
        assert_eq!(guest.ready("fill-pages"), 4096);
        guest.wait_for_ticks(20);
        let last = guest.last_tick();
        assert!(last.writes > 1000, "{last:?}");
        assert!(last.checked > 0, "{last:?}");
    }
}

#[test]
fn the_rate_is_kept_and_all_filled_memory_is_walked() {
    if !has_kvm("the_rate_is_kept_and_all_filled_memory_is_walked") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let spec = "builtin:dirty,pages=100,rate=5000,fill=pattern,fill-mb=8";
    let mut guest = Guest::boot(dir.path(), spec, "64M", 1);
    guest.machine.resume().unwrap();
    guest.wait_for("complete walk", |guest| {
        guest.ticks().last().is_some_and(|tick| tick.walks >= 1)
    });
    let last = guest.last_tick();
    let expected = last.number * 500;
    // Never above; below only where the host gave the guest no time.
    assert!(last.writes <= expected + 500, "{last:?}");
    assert!(last.writes >= expected / 4, "{last:?}");
    assert!(last.checked >= 2048, "{last:?}");
}

#[test]
fn a_guest_that_switches_off_is_told_of_and_does_not_run_again() {
    if !has_kvm("a_guest_that_switches_off_is_told_of_and_does_not_run_again") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let spec = "builtin:dirty,pages=8,fill-mb=1,tick-ms=5,run-ticks=3";
    let mut guest = Guest::boot(dir.path(), spec, "16M", 2);
    let events = guest.machine.events();
    guest.machine.resume().unwrap();
    let event = events.recv_timeout(HANG_TIMEOUT).unwrap();
    assert_eq!(event, MachineEvent::PowerOff);
    guest.wait_for("done line", |guest| {
        guest.lines().last().is_some_and(|line| line.starts_with("done ticks 3 "))
    });
    assert_eq!(guest.machine.events().try_recv(), Ok(MachineEvent::PowerOff));
    assert!(guest.machine.pause().is_ok());
    assert!(!guest.machine.is_running());
    let refused = guest.machine.resume().unwrap_err().to_string();
    assert!(refused.contains("switched itself off"), "{refused}");
    assert!(guest.machine.save().is_err());
}

#[test]
fn a_guest_of_6_gib_uses_the_memory_above_the_hole() {
    if !has_kvm("a_guest_of_6_gib_uses_the_memory_above_the_hole") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let spec = "builtin:dirty,pages=256,rate=max,fill-mb=4";
    let mut guest = Guest::boot(dir.path(), spec, "6G", 1);
    assert_eq!(guest.machine.memory_fds().len(), 2);
    guest.machine.resume().unwrap();
    guest.wait_until_ready();
    assert!(guest.ready("hot-gfn") >= 0x10_0000);
    guest.wait_for_ticks(3);
    assert!(guest.last_tick().writes > 256);
}

#[test]
fn a_guest_is_paused_and_resumed_200_times_and_loses_nothing() {
    if !has_kvm("a_guest_is_paused_and_resumed_200_times_and_loses_nothing") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let spec = "builtin:dirty,pages=1024,rate=max,fill-mb=4,tick-ms=10";
    let mut guest = Guest::boot(dir.path(), spec, "64M", 2);
    guest.machine.resume().unwrap();
    guest.wait_until_ready();
    let mut slowest = Duration::ZERO;
    let mut last_pause = None;
    for round in 0..200 {
        let begin = Instant::now();
        let stopped = guest.machine.pause().unwrap();
        slowest = slowest.max(begin.elapsed());
        assert!(!guest.machine.is_running());
        assert_eq!(guest.machine.pause().unwrap(), stopped, "a second pause does nothing");
        assert!(last_pause.is_none_or(|last| stopped > last), "round {round}");
        last_pause = Some(stopped);
        if round % 50 == 0 {
            let before = guest.text();
            std::thread::sleep(Duration::from_millis(50));
            assert_eq!(guest.text(), before, "a paused guest prints nothing");
        }
        guest.machine.resume().unwrap();
        guest.machine.resume().unwrap();
        let end = Instant::now() + HANG_TIMEOUT;
        let first = loop {
            if let Some(first) = guest.machine.first_instruction_after() {
                break first;
            }
            assert!(Instant::now() < end, "no vCPU runs");
            std::hint::spin_loop();
        };
        assert!(first >= guest.machine.resumed_at().unwrap());
    }
    println!("slowest pause {slowest:?}");
    guest.wait_for_ticks(5);
    let ticks = guest.ticks();
    assert!(ticks.windows(2).all(|pair| pair[1].writes >= pair[0].writes));
}

#[test]
fn a_pause_is_seen_from_inside() {
    if !has_kvm("a_pause_is_seen_from_inside") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let spec = "builtin:dirty,pages=16,rate=100,fill-mb=1,tick-ms=20";
    let mut guest = Guest::boot(dir.path(), spec, "16M", 1);
    guest.machine.resume().unwrap();
    guest.wait_until_ready();
    guest.wait_for_ticks(2);
    let begun = Instant::now();
    guest.machine.pause().unwrap();
    let paused = Instant::now();
    std::thread::sleep(Duration::from_millis(700));
    let pause = paused.elapsed();
    guest.machine.resume().unwrap();
    guest.wait_for_ticks(2);
    let longest = Duration::from_micros(guest.last_tick().max_gap_us);
    // The guest's clock is not the host's: a hundredth of it.
    assert!(longest > pause * 99 / 100, "a gap of {longest:?} in a pause of {pause:?}");
    assert!(longest < begun.elapsed(), "a gap of {longest:?} in {:?}", begun.elapsed());
}

#[test]
fn a_throttled_guest_writes_less_and_then_as_much_as_before() {
    if !has_kvm("a_throttled_guest_writes_less_and_then_as_much_as_before") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let spec = "builtin:dirty,pages=1024,rate=max,fill-mb=1,tick-ms=10";
    let mut guest = Guest::boot(dir.path(), spec, "32M", 1);
    guest.machine.resume().unwrap();
    guest.wait_until_ready();
    guest.wait_for_ticks(2);
    // Whatever else the host does meanwhile slows both kinds of turn alike.
    let (mut full, mut throttled) = (Speed::default(), Speed::default());
    for _ in 0..8 {
        full.add(&guest);
        guest.machine.throttle(99);
        throttled.add(&guest);
        guest.machine.throttle(0);
    }
    let (full, throttled) = (full.per_second(), throttled.per_second());
    println!("{full:.0} and, throttled, {throttled:.0} pages per second");
    // On an idle host it is some hundredth; on a busy one `full` is not full.
    assert!(throttled < full * 0.5, "{throttled} of {full}");
}

#[derive(Default)]
struct Speed {
    writes: u64,
    time: Duration,
}

impl Speed {
    /// Watches the guest for a turn.
    fn add(&mut self, guest: &Guest) {
        // What was printed before the turn tells of the time before it.
        guest.wait_for_ticks(1);
        let (before, begin) = (guest.last_tick().writes, Instant::now());
        std::thread::sleep(Duration::from_millis(120));
        guest.wait_for_ticks(1);
        self.writes += guest.last_tick().writes - before;
        self.time += begin.elapsed();
    }

    fn per_second(&self) -> f64 {
        self.writes as f64 / self.time.as_secs_f64()
    }
}
