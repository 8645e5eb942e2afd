//! Versioned saved state: what a guest is ([`MachineDescription`]), what it holds at one instant
//! ([`Section`]s), and the rules that say whether a host can take it ([`compat`]).
//!
//! This crate knows no hypervisor: it is read by tools that have no KVM.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod backing;
mod balloon;
pub mod compat;
mod description;
mod section;
mod section_set;
mod snapshot;

pub use backing::MemoryBacking;
pub use balloon::Balloon;
pub use description::{
    BootDescription, CpuDescription, CpuidLeaf, DescriptionError, DeviceDescription, DeviceParam,
    HostCapabilities, KernelKind, MachineDescription,
};
/// A part of the machine like its devices and its processor.
pub use migpipe_units::MemoryRegion;
pub use section::{Section, SectionError};
pub use section_set::SectionSet;
pub use snapshot::{LoadError, PayloadError, SaveError, SectionId, Snapshot, read_payload};
