use std::os::unix::fs::FileExt;
use std::path::Path;

use tempfile::NamedTempFile;
use vm_memory::{Bytes, GuestAddress};
use vm_state::Snapshot;

use super::*;
use crate::Device;
use crate::virtio::driver::{BUFFERS, Driver, NEEDS_RESET, PAGES, Part, RINGS, STATUS};
use crate::virtio::{MmioWindow, RingState, registry};

const LEN: u64 = 1 << 20;

/// An image in which every sector says its number.
fn image() -> NamedTempFile {
    // Not in /tmp alone: a file system without O_DIRECT would make the tests of it moot.
    let file = NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    file.as_file().set_len(LEN).unwrap();
    for sector in 0..LEN / SECTOR {
        file.as_file().write_all_at(&sector.to_le_bytes().repeat(64), sector * SECTOR).unwrap();
    }
    file
}

pub(super) fn spec(path: &Path, options: &str) -> VirtioSpec {
    VirtioSpec::disk(&format!("{}{options}", path.display()), 0).unwrap()
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
}

/// Makes one request and waits for it: its output before the status, the status, and the length in
/// the used ring.
pub(super) fn ask(
    driver: &mut Driver,
    kind: u32,
    sector: u64,
    data: &[u8],
    room: u32,
) -> (Vec<u8>, u8, u32) {
    let header = header(kind, sector);
    let mut parts = vec![Part::Says(&header)];
    if !data.is_empty() {
        parts.push(Part::Says(data));
    }
    if room > 0 {
        parts.push(Part::Takes(room));
    }
    parts.push(Part::Takes(1));
    let places = driver.put(0, &parts);
    driver.kick(0);
    let (_, len) = driver.take(0);
    let status = driver.bytes(*places.last().unwrap(), 1)[0];
    let out = if room > 0 { driver.bytes(places[places.len() - 2], room) } else { Vec::new() };
    (out, status, len)
}

pub(super) const OK: u8 = VIRTIO_BLK_S_OK as u8;
const IOERR: u8 = VIRTIO_BLK_S_IOERR as u8;

fn reads_and_writes(options: &str) {
    let file = image();
    let mut driver = Driver::start(&spec(file.path(), options), 0);
    let (data, status, len) = ask(&mut driver, VIRTIO_BLK_T_IN, 7, &[], 1024);
    assert_eq!((status, len), (OK, 1025));
    assert_eq!(data, [7_u64.to_le_bytes().repeat(64), 8_u64.to_le_bytes().repeat(64)].concat());
    let (_, status, len) = ask(&mut driver, VIRTIO_BLK_T_OUT, 9, &[0xab; 1536], 0);
    assert_eq!((status, len), (OK, 1));
    let (_, status, _) = ask(&mut driver, VIRTIO_BLK_T_FLUSH, 0, &[], 0);
    assert_eq!(status, OK);
    let mut found = [0; 2560];
    file.as_file().read_exact_at(&mut found, 8 * SECTOR).unwrap();
    assert_eq!(found[..512], 8_u64.to_le_bytes().repeat(64), "before it");
    assert_eq!(found[512..2048], [0xab; 1536]);
    assert_eq!(found[2048..], 12_u64.to_le_bytes().repeat(64), "behind it");
}

#[test]
fn what_is_written_is_read_back_and_nothing_beside_it_changes() {
    reads_and_writes("");
}

#[test]
fn direct_access_keeps_the_sectors_beside_the_written_ones() {
    reads_and_writes(",direct");
}

#[test]
fn the_configuration_says_size_and_serial_number() {
    let file = image();
    let mut driver = Driver::start(&spec(file.path(), ",serial=web-root"), 0);
    assert_eq!(u64::from_le_bytes(driver.config(0)), LEN / SECTOR);
    assert_eq!(driver.config::<4>(0x1000), [0; 4], "nothing behind it");
    assert_eq!(driver.read(0), 0x7472_6976);
    assert_eq!((driver.read(4), driver.read(8)), (2, 2));
    let (id, status, len) = ask(&mut driver, VIRTIO_BLK_T_GET_ID, 0, &[], 20);
    assert_eq!((status, len), (OK, 21));
    assert_eq!(id, b"web-root\0\0\0\0\0\0\0\0\0\0\0\0");
}

