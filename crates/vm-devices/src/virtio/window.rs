//! Where a virtio-mmio device is found in guest-physical memory.

/// The registers of one virtio-mmio device and its interrupt line (virtio 1.2, 4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmioWindow {
    /// Guest-physical address of the first register.
    pub base: u64,
    /// Bytes that the registers take.
    pub len: u64,
    /// Global system interrupt, edge-triggered, active high.
    pub gsi: u32,
}
