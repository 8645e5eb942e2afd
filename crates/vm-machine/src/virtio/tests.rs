//! A balloon on a machine of real KVM. The test is the driver: it reaches the registers as a vCPU
//! does, and the rings through the guest's memory, of which the guest itself uses the first MiB.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{Duration, Instant};

use migpipe_units::{Bytes as Size, PAGE_SIZE, Pages};
use page_bitmap::GuestBitmap;
use vm_cpu::Wanted;
use vm_devices::{ConsoleSpec, VirtioSpec};
use vm_memory::{Bytes, GuestAddress};
use vm_state::Balloon;

use crate::{Host, IncomingConfig, Kernel, Machine, MachineConfig, MachineError, MemorySource};

const MEMORY: u64 = 32 << 20;
/// Where the rings of queue 0 are; each further queue has its own 64 KiB behind.
const RINGS: u64 = 8 << 20;
const ROOM: u64 = 0x1_0000;
/// What the guest has, and gives away.
const FIRST: u64 = (16 << 20) / PAGE_SIZE;
const GIVEN: u64 = 2048;

const INFLATE: u64 = 0;
const REPORT: u64 = 2;
const WRITE: u16 = 2;

fn has_kvm(test: &str) -> bool {
    let kvm = File::options().read(true).write(true).open("/dev/kvm");
    if let Err(error) = &kvm {
        eprintln!("SKIPPED {test}: /dev/kvm cannot be opened: {error}");
    }
    kvm.is_ok()
}

fn config(devices: Vec<VirtioSpec>) -> MachineConfig {
    MachineConfig {
        name: "test".to_owned(),
        kernel: Kernel::Builtin("builtin:idle".parse().unwrap()),
        cmdline: String::new(),
        mem: Size(MEMORY),
        cpus: 1,
        cpu: Wanted::default(),
        console: ConsoleSpec::Null,
        memory: MemorySource::default(),
        devices,
    }
}

fn incoming(machine: &Machine) -> Machine {
    let (described, here) = (machine.describe(), IncomingConfig::default());
    Machine::incoming(&described, &here, &Host::probe().unwrap()).unwrap()
}

fn register(machine: &Machine, offset: u64, value: u32) {
    let virtio = &machine.devices().unwrap().virtio;
    let base = virtio.windows()[0].base;
    virtio.write(base + offset, &value.to_le_bytes());
}

fn put<const N: usize>(machine: &Machine, address: u64, bytes: [u8; N]) {
    machine.memory().write_slice(&bytes, GuestAddress(address)).unwrap();
}

/// Brings the device up with all that it offers.
fn set_up(machine: &Machine) {
    for (offset, value) in [(0x70, 1 | 2), (0x24, 0), (0x20, 1 << 2 | 1 << 5), (0x24, 1)] {
        register(machine, offset, value);
    }
    register(machine, 0x20, 1);
    register(machine, 0x70, 1 | 2 | 8);
    for queue in 0..3 {
        let rings = (RINGS + queue * ROOM) as u32;
        for (offset, value) in [(0x30, queue as u32), (0x38, 16), (0x80, rings), (0x84, 0)] {
            register(machine, offset, value);
        }
        for (offset, value) in [(0x90, rings + 0x1000), (0xa0, rings + 0x2000), (0x44, 1)] {
            register(machine, offset, value);
        }
    }
    register(machine, 0x70, 1 | 2 | 4 | 8);
}

