//! What no driver of any device may be able to do, tried on a disk.

use proptest::prelude::*;
use tempfile::NamedTempFile;
use vm_memory::{Bytes, GuestAddress};

use super::driver::{BUFFERS, Driver, INDIRECT, NEEDS_RESET, NEXT, PAGES, RINGS, STATUS, WRITE};
use super::spec::VirtioSpec;
use crate::Device;

fn disk() -> (NamedTempFile, VirtioSpec) {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    let spec = VirtioSpec::disk(file.path().to_str().unwrap(), 0).unwrap();
    (file, spec)
}

/// Offers a chain that must not be served; the device demands a reset and writes nothing.
fn refuses(what: &str, descriptors: &[(u64, u32, u16, u16)], head: u16) {
    let (_file, spec) = disk();
    let mut driver = Driver::start(&spec, 0);
    for (index, descriptor) in (0..).zip(descriptors) {
        driver.descriptor(0, index, *descriptor);
    }
    driver.offer(0, head);
    let before = driver.bytes(BUFFERS, 0x10_0000);
    driver.kick(0);
    driver.wait(what, |driver| driver.read(STATUS) & NEEDS_RESET != 0);
    assert_eq!(driver.used(0), 0, "{what}");
    assert!(driver.bytes(BUFFERS, 0x10_0000) == before, "{what}");
}

#[test]
fn hostile_chains_make_a_device_demand_its_reset_and_write_nothing() {
    let end = PAGES * 4096;
    let good = BUFFERS;
    refuses("a loop", &[(good, 16, NEXT, 1), (good, 16, NEXT, 0)], 0);
    refuses("a loop of one", &[(good, 16, NEXT, 0)], 0);
    refuses("a head outside the table", &[], 999);
    refuses("a next outside the table", &[(good, 16, NEXT, 99)], 0);
    refuses("memory that is not there", &[(good, 16, NEXT, 1), (end, 513, WRITE, 0)], 0);
    refuses("memory that ends", &[(good, 16, NEXT, 1), (end - 512, 513, WRITE, 0)], 0);
    refuses("an address that wraps", &[(good, 16, NEXT, 1), (u64::MAX - 4, 513, WRITE, 0)], 0);
    refuses("writing before reading", &[(good, 512, WRITE | NEXT, 1), (good, 16, 0, 0)], 0);
    refuses("only reading", &[(good, 17, 0, 0)], 0);
    refuses("only writing", &[(good, 513, WRITE, 0)], 0);
    refuses("nothing at all", &[(good, 0, 0, 0)], 0);
    refuses("a short header", &[(good, 15, NEXT, 1), (good, 513, WRITE, 0)], 0);
    refuses("an indirect table that is none", &[(good, 17, INDIRECT, 0)], 0);
    refuses("an indirect table outside memory", &[(end, 32, INDIRECT, 0)], 0);
    refuses("an empty indirect table", &[(good, 0, INDIRECT, 0)], 0);
}

#[test]
fn an_indirect_table_in_an_indirect_table_is_refused() {
    let (_file, spec) = disk();
    let mut driver = Driver::start(&spec, 0);
    let table = BUFFERS + 0x1000;
    driver.memory.write_obj(table, GuestAddress(table)).unwrap();
    driver.memory.write_obj(16_u32, GuestAddress(table + 8)).unwrap();
    driver.memory.write_obj(INDIRECT, GuestAddress(table + 12)).unwrap();
    driver.descriptor(0, 0, (table, 16, INDIRECT, 0));
    driver.offer(0, 0);
    driver.kick(0);
    driver.wait("refusal", |driver| driver.read(STATUS) & NEEDS_RESET != 0);
}

#[test]
fn a_ring_that_counts_further_than_it_is_long_is_refused() {
    let (_file, spec) = disk();
    let driver = Driver::start(&spec, 0);
    driver.memory.write_obj(1000_u16, GuestAddress(RINGS + 0x2000 + 2)).unwrap();
    driver.kick(0);
    driver.wait("refusal", |driver| driver.read(STATUS) & NEEDS_RESET != 0);
}

#[test]
fn rings_outside_memory_are_refused_when_the_driver_is_ready() {
    let (_file, spec) = disk();
    let driver = Driver::cold(&spec);
    driver.device.resume();
    driver.write(STATUS, 3);
    driver.write(0x24, 1);
    driver.write(0x20, 1);
    driver.write(STATUS, 11);
    driver.write(0x80, 0xffff_f000);
    driver.write(0x44, 1);
    driver.write(STATUS, 15);
    assert_eq!(driver.read(STATUS), 15 | NEEDS_RESET);
}

