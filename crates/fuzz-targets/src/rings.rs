//! The virtio devices, with a driver and a memory that are hostile.

use std::fs::File;
use std::process::Command;
use std::sync::mpsc::channel;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use migpipe_units::{Gfn, PAGE_SIZE, Pages, RegionId};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::memfd::{MFdFlags, memfd_create};
use page_bitmap::TrackedMemory;
use vm_devices::{
    ConsoleSpec, Device, GuestRam, OpenedDevice, VirtioDevice, VirtioError, VirtioSpec,
};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vm_state::{MemoryRegion, Section, SectionSet};
use vmm_sys_util::eventfd::EventFd;

use crate::memory::within;

/// Two regions with a hole between them.
const REGIONS: [MemoryRegion; 2] = [
    MemoryRegion { id: RegionId(0), base: Gfn(0), pages: Pages(24) },
    MemoryRegion { id: RegionId(1), base: Gfn(32), pages: Pages(8) },
];

/// Where the driver of the set-up has its rings, and how far those of one queue are from the next.
const RINGS: u64 = 0x1000;
const QUEUE_ROOM: u64 = 0x1000;
const AVAILABLE: u64 = 0x400;
const USED: u64 = 0x800;
const QUEUE_SIZE: u32 = 16;

/// A driver that makes a request by completing the one before keeps its device busy for ever. A
/// pause ends that, here as in a guest.
const BUSY_TIMEOUT: Duration = Duration::from_millis(20);

/// How often the device is let loose in one run.
const MOST_TURNS: usize = 4;

/// A disk reads and writes 1 MiB at a time, a network card has a frame of 64 KiB; chains hold at
/// most as many descriptors as their table has.
const HELD: usize = 4 << 20;

struct Bench {
    spec: VirtioSpec,
    /// Where its tap is.
    network: Option<File>,
    device: Option<VirtioDevice>,
    /// As a vCPU reaches it: nothing that is written here is marked.
    memory: GuestMemoryMmap,
    /// The same memory as the device reaches it.
    tracked: TrackedMemory,
}

/// What is behind the devices.
struct Benches {
    all: Vec<Bench>,
    _image: tempfile::NamedTempFile,
}

/// The first byte chooses the device, the second whether its driver has set it up. Then steps: each
/// a byte that says what is done, and its operands.
pub fn rings(bytes: &[u8]) {
    static BENCHES: OnceLock<Mutex<Benches>> = OnceLock::new();
    let benches = BENCHES.get_or_init(|| Mutex::new(benches()));
    let mut benches = benches.lock().unwrap_or_else(PoisonError::into_inner);
    let [choice, set_up, steps @ ..] = bytes else { return };
    let count = benches.all.len();
    let bench = &mut benches.all[usize::from(*choice) % count];
    within(HELD + 8 * bytes.len(), || {
        bench.begin(*set_up);
        bench.follow(Steps(steps));
    });
}

/// Operands, little-endian.
struct Steps<'a>(&'a [u8]);

impl<'a> Steps<'a> {
    fn number(&mut self, bytes: usize) -> Option<u64> {
        let (number, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(number.iter().rev().fold(0, |all, &byte| all << 8 | u64::from(byte)))
    }

    fn bytes(&mut self, length: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        bytes
    }
}

impl Bench {
    fn device(&self) -> &VirtioDevice {
        self.device.as_ref().expect("a device between two steps")
    }

    /// A device of the same kind over the same memory, beside which there must be no other.
    fn open(&self) -> Result<OpenedDevice, VirtioError> {
        let open = || {
            let ram = GuestRam::new(self.tracked.clone());
            let line = EventFd::new(0o4000).expect("an eventfd");
            OpenedDevice::open(&self.spec, 0, ram, line)
        };
        let Some(network) = &self.network else { return open() };
        thread::scope(|scope| {
            let opens = scope.spawn(|| {
                setns(network, CloneFlags::CLONE_NEWNET).expect("the network of its tap");
                open()
            });
            opens.join().expect("the thread that opens the tap")
        })
    }

    fn write(&self, register: u64, value: u32) {
        self.device().write(register, &value.to_le_bytes());
    }