#[test]
fn discarded_and_zeroed_ranges_read_as_zeros() {
    let file = image();
    let mut driver = Driver::start(&spec(file.path(), ""), 0);
    let range = |sector: u64, count: u32, flags: u32| {
        [&sector.to_le_bytes()[..], &count.to_le_bytes(), &flags.to_le_bytes()].concat()
    };
    let zero = [range(3, 2, 0), range(16, 8, 1)].concat();
    assert_eq!(ask(&mut driver, VIRTIO_BLK_T_WRITE_ZEROES, 0, &zero, 0).1, OK);
    let mut found = vec![0; (24 * SECTOR) as usize];
    file.as_file().read_exact_at(&mut found, 0).unwrap();
    assert!(found[3 * 512..5 * 512].iter().all(|&byte| byte == 0));
    assert!(found[16 * 512..24 * 512].iter().all(|&byte| byte == 0));
    assert_eq!(found[5 * 512], 5);
    assert_eq!(ask(&mut driver, VIRTIO_BLK_T_DISCARD, 0, &range(32, 8, 0), 0).1, OK);
    let unsupported = VIRTIO_BLK_S_UNSUPP as u8;
    assert_eq!(ask(&mut driver, VIRTIO_BLK_T_DISCARD, 0, &range(32, 8, 1), 0).1, unsupported);
    assert_eq!(ask(&mut driver, VIRTIO_BLK_T_DISCARD, 0, &range(2047, 2, 0), 0).1, IOERR);
    assert_eq!(ask(&mut driver, VIRTIO_BLK_T_DISCARD, 0, &[0; 15], 0).1, IOERR);
    assert_eq!(ask(&mut driver, 99, 0, &[], 0).1, unsupported);
}

#[test]
fn a_read_only_disk_takes_no_write() {
    let file = image();
    let mut driver = Driver::start(&spec(file.path(), ",ro"), 0);
    assert_ne!(driver.offered() & 1 << VIRTIO_BLK_F_RO, 0);
    assert_eq!(ask(&mut driver, VIRTIO_BLK_T_OUT, 0, &[1; 512], 0).1, IOERR);
    assert_eq!(ask(&mut driver, VIRTIO_BLK_T_WRITE_ZEROES, 0, &[0; 16], 0).1, IOERR);
    assert_eq!(ask(&mut driver, VIRTIO_BLK_T_IN, 0, &[], 512).1, OK);
}

#[test]
fn nothing_outside_the_image_is_read_or_written() {
    let file = image();
    let mut driver = Driver::start(&spec(file.path(), ""), 0);
    for (sector, len) in [(2048, 512), (2047, 1024), (u64::MAX, 512), (u64::MAX / 512, 512)] {
        assert_eq!(ask(&mut driver, VIRTIO_BLK_T_IN, sector, &[], len).1, IOERR, "{sector}");
        let data = vec![1; len as usize];
        assert_eq!(ask(&mut driver, VIRTIO_BLK_T_OUT, sector, &data, 0).1, IOERR, "{sector}");
    }
    assert_eq!(ask(&mut driver, VIRTIO_BLK_T_IN, 0, &[], 100).1, IOERR, "no whole sector");
    assert_eq!(file.as_file().metadata().unwrap().len(), LEN);
}

