use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;

use super::*;
use crate::Device;
use crate::virtio::RingState;
use crate::virtio::driver::{BUFFERS, Driver, NEEDS_RESET, Part, STATUS};

const TRANSMIT: usize = 1;

fn spec(to: &str) -> VirtioSpec {
    VirtioSpec::console(&to.parse().unwrap())
}

fn socket(dir: &Path) -> VirtioSpec {
    spec(&format!("unix:{}", dir.join("socket").display()))
}

/// A running console on a socket, and who is at the other end of it.
fn started() -> (TempDir, Driver, UnixStream) {
    let dir = tempfile::tempdir().unwrap();
    let driver = Driver::start(&socket(dir.path()), 0);
    let client = connect(dir.path());
    (dir, driver, client)
}

fn connect(dir: &Path) -> UnixStream {
    let client = UnixStream::connect(dir.join("socket")).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    client
}

fn read(client: &mut UnixStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    client.read_exact(&mut bytes).unwrap();
    bytes
}

#[test]
fn what_the_guest_prints_is_read_at_the_far_end() {
    let (_dir, mut driver, mut client) = started();
    assert_eq!(driver.read(8), 3);
    driver.put(TRANSMIT, &[Part::Says(b"login"), Part::Says(b": ")]);
    driver.kick(TRANSMIT);
    assert_eq!(driver.take(TRANSMIT), (0, 0));
    assert_eq!(read(&mut client, 7), b"login: ");
    let page = vec![b'x'; 100_000];
    driver.put(TRANSMIT, &[Part::Says(&page)]);
    driver.kick(TRANSMIT);
    assert_eq!(read(&mut client, 100_000), page);
}

#[test]
fn what_is_typed_goes_into_the_drivers_buffers_in_its_order_and_is_marked() {
    let (_dir, mut driver, mut client) = started();
    let places: Vec<_> = (0..3).map(|_| driver.put(RECEIVE, &[Part::Takes(4)])[0]).collect();
    driver.kick(RECEIVE);
    driver.settle();
    driver.marked();
    client.write_all(b"root\nx").unwrap();
    let mut got = Vec::new();
    for place in &places {
        if got.len() < 6 {
            let len = driver.take(RECEIVE).1;
            got.extend(driver.bytes(*place, len));
        }
    }
    assert_eq!(got, b"root\nx");
    assert!(driver.marked().contains(&(places[0] / 4096)));
    driver.wait("interrupt", |driver| driver.read(0x60) & 1 == 1);
}

#[test]
fn what_is_typed_ahead_waits_for_the_driver() {
    let dir = tempfile::tempdir().unwrap();
    let mut driver = Driver::start(&socket(dir.path()), 0);
    let mut client = connect(dir.path());
    // More than the device keeps: the rest waits at the far end.
    let typed: Vec<u8> = (0..3 * INBOX).map(|at| at as u8).collect();
    client.write_all(&typed).unwrap();
    driver.settle();
    assert_eq!(driver.used(RECEIVE), 0);
    let mut got = Vec::new();
    while got.len() < typed.len() {
        let place = driver.put(RECEIVE, &[Part::Takes(1000)])[0];
        driver.kick(RECEIVE);
        let len = driver.take(RECEIVE).1;
        assert!((1..=1000).contains(&len));
        got.extend(driver.bytes(place, len));
    }
    assert!(got == typed);
}

