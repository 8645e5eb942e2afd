//! A virtio-mmio device: registers for the vCPUs, a worker for the rings, one lock for both.
//!
//! The registers that a driver uses while it runs (the interrupt's two, and QueueNotify) take no
//! lock. The lock is held for one request at a time, so that whoever has it while [`halt`] is set
//! knows that no request is under way. Requests that were made and not begun stay in their ring,
//! which is guest memory: they travel with it, and are served after `resume`, each of them once.
//!
//! [`halt`]: Shared::halt

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use migpipe_units::Pages;
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INTERRUPT_STATUS,
    VIRTIO_MMIO_QUEUE_NOTIFY,
};
use vm_state::{DeviceDescription, SaveError, Section};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::backend::Served;
use super::balloon::BalloonSize;
use super::block::DiskFile;
use super::chain::Malformed;
use super::error::VirtioError;
use super::interrupt::{Interrupt, Why};
use super::ram::GuestRam;
use super::registry::HostSide;
use super::transport::Transport;
use super::window::MmioWindow;
use crate::confinement;
use crate::device::{Device, DeviceError};

/// How long a request that has begun may take before a pause is given up: longer than a busy disk
/// takes, shorter than anybody waits for a blackout.
const QUIESCE_TIMEOUT: Duration = Duration::from_secs(5);
const QUIESCE_POLL_INTERVAL: Duration = Duration::from_micros(50);

/// One virtio device of a guest.
pub struct VirtioDevice {
    shared: Arc<Shared>,
    worker: Option<JoinHandle<()>>,
}

/// What a device has from the moment on at which it is opened, whatever its state will be.
pub(super) struct Parts {
    pub(super) name: String,
    pub(super) description: DeviceDescription,
    pub(super) slot: u32,
    pub(super) ram: GuestRam,
    pub(super) interrupt: Interrupt,
    /// One for each queue: the driver has made requests.
    pub(super) kicks: Vec<EventFd>,
    /// Something else for the worker to look at.
    pub(super) wake: EventFd,
    pub(super) source: Option<OwnedFd>,
    pub(super) host_side: HostSide,
}

struct Shared {
    parts: Parts,
    transport: Mutex<Transport>,
    /// vCPUs that wait for the lock; the worker lets them go first.
    waiting: AtomicUsize,
    /// No request is to be begun.
    halt: AtomicBool,
    /// The device was restored and has not run since.
    restored: AtomicBool,
    exit: AtomicBool,
}

/// The thread that will serve the rings of a device. It exists before the device has its state,
/// which comes while the guest stands still and waits for it.
pub(super) struct Worker {
    thread: JoinHandle<()>,
    device: Sender<Arc<Shared>>,
}

impl Worker {
    pub(super) fn spawn(name: String) -> io::Result<Self> {
        let (device, shared) = channel::<Arc<Shared>>();
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            migpipe_confine::thread(&confinement::WORKER);
            // Nothing comes if the device is given up before it has a state.
            let Ok(shared) = shared.recv() else { return };
            if let Err(error) = shared.work() {
                tracing::error!("{}: cannot wait for requests: {error}", shared.parts.name);
            }
        })?;
        Ok(Self { thread, device })
    }
}

impl VirtioDevice {
    /// A stopped device in the state of `transport`, which is that after power-on unless it was
    /// `restored`.
    pub(super) fn new(parts: Parts, transport: Transport, restored: bool, worker: Worker) -> Self {
        let shared = Arc::new(Shared {
            parts,
            transport: Mutex::new(transport),
            waiting: AtomicUsize::new(0),
            halt: AtomicBool::new(true),
            restored: AtomicBool::new(restored),
            exit: AtomicBool::new(false),
        });
        // The worker ends only after it was told to, or by a panic that `drop` reports.
        let _ = worker.device.send(Arc::clone(&shared));
        Self { shared, worker: Some(worker.thread) }
    }

    /// Where its registers are, and its interrupt.
    pub fn window(&self) -> MmioWindow {
        MmioWindow::of(self.shared.parts.slot)
    }

    /// One event for each queue, in their order.
    pub fn kicks(&self) -> &[EventFd] {
        &self.shared.parts.kicks
    }

