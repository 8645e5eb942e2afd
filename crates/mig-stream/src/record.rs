//! The records of the forward path and their payloads.

use std::time::Duration;

use migpipe_units::{Bytes, MigrationId, Nonce, PageRange, Pages, RegionId};

use crate::bytes::{Malformed, Put, Take};
use crate::counters::Totals;
use crate::frame::{Frame, RecordType};
use crate::memory::MemoryDigest;
use crate::text::{MAX_REASON, clean};

/// The most runs in one `Extents` record.
pub const MAX_EXTENTS: usize = 65_536;

/// Length of one run in an `Extents` record (bytes).
pub(crate) const EXTENT_BYTES: usize = 18;

/// Statistics of the round that just ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
        let mut take = Take::new(&payload);
        let record = match kind {
            RecordType::Pages => return Ok(Self::Pages(frame.place())),
            RecordType::Section => return Ok(Self::Section(payload)),
            RecordType::End => return Totals::decode(&payload).map(Self::End),
            RecordType::Abort => {
                let reason =
                    str::from_utf8(&payload).map_err(|_| Malformed("its reason is not UTF-8"))?;
                return Ok(Self::Abort { reason: clean(reason, MAX_REASON) });
            }
            RecordType::Extents => return decode_extents(&payload).map(Self::Extents),
            RecordType::Fill => Self::Fill { range: frame.place(), pattern: take.u64()? },
            RecordType::Round => Self::Round(RoundStats {
                number: take.u32()?,
                pages: Pages(take.u64()?),
                filled: Pages(take.u64()?),
                bytes: Bytes(take.u64()?),
                dirty_next: Pages(take.u64()?),
                duration: Duration::from_nanos(take.u64()?),
            }),
            RecordType::Blackout => Self::Blackout,
            RecordType::Digest => {
                let mut regions = Vec::new();
                while !take.is_empty() {
                    regions.push(take.u64()?);
                }
                Self::Digest(MemoryDigest { regions })
            }
            RecordType::Go => Self::Go { id: take.id()?, nonce: take.nonce()? },
        };
        take.finish()?;
        Ok(record)
    }
}

impl RoundStats {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(44);
        bytes.u32(self.number);
        bytes.u64(self.pages.0);
        bytes.u64(self.filled.0);
        bytes.u64(self.bytes.0);
        bytes.u64(self.dirty_next.0);
        bytes.u64(nanoseconds(self.duration));
        bytes
    }
}

/// A duration as it travels; 584 years are as good as more.
pub(crate) fn nanoseconds(duration: Duration) -> u64 {
    duration.as_nanos().try_into().unwrap_or(u64::MAX)
}

pub(crate) fn encode_extents(extents: &[PageRange]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(extents.len() * EXTENT_BYTES);
    for extent in extents {
        bytes.u16(extent.region.0);
        bytes.u64(extent.first);
        bytes.u64(extent.count.0);
    }
    bytes
}

fn decode_extents(payload: &[u8]) -> Result<Vec<PageRange>, Malformed> {
    let count = payload.len() / EXTENT_BYTES;
    if count > MAX_EXTENTS {
        return Err(Malformed("it holds more extents than one record may"));
    }
    let mut extents = Vec::with_capacity(count);
    let mut take = Take::new(payload);
    for _ in 0..count {
        extents.push(PageRange {
            region: RegionId(take.u16()?),
            first: take.u64()?,
            count: Pages(take.u64()?),
        });
    }
    take.finish()?;
    Ok(extents)
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
