//! The processor that a guest is given: all that its host has, what all hosts of a fleet have, or a
//! level of x86-64; with features added to it and taken away.
//!
//! An [`Offer`] is what a host can give, and [`Offer::common`] what two hosts can; it is kept as
//! JSON. A [`CpuSpec`] is what a command line says, a [`Wanted`] what it means, and
//! [`Wanted::on`] makes of it the processor of a guest on one host. Whether another host can take
//! that guest is for [`vm_state::compat::check`], which knows nothing of how it was chosen.
//!
//! No hypervisor is asked here: what it offers is handed in.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod common;
mod json;
mod left_out;
mod needs;
mod offer;
mod processor;
mod spec;

pub use common::NotTogether;
pub use json::OfferError;
pub use offer::{Offer, TscRange};
pub use processor::{CpuError, Processor};
pub use spec::{Change, CpuSpec, Model, SpecError, Wanted};
