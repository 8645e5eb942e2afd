//! The register block of a virtio-mmio device, version 2 (VIRTIO 1.2, section 4.2).

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio::*;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueT;
use vm_state::PayloadError;

use super::backend::Backend;
use super::interrupt::{Interrupt, Why};
use super::ram::GuestRam;
use super::ring::Ring;
use super::state::TransportState;

/// "virt".
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// "MIGP"; Linux shows it and does nothing with it.
const VENDOR: u32 = 0x5047_494d;

/// The features that all devices offer.
const COMMON: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX;

/// The registers of one device, its rings, and what is behind them.
pub(super) struct Transport {
    pub(super) backend: Box<dyn Backend>,
    offered: u64,
    state: TransportState,
    rings: Vec<Ring>,
}

impl Transport {
    /// The features that `backend` can offer with those of the rings.
    pub(super) fn offers_of(backend: &dyn Backend) -> u64 {
        COMMON | backend.features()
    }

    /// A device after power-on that offers `features`.
    pub(super) fn new(backend: Box<dyn Backend>, offered: u64) -> Self {
        let rings = backend.queues().iter().map(Ring::new).collect();
        Self { backend, offered, state: TransportState::default(), rings }
    }

    /// The device that was saved in the state `saved`, with a `backend` that has its own part of it
    /// already. What a live driver has set up lies in memory, as it did when it was saved: `ram` is
    /// looked at for it, and not a byte of it is changed.
    ///
    /// # Errors
    /// [`PayloadError::Field`] if no device that offers these features can be in that state.
    pub(super) fn restore(
        backend: Box<dyn Backend>,
        offered: u64,
        saved: TransportState,
        ram: &GuestRam,
        interrupt: &Interrupt,
    ) -> Result<Self, PayloadError> {
        let problem = |field, problem| Err(PayloadError::Field { field, problem });
        let lacking = saved.driver_features & !offered;
        if lacking != 0 {
            return problem(
                "driver_features",
                format!("has bits that this host's device does not offer: {lacking:#x}"),
            );
        }
        let queues = backend.queues();
        if saved.rings.len() != queues.len() {
            let (found, expected) = (saved.rings.len(), queues.len());
            return problem("rings", format!("has {found} queues; the device has {expected}"));
        }
        let restored =
            queues.iter().zip(&saved.rings).map(|(spec, ring)| Ring::restore(spec, ring));
        let rings = restored.collect::<Result<_, _>>()?;
        let mut transport = Self { backend, offered, state: saved, rings };
        if transport.is_live() {
            for (spec, ring) in queues.iter().zip(&transport.rings) {
                if ring.check(ram).is_err() {
                    let name = spec.name;
                    return problem("rings", format!("has a {name} outside the guest's memory"));
                }
            }
        }
        let raised = transport.state.interrupt_status;
        interrupt.set(raised & (Why::Ring as u32 | Why::Config as u32));
        if transport.state.status & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
            transport.backend.activate(transport.state.driver_features);
        }
        Ok(transport)
    }

    pub(super) fn ring(&mut self, number: usize) -> (&mut dyn Backend, &mut Ring) {
        (&mut *self.backend, &mut self.rings[number])
    }

    /// Whether the driver is ready and has done nothing wrong.
    pub(super) const fn is_live(&self) -> bool {
        let both = VIRTIO_CONFIG_S_DRIVER_OK | VIRTIO_CONFIG_S_NEEDS_RESET;
        self.state.status & both == VIRTIO_CONFIG_S_DRIVER_OK
    }

    /// The driver must begin afresh (VIRTIO 1.2, 2.1.2): it has broken a rule.
    pub(super) fn fail(&mut self, interrupt: &Interrupt) {
        self.state.status |= VIRTIO_CONFIG_S_NEEDS_RESET;
        if self.state.status & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
            interrupt.raise(Why::Config);
        }
    }

    pub(super) fn config_changed(&mut self, interrupt: &Interrupt) {
        self.state.config_generation = self.state.config_generation.wrapping_add(1);
        if self.state.status & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
            interrupt.raise(Why::Config);
        }
    }

    fn selected(&mut self) -> Option<&mut Ring> {
        self.rings.get_mut(self.state.queue_sel as usize)
    }

    /// The driver reads the register at `offset`, 0 for what does not exist.
    pub(super) fn read(&mut self, offset: u32) -> u32 {
        match offset {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => VERSION,
            VIRTIO_MMIO_DEVICE_ID => self.backend.device_id(),
            VIRTIO_MMIO_VENDOR_ID => VENDOR,
            VIRTIO_MMIO_DEVICE_FEATURES => match self.state.device_features_sel {
                0 => self.offered as u32,
                1 => (self.offered >> 32) as u32,
                _ => 0,
            },
            VIRTIO_MMIO_QUEUE_NUM_MAX => self.selected().map_or(0, |ring| ring.max_size().into()),
            VIRTIO_MMIO_QUEUE_READY => self.selected().map_or(0, |ring| ring.ready().into()),
            VIRTIO_MMIO_STATUS => self.state.status,
            VIRTIO_MMIO_CONFIG_GENERATION => self.state.config_generation,
            // There is no shared memory (VIRTIO 1.2, 4.2.2: length and base of all ones).
            VIRTIO_MMIO_SHM_LEN_LOW
            | VIRTIO_MMIO_SHM_LEN_HIGH
            | VIRTIO_MMIO_SHM_BASE_LOW
            | VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            _ => 0,
        }
    }

    /// The driver writes the register at `offset`.
    pub(super) fn write(&mut self, offset: u32, value: u32, ram: &GuestRam, interrupt: &Interrupt) {
        let state = &mut self.state;
        match offset {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => state.device_features_sel = value,
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => state.driver_features_sel = value,
            VIRTIO_MMIO_DRIVER_FEATURES if state.status & VIRTIO_CONFIG_S_FEATURES_OK == 0 => {
                let (keep, shift) = match state.driver_features_sel {
                    0 => (!0xffff_ffff, 0),
                    1 => (0xffff_ffff, 32),
                    _ => return,
                };
                state.driver_features =
                    (state.driver_features & keep) | (u64::from(value) << shift);
            }
            VIRTIO_MMIO_QUEUE_SEL => state.queue_sel = value,
            VIRTIO_MMIO_STATUS => self.set_status(value, ram, interrupt),
            _ => self.write_queue(offset, value, ram, interrupt),
        }
    }

    fn write_queue(&mut self, offset: u32, value: u32, ram: &GuestRam, interrupt: &Interrupt) {
        let is_live = self.is_live();
        let Some(ring) = self.selected() else { return };
        let queue = ring.registers();
        if offset == VIRTIO_MMIO_QUEUE_READY {
            queue.set_ready(value == 1);
            // So no live device has a queue outside memory, and none is saved with one.
            if is_live && ring.check(ram).is_err() {
                self.fail(interrupt);
            }
            return;
        }
        if queue.ready() {
            // A driver must not change a queue that is set up (VIRTIO 1.2, 4.2.2.2).
            return;
        }
        match offset {
            VIRTIO_MMIO_QUEUE_NUM => queue.set_size(u16::try_from(value).unwrap_or(0)),
            VIRTIO_MMIO_QUEUE_DESC_LOW => queue.set_desc_table_address(Some(value), None),
            VIRTIO_MMIO_QUEUE_DESC_HIGH => queue.set_desc_table_address(None, Some(value)),
            VIRTIO_MMIO_QUEUE_AVAIL_LOW => queue.set_avail_ring_address(Some(value), None),
            VIRTIO_MMIO_QUEUE_AVAIL_HIGH => queue.set_avail_ring_address(None, Some(value)),
            VIRTIO_MMIO_QUEUE_USED_LOW => queue.set_used_ring_address(Some(value), None),
            VIRTIO_MMIO_QUEUE_USED_HIGH => queue.set_used_ring_address(None, Some(value)),
            _ => {}
        }
    }

    fn set_status(&mut self, value: u32, ram: &GuestRam, interrupt: &Interrupt) {
        if value == 0 {
            self.reset();
            interrupt.set(0);
            return;
        }
        let old = self.state.status;
        // Bits are only ever added, and the device's own is not the driver's to set.
        let mut status = old | (value & 0xff & !VIRTIO_CONFIG_S_NEEDS_RESET);
        let newly = status & !old;
        let features = self.state.driver_features;
        let acceptable = features & !self.offered == 0 && features & 1 << VIRTIO_F_VERSION_1 != 0;
        if newly & VIRTIO_CONFIG_S_FEATURES_OK != 0 && !acceptable {
            // The driver reads the bit back and sees that we do not agree (VIRTIO 1.2, 3.1.1).
            status &= !VIRTIO_CONFIG_S_FEATURES_OK;
        }
        if status & VIRTIO_CONFIG_S_FEATURES_OK == 0 {
            status &= !VIRTIO_CONFIG_S_DRIVER_OK;
        }
        self.state.status = status;
        if newly & status & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
            let event_idx = features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
            for ring in &mut self.rings {
                ring.registers().set_event_idx(event_idx);
            }
            self.backend.activate(features);
            if self.rings.iter().any(|ring| ring.check(ram).is_err()) {
                self.fail(interrupt);
            }
        }
    }

    fn reset(&mut self) {
        let config_generation = self.state.config_generation;
        self.state = TransportState { config_generation, ..TransportState::default() };
        self.rings = self.backend.queues().iter().map(Ring::new).collect();
        self.backend.reset();
    }

    pub(super) fn save(&self, interrupt: &Interrupt) -> TransportState {
        TransportState {
            interrupt_status: interrupt.status(),
            rings: self.rings.iter().map(Ring::save).collect(),
            ..self.state.clone()
        }
    }
}
