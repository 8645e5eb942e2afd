//! Types for the quantities that could be confused: pages, bytes, frame numbers, rates, and the
//! identities of a handover.
//!
//! No bare `u64` crosses a crate border in this project. A [`Gfn`] is not a count of pages and a
//! count of pages is not a count of bytes; the compiler keeps them apart.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod id;
pub mod limits;
mod quantity;
mod range;

pub use id::{Acknowledged, HostId, MigrationId, Nonce};
pub use quantity::{Bytes, BytesPerSec, Pages, ParseQuantityError};
pub use range::{Gfn, MemoryRegion, PageRange, RegionId};

/// Size of a page in bytes. A page is 4 KiB everywhere in the project, whatever the host maps.
pub const PAGE_SIZE: u64 = 4096;