/// Makes the first request of a queue, of one buffer, and waits until it is served.
fn request(machine: &Machine, queue: u64, address: u64, len: u32, flags: u16) {
    let rings = RINGS + queue * ROOM;
    put(machine, rings, address.to_le_bytes());
    put(machine, rings + 8, len.to_le_bytes());
    put(machine, rings + 12, flags.to_le_bytes());
    put(machine, rings + 0x1004, 0_u16.to_le_bytes());
    put(machine, rings + 0x1002, 1_u16.to_le_bytes());
    register(machine, 0x50, queue as u32);
    let end = Instant::now() + Duration::from_secs(10);
    while machine.memory().read_obj::<u16>(GuestAddress(rings + 0x2002)).unwrap() == 0 {
        assert!(Instant::now() < end, "queue {queue} is not served");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn file(machine: &Machine) -> File {
    let (_, fd) = machine.memory_fds()[0];
    File::from(fd.try_clone_to_owned().unwrap())
}

/// Sends these pages as a migration does: through the files.
fn copy(from: &Machine, to: &Machine, pages: impl Iterator<Item = u64>) {
    let (from, to) = (file(from), file(to));
    let mut page = [0; PAGE_SIZE as usize];
    for number in pages {
        from.read_exact_at(&mut page, number * PAGE_SIZE).unwrap();
        to.write_all_at(&page, number * PAGE_SIZE).unwrap();
    }
}

fn dirty(machine: &mut Machine) -> Vec<u64> {
    let bitmap = GuestBitmap::new(machine.describe().region_pages());
    machine.dirty_log_harvest(&bitmap).unwrap();
    bitmap[0].runs(Pages(1)).map(|run| run.first).collect()
}

fn everything(machine: &Machine) -> Vec<u8> {
    let mut bytes = vec![0; MEMORY as usize];
    file(machine).read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn pages_that_were_sent_and_then_given_back_are_holes_here_and_zeros_at_the_destination() {
    let test =
        "pages_that_were_sent_and_then_given_back_are_holes_here_and_zeros_at_the_destination";
    if !has_kvm(test) {
        return;
    }
    let mut source = Machine::boot(&config(vec![VirtioSpec::balloon()])).unwrap();
    let mut destination = incoming(&source);
    source.resume().unwrap();
    for page in FIRST..FIRST + GIVEN {
        put(&source, page * PAGE_SIZE, [page as u8 | 1; PAGE_SIZE as usize]);
    }
    set_up(&source);
    source.set_balloon(Size(MEMORY - GIVEN / 2 * PAGE_SIZE)).unwrap();

    source.dirty_log_start().unwrap();
    dirty(&mut source);
    copy(&source, &destination, 0..MEMORY / PAGE_SIZE);
    assert_ne!(everything(&destination)[(FIRST * PAGE_SIZE) as usize], 0);

    // One half is given on demand, the other because it is free.
    let list = RINGS - ROOM;
    for number in 0..GIVEN / 2 {
        put(&source, list + number * 4, ((FIRST + number) as u32).to_le_bytes());
    }
    let before = file(&source).metadata().unwrap().blocks();
    request(&source, INFLATE, list, (GIVEN / 2 * 4) as u32, 0);
    register(&source, 0x104, (GIVEN / 2) as u32);
    let rest = (FIRST + GIVEN / 2) * PAGE_SIZE;
    request(&source, REPORT, rest, (GIVEN / 2 * PAGE_SIZE) as u32, WRITE);
    let after = file(&source).metadata().unwrap().blocks();
    // The rings' own few pages came into being meanwhile.
    let gone = (before - after) * 512 / PAGE_SIZE;
    assert!((GIVEN - 16..=GIVEN).contains(&gone), "{gone} pages came back");

    let pages = dirty(&mut source);
    let given = pages.iter().filter(|page| (FIRST..FIRST + GIVEN).contains(page)).count();
    assert_eq!(given as u64, GIVEN, "all of them are in the dirty log");
    copy(&source, &destination, pages.into_iter());
    source.pause().unwrap();
    let sections = source.save().unwrap();
    let last = dirty(&mut source);
    copy(&source, &destination, last.into_iter());
    assert!(everything(&source) == everything(&destination), "the memories differ");
    let still = file(&source).metadata().unwrap().blocks();
    assert_eq!(still, after, "looking at it did not bring the memory back");

    destination.load(sections).unwrap();
    let half = Size(MEMORY - GIVEN / 2 * PAGE_SIZE);
    assert_eq!(destination.balloon(), Some(Balloon { target: half, actual: half }));
    destination.resume().unwrap();
    destination.set_balloon(Size(MEMORY)).unwrap();
    assert_eq!(destination.balloon(), Some(Balloon { target: Size(MEMORY), actual: half }));
}

#[test]
fn a_guest_is_left_with_no_more_than_it_has_and_not_with_nothing() {
    if !has_kvm("a_guest_is_left_with_no_more_than_it_has_and_not_with_nothing") {
        return;
    }
    let machine = Machine::boot(&config(vec![VirtioSpec::balloon()])).unwrap();
    for bad in [0, MEMORY + 1, u64::MAX] {
        let error = machine.set_balloon(Size(bad)).unwrap_err();
        assert!(matches!(error, MachineError::BalloonTarget { .. }), "{error}");
    }
    machine.set_balloon(Size(MEMORY / 2 + 1)).unwrap();
    let kept = Size(MEMORY / 2 + PAGE_SIZE);
    let sizes = Balloon { target: kept, actual: Size(MEMORY) };
    assert_eq!(machine.balloon(), Some(sizes), "it keeps no less than it was told");
    let without = Machine::boot(&config(Vec::new())).unwrap();
    assert_eq!(without.balloon(), None);
    assert!(matches!(without.set_balloon(Size(MEMORY)), Err(MachineError::NoBalloon(_))));
}

#[test]
fn devices_that_exclude_each_other_are_refused_before_there_is_a_machine() {
    if !has_kvm("devices_that_exclude_each_other_are_refused_before_there_is_a_machine") {
        return;
    }
    let huge =
        MachineConfig { memory: MemorySource::HugeTlb, ..config(vec![VirtioSpec::balloon()]) };
    assert!(matches!(Machine::boot(&huge), Err(MachineError::BalloonOnHugePages)));
    let twice = MachineConfig {
        console: ConsoleSpec::Stdio,
        ..config(vec![VirtioSpec::console(&ConsoleSpec::Stdio)])
    };
    assert!(matches!(Machine::boot(&twice), Err(MachineError::TwoOnStdio)));
    let two = config(vec![VirtioSpec::balloon(), VirtioSpec::balloon()]);
    assert!(matches!(Machine::boot(&two), Err(MachineError::SameDevice(_))));
}
