use migpipe_units::Pages;
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::Device;
use crate::virtio::RingState;
use crate::virtio::driver::{
    BUFFERS, Driver, NEEDS_RESET, NEXT, PAGES, Part, RINGS, STATUS, WRITE,
};
use crate::virtio::spec::VirtioSpec;

/// The pages that the guest uses in these tests begin here.
const FIRST: u64 = 256;
const EVERYTHING: u64 = PAGES * PAGE_SIZE;

/// A balloon whose guest has something in each page from `FIRST` on.
fn started(without: u64) -> Driver {
    let driver = Driver::start(&VirtioSpec::balloon(), without);
    for page in FIRST..PAGES {
        fill(&driver, page);
    }
    driver.marked();
    driver
}

fn fill(driver: &Driver, page: u64) {
    driver.memory.write_slice(&[0xa5; 4096], GuestAddress(page * PAGE_SIZE)).unwrap();
}

/// The pages from `FIRST` on that hold zeros.
fn zeros(driver: &Driver) -> Vec<u64> {
    let is_zero = |page: &u64| {
        let bytes = driver.bytes(page * PAGE_SIZE, 4096);
        assert!(bytes.iter().all(|byte| *byte == bytes[0]), "page {page} is half gone");
        bytes[0] == 0
    };
    (FIRST..PAGES).filter(is_zero).collect()
}

fn marked(driver: &Driver) -> Vec<u64> {
    driver.marked().into_iter().filter(|page| *page >= FIRST).collect()
}

fn numbers(pages: &[u32]) -> Vec<u8> {
    pages.iter().flat_map(|page| page.to_le_bytes()).collect()
}

/// Has the driver make one request in which it says which pages it gives.
fn give(driver: &mut Driver, queue: usize, pages: &[u32]) {
    driver.put(queue, &[Part::Says(&numbers(pages))]);
    driver.kick(queue);
    assert_eq!(driver.take(queue).1, 0);
}

/// Has the driver report ranges of address and length.
fn report(driver: &mut Driver, ranges: &[(u64, u32)]) {
    let last = ranges.len() as u16 - 1;
    for (index, (address, len)) in (0..).zip(ranges) {
        let more = if index < last { NEXT } else { 0 };
        driver.descriptor(REPORT as u64, index, (*address, *len, WRITE | more, index + 1));
    }
    driver.offer(REPORT, 0);
    driver.kick(REPORT);
}

fn is_refused(driver: &Driver, what: &str) {
    driver.wait(what, |driver| driver.read(STATUS) & NEEDS_RESET != 0);
    assert!(zeros(driver).is_empty(), "{what}");
    assert!(marked(driver).is_empty(), "{what}");
}

#[test]
fn pages_that_are_given_are_holes_of_zeros_and_marked_before_the_driver_hears_of_it() {
    let mut driver = started(0);
    assert_eq!(driver.read(8), 5);
    // The first request makes the rings' own pages exist.
    give(&mut driver, INFLATE, &[500]);
    assert_eq!(marked(&driver), [500]);
    let before = driver.resident();
    give(&mut driver, INFLATE, &[400, 300, 301, 302, 300, 299]);
    assert_eq!(marked(&driver), [299, 300, 301, 302, 400]);
    assert_eq!(driver.resident(), before - 5);
    assert_eq!(zeros(&driver), [299, 300, 301, 302, 400, 500]);
}

#[test]
fn a_page_comes_back_by_being_touched_and_deflating_changes_nothing() {
    let mut driver = started(0);
    give(&mut driver, INFLATE, &[300, 301]);
    driver.marked();
    let without = driver.resident();
    fill(&driver, 300);
    assert_eq!(driver.resident(), without + 1);
    give(&mut driver, DEFLATE, &[300, 301, u32::MAX]);
    assert!(marked(&driver).is_empty());
    assert_eq!(zeros(&driver), [301]);
}

