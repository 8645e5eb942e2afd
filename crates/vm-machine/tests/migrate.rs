//! Moving a guest from one machine to another within this process, and the dirty log.
#![allow(clippy::print_stdout, reason = "what a test says is for whoever runs it")]

mod common;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use common::{Guest, has_kvm};
use migpipe_units::{Bytes, Pages, RegionId};
use page_bitmap::GuestBitmap;
use vm_machine::arch::ClockState;
use vm_machine::{Host, IncomingConfig, Machine, MachineError};
use vm_state::{MachineDescription, Section, Snapshot};

/// Pages that the guest writes beside its hot ones: image, stacks, counters, tables.
const OWN_PAGES: usize = 24;

fn bitmap_of(machine: &Machine) -> GuestBitmap {
    GuestBitmap::new(machine.describe().region_pages())
}

/// Takes the pages out, as a sender does.
fn take_pages(bitmap: &GuestBitmap) -> BTreeSet<u64> {
    bitmap[0].take_runs(Pages(1)).map(|run| run.first).collect()
}

fn move_guest(cpus: u32, spec: &str, mem: &str) {
    let dir = tempfile::tempdir().unwrap();
    let mut source = Guest::boot(dir.path(), spec, mem, cpus);
    source.machine.resume().unwrap();
    source.wait_until_ready();
    source.wait_for_ticks(5);

    let mut destination = source.destination(dir.path());
    assert!(matches!(destination.machine.resume(), Err(MachineError::NotLoaded(_))));
    let last_instruction = source.machine.pause().unwrap();
    let sections = source.machine.save().unwrap();
    source.copy_memory_to(&destination);
    destination.machine.load(sections).unwrap();
    destination.machine.resume().unwrap();
    destination.wait_for_ticks(20);

    // The console of the source may lag behind what its guest has printed.
    drop(source.machine);
    let before = std::fs::read_to_string(&source.console).unwrap();
    let before: Vec<_> = before.lines().filter(|line| line.starts_with("tick ")).collect();
    let after = destination.ticks();
    let number = |line: &str| line.split(' ').nth(1).unwrap().parse::<u64>().unwrap();
    let last = number(before.last().unwrap());
    assert_eq!(after[0].number, last + 1, "no tick is lost or printed twice");
    for pair in after.windows(2) {
        assert_eq!(pair[1].number, pair[0].number + 1);
        assert!(pair[1].writes >= pair[0].writes && pair[1].checked >= pair[0].checked);
    }
    let first = destination.machine.first_instruction_after().unwrap();
    println!(
        "{cpus} vCPUs: downtime {:?}, seen from inside {} us",
        first.since(last_instruction),
        destination.last_tick().max_gap_us
    );
}

#[test]
fn a_moved_guest_goes_on_where_it_was() {
    if !has_kvm("a_moved_guest_goes_on_where_it_was") {
        return;
    }
    move_guest(1, "builtin:dirty,pages=1024,rate=20000,fill-mb=32,tick-ms=20", "128M");
    move_guest(2, "builtin:dirty,pages=4096,rate=max,fill-mb=64,tick-ms=20", "128M");
}

#[test]
fn a_guest_is_moved_again_and_again() {
    if !has_kvm("a_guest_is_moved_again_and_again") {
        return;
    }
    let mut dirs = vec![tempfile::tempdir().unwrap()];
    let spec = "builtin:dirty,pages=512,rate=max,fill-mb=8,tick-ms=5";
    let mut guest = Guest::boot(dirs[0].path(), spec, "32M", 2);
    guest.machine.resume().unwrap();
    guest.wait_until_ready();
    for _ in 0..10 {
        guest.wait_for_ticks(3);
        let dir = tempfile::tempdir().unwrap();
        let mut next = guest.destination(dir.path());
        dirs.push(dir);
        guest.machine.pause().unwrap();
        let sections = guest.machine.save().unwrap();
        guest.copy_memory_to(&next);
        next.machine.load(sections).unwrap();
        next.machine.resume().unwrap();
        guest = next;
    }
    guest.wait_for_ticks(10);
}

#[test]
fn a_source_that_was_saved_can_run_on() {
    if !has_kvm("a_source_that_was_saved_can_run_on") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let spec = "builtin:dirty,pages=256,rate=max,fill-mb=4,tick-ms=10";
    let mut guest = Guest::boot(dir.path(), spec, "32M", 2);
    guest.machine.resume().unwrap();
    guest.wait_until_ready();
    assert!(matches!(guest.machine.save(), Err(MachineError::NotPaused(_))));
    for _ in 0..20 {
        guest.machine.pause().unwrap();
        let names: Vec<_> =
            guest.machine.save().unwrap().into_iter().map(|section| section.name).collect();
        assert_eq!(names.first().unwrap(), "kvm-clock");
        assert_eq!(names.last().unwrap(), "serial");
        guest.machine.resume().unwrap();
        guest.wait_for_ticks(1);
    }
}

