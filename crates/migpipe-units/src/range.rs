//! Places in guest memory.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Bytes, PAGE_SIZE, Pages};

/// A guest frame number: a guest-physical address divided by the page size.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Gfn(pub u64);

impl Gfn {
    /// The guest-physical address of the first byte of this frame; saturates at the top.
    pub const fn address(self) -> u64 {
        self.0.saturating_mul(PAGE_SIZE)
    }
}

impl fmt::Display for Gfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "gfn {:#x}", self.0)
    }
}

/// Which range of guest memory: the regions of one guest are numbered from 0 in address order.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct RegionId(pub u16);

impl fmt::Display for RegionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "region {}", self.0)
    }
}

/// A range of guest memory with one memory file behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryRegion {
    /// Its number.
    pub id: RegionId,
    /// Its first guest frame.
    pub base: Gfn,
    /// Its length.
    pub pages: Pages,
}

/// A run of pages inside one region; `first` counts pages from the start of that region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageRange {
    /// The region that holds the run.
    pub region: RegionId,
    /// The first page, counted from the start of the region.
    pub first: u64,
    /// How many pages.
    pub count: Pages,
}

impl PageRange {
    /// Offset of the run from the start of its region, in bytes; saturates at the top.
    pub const fn offset(&self) -> Bytes {
        Bytes(self.first.saturating_mul(PAGE_SIZE))
    }

    /// Length of the run in bytes; saturates at the top.
    pub const fn len(&self) -> Bytes {
        self.count.bytes()
    }

    /// Whether the run holds no page.
    pub const fn is_empty(&self) -> bool {
        self.count.0 == 0
    }
}
