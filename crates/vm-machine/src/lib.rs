#![warn(missing_docs)]
//! The KVM machine: memory, vCPUs, interrupt chips, clocks, boot
