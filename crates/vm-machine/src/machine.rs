//! The machine: one guest with everything it consists of.

use std::os::fd::BorrowedFd;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use migpipe_units::{Bytes, Pages, RegionId};
use page_bitmap::{GuestBitmap, TrackedMemory};
use tracing::warn;
use vm_devices::DiskFile;
use vm_state::{Balloon, MachineDescription, MemoryBacking, Section, SectionSet};

use kvm_ioctls::{VcpuFd, VmFd};

use crate::arch::{MachineState, restore_machine, save_machine, tell_paused};
use crate::devices::{Devices, OpenedDevices};
use crate::dirty::DirtyLog;
use crate::error::MachineError;
use crate::events::{Events, MachineEvent};
use crate::memory::Memory;
use crate::monotonic_time::MonotonicTime;
use crate::vcpu::Vcpus;

/// Whether a machine has its state. Without it there are no devices that could run.
pub(crate) enum LoadState {
    /// It waits for it.
    AwaitingState(OpenedDevices),
    /// It was booted, or its state was loaded.
    Loaded(Devices),
    /// Its state was not loaded completely.
    Failed,
}

/// One guest: memory, vCPUs, chips, devices. It can be held in an `Arc<Mutex<Machine>>`; no method
/// waits for the guest longer than it takes its vCPUs to leave guest mode.
///
/// The order of the fields is the order in which they are dropped: the vCPUs stop first, the memory
/// goes last.
pub struct Machine {
    pub(crate) vcpus: Vcpus,
    pub(crate) state: LoadState,
    /// The devices of a machine that can run, as its vCPUs reach them.
    pub(crate) bus: Arc<OnceLock<Devices>>,
    pub(crate) dirty: DirtyLog,
    pub(crate) vm: VmFd,
    pub(crate) memory: Memory,
    pub(crate) description: MachineDescription,
    pub(crate) events: Arc<Events>,
    pub(crate) resumed_at: Option<MonotonicTime>,
}

impl Machine {
    /// The name of the guest.
    pub fn name(&self) -> &str {
        &self.description.name
    }

    /// What a destination must know to build the same machine.
    pub fn describe(&self) -> MachineDescription {
        self.description.clone()
    }

    /// Gives back all that others may wait for, which are its files, taps and memory, and returns
    /// what is left: KVM takes some 15 ms to close that, in which it waits for grace periods of RCU.
    pub fn release(self) -> impl Send {
        self.vm
    }

    /// What its memory is made of on this host.
    pub const fn memory_backing(&self) -> MemoryBacking {
        self.memory.backing()
    }

    /// The file of each region in address order, which holds it from offset 0.
    pub fn memory_fds(&self) -> Vec<(RegionId, BorrowedFd<'_>)> {
        self.memory.files().collect()
    }

    /// As [`Self::memory_fds`], open for reading alone: for one who takes the guest's pages away.
    pub fn memory_readers(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.memory.readers()
    }

    /// The guest's memory as it is mapped in this process: what is written through it is in the
    /// dirty log.
    pub const fn memory(&self) -> &TrackedMemory {
        self.memory.mapped()
    }

    /// Lets the guest run. Does nothing if it runs.
    ///
    /// # Errors
    /// As [`Self::make_ready`].
    pub fn resume(&mut self) -> Result<(), MachineError> {
        self.make_ready()?;
        self.start();
        Ok(())
    }

    /// Does all of a resume that can fail; nothing of the guest runs yet. Does nothing if it runs.
    ///
    /// # Errors
    /// [`MachineError`] if it has no state yet, has ended, or cannot run.
    pub fn make_ready(&mut self) -> Result<(), MachineError> {
        let devices = self.devices()?;
        if self.events.ended().is_some() {
            return Err(MachineError::Ended(self.description.name.clone()));
        }
        if self.vcpus.is_running() {
            return Ok(());
        }
        devices.acquire()?;
        self.dirty.before_resume(&self.vm)?;
        if self.resumed_at.is_some() {
            // It was paused here: its kernel must not take the gap for a lock-up of its own.
            for vcpu in self.vcpus.stopped() {
                tell_paused(&vcpu).map_err(MachineError::Build)?;
            }
        }
        Ok(())
    }

    /// Starts the devices and the vCPUs of a machine that is ready. Does nothing if it runs, or has
    /// no state.
    pub fn start(&mut self) {
        let LoadState::Loaded(devices) = &self.state else { return };
        if self.vcpus.is_running() {
            return;
        }
        devices.resume();
        self.resumed_at = Some(MonotonicTime::now());
        self.vcpus.resume();
    }

