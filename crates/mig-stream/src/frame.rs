//! The 32 bytes in front of every record of the forward path.

use std::fmt;

use migpipe_units::{PageRange, Pages, RegionId};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, transmute};

use crate::bytes::crc_of;

/// Length of a frame in bytes.
pub(crate) const FRAME_BYTES: usize = size_of::<Frame>();

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
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub(crate) struct Frame {
    pub(crate) kind: U16,
    pub(crate) region: U16,
    pub(crate) sequence: U32,
    pub(crate) first: U64,
    pub(crate) count: U32,
    pub(crate) length: U32,
    pub(crate) payload_crc: U32,
    /// CRC-32C of all that is in front of it.
    crc: U32,
}

impl Frame {
    /// The frame of a record; its count fits a record, whose limit is checked before.
    pub(crate) fn new(
        kind: RecordType,
        sequence: u32,
        place: &PageRange,
        length: u32,
        payload_crc: u32,
    ) -> Self {
        let frame = Self {
            kind: kind.number().into(),
            region: place.region.0.into(),
            sequence: sequence.into(),
            first: place.first.into(),
            count: (place.count.0 as u32).into(),
            length: length.into(),
            payload_crc: payload_crc.into(),
            crc: U32::ZERO,
        };
        Self { crc: crc_of(&frame).into(), ..frame }
    }

    /// The fields, or nothing where the checksum does not fit them.
    pub(crate) fn decode(bytes: [u8; FRAME_BYTES]) -> Option<Self> {
        let frame: Self = transmute!(bytes);
        (frame.crc.get() == crc_of(&frame)).then_some(frame)
    }

    pub(crate) const fn is_optional(&self) -> bool {
        self.kind.get() & OPTIONAL != 0
    }

    pub(crate) const fn place(&self) -> PageRange {
        PageRange {
            region: RegionId(self.region.get()),
            first: self.first.get(),
            count: Pages(self.count.get() as u64),
        }
    }

    /// Whether the fields that place a record in memory are unused.
    pub(crate) const fn is_placeless(&self) -> bool {
        self.region.get() == 0 && self.first.get() == 0 && self.count.get() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checksum::crc32c;

    fn sample() -> Frame {
        let frame = Frame {
            kind: 0x8102.into(),
            region: 0x0304.into(),
            sequence: 0x0506_0708.into(),
            first: 0x090a_0b0c_0d0e_0f10.into(),
            count: 0x1112_1314.into(),
            length: 0x1516_1718.into(),
            payload_crc: 0x191a_1b1c.into(),
            crc: U32::ZERO,
        };
        Frame { crc: crc_of(&frame).into(), ..frame }
    }

    #[test]
    fn a_frame_is_these_bytes() {
        let bytes: [u8; 32] = transmute!(sample());
        assert_eq!(
            bytes[..28],
            [
                0x02, 0x81, 0x04, 0x03, 0x08, 0x07, 0x06, 0x05, 0x10, 0x0f, 0x0e, 0x0d, 0x0c, 0x0b,
                0x0a, 0x09, 0x14, 0x13, 0x12, 0x11, 0x18, 0x17, 0x16, 0x15, 0x1c, 0x1b, 0x1a, 0x19
            ]
        );
        assert_eq!(bytes[28..], crc32c(&bytes[..28]).to_le_bytes());
        assert_eq!(Frame::decode(bytes), Some(sample()));
    }

    #[test]
    fn a_frame_says_what_it_is_given() {
        let place = PageRange { region: RegionId(3), first: 1 << 40, count: Pages(256) };
        let frame = Frame::new(RecordType::Pages, 7, &place, 1 << 20, 9);
        let read = Frame::decode(transmute!(frame)).unwrap();
        assert_eq!(RecordType::from_number(read.kind.get()), Some(RecordType::Pages));
        assert_eq!((read.sequence.get(), read.place()), (7, place));
        assert_eq!((read.length.get(), read.payload_crc.get()), (1 << 20, 9));
    }

    #[test]
    fn every_flipped_bit_of_a_frame_is_seen_before_a_field_is_believed() {
        for bit in 0..FRAME_BYTES * 8 {
            let mut bytes: [u8; FRAME_BYTES] = transmute!(sample());
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Frame::decode(bytes), None, "bit {bit}");
        }
    }

    #[test]
    fn a_record_that_is_nowhere_in_memory_names_no_place_at_all() {
        let nowhere = Frame { region: 0.into(), first: 0.into(), count: 0.into(), ..sample() };
        assert!(nowhere.is_placeless());
        assert!(!Frame { region: 1.into(), ..nowhere }.is_placeless());
        assert!(!Frame { first: 1.into(), ..nowhere }.is_placeless());
        assert!(!Frame { count: 1.into(), ..nowhere }.is_placeless());
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