#[test]
fn a_queue_outside_memory_is_refused_when_a_live_driver_sets_it_up_anew() {
    let (_file, spec) = disk();
    let driver = Driver::start(&spec, 0);
    driver.write(0x44, 0);
    driver.write(0x80, 0xffff_f000);
    driver.write(0x44, 1);
    assert_eq!(driver.read(STATUS) & NEEDS_RESET, NEEDS_RESET);
}

#[test]
fn a_device_that_has_refused_a_queue_is_restored_as_it_was() {
    let (_file, spec) = disk();
    let driver = Driver::start(&spec, 0);
    driver.write(0x44, 0);
    driver.write(0x80, 0xffff_f000);
    driver.write(0x44, 1);
    let there = driver.move_to(&spec);
    assert_eq!(there.read(STATUS) & NEEDS_RESET, NEEDS_RESET);
}

#[test]
fn features_that_were_not_offered_are_not_agreed_to() {
    let (_file, spec) = disk();
    let driver = Driver::cold(&spec);
    for (low, high) in [(0, 0), (1 << 31, 1), (0, 1 | 1 << 31)] {
        driver.write(STATUS, 0);
        driver.write(STATUS, 3);
        for (half, value) in [(0, low), (1, high)] {
            driver.write(0x24, half);
            driver.write(0x20, value);
        }
        driver.write(STATUS, 11);
        assert_eq!(driver.read(STATUS), 3, "{low:#x} {high:#x}");
        driver.write(STATUS, 15);
        assert_eq!(driver.read(STATUS), 3, "nor is it ready");
    }
}

#[test]
fn a_driver_without_event_indexes_and_indirect_tables_is_served_too() {
    let (_file, spec) = disk();
    let mut driver = Driver::start(&spec, 1 << 28 | 1 << 29);
    for round in 0..40_u16 {
        let header = [0; 16];
        driver.put(0, &[super::driver::Part::Says(&header), super::driver::Part::Takes(513)]);
        driver.kick(0);
        assert_eq!(driver.take(0).1, 513, "round {round}");
    }
}

#[test]
fn a_pause_finds_the_device_idle_while_requests_pour_in() {
    let (_file, spec) = disk();
    let mut driver = Driver::start(&spec, 0);
    for _ in 0..50 {
        for _ in 0..4 {
            let header = [0; 16];
            driver.put(0, &[super::driver::Part::Says(&header), super::driver::Part::Takes(513)]);
        }
        driver.kick(0);
        driver.device.quiesce().unwrap();
        driver.marked();
        let (used, memory) = (driver.used(0), driver.bytes(RINGS, 0x8000));
        std::thread::sleep(std::time::Duration::from_millis(1));
        assert_eq!(driver.used(0), used);
        assert!(driver.bytes(RINGS, 0x8000) == memory, "it writes nothing");
        assert!(driver.marked().is_empty(), "it marks nothing");
        driver.device.resume();
        for _ in 0..4 {
            driver.take(0);
        }
        driver.memory.write_slice(&[0; 64], GuestAddress(BUFFERS)).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_register_access_makes_it_panic(
        accesses in prop::collection::vec((0_u64..0x200, any::<u32>(), any::<bool>(), 0_usize..9), 0..200),
    ) {
        let (_file, spec) = disk();
        let driver = Driver::cold(&spec);
        driver.device.resume();
        for (offset, value, write, len) in accesses {
            let mut data = [0; 8];
            data[..4].copy_from_slice(&value.to_le_bytes());
            let len = len.min(8);
            match write {
                true => driver.device.write(offset, &data[..len]),
                false => driver.device.read(offset, &mut data[..len]),
            }
        }
        driver.device.quiesce().unwrap();
        driver.device.save().unwrap();
    }

    #[test]
    fn no_bytes_in_its_rings_make_it_panic(
        table in prop::collection::vec((0_u64..0x3_0000, 0_u32..0x2000, 0_u16..8, 0_u16..20), 16),
        heads in prop::collection::vec(0_u16..20, 1..16),
    ) {
        let (_file, spec) = disk();
        let mut driver = Driver::start(&spec, 0);
        for (index, descriptor) in (0..).zip(&table) {
            // No buffer lies in the rings, so that the test keeps count.
            let (address, len, flags, next) = *descriptor;
            driver.descriptor(0, index, (BUFFERS + address, len, flags, next));
        }
        for head in &heads {
            driver.offer(0, *head);
        }
        driver.kick(0);
        let asked = heads.len() as u16;
        driver.wait("answer", |driver| {
            driver.used(0) == asked || driver.read(STATUS) & NEEDS_RESET != 0
        });
        driver.device.quiesce().unwrap();
    }
}