    /// Stops the guest: when this returns no vCPU is in guest mode or in the middle of an
    /// instruction, and no device touches memory. Returns the moment at which the last vCPU left
    /// guest mode. Does nothing to a paused guest but return the same moment.
    ///
    /// # Errors
    /// [`MachineError::Device`] if a device cannot be stopped; the guest runs on then.
    pub fn pause(&mut self) -> Result<MonotonicTime, MachineError> {
        let was_running = self.vcpus.is_running();
        let last_instruction = self.vcpus.pause();
        if let LoadState::Loaded(devices) = &self.state
            && let Err(error) = devices.quiesce()
        {
            if was_running {
                devices.resume();
                self.vcpus.resume();
            }
            return Err(error.into());
        }
        Ok(last_instruction)
    }

    /// Takes the locks of the disk images, which only the one who may run the guest holds;
    /// [`Self::resume`] does it too. Does nothing if they are held.
    ///
    /// # Errors
    /// [`MachineError::Virtio`] names an image that another guest runs on; a machine without a
    /// state takes none.
    pub fn acquire_disks(&self) -> Result<(), MachineError> {
        Ok(self.devices()?.acquire()?)
    }

    /// Gives the locks of the disk images to whoever runs the guest from now on. The guest must be
    /// paused, and must not run again before [`Self::acquire_disks`].
    ///
    /// # Errors
    /// [`MachineError::NotPaused`] if it runs.
    pub fn release_disks(&self) -> Result<(), MachineError> {
        self.must_be_paused()?;
        if let LoadState::Loaded(devices) = &self.state {
            devices.release();
        }
        Ok(())
    }

    /// The disk images that the guest writes. They can be flushed while it runs, and by a thread
    /// that does not have the machine: that takes as long as the storage does.
    pub fn disks(&self) -> Vec<Arc<DiskFile>> {
        self.devices().map(Devices::disks).unwrap_or_default()
    }

    /// Whether the vCPUs may run.
    pub fn is_running(&self) -> bool {
        self.vcpus.is_running()
    }

    /// When the guest was last resumed, if ever.
    pub const fn resumed_at(&self) -> Option<MonotonicTime> {
        self.resumed_at
    }

    /// When the first vCPU entered guest mode after the last resume; nothing if none has yet.
    pub fn first_instruction_after(&self) -> Option<MonotonicTime> {
        self.vcpus.first_entry()
    }

    /// Takes so many percent of their time from the vCPUs, 99 at most; 0 is none.
    pub fn throttle(&self, percent: u8) {
        self.vcpus.throttle(percent);
    }

    /// How much of its memory the guest has for itself; nothing if it has no balloon, or has not
    /// arrived.
    pub fn balloon(&self) -> Option<Balloon> {
        let size = self.devices().ok()?.balloon()?;
        let all = self.description.pages().bytes();
        let without = |pages: Pages| Bytes(all.0.saturating_sub(pages.bytes().0));
        Some(Balloon { target: without(size.asked), actual: without(size.given) })
    }

    /// Asks the guest to do with so much of its memory, or with more of it again. It does when it
    /// can, and takes back what it cannot live without. A guest that is saved while it is asked may
    /// move without having heard of it.
    ///
    /// # Errors
    /// [`MachineError`] if it has no balloon, or not so much memory.
    pub fn set_balloon(&self, target: Bytes) -> Result<(), MachineError> {
        let has = self.description.pages().bytes();
        if target > has || target.0 == 0 {
            let name = self.description.name.clone();
            return Err(MachineError::BalloonTarget { name, asked: target, has });
        }
        let given = has.pages().0 - target.pages().0;
        if self.devices()?.ask_balloon(Pages(given)) {
            return Ok(());
        }
        Err(MachineError::NoBalloon(self.description.name.clone()))
    }

    /// A receiver of how the guest ends by itself; one that has ended already is told at once.
    pub fn events(&self) -> Receiver<MachineEvent> {
        self.events.listen()
    }

    /// Begins an empty dirty log.
    ///
    /// # Errors
    /// [`MachineError::DirtyLog`] if it is on already or KVM refuses.
    pub fn dirty_log_start(&mut self) -> Result<(), MachineError> {
        Ok(self.dirty.start(&self.vm)?)
    }

    /// Adds to `bitmap` which pages the guest and its devices have written since the last harvest,
    /// and returns how many. Each dirty bit is handed out once; who wants it again leaves it there.
    ///
    /// # Errors
    /// [`MachineError::DirtyLog`] if the log is off, `bitmap` is not of this guest's regions, or KVM
    /// refuses.
    pub fn dirty_log_harvest(&mut self, bitmap: &GuestBitmap) -> Result<Pages, MachineError> {
        let paused = !self.vcpus.is_running();
        Ok(self.dirty.harvest(&self.vm, bitmap, paused)?)
    }

