//! The 32 bytes in front of every record of the forward path.

use std::fmt;

use migpipe_units::{PageRange, Pages, RegionId};

use crate::bytes::{Put, Take};
use crate::checksum::crc32c;

/// Length of a frame in bytes.
pub(crate) const FRAME_BYTES: usize = 32;

/// The bit of a type that says: who does not know this record may skip it.
pub(crate) const OPTIONAL: u16 = 0x8000;

/// The longest payload of any record, known or unknown (bytes).
pub const MAX_PAYLOAD: u32 = 16 << 20;

/// The most pages in one [`crate::Record::Pages`]: 1 MiB, beyond which longer runs gain nothing and a
/// cancel would have to wait for them.
pub const MAX_RUN: Pages = Pages(256);

/// The most pages in one [`crate::Record::Fill`]: 4 MiB, which are written in the time that a reader
/// may take between two looks at its channel.
pub const MAX_FILL: Pages = Pages(1024);

/// What a record is. The number travels; bit 15 of it marks records that may be skipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum RecordType {
    /// A run of pages, raw.
    Pages = 1,
    /// A run of pages that repeat one 8-byte pattern.
    Fill = 2,
    /// Where the source has data: a hint.
    Extents = 3 | OPTIONAL,
    /// Statistics of a round.
    Round = 4 | OPTIONAL,
    /// The guest is paused from here on: a hint.
    Blackout = 5 | OPTIONAL,
    /// The state of one device.
    Section = 6,
    /// Digests of the whole memory.
    Digest = 7,
    /// Everything was sent.
    End = 8,
    /// The destination may run the guest.
    Go = 9,
    /// The source gives up.
    Abort = 10,
}

impl RecordType {
    const ALL: [Self; 10] = [
        Self::Pages,
        Self::Fill,
        Self::Extents,
        Self::Round,
        Self::Blackout,
        Self::Section,
        Self::Digest,
        Self::End,
        Self::Go,
        Self::Abort,
    ];

    /// The number that travels.
    pub const fn number(self) -> u16 {
        self as u16
    }

    pub(crate) fn from_number(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.number() == number)
    }

    /// Whether the frame names a run of pages.
    pub(crate) const fn has_place(self) -> bool {
        matches!(self, Self::Pages | Self::Fill)
    }

    /// The longest payload of this record (bytes).
    pub(crate) const fn max_payload(self) -> u32 {
        match self {
            Self::Pages => MAX_RUN.0 as u32 * migpipe_units::PAGE_SIZE as u32,
            Self::Section => MAX_PAYLOAD,
            // Room for the largest list of either kind; its own decoder bounds it exactly.
            Self::Extents | Self::Digest => 2 << 20,
            Self::Fill | Self::Round | Self::Blackout | Self::End | Self::Go => 64,
            Self::Abort => crate::text::MAX_REASON as u32,
        }
    }
}

impl fmt::Display for RecordType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Pages => "Pages",
            Self::Fill => "Fill",
            Self::Extents => "Extents",
            Self::Round => "Round",
            Self::Blackout => "Blackout",
            Self::Section => "Section",
            Self::Digest => "Digest",
            Self::End => "End",
            Self::Go => "Go",
            Self::Abort => "Abort",
        })
    }
}

/// The fields in front of a payload. Its own checksum is found right or wrong before any of them
/// is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u16,
    pub(crate) region: RegionId,
    pub(crate) sequence: u32,
    pub(crate) first: u64,
    pub(crate) count: u32,
    pub(crate) length: u32,
    pub(crate) payload_crc: u32,
}

impl Frame {
    pub(crate) fn encode(&self) -> [u8; FRAME_BYTES] {
        let mut bytes = Vec::with_capacity(FRAME_BYTES);
        bytes.u16(self.kind);
        bytes.u16(self.region.0);
        bytes.u32(self.sequence);
        bytes.u64(self.first);
        bytes.u32(self.count);
        bytes.u32(self.length);
        bytes.u32(self.payload_crc);
        bytes.u32(crc32c(&bytes));
        let mut frame = [0; FRAME_BYTES];
        frame.copy_from_slice(&bytes);
        frame
    }

    /// The fields, or nothing where the checksum does not fit them.
    pub(crate) fn decode(bytes: &[u8; FRAME_BYTES]) -> Option<Self> {
        let mut take = Take::new(bytes);
        let frame = Self {
            kind: take.u16().ok()?,
            region: RegionId(take.u16().ok()?),
            sequence: take.u32().ok()?,
            first: take.u64().ok()?,
            count: take.u32().ok()?,
            length: take.u32().ok()?,
            payload_crc: take.u32().ok()?,
        };
        (take.u32().ok()? == crc32c(&bytes[..FRAME_BYTES - 4])).then_some(frame)
    }

    pub(crate) const fn is_optional(&self) -> bool {
        self.kind & OPTIONAL != 0
    }

    pub(crate) const fn place(&self) -> PageRange {
        PageRange { region: self.region, first: self.first, count: Pages(self.count as u64) }
    }

    /// Whether the fields that place a record in memory are unused.
    pub(crate) const fn is_placeless(&self) -> bool {
        self.region.0 == 0 && self.first == 0 && self.count == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: Frame = Frame {
        kind: 0x8102,
        region: RegionId(0x0304),
        sequence: 0x0506_0708,
        first: 0x090a_0b0c_0d0e_0f10,
        count: 0x1112_1314,
        length: 0x1516_1718,
        payload_crc: 0x191a_1b1c,
    };

    #[test]
    fn a_frame_is_these_bytes() {
        let bytes = SAMPLE.encode();
        assert_eq!(
            bytes[..28],
            [
                0x02, 0x81, 0x04, 0x03, 0x08, 0x07, 0x06, 0x05, 0x10, 0x0f, 0x0e, 0x0d, 0x0c, 0x0b,
                0x0a, 0x09, 0x14, 0x13, 0x12, 0x11, 0x18, 0x17, 0x16, 0x15, 0x1c, 0x1b, 0x1a, 0x19
            ]
        );
        assert_eq!(bytes[28..], crc32c(&bytes[..28]).to_le_bytes());
        assert_eq!(Frame::decode(&bytes), Some(SAMPLE));
    }

    #[test]
    fn every_flipped_bit_of_a_frame_is_seen_before_a_field_is_believed() {
        for bit in 0..FRAME_BYTES * 8 {
            let mut bytes = SAMPLE.encode();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Frame::decode(&bytes), None, "bit {bit}");
        }
    }

    #[test]
    fn a_record_that_is_nowhere_in_memory_names_no_place_at_all() {
        let nowhere = Frame { region: RegionId(0), first: 0, count: 0, ..SAMPLE };
        assert!(nowhere.is_placeless());
        assert!(!Frame { region: RegionId(1), ..nowhere }.is_placeless());
        assert!(!Frame { first: 1, ..nowhere }.is_placeless());
        assert!(!Frame { count: 1, ..nowhere }.is_placeless());
    }

    #[test]
    fn numbers_and_types_belong_together() {
        for kind in RecordType::ALL {
            assert_eq!(RecordType::from_number(kind.number()), Some(kind));
            assert!(kind.max_payload() <= MAX_PAYLOAD);
        }
        assert_eq!(RecordType::from_number(0), None);
        assert_eq!(RecordType::from_number(1 | OPTIONAL), None);
    }
}
