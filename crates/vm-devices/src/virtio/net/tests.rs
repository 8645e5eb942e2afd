use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::thread;

use nix::sched::{CloneFlags, unshare};

use super::*;
use crate::Device;
use crate::virtio::RingState;
use crate::virtio::driver::{Driver, NEEDS_RESET, Part, STATUS};

const MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];

fn spec() -> VirtioSpec {
    VirtioSpec::net("tap=test,mac=52:54:00:01:02:03", 0).unwrap()
}

/// A card whose wire ends in the test.
fn card() -> (Box<dyn Backend>, UnixDatagram) {
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    theirs.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    (Box::new(Net::over(File::from(OwnedFd::from(ours)), MAC, 0)), theirs)
}

fn started(without: u64) -> (Driver, UnixDatagram) {
    let (card, wire) = card();
    let mut driver = Driver::over(card, &spec());
    driver.device.resume();
    driver.set_up(without);
    (driver, wire)
}

fn frame(len: usize) -> Vec<u8> {
    (0..HEADER + len).map(|at| if at < HEADER { 0 } else { at as u8 }).collect()
}

#[test]
fn a_frame_is_received_into_as_many_buffers_as_it_needs_and_is_marked() {
    let (mut driver, wire) = started(0);
    let places: Vec<_> = (0..3).map(|_| driver.put(0, &[Part::Takes(1000)])[0]).collect();
    driver.kick(0);
    driver.settle();
    driver.marked();
    wire.send(&frame(1500)).unwrap();
    assert_eq!(driver.take(0), (0, 1000));
    assert_eq!(driver.take(0), (1, 512));
    let marked = driver.marked();
    assert!(marked.contains(&(places[0] / 4096)) && marked.contains(&(places[1] / 4096)));
    let got = [driver.bytes(places[0], 1000), driver.bytes(places[1], 512)].concat();
    assert_eq!(got[NUM_BUFFERS], [2, 0]);
    assert_eq!(got[HEADER..], frame(1500)[HEADER..]);
    driver.wait("interrupt", |driver| driver.read(0x60) & 1 == 1);
}

#[test]
fn a_frame_that_no_buffers_hold_is_dropped_and_the_next_one_is_received() {
    let (mut driver, wire) = started(1 << VIRTIO_NET_F_MRG_RXBUF);
    driver.put(0, &[Part::Takes(200)]);
    driver.kick(0);
    wire.send(&frame(1500)).unwrap();
    wire.send(&frame(100)).unwrap();
    assert_eq!(driver.take(0), (0, (HEADER + 100) as u32));
    wire.send(&frame(50)).unwrap();
    driver.settle();
    assert_eq!(driver.used(0), 1, "no buffer, no frame");
    driver.put(0, &[Part::Takes(200)]);
    driver.kick(0);
    assert_eq!(driver.take(0), (1, (HEADER + 50) as u32), "it waited on the wire");
}

#[test]
fn a_frame_is_sent_with_its_header() {
    let (mut driver, wire) = started(0);
    let frame = frame(300);
    driver.put(1, &[Part::Says(&frame[..HEADER]), Part::Says(&frame[HEADER..])]);
    driver.kick(1);
    let mut got = [0; 2000];
    let len = wire.recv(&mut got).unwrap();
    assert_eq!(got[..len], frame);
    assert_eq!(driver.take(1), (0, 0));
    driver.put(1, &[Part::Says(&[0; HEADER - 1])]);
    driver.kick(1);
    driver.wait("refusal", |driver| driver.read(STATUS) & NEEDS_RESET != 0);
}

#[test]
fn a_stopped_card_takes_no_frame_and_sends_none_until_the_guest_is_elsewhere() {
    let (mut driver, wire) = started(0);
    let place = driver.put(0, &[Part::Takes(500)])[0];
    driver.kick(0);
    driver.settle();
    driver.device.quiesce().unwrap();
    driver.marked();
    wire.send(&frame(10)).unwrap();
    driver.put(1, &[Part::Says(&frame(20))]);
    driver.kick(1);
    driver.settle();
    assert_eq!((driver.used(0), driver.used(1)), (0, 0));
    assert!(driver.marked().is_empty());

    let (card, other_wire) = card();
    let mut there = driver.move_over(card, &spec());
    there.device.resume();
    let mut got = [0; 100];
    assert_eq!(other_wire.recv(&mut got).unwrap(), HEADER + 20);
    assert_eq!(there.take(1), (1 - 1, 0));
    other_wire.send(&frame(30)).unwrap();
    assert_eq!(there.take(0), (0, (HEADER + 30) as u32));
    assert_eq!(there.bytes(place, (HEADER + 30) as u32)[HEADER..], frame(30)[HEADER..]);
    there.settle();
    assert_eq!((there.used(0), there.used(1)), (1, 1));
}

