//! Devices on virtio-mmio (VIRTIO 1.2, section 4.2).
//!
//! | file | what |
//! | --- | --- |
//! | `spec` | how a device is named on a command line and in a machine description |
//! | `window` | where a device is |
//! | `ram`, `chain`, `ring` | guest memory, a request in it, a queue of requests |
//! | `state` | the saved state that all kinds have in common |
//! | `backend` | what a kind of device has to do |
//! | `transport` | the registers |
//! | `block`, `rng`, `net` with `tap`, `console`, `balloon` | the kinds |
//! | `registry` | which kind is which code |
//! | `device` | registers, rings and worker together, as a [`Device`](crate::Device) |
//! | `opened` | a device that has no state yet |
//!
//! Each imports only from lines above its own.

mod backend;
mod balloon;
mod block;
mod chain;
mod console;
mod device;
#[cfg(test)]
mod driver;
mod error;
mod interrupt;
mod net;
mod opened;
mod ram;
mod registry;
mod ring;
mod rng;
mod spec;
mod state;
pub(crate) mod tap;
#[cfg(test)]
mod tests;
mod transport;
mod window;

pub use balloon::{BalloonSize, BalloonState};
pub use block::{BlockState, DiskFile};
pub use console::ConsoleState;
pub use device::VirtioDevice;
pub use error::VirtioError;
pub use net::NetState;
pub use opened::OpenedDevice;
pub use ram::GuestRam;
pub use rng::RngState;
pub use spec::{VirtioKind, VirtioSpec, VirtioSpecError};
pub use state::{RingState, TransportState};
pub use window::MmioWindow;
