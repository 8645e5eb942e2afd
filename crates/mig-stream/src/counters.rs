//! What went by so far: the writer says it in `End`, the reader compares.

use migpipe_units::{Bytes, Pages};
use serde::Serialize;
use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::checksum::{RunningDigest, StreamDigest};
use crate::frame::{FRAME_BYTES, Frame, RecordType};
use crate::preamble::PREAMBLE_BYTES;

/// What a stream carried before its `End`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Records of every type.
    pub records: u64,
    /// Pages sent raw; a page that was sent in three rounds counts three times.
    pub pages: Pages,
    /// Pages sent as a pattern.
    pub filled: Pages,
    /// Sections.
    pub sections: u64,
    /// Bytes of the stream, from the first one on.
    pub bytes: Bytes,
    /// Digest over the preamble and every frame.
    pub digest: StreamDigest,
}

/// The payload of `End`.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct TotalsBytes {
    records: U64,
    pages: U64,
    filled: U64,
    sections: U64,
    bytes: U64,
    digest: U64,
}

impl From<&Totals> for TotalsBytes {
    fn from(totals: &Totals) -> Self {
        Self {
            records: totals.records.into(),
            pages: totals.pages.0.into(),
            filled: totals.filled.0.into(),
            sections: totals.sections.into(),
            bytes: totals.bytes.0.into(),
            digest: totals.digest.0.into(),
        }
    }
}

impl From<TotalsBytes> for Totals {
    fn from(bytes: TotalsBytes) -> Self {
        Self {
            records: bytes.records.get(),
            pages: Pages(bytes.pages.get()),
            filled: Pages(bytes.filled.get()),
            sections: bytes.sections.get(),
            bytes: Bytes(bytes.bytes.get()),
            digest: StreamDigest(bytes.digest.get()),
        }
    }
}

impl Totals {
    /// The first figure that differs: its name, ours and theirs.
    pub(crate) fn difference(&self, stated: &Self) -> Option<(&'static str, String, String)> {
        let figures: [(&str, u64, u64); 5] = [
            ("records", self.records, stated.records),
            ("pages", self.pages.0, stated.pages.0),
            ("filled pages", self.filled.0, stated.filled.0),
            ("sections", self.sections, stated.sections),
            ("bytes", self.bytes.0, stated.bytes.0),
        ];
        for (name, counted, said) in figures {
            if counted != said {
                return Some((name, counted.to_string(), said.to_string()));
            }
        }
        (self.digest != stated.digest)
            .then(|| ("digest", self.digest.to_string(), stated.digest.to_string()))
    }
}

/// [`Totals`] in the making.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counters {
    totals: Totals,
    digest: RunningDigest,
}

impl Counters {
    pub(crate) fn new(preamble: &[u8; PREAMBLE_BYTES], header_length: usize) -> Self {
        let mut digest = RunningDigest::new();
        digest.update(preamble);
        Self {
            totals: Totals {
                bytes: Bytes((PREAMBLE_BYTES + header_length) as u64),
                ..Totals::default()
            },
            digest,
        }
    }

    pub(crate) fn totals(&self) -> Totals {
        Totals { digest: self.digest.value(), ..self.totals }
    }

    /// The number that the next record carries.
    pub(crate) const fn sequence(&self) -> u32 {
        self.totals.records as u32
    }

    /// The offset at which the next record begins.
    pub(crate) const fn bytes(&self) -> Bytes {
        self.totals.bytes
    }

    pub(crate) fn record(&mut self, frame: &Frame) {
        self.digest.update(frame.as_bytes());
        let totals = &mut self.totals;
        totals.records += 1;
        totals.bytes.0 += FRAME_BYTES as u64 + u64::from(frame.length.get());
        let pages = u64::from(frame.count.get());
        // Saturating: a hostile stream may fill the same region for ever.
        match RecordType::from_number(frame.kind.get()) {
            Some(RecordType::Pages) => totals.pages.0 = totals.pages.0.saturating_add(pages),
            Some(RecordType::Fill) => totals.filled.0 = totals.filled.0.saturating_add(pages),
            Some(RecordType::Section) => totals.sections += 1,
            _ => {}
        }
    }
}
