//! The header behind the preamble: which guest, which machine, which memory.

use migpipe_units::limits::{MAX_GUEST_NAME, MAX_HEADER, MAX_RELEASED};
use migpipe_units::{Gfn, MemoryRegion, MigrationId, PAGE_SIZE, PageRange, Pages, RegionId};
use thiserror::Error;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::bytes::{Malformed, Put, Take, list};
use crate::preamble::Kind;
use crate::query::QueryBody;

/// The most regions that a guest has; real ones have two or three.
pub const MAX_REGIONS: usize = 256;

/// Length of the id of a migration (bytes).
const ID_BYTES: usize = 16;

/// Past the last guest frame: x86-64 physical addresses have at most 52 bits (AMD64 Architecture
/// Programmer's Manual, volume 2, section 5.1).
const END_OF_FRAMES: u64 = (1 << 52) / PAGE_SIZE;

/// Length of one region in a header (bytes).
const REGION_BYTES: usize = size_of::<RegionBytes>();

/// One region in a header.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RegionBytes {
    id: U16,
    base: U64,
    pages: U64,
}

impl From<&MemoryRegion> for RegionBytes {
    fn from(region: &MemoryRegion) -> Self {
        let MemoryRegion { id, base, pages } = region;
        Self { id: id.0.into(), base: base.0.into(), pages: pages.0.into() }
    }
}

impl From<&RegionBytes> for MemoryRegion {
    fn from(bytes: &RegionBytes) -> Self {
        let RegionBytes { id, base, pages } = bytes;
        Self { id: RegionId(id.get()), base: Gfn(base.get()), pages: Pages(pages.get()) }
    }
}

/// What a destination must know before the first page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The guest's name on the source: 1 to 255 bytes without control characters.
    pub guest: String,
    /// The encoded machine description without the memory, which this crate carries and does not
    /// read; in a query
    /// the encoded [`QueryBody`].
    pub machine: Vec<u8>,
    /// Guest memory, in address order.
    pub regions: Vec<MemoryRegion>,
    /// Earlier migrations of this guest, [`MAX_RELEASED`] at most, that the source took back before
    /// its commit: a destination that still waits for the GO of one has it refused.
    pub released: Vec<MigrationId>,
}

