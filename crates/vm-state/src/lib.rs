//! Versioned saved state: what a guest is ([`MachineDescription`]), what it holds at one instant
//! ([`Section`]s), and the rules that say whether a host can take it ([`compat`]).
//!
//! This crate knows no hypervisor: it is read by tools that have no KVM.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod description;

pub use description::{
    CpuDescription, CpuidLeaf, DescriptionError, DeviceDescription, HostCapabilities,
    MachineDescription, MemoryRegion,
};