#[test]
fn of_a_report_whole_pages_are_taken_and_no_byte_beside_them() {
    let mut driver = started(0);
    let at = |page: u64| page * PAGE_SIZE;
    report(
        &mut driver,
        &[(at(300), 3 * 4096), (at(310) + 1, 2 * 4096), (at(320), 4095), (at(330) + 4000, 4192)],
    );
    assert_eq!(driver.take(REPORT), (0, 0));
    let gone = [300, 301, 302, 311, 331];
    assert_eq!(marked(&driver), gone);
    assert_eq!(zeros(&driver), gone);
}

#[test]
fn without_the_feature_there_is_no_queue_for_reports() {
    let mut driver = started(1 << REPORTING);
    report(&mut driver, &[(300 * PAGE_SIZE, 4096)]);
    is_refused(&driver, "a report that was not agreed on");
}

#[test]
fn hostile_requests_give_nothing_and_are_refused() {
    let too_many = vec![FIRST as u32; MOST_NUMBERS + 1];
    let cases: [(&str, Vec<u8>); 5] = [
        ("half a number", numbers(&[300])[..3].to_vec()),
        ("a page behind memory", numbers(&[300, PAGES as u32])),
        ("a page where devices are", numbers(&[300, 0xd_0000])),
        ("the last page of all", numbers(&[u32::MAX, 300])),
        ("more than is ever asked for", numbers(&too_many)),
    ];
    for (what, bytes) in cases {
        let mut driver = started(0);
        driver.memory.write_slice(&bytes, GuestAddress(BUFFERS)).unwrap();
        driver.descriptor(INFLATE as u64, 0, (BUFFERS, bytes.len() as u32, 0, 0));
        driver.offer(INFLATE, 0);
        driver.kick(INFLATE);
        is_refused(&driver, what);
    }
    for range in [(EVERYTHING - 4096, 8192), (EVERYTHING, 4096), (u64::MAX - 4095, 4096)] {
        let mut driver = started(0);
        report(&mut driver, &[(300 * PAGE_SIZE, 4096), range]);
        is_refused(&driver, "a range outside memory");
    }
}

#[test]
fn a_guest_that_gives_away_everything_harms_itself_alone() {
    let mut driver = started(0);
    // Its rings among it: they are zeros, and the device works on with them.
    report(&mut driver, &[(0, EVERYTHING as u32); 8]);
    driver.wait("used element", |driver| driver.used(REPORT) == 1);
    assert_eq!(driver.marked().len() as u64, PAGES);
    assert!(driver.resident() < 16, "{} pages", driver.resident());
    assert_eq!(zeros(&driver).len() as u64, PAGES - FIRST);
    driver.device.quiesce().unwrap();
    driver.device.save().unwrap();
}

#[test]
fn the_largest_request_of_all_does_not_hold_up_a_pause() {
    let mut driver = started(0);
    // Every second page, over and over: no two of them are one run.
    let most: Vec<u32> = (0..MOST_NUMBERS as u32).map(|number| 256 + number * 2 % 256).collect();
    driver.memory.write_slice(&numbers(&most), GuestAddress(BUFFERS)).unwrap();
    driver.descriptor(INFLATE as u64, 0, (BUFFERS, (MOST_NUMBERS * NUMBER) as u32, 0, 0));
    driver.offer(INFLATE, 0);
    driver.kick(INFLATE);
    // It is an error if the device is not at a point where it can stop in time.
    driver.device.quiesce().unwrap();
}