#[test]
fn an_arrival_is_announced_five_times_and_by_the_driver_too() {
    let (mut driver, wire) = started(0);
    assert_eq!(driver.config::<8>(0)[..6], MAC);
    assert_eq!(driver.config::<8>(0)[6..], [1, 0]);
    let generation = driver.read(0xfc);
    driver.device.announce();
    assert_eq!(driver.config::<8>(0)[6..], [3, 0], "the driver is asked");
    assert_ne!(driver.read(0xfc), generation);
    assert_eq!(driver.read(0x60) & 2, 2);
    let mut got = [0; 100];
    for _ in ANNOUNCE_GAPS {
        assert_eq!(wire.recv(&mut got).unwrap(), HEADER + 60);
        assert_eq!(got[HEADER + 6..HEADER + 12], MAC);
        assert_eq!(got[HEADER + 12..HEADER + 14], [0x80, 0x35]);
    }
    let answer = driver.put(2, &[Part::Says(&[3, 0]), Part::Takes(1)])[1];
    driver.kick(2);
    driver.take(2);
    assert_eq!(driver.bytes(answer, 1), [0]);
    assert_eq!(driver.config::<8>(0)[6..], [1, 0]);
    let answer = driver.put(2, &[Part::Says(&[0, 0, 1]), Part::Takes(1)])[1];
    driver.kick(2);
    driver.take(2);
    assert_eq!(driver.bytes(answer, 1), [1], "what was not offered is an error");
}

#[test]
fn addresses_are_read_as_they_are_written_and_groups_are_none() {
    assert_eq!(parse_mac(&format_mac(MAC)), Some(MAC));
    for text in ["", "52:54:00:01:02", "52:54:00:01:02:03:04", "53:54:00:01:02:03", "52:54:0:1:2:3"]
    {
        assert_eq!(parse_mac(text), None, "{text}");
    }
}

#[test]
fn every_version_ever_released_still_loads() {
    let ring = RingState {
        size: 16,
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
        driver_features: 1 << 32 | 1 << VIRTIO_NET_F_MAC,
        config_generation: 7,
        rings: vec![ring; 3],
        ..TransportState::default()
    };
    let golden = NetState { transport, announce: true };
    let bytes = include_bytes!("../../../tests/golden/virtio-net-1.section");
    assert_eq!(golden.to_section(0).unwrap().encode().unwrap(), bytes);
    let section = Section::decode(bytes).unwrap();
    let driver = Driver::restored_over(card().0, &spec(), section).unwrap();
    assert_eq!(NetState::from_section(&driver.device.save().unwrap()).unwrap(), golden);
}

/// Does this in a network of its own that has one tap, or says why it cannot.
fn beside_a_tap(name: &str, test: impl FnOnce() + Send) {
    let in_network = || -> Result<(), String> {
        unshare(CloneFlags::CLONE_NEWNET).map_err(|error| format!("no network: {error}"))?;
        let mut ip = Command::new("ip");
        let made = ip.args(["tuntap", "add", name, "mode", "tap"]).output();
        let made = made.map_err(|error| format!("ip: {error}"))?;
        if !made.status.success() {
            return Err(String::from_utf8_lossy(&made.stderr).into_owned());
        }
        test();
        Ok(())
    };
    thread::scope(|scope| {
        if let Err(why) = scope.spawn(in_network).join().unwrap() {
            eprintln!("SKIPPED: this host gives no tap: {}", why.trim());
        }
    });
}

#[test]
fn a_tap_gives_checksums_and_large_segments_and_one_that_is_taken_is_refused_by_name() {
    let net = |name: &str| VirtioSpec::net(&format!("tap={name}"), 0).unwrap();
    beside_a_tap("migpipetest0", || {
        let spec = net("migpipetest0");
        let mut params = spec.params.clone();
        let card = Net::open(&spec, &mut params).unwrap();
        assert!(params["mac"].starts_with("52:54:00:"));
        for feature in [VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4] {
            assert_ne!(card.features() & 1 << feature, 0, "{feature}");
        }
        let error = Net::open(&spec, &mut params).err().unwrap().to_string();
        assert!(error.contains("migpipetest0"), "{error}");
        assert!(Net::open(&net(&"x".repeat(16)), &mut params).is_err(), "a name too long");
    });
}

#[test]
fn a_tap_that_is_not_there_is_refused_and_not_made() {
    beside_a_tap("migpipetest0", || {
        for _ in 0..2 {
            let spec = VirtioSpec::net("tap=migpipetest1", 0).unwrap();
            let error = Net::open(&spec, &mut spec.params.clone()).err().unwrap();
            assert!(error.to_string().contains("ip tuntap add migpipetest1"), "{error}");
            let VirtioError::Tap { source, .. } = error else { panic!("{error}") };
            assert_eq!(source.kind(), io::ErrorKind::NotFound);
        }
    });
}
