//! Streams for the tests: one that holds every record, and parts to build wrong ones from.
//!
//! The parts are written by hand from the tables in the crate's documentation, so that the tests
//! hold the code against the documented format and not against itself.
#![allow(dead_code)]

use std::time::Duration;

use mig_stream::{
    Flags, Header, MemoryDigest, Preamble, ReadError, Record, RegionDigest, RoundStats,
    StreamReader, StreamWriter,
};
use migpipe_units::{
    Acknowledged, Bytes, Gfn, HostId, MemoryRegion, MigrationId, Nonce, PageRange, Pages, RegionId,
};

pub const ID: MigrationId = MigrationId::from_bytes(*b"0123456789abcdef");

pub const BY: Acknowledged = Acknowledged {
    host: HostId::from_bytes(*b"a host with disk"),
    nonce: Nonce::from_bytes(*b"a number of once"),
};

pub const BOTH_WAYS: Flags = Flags {
    return_path: true,
    page_sums: true,
    separate_commit: false,
    verify: true,
    saved: false,
    snapshot: false,
};

pub const ONE_WAY: Flags = Flags {
    return_path: false,
    page_sums: true,
    separate_commit: false,
    verify: false,
    saved: false,
    snapshot: false,
};

pub fn run(region: u16, first: u64, count: u64) -> PageRange {
    PageRange { region: RegionId(region), first, count: Pages(count) }
}

pub fn header() -> Header {
    let region =
        |id, base, pages| MemoryRegion { id: RegionId(id), base: Gfn(base), pages: Pages(pages) };
    Header {
        guest: "web".into(),
        machine: b"a machine".to_vec(),
        regions: vec![region(0, 0, 160), region(1, 0x10_0000, 1000)],
        released: vec![MigrationId::from_bytes(*b"an earlier trial")],
    }
}

/// A page whose bytes tell which one it is.
pub fn page(number: u8) -> Vec<u8> {
    (0..4096u32).map(|offset| (offset as u8).wrapping_mul(7) ^ number).collect()
}

pub fn memory_digest() -> MemoryDigest {
    let mut first = RegionDigest::new();
    first.update(&page(1));
    first.zeros(Bytes(159 * 4096));
    let mut second = RegionDigest::new();
    second.zeros(Bytes(1000 * 4096));
    MemoryDigest::new([first, second])
}

pub fn round(number: u32) -> RoundStats {
    RoundStats {
        number,
        pages: Pages(2),
        filled: Pages(900),
        bytes: Bytes(8300),
        dirty_next: Pages(1),
        duration: Duration::from_micros(1234),
    }
}

/// The bytes of a stream with every record in it.
pub fn sample(flags: Flags) -> Vec<u8> {
    let mut stream = StreamWriter::new(Vec::new(), Preamble::migrate(ID, flags), header()).unwrap();
    stream.extents(&[run(0, 0, 2), run(1, 0, 1000)]).unwrap();
    stream.pages(run(0, 0, 2), &[page(1), page(2)].concat()).unwrap();
    stream.fill(run(1, 100, 900), 0x0102_0304_0506_0708).unwrap();
    stream.round(&round(0)).unwrap();
    stream.blackout().unwrap();
    stream.section(b"state of a serial port").unwrap();
    stream.pages(run(1, 999, 1), &page(3)).unwrap();
    stream.section(b"").unwrap();
    if flags.verify {
        stream.digest(&memory_digest()).unwrap();
    }
    stream.end().unwrap();
    if flags.go_follows() {
        stream.go(BY.nonce).unwrap();
    }
    stream.into_inner()
}

/// The bytes of a stream that only asks.
pub fn probe() -> Vec<u8> {
    let mut stream = StreamWriter::new(Vec::new(), Preamble::probe(ID), header()).unwrap();
    stream.pages(run(0, 0, 2), &[page(1), page(2)].concat()).unwrap();
    stream.fill(run(1, 100, 900), 0x0102_0304_0506_0708).unwrap();
    stream.round(&round(0)).unwrap();
    stream.end().unwrap();
    stream.into_inner()
}

/// What a reader hands out, with the payload of every run of pages.
#[derive(Debug)]
pub struct Whole {
    pub records: Vec<Record>,
    pub payloads: Vec<Vec<u8>>,
    pub skipped: u64,
}

/// Why [`read`] stopped.
#[derive(Debug)]
pub enum Stopped {
    Open(mig_stream::OpenError),
    Read(ReadError),
}

impl Stopped {
    pub fn said(&self) -> String {
        let mut text = match self {
            Self::Open(error) => error.to_string(),
            Self::Read(error) => error.to_string(),
        };
        let mut cause = match self {
            Self::Open(error) => std::error::Error::source(error),
            Self::Read(error) => std::error::Error::source(error),
        };
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        text
    }
}

/// Reads a stream to its end.
pub fn read(bytes: &[u8]) -> Result<Whole, Stopped> {
    let mut reader = StreamReader::open(bytes).map_err(Stopped::Open)?;
    let mut whole = Whole { records: vec![], payloads: vec![], skipped: 0 };
    while let Some(record) = reader.next_record().map_err(Stopped::Read)? {
        if let Record::Pages(range) = record {
            let mut payload = vec![0; range.len().0 as usize];
            reader.read_payload(&mut payload).map_err(Stopped::Read)?;
            whole.payloads.push(payload);
        }
        whole.records.push(record);
    }
    whole.skipped = reader.skipped();
    reader.expect_eof().map_err(Stopped::Read)?;
    Ok(whole)
}

pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// Whether a stream came to a proper `End`.
pub fn reached_end(result: &Result<Whole, Stopped>) -> bool {
    result
        .as_ref()
        .is_ok_and(|whole| whole.records.iter().any(|record| matches!(record, Record::End(_))))
}

/// A stream put together by hand.
pub struct Raw {
    pub bytes: Vec<u8>,
    pub sequence: u32,
}

/// The fields of a frame that a test wants other than zero.
#[derive(Clone, Copy, Debug, Default)]
pub struct Place {
    pub region: u16,
    pub first: u64,
    pub count: u32,
}

impl Raw {
    /// A stream that has only its preamble and header so far.
    pub fn new(flags: Flags) -> Self {
        let stream = StreamWriter::new(Vec::new(), Preamble::migrate(ID, flags), header()).unwrap();
        Self { bytes: stream.into_inner(), sequence: 0 }
    }

    /// Appends a frame with right checksums, whatever else is wrong with it; no payload.
    pub fn frame(mut self, kind: u16, place: Place, length: u32, payload_crc: u32) -> Self {
        let mut frame = Vec::new();
        frame.extend(kind.to_le_bytes());
        frame.extend(place.region.to_le_bytes());
        frame.extend(self.sequence.to_le_bytes());
        frame.extend(place.first.to_le_bytes());
        frame.extend(place.count.to_le_bytes());
        frame.extend(length.to_le_bytes());
        frame.extend(payload_crc.to_le_bytes());
        frame.extend(crc32c(&frame).to_le_bytes());
        assert_eq!(frame.len(), 32);
        self.bytes.extend(frame);
        self.sequence += 1;
        self
    }

    /// Appends a record with right checksums.
    pub fn record(self, kind: u16, place: Place, payload: &[u8]) -> Self {
        let mut raw = self.frame(kind, place, payload.len() as u32, crc32c(payload));
        raw.bytes.extend(payload);
        raw
    }

    pub fn read(&self) -> Result<Whole, Stopped> {
        read(&self.bytes)
    }
}