    /// The guest reads at `offset` of the window.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(place) = offset.checked_sub(VIRTIO_MMIO_CONFIG.into()) {
            let config = self.shared.registers().backend.config();
            let there = config.iter().skip(place as usize);
            for (to, from) in data.iter_mut().zip(there) {
                *to = *from;
            }
            return;
        }
        // Registers are read in whole (VIRTIO 1.2, 4.2.2.2).
        let (Ok(offset), Ok(data)) = (u32::try_from(offset), <&mut [u8; 4]>::try_from(data)) else {
            return;
        };
        let value = match offset {
            VIRTIO_MMIO_INTERRUPT_STATUS => self.shared.parts.interrupt.status(),
            _ => self.shared.registers().read(offset),
        };
        *data = value.to_le_bytes();
    }

    /// The guest writes at `offset` of the window.
    pub fn write(&self, offset: u64, data: &[u8]) {
        if let Some(place) = offset.checked_sub(VIRTIO_MMIO_CONFIG.into()) {
            self.shared.registers().backend.write_config(place, data);
            return;
        }
        let (Ok(offset), Ok(data)) = (u32::try_from(offset), <[u8; 4]>::try_from(data)) else {
            return;
        };
        let value = u32::from_le_bytes(data);
        match offset {
            VIRTIO_MMIO_INTERRUPT_ACK => self.shared.parts.interrupt.acknowledge(value),
            VIRTIO_MMIO_QUEUE_NOTIFY => {
                if let Some(kick) = self.shared.parts.kicks.get(value as usize) {
                    signal(kick);
                }
            }
            _ => {
                let shared = &self.shared;
                shared.registers().write(offset, value, &shared.parts.ram, &shared.parts.interrupt);
                signal(&shared.parts.wake);
            }
        }
    }

    /// Serves, in this thread, what the driver has asked for, and returns when nothing of it is
    /// left that the device can do now. The worker does the same by itself; this is for who must
    /// know when it is done. A device that is stopped serves nothing.
    pub fn serve(&self) {
        self.shared.serve_all();
    }

    /// Takes for itself what only the one who may run the guest holds, such as the lock of a disk
    /// image. Does nothing if it has it. Without it the device must not be resumed.
    ///
    /// # Errors
    /// [`VirtioError`] names the device and what is held by somebody else.
    pub fn acquire(&self) -> Result<(), VirtioError> {
        self.shared.transport().backend.acquire()
    }

    /// Gives that back; the device must be stopped.
    pub fn release(&self) {
        self.shared.transport().backend.release();
    }

    /// The image that it writes, if it is a disk that is written.
    pub fn disk(&self) -> Option<&Arc<DiskFile>> {
        match &self.shared.parts.host_side {
            HostSide::Disk(disk) => Some(disk),
            _ => None,
        }
    }

    /// How large the balloon is; nothing if the device is none.
    pub fn balloon(&self) -> Option<BalloonSize> {
        match &self.shared.parts.host_side {
            HostSide::Balloon(config) => Some(config.size()),
            _ => None,
        }
    }

    /// Asks the driver for so many pages: it gives them now or later, or never. Returns whether
    /// the device is a balloon.
    pub fn ask_balloon(&self, pages: Pages) -> bool {
        let HostSide::Balloon(config) = &self.shared.parts.host_side else { return false };
        let mut transport = self.shared.registers();
        if config.ask(pages) {
            transport.config_changed(&self.shared.parts.interrupt);
        }
        true
    }
}

fn signal(event: &EventFd) {
    // Fails only when the counter is full, and then it is readable already.
    let _ = event.write(1);
}

