#![warn(missing_docs)]
//! The KVM machine: memory, vCPUs, interrupt chips, clocks, boot
pub mod arch;
