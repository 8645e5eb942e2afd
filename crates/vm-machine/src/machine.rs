//! The machine: one guest with everything it consists of.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use tracing::warn;
use units::{Bytes, Pages, RegionId};
use vm_devices::{ConsoleSpec, Device, DiskFile, Serial, VirtioSpec};
use vm_memory::GuestMemoryMmap;
use vm_state::{MachineDescription, Section, SectionSet};

use kvm_ioctls::{VcpuFd, VmFd};

use crate::arch::{MachineState, restore_machine, save_machine, tell_paused};
use crate::boot::Kernel;
use crate::build;
use crate::dirty::DirtyLog;
use crate::error::MachineError;
use crate::events::{Events, MachineEvent};
use crate::memory::Memory;
use crate::moment::Moment;
use crate::places::Places;
use crate::vcpu::Vcpus;
use crate::virtio::VirtioDevices;

/// A machine that begins here.
#[derive(Clone, Debug)]
pub struct MachineConfig {
    /// The name of the guest.
    pub name: String,
    /// What it boots.
    pub kernel: Kernel,
    /// The kernel command line; the built-in guest gets it behind its own.
    pub cmdline: String,
    /// Its memory: whole pages.
    pub mem: Bytes,
    /// How many vCPUs it has.
    pub cpus: u32,
    /// Where its serial console goes.
    pub console: ConsoleSpec,
    /// Whether its memory comes from hugetlbfs.
    pub hugetlb: bool,
    /// Its virtio devices, in the order in which it finds them.
    pub devices: Vec<VirtioSpec>,
}

/// A parameter of a device that is another on this host, such as the path of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceParam {
    /// The kind of the device, as the description has it.
    pub kind: String,
    /// Its id.
    pub id: String,
    /// The parameter.
    pub name: String,
    /// Its value here.
    pub value: String,
}

/// How much of its memory a guest with a balloon has for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Balloon {
    /// What it was asked to do with.
    pub target: Bytes,
    /// What it does with now, by its own word.
    pub actual: Bytes,
}

/// What a destination says otherwise than the description of a guest that arrives.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// The name that it has here.
    pub name: Option<String>,
    /// Where its console goes here.
    pub console: Option<ConsoleSpec>,
    /// What else is another here.
    pub device_params: Vec<DeviceParam>,
    /// Where the files may be that it has then.
    pub places: Places,
}

/// How far a machine is from being able to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    /// It waits for its state.
    Empty,
    /// It has its state.
    Whole,
    /// Its state was not loaded completely.
    Broken,
}

/// One guest: memory, vCPUs, chips, devices. It can be held in an `Arc<Mutex<Machine>>`; no method
/// waits for the guest longer than it takes its vCPUs to leave guest mode.
///
/// The order of the fields is the order in which they are dropped: the vCPUs stop first, the memory
/// goes last.
pub struct Machine {
    pub(crate) vcpus: Vcpus,
    pub(crate) serial: Arc<Serial>,
    pub(crate) virtio: VirtioDevices,
    pub(crate) dirty: DirtyLog,
    pub(crate) vm: VmFd,
    pub(crate) memory: Memory,
    pub(crate) description: MachineDescription,
    pub(crate) events: Arc<Events>,
    pub(crate) life: Life,
    pub(crate) resumed_at: Option<Moment>,
}

impl Machine {
    /// Builds a machine and boots it; it is paused at the first instruction, and its disk images
    /// are locked.
    ///
    /// # Errors
    /// [`MachineError`] names what is missing.
    pub fn boot(config: &MachineConfig) -> Result<Self, MachineError> {
        build::boot(config)
    }

    /// Builds the machine of a guest that arrives. It is paused, its memory is zeros, and it cannot
    /// run before [`Self::load`]. The check of the host comes first of all.
    ///
    /// # Errors
    /// [`MachineError`] names what this host or program lacks.
    pub fn incoming(
        description: &MachineDescription,
        overrides: &Overrides,
    ) -> Result<Self, MachineError> {
        build::incoming(description, overrides)
    }

    /// The name of the guest.
    pub fn name(&self) -> &str {
        &self.description.name
    }

    /// What a destination must know to build the same machine.
    pub fn describe(&self) -> MachineDescription {
        self.description.clone()
    }

    /// The memfd of each region in address order: the region from offset 0, sealed against growing
    /// and shrinking.
    pub fn memory_fds(&self) -> Vec<(RegionId, BorrowedFd<'_>)> {
        self.memory.files().collect()
    }

    /// As [`Self::memory_fds`], open for reading alone: for one who takes the guest's pages away.
    pub fn memory_readers(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.memory.readers()
    }

    /// The guest's memory as it is mapped in this process.
    pub const fn memory(&self) -> &GuestMemoryMmap {
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
        match self.life {
            Life::Whole => {}
            Life::Empty => return Err(MachineError::NotLoaded(self.description.name.clone())),
            Life::Broken => return Err(MachineError::Broken(self.description.name.clone())),
        }
        if self.events.ended().is_some() {
            return Err(MachineError::Ended(self.description.name.clone()));
        }
        if self.vcpus.is_running() {
            return Ok(());
        }
        self.acquire_disks()?;
        self.dirty.before_resume(&self.vm)?;
        if self.resumed_at.is_some() {
            // It was paused here: its kernel must not take the gap for a lock-up of its own.
            for vcpu in self.vcpus.stopped() {
                tell_paused(&vcpu).map_err(MachineError::Build)?;
            }
        }
        Ok(())
    }

    /// Starts the devices and the vCPUs of a machine that is ready. Does nothing if it runs.
    pub fn start(&mut self) {
        if self.vcpus.is_running() {
            return;
        }
        self.serial.resume();
        self.virtio.resume();
        self.resumed_at = Some(Moment::now());
        self.vcpus.resume();
    }

