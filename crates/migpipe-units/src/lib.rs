//! Types for the quantities that could be confused: pages, bytes, frame numbers, rates, and the
//! identities of a handover.
//!
//! A [`Gfn`] is not a count of pages, a count of pages is not a count of bytes, and the id of a
//! migration is not that of a host; the compiler keeps them apart. From crate to crate they go as
//! these types, and lengths of time as `Duration`.
//!
//! Bare integers cross a crate border where nothing is there to confuse them with:
//! - the index of a page within its region (`first`, `page`), always beside the region or its bitmap;
//! - numbers and counts of things that are no memory: rounds, records, sections, vCPUs, versions;
//! - lengths of buffers and limits of lengths (`usize`, [`limits`]), which are bytes as in the standard
//!   library;
//! - what is stored or shown as such, with the unit in its name or description: `tsc_khz`, the second of
//!   a record;
//! - the words of a bitmap, and what KVM and the virtio specification define as integers: addresses,
//!   offsets, registers, feature bits.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod finding;
mod id;
pub mod limits;
mod quantity;
mod range;

pub use finding::Finding;
pub use id::{Acknowledged, HostId, MigrationId, Nonce};
pub use quantity::{Bytes, BytesPerSec, Pages, ParseQuantityError};
pub use range::{Gfn, MemoryRegion, PageRange, RegionId};

/// Size of a page in bytes. A page is 4 KiB everywhere in the project, whatever the host maps.
pub const PAGE_SIZE: u64 = 4096;
