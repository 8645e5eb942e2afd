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

impl MmioWindow {
    /// How many there can be: the IOAPIC has 24 lines, and the first five are those of a PC's
    /// timer, keyboard and serial ports.
    pub const MOST: u32 = 24 - Self::FIRST_GSI;

    /// In the hole below 4 GiB that holds no memory.
    const FIRST_BASE: u64 = 0xd000_0000;
    const LEN: u64 = 0x1000;
    const FIRST_GSI: u32 = 5;

    /// The window of the device with this number, counted from 0 and below [`Self::MOST`].
    pub const fn of(slot: u32) -> Self {
        Self {
            base: Self::FIRST_BASE + slot as u64 * Self::LEN,
            len: Self::LEN,
            gsi: Self::FIRST_GSI + slot,
        }
    }

    /// Where `address` is in the window, if it is in it.
    pub fn offset(&self, address: u64) -> Option<u64> {
        address.checked_sub(self.base).filter(|offset| *offset < self.len)
    }
}