    /// The device as after power-on, stopped; with `set_up` odd, with a driver that has accepted
    /// everything, or all but event indices.
    fn begin(&self, set_up: u8) {
        self.device().quiesce().expect("a device that does nothing can be stopped");
        self.write(0x70, 0);
        for region in REGIONS {
            let zeros = vec![0; region.pages.bytes().0 as usize];
            self.put(region.base.address(), &zeros);
        }
        if set_up & 1 == 0 {
            return;
        }
        self.write(0x70, 3);
        for half in 0..2 {
            self.write(0x14, half);
            let mut offered = [0; 4];
            self.device().read(0x10, &mut offered);
            let without = if half == 0 && set_up & 2 != 0 { 1 << 29 } else { 0 };
            self.write(0x24, half);
            self.write(0x20, u32::from_le_bytes(offered) & !without);
        }
        self.write(0x70, 3 | 8);
        for queue in 0..self.device().kicks().len() as u64 {
            let rings = RINGS + queue * QUEUE_ROOM;
            self.write(0x30, queue as u32);
            self.write(0x38, QUEUE_SIZE);
            for (register, at) in [(0x80, 0), (0x90, AVAILABLE), (0xa0, USED)] {
                self.write(register, (rings + at) as u32);
                self.write(register + 4, 0);
            }
            self.write(0x44, 1);
        }
        self.write(0x70, 3 | 8 | 4);
    }

    fn put(&self, address: u64, bytes: &[u8]) {
        let _ = self.memory.write_slice(bytes, GuestAddress(address));
    }

    fn follow(&mut self, mut steps: Steps<'_>) {
        let mut turns = 0;
        while turns < MOST_TURNS && self.step(&mut steps, &mut turns).is_some() {}
        self.turn();
    }

    fn step(&mut self, steps: &mut Steps<'_>, turns: &mut usize) -> Option<()> {
        match steps.number(1)? % 8 {
            0 | 1 => {
                let (address, length) = (steps.number(3)?, steps.number(1)?);
                self.put(address, steps.bytes(length as usize));
            }
            // A descriptor: queue, index, address, length, flags, next.
            2 => {
                let (queue, index) = (steps.number(1)? % 3, steps.number(1)?);
                let (address, length) = (steps.number(3)?, steps.number(3)?);
                let (flags, next) = (steps.number(1)?, steps.number(1)?);
                let descriptor = u128::from(address)
                    | u128::from(length) << 64
                    | u128::from(flags) << 96
                    | u128::from(next) << 112;
                let at = RINGS + queue * QUEUE_ROOM + index * 16;
                self.put(at, &descriptor.to_le_bytes());
            }
            // The available ring: queue, place, head, index.
            3 => {
                let (queue, place) = (steps.number(1)? % 3, steps.number(1)?);
                let (head, index) = (steps.number(1)? as u16, steps.number(2)? as u16);
                let ring = RINGS + queue * QUEUE_ROOM + AVAILABLE;
                self.put(ring + 4 + place * 2, &head.to_le_bytes());
                self.put(ring + 2, &index.to_le_bytes());
            }
            4 => {
                let (register, value) = (steps.number(2)?, steps.number(4)?);
                self.write(register, value as u32);
            }
            5 => {
                let (register, length) = (steps.number(2)?, steps.number(1)? % 9);
                self.device().read(register, &mut vec![0; length as usize]);
            }
            6 => {
                *turns += 1;
                self.turn();
            }
            _ => {
                let length = steps.number(1)? as usize;
                self.restore(steps.bytes(length));
            }
        }
        Some(())
    }

    /// Lets the device run until it has nothing to do, and checks that every page that it changed is
    /// in the log.
    fn turn(&self) {
        let before = self.contents();
        self.marked();
        self.device().resume();
        let (done, end) = channel::<()>();
        thread::scope(|scope| {
            scope.spawn(move || {
                // It ends early when the other end goes.
                let _ = end.recv_timeout(BUSY_TIMEOUT);
                self.device().quiesce().expect("a device can be stopped between two requests");
            });
            self.device().serve();
            drop(done);
        });
        let marked = self.marked();
        for (page, (old, new)) in before.chunks(4096).zip(self.contents().chunks(4096)).enumerate()
        {
            assert!(old == new || marked[page], "page {page} was written and is not in the log");
        }
    }

