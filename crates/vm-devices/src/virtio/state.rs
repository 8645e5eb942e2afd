//! The saved state that all virtio devices have in common: registers and queues.

use serde::{Deserialize, Serialize};

/// The registers of a device (VIRTIO 1.2, 4.2.2), and its queues.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportState {
    /// The Status register.
    pub status: u32,
    /// DeviceFeaturesSel.
    pub device_features_sel: u32,
    /// DriverFeaturesSel.
    pub driver_features_sel: u32,
    /// What the driver has accepted.
    pub driver_features: u64,
    /// QueueSel.
    pub queue_sel: u32,
    /// ConfigGeneration.
    pub config_generation: u32,
    /// InterruptStatus: what the driver has not acknowledged.
    pub interrupt_status: u32,
    /// The queues in the order of their numbers.
    pub rings: Vec<RingState>,
}

/// A queue by its registers and how far both rings were used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingState {
    /// How many elements the driver chose.
    pub size: u16,
    /// Whether the driver has set it up.
    pub ready: bool,
    /// Whether VIRTIO_F_RING_EVENT_IDX holds.
    pub event_idx: bool,
    /// The next element of the available ring.
    pub next_avail: u16,
    /// The next element of the used ring.
    pub next_used: u16,
    /// Guest-physical address of the descriptor table.
    pub descriptors: u64,
    /// Guest-physical address of the available ring.
    pub available: u64,
    /// Guest-physical address of the used ring.
    pub used: u64,
}