#[test]
fn a_harvest_has_exactly_the_pages_that_the_guest_writes() {
    if !has_kvm("a_harvest_has_exactly_the_pages_that_the_guest_writes") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let spec = "builtin:dirty,pages=700,rate=max,fill-mb=64,tick-ms=10";
    let mut guest = Guest::boot(dir.path(), spec, "256M", 2);
    guest.machine.resume().unwrap();
    guest.wait_until_ready();
    let first = guest.ready("hot-gfn");
    let hot: BTreeSet<u64> = (first..first + 700).collect();
    let machine = &mut guest.machine;
    let bitmap = bitmap_of(machine);
    assert!(machine.dirty_log_harvest(&bitmap).is_err(), "the log is off");
    machine.dirty_log_start().unwrap();
    assert!(machine.dirty_log_start().is_err(), "the log is on");
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(200));
        let count = machine.dirty_log_harvest(&bitmap).unwrap();
        let pages = take_pages(&bitmap);
        assert_eq!(count, Pages(pages.len() as u64));
        assert!(hot.is_subset(&pages), "{} pages are missing", hot.difference(&pages).count());
        let others = pages.difference(&hot).count();
        assert!(others <= OWN_PAGES, "{others} other pages");
    }
    machine.dirty_log_stop().unwrap();
    machine.dirty_log_stop().unwrap();
    guest.wait_for_ticks(3);
}

#[test]
fn each_dirty_bit_is_handed_out_once_and_stays_until_it_is_taken() {
    if !has_kvm("each_dirty_bit_is_handed_out_once_and_stays_until_it_is_taken") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let spec = "builtin:dirty,pages=300,rate=max,fill-mb=4,tick-ms=10";
    let mut guest = Guest::boot(dir.path(), spec, "64M", 1);
    guest.machine.resume().unwrap();
    guest.wait_until_ready();
    guest.machine.dirty_log_start().unwrap();
    guest.wait_for_writes(300);
    let machine = &mut guest.machine;
    machine.pause().unwrap();
    let bitmap = bitmap_of(machine);
    let count = machine.dirty_log_harvest(&bitmap).unwrap();
    assert!(count >= Pages(300));
    assert_eq!(machine.dirty_log_harvest(&bitmap).unwrap(), Pages(0));
    assert_eq!(bitmap.count(), count, "what nobody took is still there");
    let others = GuestBitmap::new([(RegionId(0), Pages(1))]);
    assert!(machine.dirty_log_harvest(&others).is_err());
    // Nothing that is written after a harvest in a pause is missed by the next.
    machine.resume().unwrap();
    guest.wait_for_writes(300);
    let machine = &mut guest.machine;
    machine.pause().unwrap();
    assert!(machine.dirty_log_harvest(&bitmap).unwrap() >= Pages(300));
}

#[test]
fn memory_copied_by_the_dirty_log_alone_is_complete() {
    if !has_kvm("memory_copied_by_the_dirty_log_alone_is_complete") {
        return;
    }
    use vm_memory::{Bytes as _, GuestAddress};
    let dir = tempfile::tempdir().unwrap();
    let spec = "builtin:dirty,pages=2000,rate=max,fill-mb=16,tick-ms=10";
    let mut source = Guest::boot(dir.path(), spec, "64M", 2);
    source.machine.resume().unwrap();
    source.wait_until_ready();
    let mut destination = source.destination(dir.path());
    source.machine.dirty_log_start().unwrap();
    source.copy_memory_to(&destination);
    let bitmap = bitmap_of(&source.machine);
    let copy = |source: &Guest, destination: &Guest, bitmap: &GuestBitmap| {
        let mut page = [0; 4096];
        for gfn in take_pages(bitmap) {
            let place = GuestAddress(gfn * 4096);
            source.machine.memory().read_slice(&mut page, place).unwrap();
            destination.machine.memory().write_slice(&page, place).unwrap();
        }
    };
    for _ in 0..5 {
        source.machine.dirty_log_harvest(&bitmap).unwrap();
        copy(&source, &destination, &bitmap);
    }
    source.machine.pause().unwrap();
    let sections = source.machine.save().unwrap();
    source.machine.dirty_log_harvest(&bitmap).unwrap();
    copy(&source, &destination, &bitmap);
    destination.machine.load(sections).unwrap();
    destination.machine.resume().unwrap();
    destination.wait_for("complete walk", |guest| {
        let ticks = guest.ticks();
        ticks.last().is_some_and(|last| last.walks > ticks[0].walks)
    });
}

