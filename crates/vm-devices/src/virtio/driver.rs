//! A driver for tests: it does to a device what a guest's driver does, through registers and rings
//! in memory.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use migpipe_confine::{Mode, ViolationAction};
use migpipe_units::Pages;
use nix::sys::memfd::{MFdFlags, memfd_create};
use page_bitmap::TrackedMemory;
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
};
use vm_state::{LoadError, Section, SectionSet};
use vmm_sys_util::eventfd::EventFd;

use super::backend::Backend;
use super::device::VirtioDevice;
use super::opened::OpenedDevice;
use super::ram::GuestRam;
use super::registry::{self, HostSide};
use super::spec::VirtioSpec;
use crate::Device;

pub(super) const PAGES: u64 = 512;
/// Where queue 0 has its rings; the others follow.
pub(super) const RINGS: u64 = 0x1_0000;
const QUEUE_ROOM: u64 = 0x4000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
/// Where buffers begin.
pub(super) const BUFFERS: u64 = 0x4_0000;
const HANG_TIMEOUT: Duration = Duration::from_secs(600);

pub(super) const NEXT: u16 = 1;
pub(super) const WRITE: u16 = 2;
pub(super) const INDIRECT: u16 = 4;

pub(super) const STATUS: u64 = 0x70;
const READY_STATUS: u32 = 1 | 2 | 4 | 8;
pub(super) const NEEDS_RESET: u32 = 64;

/// One buffer of a request.
pub(super) enum Part<'a> {
    /// For the device to read.
    Says(&'a [u8]),
    /// For the device to write.
    Takes(u32),
}

#[derive(Clone, Default)]
pub(super) struct Progress {
    descriptor: u16,
    available: u16,
    used: u16,
}

pub(super) struct Driver {
    pub(super) device: VirtioDevice,
    /// As a vCPU reaches it: nothing that is written here is marked.
    pub(super) memory: GuestMemoryMmap,
    /// The same memory as the device reaches it.
    tracked: TrackedMemory,
    pub(super) line: EventFd,
    pub(super) size: u16,
    features: u64,
    queues: Vec<Progress>,
    next_buffer: u64,
}

/// A device that was opened, in a machine of its own.
struct Machine {
    device: OpenedDevice,
    memory: GuestMemoryMmap,
    tracked: TrackedMemory,
    line: EventFd,
}

impl Machine {
    fn open(spec: &VirtioSpec) -> Self {
        let mut params = spec.params.clone();
        let backend = registry::open(spec, &mut params).unwrap();
        let opened = VirtioSpec { params, ..spec.clone() };
        Self::with(backend, &opened)
    }

    fn over(backend: Box<dyn Backend>, spec: &VirtioSpec) -> Self {
        Self::with((backend, HostSide::None), spec)
    }

