//! The records of the forward path and their payloads.

use std::time::Duration;

use migpipe_units::{Bytes, MigrationId, Nonce, PageRange, Pages, RegionId};
use serde::{Serialize, Serializer};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::bytes::{Malformed, Put, list, whole};
use crate::counters::{Totals, TotalsBytes};
use crate::frame::{Frame, RecordType};
use crate::memory::MemoryDigest;
use crate::text::{MAX_REASON, clean};

/// The most runs in one `Extents` record.
pub const MAX_EXTENTS: usize = 65_536;

/// Length of one run in an `Extents` record (bytes).
pub(crate) const EXTENT_BYTES: usize = size_of::<ExtentBytes>();

/// Statistics of the round that just ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RoundStats {
    /// Which round: 0 sends all memory.
    pub number: u32,
    /// Pages sent raw in it.
    pub pages: Pages,
    /// Pages sent as a pattern in it.
    pub filled: Pages,
    /// Bytes of the stream that it took.
    pub bytes: Bytes,
    /// Pages that are dirty at its end and wait for the next round.
    pub dirty_next: Pages,
    /// How long it took.
    #[serde(rename = "nanoseconds", serialize_with = "serialize_nanoseconds")]
    pub duration: Duration,
}

/// One record of the forward path, as the reader hands it out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A run of pages. Its bytes follow: [`crate::StreamReader::read_payload`].
    Pages(PageRange),
    /// A run of pages that repeat one 8-byte pattern.
    Fill {
        /// The pages.
        range: PageRange,
        /// What each of them repeats, in the byte order of memory: the first byte of a page is
        /// the lowest byte of this.
        pattern: u64,
    },
    /// Where the source has data: a hint for preparing memory ahead of the stream.
    Extents(Vec<PageRange>),
    /// Statistics of the round that just ended.
    Round(RoundStats),
    /// The guest is paused from here on.
    Blackout,
    /// The state of one device, which this crate carries and does not read.
    Section(Vec<u8>),
    /// Digests of the whole memory as it is at the end of the stream.
    Digest(MemoryDigest),
    /// Everything was sent; the reader has compared these totals with what it read.
    End(Totals),
    /// The destination may run the guest.
    Go {
        /// The migration.
        id: MigrationId,
        /// That of the `Ack` which the source has: GO is for the copy of the guest that was
        /// acknowledged, and for no other that the stream may have come to.
        nonce: Nonce,
    },
    /// The source gives up; the guest goes on there.
    Abort {
        /// Why.
        reason: String,
    },
}

impl Record {
    /// What it is.
    pub const fn kind(&self) -> RecordType {
        match self {
            Self::Pages(_) => RecordType::Pages,
            Self::Fill { .. } => RecordType::Fill,
            Self::Extents(_) => RecordType::Extents,
            Self::Round(_) => RecordType::Round,
            Self::Blackout => RecordType::Blackout,
            Self::Section(_) => RecordType::Section,
            Self::Digest(_) => RecordType::Digest,
            Self::End(_) => RecordType::End,
            Self::Go { .. } => RecordType::Go,
            Self::Abort { .. } => RecordType::Abort,
        }
    }

    /// The record of this frame and payload. Ranges are not checked against the guest's memory.
    pub(crate) fn decode(
        kind: RecordType,
        frame: &Frame,
        payload: Vec<u8>,
    ) -> Result<Self, Malformed> {
        Ok(match kind {
            RecordType::Pages => Self::Pages(frame.place()),
            RecordType::Section => Self::Section(payload),
            RecordType::End => Self::End(whole::<TotalsBytes>(&payload)?.into()),
            RecordType::Abort => {
                let reason =
                    str::from_utf8(&payload).map_err(|_| Malformed("its reason is not UTF-8"))?;
                Self::Abort { reason: clean(reason, MAX_REASON) }
            }
            RecordType::Extents => Self::Extents(decode_extents(&payload)?),
            RecordType::Fill => {
                Self::Fill { range: frame.place(), pattern: whole::<U64>(&payload)?.get() }
            }
            RecordType::Round => Self::Round(whole::<RoundBytes>(&payload)?.into()),
            RecordType::Blackout => {
                whole::<()>(&payload)?;
                Self::Blackout
            }
            RecordType::Digest => {
                let regions = list::<U64>(&payload)?.iter().map(|value| value.get()).collect();
                Self::Digest(MemoryDigest { regions })
            }
            RecordType::Go => whole::<GoBytes>(&payload)?.into(),
        })
    }
}