#[test]
fn every_page_that_a_read_fills_is_in_the_dirty_log() {
    let file = image();
    let mut driver = Driver::start(&spec(file.path(), ""), 0);
    driver.marked();
    driver.buffer(4096 - 512);
    ask(&mut driver, VIRTIO_BLK_T_IN, 0, &[], 8192);
    let marked = driver.marked();
    let first = BUFFERS / 4096;
    assert!(marked.contains(&(RINGS / 4096 + 3)), "the used ring: {marked:?}");
    for page in first..first + 3 {
        assert!(marked.contains(&page), "page {page} of {marked:?}");
    }
}

/// Copies memory once, lets the device read from the disk, and copies what the log says: what a
/// migration does, or leaves that out. Returns whether both memories are the same then.
fn migrated_whole(by_the_log: bool) -> bool {
    let file = image();
    let mut driver = Driver::cold(&spec(file.path(), ""));
    driver.device.resume();
    driver.set_up(0);
    let whole = (PAGES * 4096) as u32;
    let mut there = driver.bytes(0, whole);
    driver.marked();
    // A worker that is late would serve the request before it is copied.
    driver.device.quiesce().unwrap();
    let places = driver
        .put(0, &[Part::Says(&header(VIRTIO_BLK_T_IN, 40)), Part::Takes(8192), Part::Takes(1)]);
    // What the vCPUs write is KVM's to log.
    let by_vcpus = driver.bytes(0, whole);
    there.copy_from_slice(&by_vcpus);
    driver.device.resume();
    driver.kick(0);
    driver.take(0);
    driver.device.quiesce().unwrap();
    for page in driver.marked().into_iter().filter(|_| by_the_log) {
        let place = (page * 4096) as usize..((page + 1) * 4096) as usize;
        there[place].copy_from_slice(&driver.bytes(page * 4096, 4096));
    }
    let here = driver.bytes(0, whole);
    assert_eq!(here[places[1] as usize], 40, "the disk was read");
    here == there
}

#[test]
fn a_disk_read_during_a_migration_arrives_because_it_is_marked_and_is_lost_if_it_is_not() {
    assert!(migrated_whole(true));
    assert!(!migrated_whole(false), "without its marks the read must be lost");
}

#[test]
fn requests_that_were_not_begun_are_served_once_at_the_destination() {
    let file = image();
    let here = spec(file.path(), "");
    let mut driver = Driver::start(&here, 0);
    assert_eq!(ask(&mut driver, VIRTIO_BLK_T_OUT, 1, &[1; 512], 0).1, OK);
    driver.device.quiesce().unwrap();
    let mut statuses = Vec::new();
    for sector in 10..14_u8 {
        let header = header(VIRTIO_BLK_T_OUT, sector.into());
        let data = [sector ^ 0xff; 512];
        let parts = [Part::Says(&header), Part::Says(&data), Part::Takes(1)];
        statuses.push(driver.put(0, &parts)[2]);
    }
    driver.kick(0);
    driver.settle();
    assert_eq!(driver.used(0), 1, "a stopped device serves nothing");

    let mut there = driver.move_to(&here);
    drop(driver);
    there.settle();
    assert_eq!(there.used(0), 1, "nor does one that was loaded");
    there.device.resume();
    for (head, status) in [3_u32, 6, 9, 12].into_iter().zip(&statuses) {
        assert_eq!(there.take(0), (head, 1));
        assert_eq!(there.bytes(*status, 1), [OK]);
    }
    there.settle();
    assert_eq!(there.used(0), 5, "each of them once");
    for sector in 10..14_u8 {
        let mut found = [0; 512];
        file.as_file().read_exact_at(&mut found, u64::from(sector) * SECTOR).unwrap();
        assert_eq!(found, [sector ^ 0xff; 512]);
    }
    assert_eq!(ask(&mut there, VIRTIO_BLK_T_IN, 1, &[], 512).0, [1; 512]);
}