    fn with(backend: (Box<dyn Backend>, HostSide), spec: &VirtioSpec) -> Self {
        // A worker that calls what its filter does not have ends the tests.
        migpipe_confine::begin(Mode::Enforce, ViolationAction::Killed);
        let len = PAGES * 4096;
        let file = File::from(memfd_create(c"guest-memory", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(len).unwrap();
        let file = FileOffset::new(file, 0);
        let range = [(GuestAddress(0), len as usize, Some(file))];
        let memory = GuestMemoryMmap::from_ranges_with_files(&range).unwrap();
        let tracked = TrackedMemory::from_ranges_with_files(&range).unwrap();
        let ram = GuestRam::new(tracked.clone());
        let line = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let interrupt = line.try_clone().unwrap();
        let params = spec.params.clone();
        let device = OpenedDevice::with_backend(backend, spec, params, 0, ram, interrupt).unwrap();
        Self { device, memory, tracked, line }
    }

    fn power_on(self) -> Driver {
        let Self { device, memory, tracked, line } = self;
        Driver::of(device.power_on(), memory, tracked, line)
    }

    fn restore(self, section: Section) -> Result<Driver, LoadError> {
        let Self { device, memory, tracked, line } = self;
        let encoded = section.encode().unwrap();
        let mut sections = SectionSet::new([Section::decode(&encoded).unwrap()]).unwrap();
        let device = device.restore(&mut sections)?;
        sections.finish().unwrap();
        Ok(Driver::of(device, memory, tracked, line))
    }
}

impl Driver {
    /// A stopped device that no driver has touched.
    pub(super) fn cold(spec: &VirtioSpec) -> Self {
        Machine::open(spec).power_on()
    }

    /// The same over a backend that the test has made.
    pub(super) fn over(backend: Box<dyn Backend>, spec: &VirtioSpec) -> Self {
        Machine::over(backend, spec).power_on()
    }

    /// A stopped device in the state of `section`, with memory of zeros.
    pub(super) fn restored(spec: &VirtioSpec, section: Section) -> Result<Self, LoadError> {
        Machine::open(spec).restore(section)
    }

    /// The same over a backend that the test has made.
    pub(super) fn restored_over(
        backend: Box<dyn Backend>,
        spec: &VirtioSpec,
        section: Section,
    ) -> Result<Self, LoadError> {
        Machine::over(backend, spec).restore(section)
    }

    fn of(
        device: VirtioDevice,
        memory: GuestMemoryMmap,
        tracked: TrackedMemory,
        line: EventFd,
    ) -> Self {
        let queues = vec![Progress::default(); device.kicks().len()];
        let next_buffer = BUFFERS;
        Self { device, memory, tracked, line, size: 16, features: 0, queues, next_buffer }
    }

    /// A running device whose driver has accepted all that it offers but `without`.
    pub(super) fn start(spec: &VirtioSpec, without: u64) -> Self {
        let mut driver = Self::cold(spec);
        driver.device.resume();
        driver.set_up(without);
        driver
    }

    /// The same as [`Self::start`], by a driver that takes a device as it finds it.
    pub(super) fn set_up(&mut self, without: u64) {
        self.write(STATUS, 0);
        self.write(STATUS, 1 | 2);
        self.features = self.offered() & !without;
        for half in 0..2 {
            self.write(0x24, half);
            self.write(0x20, (self.features >> (32 * half)) as u32);
        }
        self.write(STATUS, 1 | 2 | 8);
        assert_eq!(self.read(STATUS), 1 | 2 | 8, "the device takes the features");
        for queue in 0..self.queues.len() as u64 {
            self.write(0x30, queue as u32);
            assert!(self.read(0x34) >= u32::from(self.size));
            self.write(0x38, self.size.into());
            let rings = RINGS + queue * QUEUE_ROOM;
            for (register, address) in
                [(0x80, rings), (0x90, rings + AVAILABLE), (0xa0, rings + USED)]
            {
                self.write(register, address as u32);
                self.write(register + 4, 0);
            }
            self.write(0x44, 1);
        }
        self.write(STATUS, READY_STATUS);
        self.queues.fill(Progress::default());
    }

    pub(super) fn offered(&self) -> u64 {
        (0..2).fold(0, |all, half| {
            self.write(0x14, half);
            all | u64::from(self.read(0x10)) << (32 * half)
        })
    }

    pub(super) fn read(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.device.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    pub(super) fn write(&self, offset: u64, value: u32) {
        self.device.write(offset, &value.to_le_bytes());
    }

    pub(super) fn config<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut data = [0; N];
        self.device.read(0x100 + offset, &mut data);
        data
    }

    pub(super) fn buffer(&mut self, len: u32) -> u64 {
        let address = self.next_buffer;
        self.next_buffer += u64::from(len).next_multiple_of(16);
        assert!(self.next_buffer <= PAGES * 4096, "the test needs more memory");
        address
    }

    pub(super) fn descriptor(
        &self,
        queue: u64,
        index: u16,
        (address, len, flags, next): (u64, u32, u16, u16),
    ) {
        let at = RINGS + queue * QUEUE_ROOM + u64::from(index) * 16;
        self.memory.write_obj(address, GuestAddress(at)).unwrap();
        self.memory.write_obj(len, GuestAddress(at + 8)).unwrap();
        self.memory.write_obj(flags, GuestAddress(at + 12)).unwrap();
        self.memory.write_obj(next, GuestAddress(at + 14)).unwrap();
    }

    /// Makes a request available without a word to the device; returns where each part of it is.
    pub(super) fn put(&mut self, queue: usize, parts: &[Part<'_>]) -> Vec<u64> {
        let mut places = Vec::new();
        let head = self.queues[queue].descriptor;
        for (number, part) in parts.iter().enumerate() {
            let (len, flag) = match part {
                Part::Says(bytes) => (bytes.len() as u32, 0),
                Part::Takes(len) => (*len, WRITE),
            };
            let address = self.buffer(len);
            if let Part::Says(bytes) = part {
                self.memory.write_slice(bytes, GuestAddress(address)).unwrap();
            }
            let index = self.queues[queue].descriptor;
            let next = (index + 1) % self.size;
            let more = if number + 1 < parts.len() { NEXT } else { 0 };
            self.descriptor(queue as u64, index, (address, len, flag | more, next));
            self.queues[queue].descriptor = next;
            places.push(address);
        }
        self.offer(queue, head);
        places
    }

    /// Makes a chain available that is in the table already.
    pub(super) fn offer(&mut self, queue: usize, head: u16) {
        let rings = RINGS + queue as u64 * QUEUE_ROOM + AVAILABLE;
        let available = self.queues[queue].available;
        let place = rings + 4 + u64::from(available % self.size) * 2;
        self.memory.write_obj(head, GuestAddress(place)).unwrap();
        self.queues[queue].available = available.wrapping_add(1);
        self.memory.write_obj(available.wrapping_add(1), GuestAddress(rings + 2)).unwrap();
    }

    pub(super) fn kick(&self, queue: usize) {
        self.write(0x50, queue as u32);
    }

    /// What the used ring counts.
    pub(super) fn used(&self, queue: usize) -> u16 {
        let used = RINGS + queue as u64 * QUEUE_ROOM + USED;
        self.memory.read_obj(GuestAddress(used + 2)).unwrap()
    }

    /// Waits for the next used element: head and length.
    pub(super) fn take(&mut self, queue: usize) -> (u32, u32) {
        let mine = self.queues[queue].used;
        self.wait("used element", |driver| driver.used(queue) != mine);
        let at = RINGS + queue as u64 * QUEUE_ROOM + USED + 4 + u64::from(mine % self.size) * 8;
        self.queues[queue].used = mine.wrapping_add(1);
        let word = |at| self.memory.read_obj(GuestAddress(at)).unwrap();
        (word(at), word(at + 4))
    }

    pub(super) fn wait(&self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let end = Instant::now() + HANG_TIMEOUT;
        while !done(self) {
            assert!(Instant::now() < end, "no {what} within {HANG_TIMEOUT:?}");
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// That the device has had the time to do something, and has not.
    pub(super) fn settle(&self) {
        std::thread::sleep(Duration::from_millis(20));
    }

    pub(super) fn bytes(&self, address: u64, len: u32) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    /// How many pages of memory the host has set apart.
    pub(super) fn resident(&self) -> u64 {
        let region = self.memory.iter().next().unwrap();
        region.file_offset().unwrap().file().metadata().unwrap().blocks() * 512 / 4096
    }

    /// Stops the device and hands its state and its memory to another; the destination is stopped.
    pub(super) fn move_to(&self, spec: &VirtioSpec) -> Self {
        self.hand_over(Machine::open(spec))
    }

    /// The same, to a backend that the test has made.
    pub(super) fn move_over(&self, backend: Box<dyn Backend>, spec: &VirtioSpec) -> Self {
        self.hand_over(Machine::over(backend, spec))
    }

    fn hand_over(&self, there: Machine) -> Self {
        self.device.quiesce().unwrap();
        let section = self.device.save().unwrap();
        let all = self.bytes(0, (PAGES * 4096) as u32);
        there.memory.write_slice(&all, GuestAddress(0)).unwrap();
        let mut there = there.restore(section).unwrap();
        there.size = self.size;
        there.features = self.features;
        there.queues.clone_from(&self.queues);
        there.next_buffer = self.next_buffer;
        there
    }

    /// The pages that the device has written since the last call.
    pub(super) fn marked(&self) -> Vec<u64> {
        let region = self.tracked.iter().next().unwrap().get_mmap();
        region.bitmap().take_runs(Pages(1)).map(|run| run.first).collect()
    }
}