    /// Stops the guest: when this returns no vCPU is in guest mode or in the middle of an
    /// instruction, and no device touches memory. Returns the moment at which the last vCPU left
    /// guest mode. Does nothing to a paused guest but return the same moment.
    ///
    /// # Errors
    /// [`MachineError::Device`] if a device cannot be stopped; the guest runs on then.
    pub fn pause(&mut self) -> Result<Moment, MachineError> {
        let was_running = self.vcpus.is_running();
        let last_instruction = self.vcpus.pause();
        if let Err(error) = self.serial.quiesce().and_then(|()| self.virtio.quiesce()) {
            if was_running {
                self.serial.resume();
                self.virtio.resume();
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
    /// [`MachineError::Virtio`] names an image that another guest runs on.
    pub fn acquire_disks(&self) -> Result<(), MachineError> {
        Ok(self.virtio.acquire()?)
    }

    /// Gives the locks of the disk images to whoever runs the guest from now on. The guest must be
    /// paused, and must not run again before [`Self::acquire_disks`].
    ///
    /// # Errors
    /// [`MachineError::NotPaused`] if it runs.
    pub fn release_disks(&self) -> Result<(), MachineError> {
        self.must_be_paused()?;
        self.virtio.release();
        Ok(())
    }

    /// The disk images that the guest writes. They can be flushed while it runs, and by a thread
    /// that does not have the machine: that takes as long as the storage does.
    pub fn disks(&self) -> Vec<Arc<DiskFile>> {
        self.virtio.disks()
    }

    /// Whether the vCPUs may run.
    pub fn is_running(&self) -> bool {
        self.vcpus.is_running()
    }

    /// When the guest was last resumed, if ever.
    pub const fn resumed_at(&self) -> Option<Moment> {
        self.resumed_at
    }

    /// When the first vCPU entered guest mode after the last resume; nothing if none has yet.
    pub fn first_instruction_after(&self) -> Option<Moment> {
        self.vcpus.first_entry()
    }

    /// Takes so many percent of their time from the vCPUs, 99 at most; 0 is none.
    pub fn throttle(&self, percent: u8) {
        self.vcpus.throttle(percent);
    }

    /// How much of its memory the guest has for itself; nothing if it has no balloon.
    pub fn balloon(&self) -> Option<Balloon> {
        let size = self.virtio.balloon()?;
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
        if self.virtio.ask_balloon(Pages(given)) {
            return Ok(());
        }
        Err(MachineError::NoBalloon(self.description.name.clone()))
    }

    /// A receiver of how the guest ends by itself; one that has ended already is told at once.
    pub fn events(&self) -> Receiver<MachineEvent> {
        self.events.listen()
    }

    /// How many words a dirty bitmap of this guest has: the regions in address order, each from a
    /// fresh word on, the first page in the lowest bit.
    pub fn dirty_log_words(&self) -> usize {
        self.dirty.words()
    }

    /// Begins an empty dirty log.
    ///
    /// # Errors
    /// [`MachineError::DirtyLog`] if it is on already or KVM refuses.
    pub fn dirty_log_start(&mut self) -> Result<(), MachineError> {
        Ok(self.dirty.start(&self.vm)?)
    }

    /// Writes into `bitmap` which pages the guest and its devices have written since the last
    /// harvest, and returns how many. Each dirty bit is handed out once.
    ///
    /// # Errors
    /// [`MachineError::DirtyLog`] if the log is off, `bitmap` has not [`Self::dirty_log_words`]
    /// words, or KVM refuses.
    pub fn dirty_log_harvest(&mut self, bitmap: &mut [u64]) -> Result<Pages, MachineError> {
        let paused = !self.vcpus.is_running();
        Ok(self.dirty.harvest(&self.vm, bitmap, paused)?)
    }

    /// Puts harvested bits back, so that the next harvest hands them out again.
    ///
    /// # Errors
    /// [`MachineError::DirtyLog`] if the log is off or the length is wrong.
    pub fn dirty_log_put_back(&self, bitmap: &[u64]) -> Result<(), MachineError> {
        Ok(self.dirty.put_back(bitmap)?)
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
        match self.life {
            Life::Whole => {}
            Life::Empty => return Err(MachineError::NotLoaded(self.description.name.clone())),
            Life::Broken => return Err(MachineError::Broken(self.description.name.clone())),
        }
        if self.events.ended().is_some() {
            return Err(MachineError::Ended(self.description.name.clone()));
        }
        let stopped = self.vcpus.stopped();
        let vcpus: Vec<&VcpuFd> = stopped.iter().map(|vcpu| &**vcpu).collect();
        let state = save_machine(&self.vm, &vcpus, &self.description.cpu)?;
        let mut sections = state.to_sections()?;
        sections.push(self.serial.save()?);
        sections.extend(self.virtio.save()?);
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
        match self.life {
            Life::Empty => {}
            Life::Whole => return Err(MachineError::Loaded(self.description.name.clone())),
            Life::Broken => return Err(MachineError::Broken(self.description.name.clone())),
        }
        self.life = Life::Broken;
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
        self.serial.load(&mut sections)?;
        self.virtio.load(&mut sections)?;
        sections.finish()?;
        let stopped = self.vcpus.stopped();
        let vcpus: Vec<&VcpuFd> = stopped.iter().map(|vcpu| &**vcpu).collect();
        restore_machine(&self.vm, &vcpus, &state)?;
        self.life = Life::Whole;
        Ok(())
    }

    /// Tells the world outside that the guest is here now; for a destination after its resume.
    pub fn announce(&self) {
        self.serial.announce();
        self.virtio.announce();
    }

    /// Stops all threads and gives everything back, as dropping does.
    pub fn quit(self) {}

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