#[test]
fn a_ring_full_of_requests_moves_twenty_times_without_losing_or_repeating_one() {
    let file = image();
    let here = spec(file.path(), "");
    let mut driver = Driver::start(&here, 0);
    driver.size = 64;
    driver.set_up(0);
    let mut asked = 0;
    let mut taken = 0;
    for visit in 0..20_u64 {
        while asked - taken < 20 {
            let header = header(VIRTIO_BLK_T_OUT, asked % 2048);
            let data = [(asked % 251) as u8; 512];
            driver.put(0, &[Part::Says(&header), Part::Says(&data), Part::Takes(1)]);
            asked += 1;
        }
        driver.kick(0);
        for _ in 0..visit % 4 {
            assert_eq!(driver.take(0).1, 1);
            taken += 1;
        }
        let there = driver.move_to(&here);
        there.device.resume();
        driver = there;
    }
    while taken < asked {
        assert_eq!(driver.take(0).1, 1);
        taken += 1;
    }
    driver.settle();
    assert_eq!(u64::from(driver.used(0)), asked);
    for sector in 0..asked {
        let mut found = [0; 512];
        file.as_file().read_exact_at(&mut found, sector * SECTOR).unwrap();
        assert_eq!(found, [(sector % 251) as u8; 512], "sector {sector}");
    }
}

#[test]
fn an_interrupt_that_was_not_acknowledged_is_raised_again_at_the_destination() {
    let file = image();
    let here = spec(file.path(), "");
    let mut driver = Driver::start(&here, 0);
    ask(&mut driver, VIRTIO_BLK_T_FLUSH, 0, &[], 0);
    driver.wait("interrupt", |driver| driver.read(0x60) == 1);
    let there = driver.move_to(&here);
    assert!(there.line.read().is_err(), "not before it runs");
    there.device.resume();
    assert_eq!(there.line.read().unwrap(), 1);
    assert_eq!(there.read(0x60), 1);
    there.write(0x64, 1);
    assert_eq!(there.read(0x60), 0);
    let again = there.move_to(&here);
    again.device.resume();
    again.settle();
    assert!(again.line.read().is_err(), "what is acknowledged is not raised again");
}

#[test]
fn an_image_is_locked_by_one_guest_at_a_time() {
    let file = image();
    let open = |options| Driver::cold(&spec(file.path(), options)).device;
    let (first, second) = (open(""), open(""));
    first.acquire().unwrap();
    first.acquire().unwrap();
    let error = second.acquire().unwrap_err().to_string();
    assert!(error.contains(&*file.path().to_string_lossy()), "{error}");
    let reader = open(",ro");
    assert!(reader.acquire().is_err());
    first.release();
    second.acquire().unwrap();
    assert!(first.acquire().is_err());
    drop(second);
    let another = open(",ro");
    reader.acquire().unwrap();
    another.acquire().unwrap();
    assert!(first.acquire().is_err());
}

#[test]
fn an_image_of_another_length_is_refused_at_the_destination() {
    let file = image();
    let device = Driver::cold(&spec(file.path(), "")).device;
    let mut described = VirtioSpec::of(&device.describe()).unwrap();
    assert_eq!(described.params["bytes"], LEN.to_string());
    let other = NamedTempFile::new().unwrap();
    other.as_file().set_len(LEN * 2).unwrap();
    described.params.insert("path".into(), other.path().to_str().unwrap().into());
    let error = registry::open(&described, &mut described.params.clone()).err().unwrap();
    assert!(error.to_string().contains("--disk"), "{error}");
}

#[test]
fn a_driver_that_breaks_a_rule_must_reset_the_device_and_can_go_on_then() {
    let file = image();
    let mut driver = Driver::start(&spec(file.path(), ""), 0);
    let before = driver.bytes(0, BUFFERS as u32);
    // A request without room for its status.
    driver.put(0, &[Part::Says(&header(VIRTIO_BLK_T_FLUSH, 0))]);
    driver.kick(0);
    driver.wait("demand", |driver| driver.read(STATUS) & NEEDS_RESET != 0);
    assert_eq!(driver.read(0x60) & 2, 2, "it is told");
    assert_eq!(driver.used(0), 0);
    drop(before);
    driver.memory.write_slice(&[0; 0x4000], GuestAddress(RINGS)).unwrap();
    driver.set_up(0);
    assert_eq!(ask(&mut driver, VIRTIO_BLK_T_FLUSH, 0, &[], 0).1, OK);
}