    /// Ends the dirty log. Does nothing if it is off. Not for the blackout: with much memory it
    /// takes a while.
    ///
    /// # Errors
    /// [`MachineError::DirtyLog`] if KVM refuses.
    pub fn dirty_log_stop(&mut self) -> Result<(), MachineError> {
        Ok(self.dirty.stop(&self.vm)?)
    }

    /// The state of the paused guest without its memory.
    ///
    /// The order: clock, vCPUs and interrupt chips as [`save_machine`] has them, then the devices
    /// in the order of the description, which are quiet since [`Self::pause`]. The caller harvests
    /// the last dirty log after this: KVM may write guest memory while it is asked for state.
    ///
    /// # Errors
    /// [`MachineError`] if the guest runs, has ended or has no state, or a part cannot be saved.
    pub fn save(&self) -> Result<Vec<Section>, MachineError> {
        self.must_be_paused()?;
        let devices = self.devices()?;
        if self.events.ended().is_some() {
            return Err(MachineError::Ended(self.description.name.clone()));
        }
        let stopped = self.vcpus.stopped();
        let vcpus: Vec<&VcpuFd> = stopped.iter().map(|vcpu| &**vcpu).collect();
        let state = save_machine(&self.vm, &vcpus, &self.description.cpu)?;
        let mut sections = state.to_sections()?;
        sections.extend(devices.save()?);
        Ok(sections)
    }

    /// Gives a machine that waits for it its state. Its memory must be complete: KVM reads it.
    ///
    /// The order: everything is decoded and checked; then the devices, whose interrupts may be
    /// raised by it and are overwritten by what the chips held; then clock, vCPUs and chips as
    /// [`restore_machine`] has them, among them KVM_SET_CLOCK, which must come before any vCPU
    /// runs.
    ///
    /// # Errors
    /// [`MachineError`] with the section's name; the machine can never run then.
    pub fn load(&mut self, sections: Vec<Section>) -> Result<(), MachineError> {
        self.load_after(sections, None)
    }

    /// The same of a guest whose pause this host has measured: its clocks go on by that where the
    /// hosts' clocks tell what cannot be. Nothing is known so of a guest from a file.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_after(
        &mut self,
        sections: Vec<Section>,
        paused_for: Option<Duration>,
    ) -> Result<(), MachineError> {
        // Whatever fails from here on leaves a machine that never runs.
        let devices = match std::mem::replace(&mut self.state, LoadState::Failed) {
            LoadState::AwaitingState(devices) => devices,
            LoadState::Loaded(devices) => {
                self.state = LoadState::Loaded(devices);
                return Err(MachineError::Loaded(self.description.name.clone()));
            }
            LoadState::Failed => return Err(MachineError::Broken(self.description.name.clone())),
        };
        let mut sections = SectionSet::new(sections)?;
        let mut state = MachineState::from_sections(&mut sections, self.description.vcpus)?;
        if let Some(measured) = paused_for
            && let Some(disagreement) = state.clock.bound(measured)
        {
            let apart = Duration::from_nanos(disagreement.at_least_ns).as_secs_f64();
            let which = match disagreement.ahead {
                true => "ahead of that of the source, or the stream was kept for so long",
                false => "behind that of the source",
            };
            warn!(
                "this host's clock is at least {apart:.1} s {which}: the clocks of {} go on by the \
                 pause that was measured, {} ms; set the hosts' clocks by NTP",
                self.description.name,
                measured.as_millis(),
            );
        }
        let devices = devices.restore(&mut sections)?;
        sections.finish()?;
        let stopped = self.vcpus.stopped();
        let vcpus: Vec<&VcpuFd> = stopped.iter().map(|vcpu| &**vcpu).collect();
        restore_machine(&self.vm, &vcpus, &state)?;
        self.bus.get_or_init(|| devices.clone());
        self.state = LoadState::Loaded(devices);
        Ok(())
    }

    /// Tells the world outside that the guest is here now; for a destination after its resume.
    pub fn announce(&self) {
        if let LoadState::Loaded(devices) = &self.state {
            devices.announce();
        }
    }

    /// Stops all threads and gives everything back, as dropping does.
    pub fn quit(self) {}

    /// The devices of a machine that can run.
    pub(crate) fn devices(&self) -> Result<&Devices, MachineError> {
        match &self.state {
            LoadState::Loaded(devices) => Ok(devices),
            LoadState::AwaitingState(_) => {
                Err(MachineError::NotLoaded(self.description.name.clone()))
            }
            LoadState::Failed => Err(MachineError::Broken(self.description.name.clone())),
        }
    }

    fn must_be_paused(&self) -> Result<(), MachineError> {
        if self.vcpus.is_running() {
            return Err(MachineError::NotPaused(self.description.name.clone()));
        }
        Ok(())
    }
}

/// A control server hands the machine from thread to thread.
const _: () = {
    const fn is_send<T: Send>() {}
    is_send::<Machine>();
};
