//! Streams of real guests, and records put together by hand.

use std::fs;
use std::path::PathBuf;

use crc_fast::{CrcAlgorithm, checksum};

use crate::guest::Guest;
use crate::host::Host;

/// A small guest that was saved on `host` by mig-send: it counts, and has little memory that exists.
pub fn saved_guest(host: &Host) -> PathBuf {
    let mut guest = Guest::boot(host, "web", "builtin:idle,tick-ms=20", &["--mem", "16M"]);
    let file = host.path("web.mig");
    host.run("mig-send", &["-q", "web", &format!("file:{}", file.display())]).expect(0);
    assert_eq!(guest.ended(), Some(0));
    assert!(fs::metadata(&file).is_ok_and(|file| file.len() > 0));
    file
}

/// The fields of a record's frame that a test chooses.
#[derive(Clone, Copy, Debug, Default)]
pub struct Frame {
    /// What it is; see the table in the documentation of `mig-stream`.
    pub kind: u16,
    /// Records in front of it.
    pub sequence: u32,
    /// Its first page and how many, in region 0, if it has a place.
    pub pages: (u64, u32),
    /// The length that it claims, where that is not the length of its payload (bytes).
    pub length: Option<u32>,
}

/// A record with right checksums.
pub fn frame_of(frame: Frame, payload: &[u8]) -> Vec<u8> {
    let sum = |bytes: &[u8]| (checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32).to_le_bytes();
    let mut bytes = Vec::with_capacity(32 + payload.len());
    bytes.extend(frame.kind.to_le_bytes());
    bytes.extend([0; 2]);
    bytes.extend(frame.sequence.to_le_bytes());
    bytes.extend(frame.pages.0.to_le_bytes());
    bytes.extend(frame.pages.1.to_le_bytes());
    bytes.extend(frame.length.unwrap_or(payload.len() as u32).to_le_bytes());
    bytes.extend(sum(payload));
    bytes.extend(sum(&bytes));
    bytes.extend(payload);
    bytes
}

/// A row of numbers that is the same every time (Knuth's MMIX generator).
#[derive(Clone, Copy, Debug)]
pub struct Numbers(pub u64);

impl Numbers {
    /// The next number, below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end.max(1)
    }
}