fn golden() -> BlockState {
    BlockState {
        transport: TransportState {
            status: 15,
            device_features_sel: 1,
            driver_features_sel: 1,
            driver_features: 0x1_3000_6244,
            queue_sel: 0,
            config_generation: 3,
            interrupt_status: 1,
            rings: vec![RingState {
                size: 128,
                ready: true,
                event_idx: true,
                next_avail: 700,
                next_used: 699,
                descriptors: 0x1_0000,
                available: 0x1_2000,
                used: 0x1_3000,
            }],
        },
    }
}

#[test]
fn every_version_ever_released_still_loads() {
    let bytes = include_bytes!("../../../tests/golden/virtio-block-1.section");
    assert_eq!(golden().to_section(0).unwrap().encode().unwrap(), bytes);
    let file = image();
    let driver = Driver::restored(&spec(file.path(), ""), Section::decode(bytes).unwrap()).unwrap();
    let again = driver.device.save().unwrap();
    assert_eq!(BlockState::from_section(&again).unwrap(), golden());
}

#[test]
fn state_that_no_driver_can_have_made_is_refused_with_its_field() {
    let file = image();
    let refused = |change: &dyn Fn(&mut TransportState), field: &str| {
        let mut state = golden();
        change(&mut state.transport);
        let section = state.to_section(0).unwrap();
        let error = Driver::restored(&spec(file.path(), ""), section).err().unwrap();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.contains(field), "{cause}");
    };
    refused(&|state| state.driver_features |= 1 << 50, "driver_features");
    refused(&|state| state.rings.clear(), "rings");
    refused(&|state| state.rings[0].size = 3, "rings");
    refused(&|state| state.rings[0].descriptors = 1, "rings");
    refused(&|state| state.rings[0].used = PAGES * 4096, "requestq outside the guest's memory");
}

#[test]
fn windows_lie_side_by_side_with_a_line_each() {
    let windows: Vec<_> = (0..MmioWindow::MOST).map(MmioWindow::of).collect();
    assert_eq!((windows[0].base, windows[0].gsi), (0xd000_0000, 5));
    assert_eq!(windows.last().unwrap().gsi, 23);
    assert_eq!(windows[1].offset(0xd000_1050), Some(0x50));
    assert_eq!(windows[1].offset(0xd000_0fff), None);
    assert_eq!(windows[1].offset(0xd000_2000), None);
}

#[test]
fn a_flush_asks_the_storage_and_the_guest_hears_what_it_says() {
    let file = image();
    let mut driver = Driver::start(&spec(file.path(), ""), 0);
    assert_eq!(ask(&mut driver, VIRTIO_BLK_T_FLUSH, 0, &[], 0).1, OK);
    driver.device.disk().unwrap().lose_a_write();
    assert_eq!(ask(&mut driver, VIRTIO_BLK_T_FLUSH, 0, &[], 0).1, IOERR);
    assert_eq!(ask(&mut driver, VIRTIO_BLK_T_FLUSH, 0, &[], 0).1, OK);
}

#[test]
fn every_write_of_a_driver_that_cannot_flush_is_flushed() {
    for without in [0, 1 << VIRTIO_BLK_F_FLUSH] {
        let file = image();
        let mut driver = Driver::start(&spec(file.path(), ""), without);
        driver.device.disk().unwrap().lose_a_write();
        let (_, status, _) = ask(&mut driver, VIRTIO_BLK_T_OUT, 9, &[0xab; 512], 0);
        assert_eq!(status, if without == 0 { OK } else { IOERR });
    }
}
