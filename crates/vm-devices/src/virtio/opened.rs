//! A virtio device before it has a state: what is behind it is open, and nothing of it can run.

use std::collections::BTreeMap;

use virtio_bindings::virtio_mmio::VIRTIO_MMIO_QUEUE_NOTIFY;
use vm_state::{DeviceDescription, LoadError, SectionId, SectionSet};
use vmm_sys_util::eventfd::EventFd;

use super::backend::Backend;
use super::device::{Parts, VirtioDevice, Worker};
use super::error::VirtioError;
use super::interrupt::Interrupt;
use super::ram::GuestRam;
use super::registry::{self, HostSide};
use super::spec::VirtioSpec;
use super::transport::Transport;
use super::window::MmioWindow;

/// The parameter that holds the features which the guest was offered.
const FEATURES: &str = "features";

/// A device that was opened. [`Self::power_on`] or [`Self::restore`] makes a [`VirtioDevice`] of
/// it, so that there is none whose state is not whole.
pub struct OpenedDevice {
    parts: Parts,
    section: &'static str,
    backend: Box<dyn Backend>,
    offered: u64,
    worker: Worker,
}

/// The features that the guest is offered.
fn offered(
    backend: &dyn Backend,
    spec: &VirtioSpec,
    params: &BTreeMap<String, String>,
) -> Result<u64, VirtioError> {
    let offers = Transport::offers_of(backend);
    let offered = match params.get(FEATURES) {
        // The guest must find here what it found on its source, whether it uses it or not.
        Some(text) => spec.number(FEATURES, text)?,
        None => offers,
    };
    match offered & !offers {
        0 => Ok(offered),
        missing => Err(VirtioError::Features { device: spec.to_string(), missing }),
    }
}

impl OpenedDevice {
    /// Opens the device that `spec` describes. It is the `slot`th of its machine, has `ram`, and
    /// raises its interrupt by writing to `interrupt`.
    ///
    /// # Errors
    /// [`VirtioError`] names the device and what it lacks here.
    pub fn open(
        spec: &VirtioSpec,
        slot: u32,
        ram: GuestRam,
        interrupt: EventFd,
    ) -> Result<Self, VirtioError> {
        let mut params = spec.params.clone();
        let backend = registry::open(spec, &mut params)?;
        Self::with_backend(backend, spec, params, slot, ram, interrupt)
    }

    /// Whether [`Self::open`] would find what it needs. Nothing stays open, and no file is made.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn examine(spec: &VirtioSpec) -> Result<(), VirtioError> {
        match registry::examine(spec)? {
            Some(backend) => offered(&*backend, spec, &spec.params).map(drop),
            None => Ok(()),
        }
    }

    pub(super) fn with_backend(
        (backend, host_side): (Box<dyn Backend>, HostSide),
        spec: &VirtioSpec,
        mut params: BTreeMap<String, String>,
        slot: u32,
        ram: GuestRam,
        interrupt: EventFd,
    ) -> Result<Self, VirtioError> {
        if slot >= MmioWindow::MOST {
            return Err(VirtioError::TooMany);
        }
        let name = spec.to_string();
        let offered = offered(&*backend, spec, &params)?;
        params.insert(FEATURES.to_owned(), format!("{offered:#x}"));
        let failed = |source| VirtioError::System { device: name.clone(), source };
        let event = || EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(failed);
        let worker = Worker::spawn(format!("{}-{slot}", spec.kind.name())).map_err(failed)?;
        let parts = Parts {
            description: DeviceDescription {
                kind: spec.kind.name().to_owned(),
                id: spec.id.clone(),
                section_version: spec.kind.section_version(),
                params,
            },
            slot,
            ram,
            interrupt: Interrupt::new(interrupt),
            kicks: backend.queues().iter().map(|_| event()).collect::<Result<_, _>>()?,
            wake: event()?,
            source: backend.source(),
            host_side,
            name: name.clone(),
        };
        Ok(Self { parts, section: spec.kind.section(), backend, offered, worker })
    }

    /// What the machine description says of it.
    pub fn describe(&self) -> DeviceDescription {
        self.parts.description.clone()
    }

    /// Where its registers are, and its interrupt.
    pub fn window(&self) -> MmioWindow {
        MmioWindow::of(self.parts.slot)
    }

    /// Guest-physical address of QueueNotify. A 32-bit write of a queue's number there is the same
    /// as a write to that queue's event of [`Self::kicks`].
    pub fn notify_address(&self) -> u64 {
        self.window().base + u64::from(VIRTIO_MMIO_QUEUE_NOTIFY)
    }

    /// One event for each queue, in their order.
    pub fn kicks(&self) -> &[EventFd] {
        &self.parts.kicks
    }

    /// The stopped device in its state after power-on.
    pub fn power_on(self) -> VirtioDevice {
        let transport = Transport::new(self.backend, self.offered);
        VirtioDevice::new(self.parts, transport, false, self.worker)
    }

    /// The stopped device in the state that its own section says, which is taken out of `sections`.
    /// The memory of the guest must be complete: what the driver has set up there is looked at.
    ///
    /// # Errors
    /// [`LoadError`] if the section is missing or does not fit; a queue outside the guest's memory
    /// is named.
    pub fn restore(mut self, sections: &mut SectionSet) -> Result<VirtioDevice, LoadError> {
        let Parts { slot, ram, interrupt, .. } = &self.parts;
        let state = self.backend.restore(*slot, sections)?;
        let transport = Transport::restore(self.backend, self.offered, state, ram, interrupt)
            .map_err(|source| LoadError::Payload {
                id: SectionId { name: self.section.to_owned(), instance: *slot },
                version: self.parts.description.section_version,
                source,
            })?;
        Ok(VirtioDevice::new(self.parts, transport, true, self.worker))
    }
}