/// Why `incoming` refuses what `change` makes of a good description.
fn refusal(good: &MachineDescription, change: impl FnOnce(&mut MachineDescription)) -> String {
    let mut bad = good.clone();
    change(&mut bad);
    match Machine::incoming(&bad, &IncomingConfig::default(), &Host::probe().unwrap()) {
        Ok(_) => panic!("taken"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_guest_that_this_host_cannot_take_is_refused_by_name() {
    if !has_kvm("a_guest_that_this_host_cannot_take_is_refused_by_name") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut good = Guest::boot(dir.path(), "builtin:idle", "16M", 1).machine.describe();
    good.devices[0].params.insert("console".to_owned(), "null".to_owned());
    assert!(Machine::incoming(&good, &IncomingConfig::default(), &Host::probe().unwrap()).is_ok());

    let text = refusal(&good, |bad| bad.devices[0].kind = "floppy".to_owned());
    assert!(text.contains("floppy"), "{text}");
    let text = refusal(&good, |bad| bad.devices[0].section_version = 99);
    assert!(text.contains("99"), "{text}");
    let text = refusal(&good, |bad| bad.devices.clear());
    assert!(text.contains("serial"), "{text}");
    let text = refusal(&good, |bad| bad.vcpus = 5000);
    assert!(text.contains("5000"), "{text}");
    let text = refusal(&good, |bad| bad.memory[0].pages = Bytes(1 << 41).pages());
    assert!(text.contains("2.0 TiB"), "{text}");
    let text = refusal(&good, |bad| bad.memory.clear());
    assert!(text.contains("memory"), "{text}");
    let text = refusal(&good, |bad| bad.cpu.tsc_khz = 1);
    assert!(text.contains("TSC"), "{text}");
}

#[test]
fn sections_that_do_not_fit_are_refused_and_the_machine_never_runs() {
    if !has_kvm("sections_that_do_not_fit_are_refused_and_the_machine_never_runs") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let guest = Guest::boot(dir.path(), "builtin:idle", "16M", 1);
    let sections = guest.machine.save().unwrap();
    for missing in 0..sections.len() {
        let mut destination = guest.destination(dir.path());
        let mut part = sections.clone();
        let name = part.remove(missing).name;
        let error = destination.machine.load(part).unwrap_err().to_string();
        assert!(error.contains(&name), "{error}");
        assert!(matches!(destination.machine.resume(), Err(MachineError::Broken(_))));
    }
    let mut destination = guest.destination(dir.path());
    let mut more = sections;
    more.push(Section { name: "floppy".to_owned(), instance: 0, version: 1, payload: Vec::new() });
    let error = destination.machine.load(more).unwrap_err().to_string();
    assert!(error.contains("floppy"), "{error}");
}

/// The section of the clocks among `sections`, decoded.
fn clock(sections: &[Section]) -> ClockState {
    let section = sections.iter().find(|section| section.name == ClockState::NAME).unwrap();
    ClockState::from_section(section).unwrap()
}

#[test]
fn clocks_of_hosts_that_disagree_do_not_make_the_clock_of_a_guest_jump() {
    if !has_kvm("clocks_of_hosts_that_disagree_do_not_make_the_clock_of_a_guest_jump") {
        return;
    }
    const HALF_A_MINUTE_NS: u64 = 30_000_000_000;
    for ahead in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let mut source = Guest::boot(dir.path(), "builtin:idle,tick-ms=20", "16M", 1);
        source.machine.resume().unwrap();
        source.wait_until_ready();
        let mut destination = source.destination(dir.path());
        source.machine.pause().unwrap();
        let paused = Instant::now();
        let mut sections = source.machine.save().unwrap();
        let mut saved = clock(&sections);
        // As the source would have it, were its clock so far behind or ahead of this one.
        match ahead {
            true => saved.realtime_ns -= HALF_A_MINUTE_NS,
            false => saved.realtime_ns += HALF_A_MINUTE_NS,
        }
        let position = sections.iter().position(|it| it.name == ClockState::NAME).unwrap();
        sections[position] = saved.to_section(sections[position].instance).unwrap();
        source.copy_memory_to(&destination);
        destination.machine.load_after(sections, Some(paused.elapsed())).unwrap();
        let now = clock(&destination.machine.save().unwrap());
        let gone = Duration::from_nanos(now.clock_ns - saved.clock_ns);
        println!("half a minute apart: the clock went on by {gone:?} in {:?}", paused.elapsed());
        let jumped = Duration::from_nanos(HALF_A_MINUTE_NS / 2);
        assert!(gone < paused.elapsed() + jumped, "it jumped by {gone:?}");
    }
}