/// Why a header is of no use.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum HeaderError {
    /// Its fields do not hold together.
    #[error("the header of the stream is malformed")]
    Malformed(#[source] Malformed),
    /// The guest's name is missing, too long or would drive a terminal.
    #[error("the guest's name must have 1 to {MAX_GUEST_NAME} bytes and no control characters")]
    Name,
    /// It has more regions than any guest.
    #[error("the guest has {0} regions of memory; at most {MAX_REGIONS} travel")]
    TooManyRegions(usize),
    /// A region is not where it can be.
    #[error("{id} of the guest's memory {problem}")]
    Region {
        /// The number that the region should have.
        id: RegionId,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// It names more migrations than a source remembers.
    #[error("the header names {0} earlier migrations; at most {MAX_RELEASED} travel")]
    TooManyReleased(usize),
    /// What stands in the place of the machine is no query.
    #[error("the header is none of a query about a migration")]
    Query(#[source] Malformed),
    /// The machine description is longer than a header may be.
    #[error("the header has {0} bytes; at most {MAX_HEADER} are sent")]
    TooLong(usize),
}

/// A run of pages that the guest does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RangeError {
    /// There is no such region.
    #[error("the guest has no {0}")]
    NoRegion(RegionId),
    /// The run leaves its region.
    #[error("pages {first} to {end} lie outside {region}, which has {pages}", end = first.saturating_add(count.0))]
    Outside {
        /// The region.
        region: RegionId,
        /// First page of the run.
        first: u64,
        /// Length of the run.
        count: Pages,
        /// Length of the region.
        pages: Pages,
    },
    /// The run holds no page.
    #[error("a run of no pages in {0}")]
    Empty(RegionId),
}

impl Header {
    pub(crate) fn check(&self) -> Result<(), HeaderError> {
        if self.guest.is_empty()
            || self.guest.len() > MAX_GUEST_NAME
            || self.guest.chars().any(char::is_control)
        {
            return Err(HeaderError::Name);
        }
        if self.regions.len() > MAX_REGIONS {
            return Err(HeaderError::TooManyRegions(self.regions.len()));
        }
        if self.released.len() > MAX_RELEASED {
            return Err(HeaderError::TooManyReleased(self.released.len()));
        }
        let mut free = 0;
        for (index, region) in self.regions.iter().enumerate() {
            let end = region.base.0.checked_add(region.pages.0);
            let problem = if usize::from(region.id.0) != index {
                "is numbered out of order"
            } else if region.pages.0 == 0 {
                "is empty"
            } else if end.is_none_or(|end| end > END_OF_FRAMES) {
                "ends behind the last physical address"
            } else if region.base.0 < free {
                "begins before the one in front of it ends"
            } else {
                free = region.base.0 + region.pages.0;
                continue;
            };
            return Err(HeaderError::Region { id: RegionId(index as u16), problem });
        }
        Ok(())
    }

    /// What a stream of this kind asks with this header: a query asks something and carries nothing
    /// else, and what carries a guest asks nothing.
    pub(crate) fn query(&self, kind: Kind) -> Result<Option<QueryBody>, HeaderError> {
        if !kind.is_query() {
            return Ok(None);
        }
        if !self.regions.is_empty() || !self.released.is_empty() {
            return Err(HeaderError::Query(Malformed("a query carries no guest")));
        }
        QueryBody::decode(&self.machine).map(Some).map_err(HeaderError::Query)
    }

    /// Whether the guest has all of these pages.
    ///
    /// # Errors
    /// One of [`RangeError`] where it has not.
    pub fn check_range(&self, range: &PageRange) -> Result<(), RangeError> {
        let Some(region) = self.regions.get(usize::from(range.region.0)) else {
            return Err(RangeError::NoRegion(range.region));
        };
        if range.is_empty() {
            return Err(RangeError::Empty(range.region));
        }
        match range.first.checked_add(range.count.0) {
            Some(end) if end <= region.pages.0 => Ok(()),
            _ => Err(RangeError::Outside {
                region: range.region,
                first: range.first,
                count: range.count,
                pages: region.pages,
            }),
        }
    }

    /// How much memory the guest has.
    pub fn memory(&self) -> Pages {
        let pages = self.regions.iter().map(|region| region.pages.0);
        Pages(pages.fold(0, u64::saturating_add))
    }

    pub(crate) fn encode(&self) -> Result<Vec<u8>, HeaderError> {
        self.check()?;
        let length = 8
            + self.guest.len()
            + self.machine.len()
            + self.regions.len() * REGION_BYTES
            + self.released.len() * ID_BYTES;
        if length > MAX_HEADER as usize {
            return Err(HeaderError::TooLong(length));
        }
        let mut bytes = Vec::with_capacity(length);
        bytes.put(&U16::new(self.guest.len() as u16));
        bytes.put(self.guest.as_bytes());
        bytes.put(&U32::new(self.machine.len() as u32));
        bytes.put(&self.machine[..]);
        bytes.put(&U16::new(self.regions.len() as u16));
        for region in &self.regions {
            bytes.put(&RegionBytes::from(region));
        }
        for id in &self.released {
            bytes.put(&id.to_bytes());
        }
        Ok(bytes)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, HeaderError> {
        let header = Self::decode_fields(bytes).map_err(HeaderError::Malformed)?;
        header.check()?;
        Ok(header)
    }

    fn decode_fields(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut take = Take::new(bytes);
        let length = take.read::<U16>()?.get();
        let guest = str::from_utf8(take.bytes(length.into())?)
            .map_err(|_| Malformed("the guest's name is not UTF-8"))?;
        let length = take.read::<U32>()?.get();
        let machine = take.bytes(length as usize)?;
        let count = usize::from(take.read::<U16>()?.get());
        if count > MAX_REGIONS {
            return Err(Malformed("it names more regions than a guest can have"));
        }
        let regions = list::<RegionBytes>(take.bytes(count * REGION_BYTES)?)?;
        let released = list::<[u8; ID_BYTES]>(take.rest())?;
        if released.len() > MAX_RELEASED {
            return Err(Malformed("it names more earlier migrations than a header may"));
        }
        Ok(Self {
            guest: guest.to_owned(),
            machine: machine.to_owned(),
            regions: regions.iter().map(MemoryRegion::from).collect(),
            released: released.iter().map(|id| MigrationId::from_bytes(*id)).collect(),
        })
    }
}

impl From<&QueryBody> for Header {
    /// The header of a stream that asks this.
    fn from(query: &QueryBody) -> Self {
        Self { guest: "query".to_owned(), machine: query.encode(), ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(id: u16, base: u64, pages: u64) -> MemoryRegion {
        MemoryRegion { id: RegionId(id), base: Gfn(base), pages: Pages(pages) }
    }

    fn header() -> Header {
        Header {
            guest: "web".into(),
            machine: vec![1, 2, 3],
            regions: vec![region(0, 0, 160), region(1, 256, 1000)],
            released: vec![MigrationId::from_bytes([7; 16])],
        }
    }

    #[test]
    fn a_header_is_these_bytes() {
        let bytes = header().encode().unwrap();
        assert_eq!(bytes[..14], [3, 0, b'w', b'e', b'b', 3, 0, 0, 0, 1, 2, 3, 2, 0]);
        assert_eq!(bytes.len(), 14 + 2 * REGION_BYTES + ID_BYTES);
        assert_eq!(bytes[32..50], [1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xe8, 3, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[50..], [7; 16]);
        assert_eq!(Header::decode(&bytes), Ok(header()));
    }

    #[test]
    fn regions_that_no_guest_can_have_are_refused() {
        for (regions, problem) in [
            (vec![region(1, 0, 1)], "is numbered out of order"),
            (vec![region(0, 0, 0)], "is empty"),
            (vec![region(0, 1, END_OF_FRAMES)], "ends behind the last physical address"),
            (vec![region(0, u64::MAX, 2)], "ends behind the last physical address"),
            (vec![region(0, 0, 10), region(1, 9, 1)], "begins before the one in front of it ends"),
        ] {
            let header = Header { regions, ..header() };
            let Err(HeaderError::Region { problem: found, .. }) = header.check() else {
                panic!("{header:?} was accepted");
            };
            assert_eq!(found, problem);
        }
    }

    #[test]
    fn as_much_as_a_header_may_have_and_no_more() {
        type Part = fn(usize) -> Header;
        let name: Part = |bytes| Header { guest: "x".repeat(bytes), ..header() };
        let regions: Part = |count| {
            let regions = (0..count as u16).map(|id| region(id, id.into(), 1)).collect();
            Header { regions, ..header() }
        };
        let released: Part =
            |count| Header { released: vec![MigrationId::from_bytes([7; 16]); count], ..header() };
        // One region, so many pages behind the first.
        let last: Part =
            |more| Header { regions: vec![region(0, END_OF_FRAMES - 1, more as u64)], ..header() };
        for (part, most) in [(name, 48), (regions, 256), (released, 16), (last, 1)] {
            let good = part(most);
            assert_eq!(Header::decode(&good.encode().unwrap()), Ok(good));
            for more in [most + 1, most + 2] {
                assert!(part(more).encode().is_err(), "{more}");
            }
        }
        assert_eq!(regions(257).check(), Err(HeaderError::TooManyRegions(257)));
        assert_eq!(released(17).check(), Err(HeaderError::TooManyReleased(17)));

        let fields = header().encode().unwrap().len() - header().machine.len();
        let machine = |bytes| Header { machine: vec![0; bytes], ..header() };
        let most = MAX_HEADER as usize - fields;
        assert_eq!(machine(most).encode().unwrap().len(), MAX_HEADER as usize);
        assert_eq!(machine(most + 1).encode(), Err(HeaderError::TooLong(MAX_HEADER as usize + 1)));
    }

    #[test]
    fn what_is_read_has_no_more_than_a_header_may_have() {
        let bytes = Header { released: Vec::new(), ..header() }.encode().unwrap();
        let read =
            |count: usize| Header::decode(&[&bytes[..], &vec![1; count * ID_BYTES]].concat());
        assert_eq!(read(16).unwrap().released.len(), 16);
        assert!(matches!(read(17), Err(HeaderError::Malformed(_))));
        let mut bytes = Header { regions: Vec::new(), ..header() }.encode().unwrap();
        let count = bytes.len() - ID_BYTES - 2;
        bytes[count..count + 2].copy_from_slice(&257_u16.to_le_bytes());
        let many = "it names more regions than a guest can have";
        assert_eq!(Header::decode(&bytes), Err(HeaderError::Malformed(Malformed(many))));
        bytes[count..count + 2].copy_from_slice(&256_u16.to_le_bytes());
        assert_ne!(Header::decode(&bytes), Err(HeaderError::Malformed(Malformed(many))));
    }

    #[test]
    fn a_query_carries_no_guest() {
        let body = QueryBody { to: None, age: std::time::Duration::from_secs(9) };
        let query = Header::from(&body);
        for kind in [Kind::Resolve, Kind::Release] {
            assert_eq!(query.query(kind), Ok(Some(body)));
            for more in [
                Header { regions: header().regions, ..query.clone() },
                Header { released: header().released, ..query.clone() },
                Header { machine: Vec::new(), ..query.clone() },
            ] {
                assert!(matches!(more.query(kind), Err(HeaderError::Query(_))), "{more:?}");
            }
        }
        assert_eq!(header().query(Kind::Migrate), Ok(None));
    }

    #[test]
    fn a_guest_has_the_memory_of_all_its_regions() {
        assert_eq!(header().memory(), Pages(1160));
    }

    #[test]
    fn a_name_that_would_drive_a_terminal_is_refused() {
        for guest in ["", "\x1b[2J", "a\nb", &"x".repeat(256)] {
            let header = Header { guest: guest.to_owned(), ..header() };
            assert_eq!(header.encode(), Err(HeaderError::Name));
        }
    }

    #[test]
    fn only_pages_that_the_guest_has_are_in_range() {
        let run = |region, first, count| PageRange {
            region: RegionId(region),
            first,
            count: Pages(count),
        };
        let header = header();
        assert_eq!(header.check_range(&run(0, 0, 160)), Ok(()));
        assert_eq!(header.check_range(&run(1, 999, 1)), Ok(()));
        for outside in [
            run(0, 0, 161),
            run(0, 160, 1),
            run(1, u64::MAX, 1),
            run(1, 1, u64::MAX),
            run(2, 0, 1),
            run(0, 5, 0),
        ] {
            assert!(header.check_range(&outside).is_err(), "{outside:?}");
        }
    }
}