#[test]
fn what_is_asked_for_is_read_by_the_driver_and_what_it_gave_by_the_operator() {
    let driver = started(0);
    assert_eq!(driver.device.balloon().unwrap(), BalloonSize::default());
    let generation = driver.read(0xfc);
    assert!(driver.device.ask_balloon(Pages(70_000)));
    assert_ne!(driver.read(0xfc), generation);
    assert_eq!(driver.read(0x60) & 2, 2, "the driver is interrupted");
    assert_eq!(driver.config::<8>(0), [0x70, 0x11, 1, 0, 0, 0, 0, 0]);
    driver.write(0x64, 2);
    assert!(driver.device.ask_balloon(Pages(70_000)));
    assert_eq!(driver.read(0x60), 0, "nothing has changed");
    driver.write(0x104, 69_000);
    let size = driver.device.balloon().unwrap();
    assert_eq!(size, BalloonSize { asked: Pages(70_000), given: Pages(69_000) });
    // No other write changes anything.
    driver.write(0x100, 1);
    driver.device.write(0x105, &[1]);
    driver.device.write(0x108, &[1; 4]);
    assert_eq!(driver.device.balloon().unwrap(), size);
    driver.write(STATUS, 0);
    let size = driver.device.balloon().unwrap();
    assert_eq!(size, BalloonSize { asked: Pages(70_000), given: Pages(0) });
}

#[test]
fn a_stopped_balloon_gives_nothing_back_until_the_guest_is_elsewhere() {
    let mut driver = started(0);
    driver.device.ask_balloon(Pages(2));
    driver.settle();
    driver.device.quiesce().unwrap();
    driver.marked();
    driver.put(INFLATE, &[Part::Says(&numbers(&[300, 301]))]);
    driver.kick(INFLATE);
    driver.write(0x104, 2);
    driver.settle();
    assert!(zeros(&driver).is_empty() && driver.marked().is_empty());

    let mut there = driver.move_to(&VirtioSpec::balloon());
    assert_eq!(there.device.balloon().unwrap(), driver.device.balloon().unwrap());
    assert!(zeros(&there).is_empty());
    there.device.resume();
    assert_eq!(there.take(INFLATE), (0, 0));
    assert_eq!(zeros(&there), [300, 301]);
    assert_eq!(marked(&there), [300, 301]);
    there.settle();
    assert_eq!((there.used(INFLATE), driver.used(INFLATE)), (1, 0));
}

#[test]
fn every_version_ever_released_still_loads() {
    let ring = RingState {
        size: 128,
        ready: true,
        event_idx: true,
        next_avail: 9,
        next_used: 8,
        descriptors: 0x1_0000,
        available: 0x1_2000,
        used: 0x1_3000,
    };
    let transport = TransportState {
        status: 15,
        driver_features: 1 << 32 | 1 << DEFLATE_ON_OOM | 1 << REPORTING,
        config_generation: 3,
        rings: vec![ring, ring, RingState { size: 32, ..ring }],
        ..TransportState::default()
    };
    let golden = BalloonState { transport, num_pages: 65536, actual: 4711 };
    let bytes = include_bytes!("../../../tests/golden/virtio-balloon-1.section");
    assert_eq!(golden.to_section(0).unwrap().encode().unwrap(), bytes);
    let driver = Driver::restored(&VirtioSpec::balloon(), Section::decode(bytes).unwrap()).unwrap();
    let again = driver.device.save().unwrap();
    assert_eq!(BalloonState::from_section(&again).unwrap(), golden);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn whatever_is_given_exactly_the_whole_pages_named_are_gone(
        pages in prop::collection::vec(FIRST as u32..PAGES as u32, 1..64),
        ranges in prop::collection::vec((FIRST * 4096..EVERYTHING - 40_000, 1_u32..40_000), 1..8),
    ) {
        let mut driver = started(0);
        give(&mut driver, INFLATE, &pages);
        report(&mut driver, &ranges);
        driver.take(REPORT);
        let mut gone: Vec<u64> = pages.iter().map(|page| u64::from(*page)).collect();
        for (address, len) in &ranges {
            let end = (address + u64::from(*len)) / PAGE_SIZE;
            gone.extend(address.div_ceil(PAGE_SIZE)..end);
        }
        gone.sort_unstable();
        gone.dedup();
        prop_assert_eq!(&zeros(&driver), &gone);
        prop_assert_eq!(&marked(&driver), &gone);
    }
}

const _: () = assert!(RINGS < FIRST * PAGE_SIZE);
