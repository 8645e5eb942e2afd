//! The model check of the handover.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod graph;
mod inquiry;
pub mod mutation;
pub mod properties;
mod receiver;
mod sender;
pub mod state;
mod vmrun;
pub mod world;
