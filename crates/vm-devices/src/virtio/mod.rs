//! Devices on virtio-mmio (VIRTIO 1.2, section 4.2).
//!
//! | file | what |
//! | --- | --- |
//! | `window` | where a device is |
//! | `ram`, `chain`, `ring` | guest memory, a request in it, a queue of requests |
//! | `transport` | the registers |
//! | `device` | registers, rings and worker together, as a [`Device`](crate::Device) |
//! | `backend` | what a kind of device has to do |
//! | `block`, `rng`, `net` with `tap`, `console`, `balloon` | the kinds |

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
mod ram;
mod ring;
mod rng;
mod spec;
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
pub use ram::GuestRam;
pub use ring::RingState;
pub use rng::RngState;
pub use spec::{VirtioKind, VirtioSpec, VirtioSpecError};
pub use transport::TransportState;
pub use window::MmioWindow;
