//! The checksums of the format: CRC-32C over what travels, CRC-64/NVME over the sequence of it.
//!
//! Both guard against damage, not against forgery: that is the tunnel's work (ssh, TLS). A CRC
//! finds every burst shorter than its width and misses one in 2^32 (2^64) of all other damage, at
//! the speed of memory, since processors multiply without carry. A cryptographic hash would cost
//! ten times as much and protect no better here, as a forger could write a valid one.

use std::fmt;

use crc_fast::{CrcAlgorithm, Digest};
use serde::{Serialize, Serializer};

/// CRC-32C (CRC-32/ISCSI) of `bytes`.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

/// CRC-32C of bytes that arrive in pieces.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Crc32c(Digest);

impl Crc32c {
    pub(crate) fn new() -> Self {
        Self(Digest::new(CrcAlgorithm::Crc32Iscsi))
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(crate) fn value(&self) -> u32 {
        self.0.finalize() as u32
    }
}

/// CRC-64/NVME over the preamble and the frame of every record before `End`, in order.
///
/// A frame holds the checksum of its payload, its place and its sequence number, so two streams
/// have the same digest only if they carried the same records in the same order. The destination
/// echoes it in its `Ack`: as the preamble holds the migration id, an answer cannot be mistaken
/// for that of another migration.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct StreamDigest(pub u64);

impl fmt::Display for StreamDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// As text, in the form in which it is shown.
impl Serialize for StreamDigest {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl fmt::Debug for StreamDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StreamDigest({self})")
    }
}

/// A [`StreamDigest`] in the making.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RunningDigest(Digest);

impl RunningDigest {
    pub(crate) fn new() -> Self {
        Self(Digest::new(CrcAlgorithm::Crc64Nvme))
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(crate) fn value(&self) -> StreamDigest {
        StreamDigest(self.0.finalize())
    }
}

/// Which instructions compute the checksums on this machine, such as
/// `x86_64-avx512-vpclmulqdq`; a name with `software` in it means that they cost more than the
/// copying of the pages.
pub fn checksum_implementation() -> String {
    crc_fast::get_calculator_target(CrcAlgorithm::Crc32Iscsi)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The check values of the CRC catalogue (reveng): another algorithm would write streams that
    /// nobody else can read.
    #[test]
    fn the_checksums_are_those_of_the_catalogue() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        let mut pieces = Crc32c::new();
        pieces.update(b"1234");
        pieces.update(b"56789");
        assert_eq!(pieces.value(), 0xe306_9283);
        let mut digest = RunningDigest::new();
        digest.update(b"123456789");
        assert_eq!(digest.value(), StreamDigest(0xae8b_1486_0a79_9888));
        assert_eq!(digest.value().to_string(), "ae8b14860a799888");
    }
}
