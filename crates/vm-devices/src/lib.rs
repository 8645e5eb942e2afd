//! Devices of the machine, each with its own save and restore.
//!
//! [`Device`] is the contract that every device keeps, so that a guest can be stopped, saved and
//! moved at any instant. Nothing here names a hypervisor: an interrupt line is an
//! [`EventFd`](vmm_sys_util::eventfd::EventFd).
#![deny(unsafe_code)]
#![warn(missing_docs)]

pub mod confinement;
mod console;
mod device;
mod power;
mod serial;
mod virtio;

pub use console::{Console, ConsoleError, ConsoleSpec, ConsoleSpecError};
pub use device::{Device, DeviceError};
pub use power::{PowerPorts, PowerRequest};
pub use serial::{SERIAL_IRQ, SERIAL_PORTS, Serial, SerialSnapshot};
pub use virtio::{
    BalloonSize, BalloonState, BlockState, ConsoleState, DiskFile, GuestRam, MmioWindow, NetState,
    OpenedDevice, RingState, RngState, TransportState, VirtioDevice, VirtioError, VirtioKind,
    VirtioSpec, VirtioSpecError,
};
