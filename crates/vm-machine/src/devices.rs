//! All devices of a machine: before they have a state, and when they have one.

use std::sync::Arc;

use kvm_ioctls::VmFd;
use migpipe_units::Pages;
use vm_devices::{
    BalloonSize, Console, ConsoleSpec, Device, DeviceError, DiskFile, MmioWindow, SERIAL_IRQ,
    Serial, VirtioError, VirtioSpec,
};
use vm_state::{DeviceDescription, LoadError, SaveError, Section, SectionSet};
use vmm_sys_util::eventfd::EventFd;

use crate::arch::IoctlError;
use crate::error::MachineError;
use crate::memory::Memory;
use crate::virtio::{OpenedVirtio, VirtioDevices};

/// Devices that were opened and joined to a VM. There is nothing of them that could be resumed.
pub(crate) struct OpenedDevices {
    serial_interrupt: EventFd,
    console: Arc<Console>,
    virtio: OpenedVirtio,
}

impl OpenedDevices {
    pub(crate) fn open(
        console: &ConsoleSpec,
        specs: &[VirtioSpec],
        vm: &VmFd,
        memory: &Memory,
    ) -> Result<Self, MachineError> {
        let console = Arc::new(Console::open(console)?);
        let serial_interrupt = named(
            "eventfd",
            EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
                .map_err(|error| kvm_ioctls::Error::new(error.raw_os_error().unwrap_or(0))),
        )?;
        named("KVM_IRQFD", vm.register_irqfd(&serial_interrupt, SERIAL_IRQ))?;
        let virtio = OpenedVirtio::open(specs, vm, memory)?;
        Ok(Self { serial_interrupt, console, virtio })
    }

    /// In the order of the machine description.
    pub(crate) fn describe(&self) -> Vec<DeviceDescription> {
        let serial = Serial::description(&self.console);
        std::iter::once(serial).chain(self.virtio.describe()).collect()
    }

    /// Where the virtio devices are, for the guest's tables.
    pub(crate) fn windows(&self) -> Vec<MmioWindow> {
        self.virtio.windows()
    }

    /// The stopped devices in their state after power-on.
    pub(crate) fn power_on(self) -> Devices {
        let serial = Serial::new(self.serial_interrupt, self.console);
        Devices { serial, virtio: self.virtio.power_on() }
    }

    /// The stopped devices in the state that their sections say. The guest's memory is complete.
    pub(crate) fn restore(self, sections: &mut SectionSet) -> Result<Devices, LoadError> {
        let serial = Serial::restore(self.serial_interrupt, self.console, sections)?;
        Ok(Devices { serial, virtio: self.virtio.restore(sections)? })
    }
}

fn named<T>(call: &'static str, result: Result<T, kvm_ioctls::Error>) -> Result<T, MachineError> {
    result.map_err(|source| MachineError::Build(IoctlError { call, source }))
}

/// The devices of a machine that can run.
#[derive(Clone)]
pub(crate) struct Devices {
    pub(crate) serial: Arc<Serial>,
    pub(crate) virtio: VirtioDevices,
}

impl Devices {
    /// Stops all of them; if one cannot be stopped, the caller resumes all.
    pub(crate) fn quiesce(&self) -> Result<(), DeviceError> {
        self.serial.quiesce().and_then(|()| self.virtio.quiesce())
    }

    pub(crate) fn resume(&self) {
        self.serial.resume();
        self.virtio.resume();
    }

    /// In the order of the machine description.
    pub(crate) fn save(&self) -> Result<Vec<Section>, SaveError> {
        let mut sections = vec![self.serial.save()?];
        sections.extend(self.virtio.save()?);
        Ok(sections)
    }

    pub(crate) fn announce(&self) {
        self.serial.announce();
        self.virtio.announce();
    }

    /// Takes what only the one who may run the guest holds; all of it or nothing.
    pub(crate) fn acquire(&self) -> Result<(), VirtioError> {
        self.virtio.acquire()
    }

    pub(crate) fn release(&self) {
        self.virtio.release();
    }

    /// The images that the guest writes.
    pub(crate) fn disks(&self) -> Vec<Arc<DiskFile>> {
        self.virtio.disks()
    }

    pub(crate) fn balloon(&self) -> Option<BalloonSize> {
        self.virtio.balloon()
    }

    /// Asks the guest for so many pages; false if it has no balloon to put them into.
    pub(crate) fn ask_balloon(&self, pages: Pages) -> bool {
        self.virtio.ask_balloon(pages)
    }
}
