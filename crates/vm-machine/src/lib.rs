//! The KVM machine: memory, vCPUs, interrupt chips, clocks, boot.
//!
//! [`Machine`] is the whole of it. It begins with [`Machine::boot`] or, for a guest that arrives,
//! with [`Machine::incoming`]; it can be paused, saved and resumed at any instant, and says which
//! pages of its memory were written meanwhile. Who may run it is not known here.
#![warn(missing_docs)]

mod acpi;
mod allowed_paths;
pub mod arch;
mod arrival;
mod boot;
mod build;
mod capacity;
mod config;
pub mod confinement;
mod devices;
mod dirty;
mod error;
mod events;
mod host;
mod layout;
mod machine;
mod memory;
mod monotonic_time;
mod ports;
mod vcpu;
mod virtio;

pub use acpi::AcpiError;
pub use allowed_paths::AllowedPaths;
pub use arrival::examine;
pub use boot::{BootError, Kernel};
pub use config::{IncomingConfig, MachineConfig};
pub use dirty::DirtyLogError;
pub use error::MachineError;
pub use events::MachineEvent;
pub use host::Host;
pub use machine::Machine;
pub use memory::{HugeTmpfs, MemoryError, MemorySource, TmpfsError};
pub use monotonic_time::MonotonicTime;
pub use vcpu::VcpuError;
pub use vm_cpu::{CpuSpec, Offer, Wanted};
pub use vm_devices::{ConsoleSpec, DiskFile, VirtioError, VirtioKind, VirtioSpec};

/// How a disk is written on a command line.
pub const DISK_FORM: &str = VirtioSpec::DISK_FORM;

/// How a network card is written on a command line.
pub const NET_FORM: &str = VirtioSpec::NET_FORM;
