//! Devices on virtio-mmio.

mod window;

pub use window::MmioWindow;