    /// The state of another device of its kind arrives; if none can be in it, the device stays as it
    /// is.
    fn restore(&mut self, payload: &[u8]) {
        let saved = self.device().save().expect("a stopped device can be saved");
        self.device = None;
        let arriving = Section { payload: payload.to_vec(), ..saved.clone() };
        let open = || self.open().expect("what could be opened before");
        let restored = open().restore(&mut only(arriving));
        let saved = match restored {
            Ok(device) => device.save().expect("a device that was restored can be saved"),
            Err(_) => saved,
        };
        let again = open().restore(&mut only(saved));
        let device = again.expect("a device takes what it saved");
        device.acquire().expect("the image of the device before");
        self.device = Some(device);
    }

    /// All pages, region after region.
    fn contents(&self) -> Vec<u8> {
        let mut all = Vec::new();
        for region in REGIONS {
            let mut bytes = vec![0; region.pages.bytes().0 as usize];
            let base = GuestAddress(region.base.address());
            self.memory.read_slice(&mut bytes, base).expect("memory of the guest");
            all.extend(bytes);
        }
        all
    }

    /// Which pages were marked since the last call, in the order of [`Self::contents`].
    fn marked(&self) -> Vec<bool> {
        let mut marked = Vec::new();
        for region in self.tracked.iter() {
            let map = region.get_mmap();
            marked.extend((0..map.bitmap().pages().0).map(|page| map.bitmap().contains(page)));
            map.bitmap().clear();
        }
        marked
    }
}

fn only(section: Section) -> SectionSet {
    SectionSet::new([section]).expect("one section")
}

fn benches() -> Benches {
    let image = tempfile::NamedTempFile::new().expect("a file");
    image.as_file().set_len(128 << 10).expect("a disk that takes a hole");
    let disk = VirtioSpec::disk(&image.path().display().to_string(), 0).expect("a disk");
    let console = VirtioSpec::console(&ConsoleSpec::Null);
    let mut all: Vec<_> =
        [disk, VirtioSpec::rng(), console, VirtioSpec::balloon()].iter().map(bench).collect();
    // Its tap is in a network of its own, that goes when the program does.
    let card = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).map_err(|error| error.to_string())?;
        let ip = Command::new("ip").args(["tuntap", "add", "fuzz0", "mode", "tap"]).status();
        ip.map_err(|error| format!("ip: {error}"))?;
        let network = File::open("/proc/thread-self/ns/net").map_err(|error| error.to_string())?;
        let card = VirtioSpec::net("tap=fuzz0,mac=52:54:00:12:34:56", 0).expect("a network card");
        powered_on(&card, Some(network)).map_err(|error| error.to_string())
    });
    match card.join().expect("the thread that opens the tap") {
        Ok(card) => all.push(card),
        #[allow(clippy::print_stdout, reason = "whoever fuzzes is to know what is left out")]
        Err(error) => println!("SKIPPED the network card in target rings: {error}"),
    }
    Benches { all, _image: image }
}

fn bench(spec: &VirtioSpec) -> Bench {
    powered_on(spec, None).expect("a device that needs nothing")
}

fn powered_on(spec: &VirtioSpec, network: Option<File>) -> Result<Bench, VirtioError> {
    // In files, as vmrun's: a balloon makes holes in them.
    let ranges = REGIONS.map(|region| {
        let bytes = region.pages.0 * PAGE_SIZE;
        let file = memfd_create("guest-memory", MFdFlags::MFD_CLOEXEC).expect("a memory file");
        let file = File::from(file);
        file.set_len(bytes).expect("a file of that size");
        let base = GuestAddress(region.base.address());
        (base, bytes as usize, Some(FileOffset::new(file, 0)))
    });
    let memory = GuestMemoryMmap::from_ranges_with_files(&ranges).expect("memory");
    let tracked = TrackedMemory::from_ranges_with_files(&ranges).expect("memory");
    let mut bench = Bench { spec: spec.clone(), network, device: None, memory, tracked };
    let device = bench.open()?.power_on();
    device.acquire()?;
    bench.device = Some(device);
    Ok(bench)
}