impl Shared {
    fn transport(&self) -> MutexGuard<'_, Transport> {
        // A panic in one request leaves registers and rings as they are between two statements;
        // the driver at worst waits for ever for that one request.
        self.transport.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For a vCPU: the worker waits for it between two requests.
    fn registers(&self) -> MutexGuard<'_, Transport> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let transport = self.transport();
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        transport
    }

    /// What the worker does all its life.
    fn work(&self) -> io::Result<()> {
        let epoll = Epoll::new()?;
        let readable = || EpollEvent::new(EventSet::IN, 0);
        for event in self.events() {
            epoll.ctl(ControlOperation::Add, event.as_raw_fd(), readable())?;
        }
        let mut looks_at_source = false;
        while !self.exit.load(Ordering::SeqCst) {
            let wants_source = self.serve_all();
            if let Some(source) =
                self.parts.source.as_ref().filter(|_| wants_source != looks_at_source)
            {
                let operation = match wants_source {
                    true => ControlOperation::Add,
                    false => ControlOperation::Delete,
                };
                epoll.ctl(operation, source.as_raw_fd(), readable())?;
                looks_at_source = wants_source;
            }
            match epoll.wait(-1, &mut [EpollEvent::default()]) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            for event in self.events() {
                // Nonblocking: what is not readable stays as it is.
                let _ = event.read();
            }
        }
        Ok(())
    }

    fn events(&self) -> impl Iterator<Item = &EventFd> {
        self.parts.kicks.iter().chain([&self.parts.wake])
    }

    /// Serves all queues until there is nothing to do. Returns whether the source is to be looked
    /// at.
    fn serve_all(&self) -> bool {
        loop {
            while self.waiting.load(Ordering::SeqCst) > 0 {
                std::thread::yield_now();
            }
            let mut transport = self.transport();
            if self.halt.load(Ordering::SeqCst) || !transport.is_live() {
                return false;
            }
            match self.serve_each(&mut transport) {
                Ok(true) => {}
                Ok(false) => return transport.backend.wants_source(),
                Err(problem) => {
                    tracing::warn!("{}: its driver must reset it: {problem}", self.parts.name);
                    transport.fail(&self.parts.interrupt);
                    return false;
                }
            }
        }
    }

    /// Serves one request of each queue. Returns whether there may be more.
    fn serve_each(&self, transport: &mut Transport) -> Result<bool, Malformed> {
        let mut more = false;
        for number in 0..self.parts.kicks.len() {
            let (backend, ring) = transport.ring(number);
            match backend.serve(number, ring, &self.parts.ram)? {
                Served::Done => {
                    if ring.must_interrupt(&self.parts.ram) {
                        self.parts.interrupt.raise(Why::Ring);
                    }
                    more = true;
                }
                Served::Empty => more |= ring.want_kicks(&self.parts.ram),
                Served::Waiting => {}
            }
        }
        Ok(more)
    }

    /// The lock, with no request under way.
    fn stop(&self) -> Option<MutexGuard<'_, Transport>> {
        let deadline = Instant::now() + QUIESCE_TIMEOUT;
        loop {
            match self.transport.try_lock() {
                Ok(transport) => return Some(transport),
                Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) if Instant::now() > deadline => return None,
                Err(TryLockError::WouldBlock) => std::thread::sleep(QUIESCE_POLL_INTERVAL),
            }
        }
    }
}

impl Device for VirtioDevice {
    fn describe(&self) -> DeviceDescription {
        self.shared.parts.description.clone()
    }

    fn quiesce(&self) -> Result<(), DeviceError> {
        let was_halted = self.shared.halt.swap(true, Ordering::SeqCst);
        if let Some(mut transport) = self.shared.stop() {
            transport.backend.quiesce();
            return Ok(());
        }
        self.shared.halt.store(was_halted, Ordering::SeqCst);
        signal(&self.shared.parts.wake);
        Err(DeviceError::Busy { device: self.shared.parts.name.clone(), requests: 1 })
    }

    fn save(&self) -> Result<Section, SaveError> {
        let transport = self.shared.transport();
        let state = transport.save(&self.shared.parts.interrupt);
        transport.backend.save(self.shared.parts.slot, state)
    }

    fn resume(&self) {
        if !self.shared.halt.load(Ordering::SeqCst) {
            return;
        }
        // The worker begins nothing yet, so that the lock is free at once.
        self.shared.transport().backend.resume();
        self.shared.halt.store(false, Ordering::SeqCst);
        if self.shared.restored.swap(false, Ordering::SeqCst) {
            self.shared.parts.interrupt.raise_again();
        }
        signal(&self.shared.parts.wake);
    }

    fn announce(&self) {
        let mut transport = self.shared.transport();
        if transport.backend.announce() {
            transport.config_changed(&self.shared.parts.interrupt);
        }
    }
}

impl Drop for VirtioDevice {
    fn drop(&mut self) {
        self.shared.exit.store(true, Ordering::SeqCst);
        self.shared.halt.store(true, Ordering::SeqCst);
        signal(&self.shared.parts.wake);
        if let Some(worker) = self.worker.take()
            && worker.join().is_err()
        {
            tracing::error!("the worker of {} panicked", self.shared.parts.name);
        }
    }
}
