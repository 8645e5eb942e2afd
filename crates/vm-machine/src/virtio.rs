//! The virtio devices of a machine: at which addresses KVM leaves an access to them, how it wakes
//! them without one, and how they pull their interrupt lines.

use std::sync::Arc;

use kvm_ioctls::{IoEventAddress, VmFd};
use migpipe_units::Pages;
use vm_devices::{
    BalloonSize, Device, DeviceError, DiskFile, GuestRam, MmioWindow, OpenedDevice, VirtioDevice,
    VirtioError, VirtioSpec,
};
use vm_state::{DeviceDescription, DeviceParam, LoadError, SaveError, Section, SectionSet};
use vmm_sys_util::eventfd::EventFd;

use crate::arch::IoctlError;
use crate::error::MachineError;
use crate::memory::Memory;

/// The virtio devices of a machine before they have a state, in the order of their windows.
pub(crate) struct OpenedVirtio(Vec<OpenedDevice>);

impl OpenedVirtio {
    /// Opens the devices and joins them to `vm`. An irqfd pulls each one's line, an ioeventfd for
    /// each queue spares its driver's kicks an exit to us.
    pub(crate) fn open(
        specs: &[VirtioSpec],
        vm: &VmFd,
        memory: &Memory,
    ) -> Result<Self, MachineError> {
        let mut devices = Vec::new();
        for (slot, spec) in (0..).zip(specs) {
            let ram = GuestRam::new(memory.mapped().clone());
            let interrupt = event(spec)?;
            let line = event_of(spec, interrupt.try_clone())?;
            let device = OpenedDevice::open(spec, slot, ram, interrupt)?;
            named("KVM_IRQFD", vm.register_irqfd(&line, device.window().gsi))?;
            let address = IoEventAddress::Mmio(device.notify_address());
            for (queue, kick) in (0_u32..).zip(device.kicks()) {
                named("KVM_IOEVENTFD", vm.register_ioevent(kick, &address, queue))?;
            }
            devices.push(device);
        }
        Ok(Self(devices))
    }

    pub(crate) fn windows(&self) -> Vec<MmioWindow> {
        self.0.iter().map(OpenedDevice::window).collect()
    }

    pub(crate) fn describe(&self) -> impl Iterator<Item = DeviceDescription> {
        self.0.iter().map(OpenedDevice::describe)
    }

    pub(crate) fn power_on(self) -> VirtioDevices {
        VirtioDevices(self.0.into_iter().map(OpenedDevice::power_on).collect())
    }

    /// All of them in the state that their sections say, or none.
    pub(crate) fn restore(self, sections: &mut SectionSet) -> Result<VirtioDevices, LoadError> {
        let restored = self.0.into_iter().map(|device| device.restore(sections));
        Ok(VirtioDevices(restored.collect::<Result<_, _>>()?))
    }
}

/// All virtio devices of a machine, in the order of their windows.
#[derive(Clone, Default)]
pub(crate) struct VirtioDevices(Arc<[VirtioDevice]>);

impl VirtioDevices {
    /// The guest reads outside its memory.
    pub(crate) fn read(&self, address: u64, data: &mut [u8]) {
        match self.at(address) {
            Some((device, offset)) => device.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// The guest writes outside its memory.
    pub(crate) fn write(&self, address: u64, data: &[u8]) {
        if let Some((device, offset)) = self.at(address) {
            device.write(offset, data);
        }
    }

    #[cfg(test)]
    pub(crate) fn windows(&self) -> Vec<MmioWindow> {
        self.0.iter().map(VirtioDevice::window).collect()
    }

    fn at(&self, address: u64) -> Option<(&VirtioDevice, u64)> {
        self.0.iter().find_map(|device| Some((device, device.window().offset(address)?)))
    }

    pub(crate) fn balloon(&self) -> Option<BalloonSize> {
        self.0.iter().find_map(VirtioDevice::balloon)
    }

    /// Asks the guest for so many pages; false if it has no balloon to put them into.
    pub(crate) fn ask_balloon(&self, pages: Pages) -> bool {
        self.0.iter().any(|device| device.ask_balloon(pages))
    }

    /// The images that the guest writes.
    pub(crate) fn disks(&self) -> Vec<Arc<DiskFile>> {
        self.0.iter().filter_map(VirtioDevice::disk).cloned().collect()
    }

    /// Takes what only the one who may run the guest holds; all of it or nothing.
    pub(crate) fn acquire(&self) -> Result<(), VirtioError> {
        let acquired = self.0.iter().try_for_each(VirtioDevice::acquire);
        if acquired.is_err() {
            self.release();
        }
        acquired
    }

    pub(crate) fn release(&self) {
        self.0.iter().for_each(VirtioDevice::release);
    }

    /// Stops all of them; if one cannot be stopped, the caller resumes all.
    pub(crate) fn quiesce(&self) -> Result<(), DeviceError> {
        self.0.iter().try_for_each(Device::quiesce)
    }

    pub(crate) fn save(&self) -> Result<Vec<Section>, SaveError> {
        self.0.iter().map(Device::save).collect()
    }

    pub(crate) fn resume(&self) {
        self.0.iter().for_each(Device::resume);
    }

    pub(crate) fn announce(&self) {
        self.0.iter().for_each(Device::announce);
    }
}

/// Puts `params` into the devices that they name.
pub(crate) fn replace(
    devices: &mut [DeviceDescription],
    params: &[DeviceParam],
) -> Result<(), MachineError> {
    for param in params {
        let mut all = devices.iter_mut();
        let device = all.find(|device| device.kind == param.kind && device.id == param.id);
        let device = device.ok_or_else(|| MachineError::NoSuchDevice {
            kind: param.kind.clone(),
            id: param.id.clone(),
        })?;
        device.params.insert(param.name.clone(), param.value.clone());
    }
    Ok(())
}

fn event(spec: &VirtioSpec) -> Result<EventFd, MachineError> {
    event_of(spec, EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC))
}

fn event_of(
    spec: &VirtioSpec,
    event: Result<EventFd, std::io::Error>,
) -> Result<EventFd, MachineError> {
    event.map_err(|source| VirtioError::System { device: spec.to_string(), source }.into())
}

fn named<T>(call: &'static str, result: Result<T, kvm_ioctls::Error>) -> Result<T, MachineError> {
    result.map_err(|source| MachineError::Build(IoctlError { call, source }))
}

#[cfg(test)]
mod tests;
