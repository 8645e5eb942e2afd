//! Pre-copy policy and handover protocol as plain state machines: no I/O and no clock of their
//! own, so that they can be model-checked and replayed.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod handover;
pub mod ownership;
pub mod precopy;
pub mod report;