#[test]
fn a_stopped_console_prints_nothing_and_takes_nothing_until_the_guest_is_elsewhere() {
    let (_dir, mut driver, mut client) = started();
    client.write_all(b"before").unwrap();
    driver.wait("typed text", |driver| {
        let section = driver.device.save().unwrap();
        ConsoleState::from_section(&section).unwrap().typed == b"before"
    });
    driver.device.quiesce().unwrap();
    driver.marked();
    let place = driver.put(RECEIVE, &[Part::Takes(100)])[0];
    driver.kick(RECEIVE);
    driver.put(TRANSMIT, &[Part::Says(b"hello")]);
    driver.kick(TRANSMIT);
    client.write_all(b"after").unwrap();
    driver.settle();
    assert_eq!((driver.used(RECEIVE), driver.used(TRANSMIT)), (0, 0));
    assert!(driver.marked().is_empty());

    let dir = tempfile::tempdir().unwrap();
    let mut there = driver.move_to(&socket(dir.path()));
    let mut other = connect(dir.path());
    there.device.resume();
    assert_eq!(read(&mut other, 5), b"hello");
    assert_eq!(there.take(RECEIVE), (0, 6));
    assert_eq!(there.bytes(place, 6), b"before", "what came after the stop is not the guest's");
    let place = there.put(RECEIVE, &[Part::Takes(100)])[0];
    there.kick(RECEIVE);
    other.write_all(b"more").unwrap();
    assert_eq!(there.take(RECEIVE), (1, 4));
    assert_eq!(there.bytes(place, 4), b"more");
    there.settle();
    assert_eq!((there.used(RECEIVE), there.used(TRANSMIT)), (2, 1));
}

#[test]
fn a_guest_in_trouble_prints_without_a_driver() {
    let dir = tempfile::tempdir().unwrap();
    let driver = Driver::cold(&socket(dir.path()));
    let mut client = connect(dir.path());
    for character in b"oops" {
        driver.write(0x100 + EMERGENCY as u64, (*character).into());
    }
    driver.device.write(0x100 + EMERGENCY as u64, b"!");
    driver.write(0x100, b'x'.into());
    assert_eq!(read(&mut client, 5), b"oops!");
    assert_ne!(driver.offered() & 1 << EMERGENCY_WRITE, 0);
}

#[test]
fn requests_that_no_console_serves_are_refused() {
    let cases = [
        ("nothing to write to", RECEIVE, (BUFFERS, 16, 0, 0)),
        ("more than is ever printed", TRANSMIT, (0, MOST_PRINTED as u32 + 1, 0, 0)),
        ("memory that is not there", TRANSMIT, (u64::MAX - 8, 16, 0, 0)),
    ];
    for (what, queue, descriptor) in cases {
        let mut driver = Driver::start(&spec("null"), 0);
        driver.descriptor(queue as u64, 0, descriptor);
        driver.offer(queue, 0);
        driver.kick(queue);
        driver.wait(what, |driver| driver.read(STATUS) & NEEDS_RESET != 0);
        assert_eq!(driver.used(queue), 0, "{what}");
    }
}

#[test]
fn a_console_that_cannot_be_opened_is_refused_by_name() {
    for (to, wanted) in [("file:/no/such/folder/log", "no/such/folder"), ("tty", "'tty'")] {
        let mut spec = spec("null");
        spec.params.insert(VirtioSpec::CONSOLE_PARAM.to_owned(), to.to_owned());
        let error = VirtioConsole::open(&spec).err().unwrap();
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        let text = format!("{error}: {}", cause.unwrap_or_default());
        assert!(text.contains("console console0") && text.contains(wanted), "{text}");
    }
}

#[test]
fn every_version_ever_released_still_loads() {
    let ring = RingState {
        size: 64,
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
        driver_features: 1 << 32 | 1 << EMERGENCY_WRITE,
        rings: vec![ring; 2],
        ..TransportState::default()
    };
    let golden = ConsoleState { transport, typed: b"ls -l\n".to_vec() };
    let bytes = include_bytes!("../../../tests/golden/virtio-console-1.section");
    assert_eq!(golden.to_section(0).unwrap().encode().unwrap(), bytes);
    let driver = Driver::restored(&spec("null"), Section::decode(bytes).unwrap()).unwrap();
    let again = driver.device.save().unwrap();
    assert_eq!(ConsoleState::from_section(&again).unwrap(), golden);
    let more = ConsoleState { typed: vec![0; INBOX + 1], ..golden };
    let refused = Driver::restored(&spec("null"), more.to_section(0).unwrap());
    assert!(refused.is_err(), "more than a console keeps");
}