/// The payload of `Round`.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RoundBytes {
    number: U32,
    pages: U64,
    filled: U64,
    bytes: U64,
    dirty_next: U64,
    nanoseconds: U64,
}

impl From<&RoundStats> for RoundBytes {
    fn from(stats: &RoundStats) -> Self {
        Self {
            number: stats.number.into(),
            pages: stats.pages.0.into(),
            filled: stats.filled.0.into(),
            bytes: stats.bytes.0.into(),
            dirty_next: stats.dirty_next.0.into(),
            nanoseconds: nanoseconds(stats.duration).into(),
        }
    }
}

impl From<RoundBytes> for RoundStats {
    fn from(bytes: RoundBytes) -> Self {
        Self {
            number: bytes.number.get(),
            pages: Pages(bytes.pages.get()),
            filled: Pages(bytes.filled.get()),
            bytes: Bytes(bytes.bytes.get()),
            dirty_next: Pages(bytes.dirty_next.get()),
            duration: Duration::from_nanos(bytes.nanoseconds.get()),
        }
    }
}

/// A duration as it travels; 584 years are as good as more.
pub(crate) fn nanoseconds(duration: Duration) -> u64 {
    duration.as_nanos().try_into().unwrap_or(u64::MAX)
}

fn serialize_nanoseconds<S: Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_u64(nanoseconds(*duration))
}

/// The payload of `Go`.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct GoBytes {
    id: [u8; 16],
    nonce: [u8; 16],
}

impl GoBytes {
    pub(crate) const fn new(id: MigrationId, nonce: Nonce) -> Self {
        Self { id: id.to_bytes(), nonce: nonce.to_bytes() }
    }
}

impl From<GoBytes> for Record {
    fn from(bytes: GoBytes) -> Self {
        Self::Go { id: MigrationId::from_bytes(bytes.id), nonce: Nonce::from_bytes(bytes.nonce) }
    }
}

/// One run of an `Extents` record.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ExtentBytes {
    region: U16,
    first: U64,
    count: U64,
}

pub(crate) fn encode_extents(extents: &[PageRange]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(extents.len() * EXTENT_BYTES);
    for extent in extents {
        bytes.put(&ExtentBytes {
            region: extent.region.0.into(),
            first: extent.first.into(),
            count: extent.count.0.into(),
        });
    }
    bytes
}

fn decode_extents(payload: &[u8]) -> Result<Vec<PageRange>, Malformed> {
    let extents = list::<ExtentBytes>(payload)?;
    if extents.len() > MAX_EXTENTS {
        return Err(Malformed("it holds more extents than one record may"));
    }
    let range = |extent: &ExtentBytes| PageRange {
        region: RegionId(extent.region.get()),
        first: extent.first.get(),
        count: Pages(extent.count.get()),
    };
    Ok(extents.iter().map(range).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_extents_is_as_long_as_one_record_may_hold_and_no_longer() {
        let extents = |count: usize| {
            let extent = |first| PageRange { region: RegionId(1), first, count: Pages(2) };
            (0..count as u64).map(extent).collect::<Vec<_>>()
        };
        for count in [0, 1, MAX_EXTENTS] {
            let whole = extents(count);
            assert_eq!(decode_extents(&encode_extents(&whole)), Ok(whole));
        }
        for count in [MAX_EXTENTS + 1, MAX_EXTENTS + 2] {
            assert!(decode_extents(&encode_extents(&extents(count))).is_err(), "{count}");
        }
        let cut = &encode_extents(&extents(2))[..EXTENT_BYTES + 1];
        assert!(decode_extents(cut).is_err(), "a part of one is left over");
    }
}
