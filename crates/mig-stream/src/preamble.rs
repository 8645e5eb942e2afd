//! The 48 bytes that never move between versions: what comes, who may read it, which migration.

use std::fmt;

use migpipe_units::MigrationId;
use migpipe_units::limits::MAX_HEADER;
use serde::{Serialize, Serializer};
use thiserror::Error;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, transmute};

use crate::bytes::crc_of;
use crate::checksum::crc32c;

/// First bytes of a stream. Like PNG's: no text file starts so, a 7-bit channel would clear the
/// first bit, and a channel that translates line ends would change the middle.
pub(crate) const MAGIC: [u8; 8] = *b"\x89MIG\r\n\x1a\n";

/// First bytes of a return path; see [`crate::preamble::MAGIC`] for why these.
pub(crate) const RETURN_MAGIC: [u8; 8] = *b"\x89MIR\r\n\x1a\n";

/// Length of the preamble in bytes.
pub(crate) const PREAMBLE_BYTES: usize = size_of::<RawPreamble>();

/// A version of the format of everything behind the preamble.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct FormatVersion(pub u16);

impl FormatVersion {
    /// The newest version that this program reads and writes.
    pub const NEWEST: Self = Self(1);
}

impl fmt::Display for FormatVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a stream is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// It carries a guest.
    Migrate,
    /// The source has committed, and asks what became of the guest. A destination that waits for GO
    /// is given it.
    Resolve,
    /// The source has released the guest before its commit: the destination is to forget it.
    Release,
    /// The source asks whether the destination would take this guest, and how fast the path is: the
    /// pages that follow are thrown away, and no guest comes of it.
    Probe,
}

impl Kind {
    /// Whether nothing follows but an answer.
    pub const fn is_query(self) -> bool {
        matches!(self, Self::Resolve | Self::Release)
    }
}

/// What it carries: `guest`, `query`, `release` or `probe`.
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Migrate => "guest",
            Self::Resolve => "query",
            Self::Release => "release",
            Self::Probe => "probe",
        })
    }
}

/// The word by which it is shown.
impl Serialize for Kind {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// How both ends go about it. Bits 0 to 15 of the field must be known to the reader; bits 16 to
/// 31 may be ignored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Flags {
    /// The destination can answer.
    pub return_path: bool,
    /// `Pages` payloads carry a CRC-32C.
    pub page_sums: bool,
    /// GO comes by another command: the forward path is closed behind `End`.
    pub separate_commit: bool,
    /// `Digest` comes before `End`, and the destination compares it.
    pub verify: bool,
    /// The stream is a file, and the guest is in it alone: its source ended when it was complete. It
    /// may be read again until the guest has run, and nobody asks what became of it.
    pub saved: bool,
    /// The guest of this file ran on when it was written: it may be run as a copy alone.
    pub snapshot: bool,
}

const RETURN_PATH: u32 = 1 << 0;
const PAGE_SUMS: u32 = 1 << 1;
const SEPARATE_COMMIT: u32 = 1 << 2;
const VERIFY: u32 = 1 << 3;
const SAVED: u32 = 1 << 4;
const SNAPSHOT: u32 = 1 << 5;
const MUST_BE_KNOWN: u32 = 0xffff;

impl Flags {
    const fn to_bits(self) -> u32 {
        let mut bits = 0;
        if self.return_path {
            bits |= RETURN_PATH;
        }
        if self.page_sums {
            bits |= PAGE_SUMS;
        }
        if self.separate_commit {
            bits |= SEPARATE_COMMIT;
        }
        if self.verify {
            bits |= VERIFY;
        }
        if self.saved {
            bits |= SAVED;
        }
        if self.snapshot {
            bits |= SNAPSHOT;
        }
        bits
    }

    fn from_bits(bits: u32) -> Result<Self, PreambleError> {
        let known = RETURN_PATH | PAGE_SUMS | SEPARATE_COMMIT | VERIFY | SAVED | SNAPSHOT;
        let unknown = bits & MUST_BE_KNOWN & !known;
        if unknown != 0 {
            return Err(PreambleError::UnknownFlags { bits: unknown });
        }
        Ok(Self {
            return_path: bits & RETURN_PATH != 0,
            page_sums: bits & PAGE_SUMS != 0,
            separate_commit: bits & SEPARATE_COMMIT != 0,
            verify: bits & VERIFY != 0,
            saved: bits & SAVED != 0,
            snapshot: bits & SNAPSHOT != 0,
        })
    }

    /// Whether `Go` or `Abort` may follow behind the last record that carries the guest.
    pub const fn go_follows(self) -> bool {
        self.return_path && !self.separate_commit
    }
}

/// What a stream says of itself before anything else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preamble {
    /// The oldest version whose readers can read this stream.
    pub oldest: FormatVersion,
    /// The version that the stream is written in until the destination asks for an older one.
    pub written: FormatVersion,
    /// How both ends go about it.
    pub flags: Flags,
    /// What the stream is for.
    pub kind: Kind,
    /// Which migration this is.
    pub id: MigrationId,
}

/// Why a preamble is of no use.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PreambleError {
    /// Its checksum is wrong.
    #[error(
        "the first 48 bytes of the stream are damaged (CRC-32C): the tunnel changes what it carries"
    )]
    Damaged,
    /// Only newer programs can read it.
    #[error(
        "the stream has format {oldest}, this program reads up to {}: use a receiver of the \
         sender's release, or a newer one",
        FormatVersion::NEWEST
    )]
    TooNew {
        /// The oldest version whose readers can read the stream.
        oldest: FormatVersion,
    },
    /// It is for something that this program does not know.
    #[error("the stream is of kind {0}, which this program does not know: update the receiver")]
    UnknownKind(u16),
    /// It needs something that this program does not know.
    #[error(
        "the stream needs flags {bits:#x}, which this program does not know: update the receiver"
    )]
    UnknownFlags {
        /// The unknown bits.
        bits: u32,
    },
    /// The header behind it is longer than any real one.
    #[error("the stream announces a header of {0} bytes; at most {MAX_HEADER} are read")]
    HeaderTooLong(u32),
    /// Its fields contradict each other.
    #[error("the preamble of the stream contradicts itself: {0}")]
    Contradiction(&'static str),
}

/// A preamble as it travels: with the length and the checksum of the header behind it.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawPreamble {
    magic: [u8; 8],
    oldest: U16,
    written: U16,
    flags: U32,
    kind: U16,
    /// Zero: a later version may give it a meaning that old readers can ignore.
    reserved: U16,
    id: [u8; 16],
    header_length: U32,
    header_crc: U32,
    /// CRC-32C of all that is in front of it.
    crc: U32,
}

impl Preamble {
    /// The preamble of a stream that carries a guest, in the newest format.
    pub const fn migrate(id: MigrationId, flags: Flags) -> Self {
        Self {
            oldest: FormatVersion(1),
            written: FormatVersion::NEWEST,
            flags,
            kind: Kind::Migrate,
            id,
        }
    }

    /// The preamble of a query: what became of this migration? It has a return path.
    pub const fn resolve(id: MigrationId) -> Self {
        Self::query(id, Kind::Resolve)
    }

    /// The preamble of the message that this migration was given up before its commit. It is
    /// answered as a query is.
    pub const fn release(id: MigrationId) -> Self {
        Self::query(id, Kind::Release)
    }

    /// The preamble of a question: would the guest of this header be taken? It has a return path.
    pub const fn probe(id: MigrationId) -> Self {
        Self::answered(id, Kind::Probe, true)
    }

    const fn query(id: MigrationId, kind: Kind) -> Self {
        Self::answered(id, kind, false)
    }

    const fn answered(id: MigrationId, kind: Kind, page_sums: bool) -> Self {
        Self {
            oldest: FormatVersion(1),
            written: FormatVersion::NEWEST,
            flags: Flags {
                return_path: true,
                page_sums,
                separate_commit: false,
                verify: false,
                saved: false,
                snapshot: false,
            },
            kind,
            id,
        }
    }

    /// The version that both ends know: what a `Ready` says.
    ///
    /// # Errors
    /// [`PreambleError::TooNew`] where there is none.
    pub fn negotiate(&self) -> Result<FormatVersion, PreambleError> {
        if self.oldest > FormatVersion::NEWEST {
            return Err(PreambleError::TooNew { oldest: self.oldest });
        }
        Ok(self.written.min(FormatVersion::NEWEST))
    }

    pub(crate) fn check(&self) -> Result<(), PreambleError> {
        let contradiction = if self.oldest.0 == 0 || self.oldest > self.written {
            "its oldest version is not one of those up to the version written"
        } else if self.flags.separate_commit && !self.flags.return_path {
            "a separate commit needs a return path"
        } else if self.kind.is_query() && !self.flags.return_path {
            "a query needs a return path"
        } else if self.kind.is_query() && self.flags.verify {
            "a query carries no memory to verify"
        } else if self.kind == Kind::Probe && !self.flags.return_path {
            "a probe needs a return path"
        } else if self.kind == Kind::Probe && (self.flags.verify || self.flags.separate_commit) {
            "a probe carries no guest to verify or to commit"
        } else if self.flags.saved && self.flags.return_path {
            "nobody waits for answers to a saved guest"
        } else if self.flags.snapshot && !self.flags.saved {
            "a snapshot is a saved guest"
        } else {
            return self.negotiate().map(|_| ());
        };
        Err(PreambleError::Contradiction(contradiction))
    }

    pub(crate) fn encode(&self, header: &[u8]) -> [u8; PREAMBLE_BYTES] {
        let kind: u16 = match self.kind {
            Kind::Migrate => 1,
            Kind::Resolve => 2,
            Kind::Release => 3,
            Kind::Probe => 4,
        };
        let raw = RawPreamble {
            magic: MAGIC,
            oldest: self.oldest.0.into(),
            written: self.written.0.into(),
            flags: self.flags.to_bits().into(),
            kind: kind.into(),
            reserved: U16::ZERO,
            id: self.id.to_bytes(),
            header_length: (header.len() as u32).into(),
            header_crc: crc32c(header).into(),
            crc: U32::ZERO,
        };
        raw.encode()
    }
}

impl RawPreamble {
    fn encode(self) -> [u8; PREAMBLE_BYTES] {
        transmute!(Self { crc: crc_of(&self).into(), ..self })
    }

    /// The fields, whose magic the caller has looked at; nothing where the checksum does not fit.
    pub(crate) fn decode(bytes: [u8; PREAMBLE_BYTES]) -> Option<Self> {
        let raw: Self = transmute!(bytes);
        (raw.crc.get() == crc_of(&raw)).then_some(raw)
    }

    /// Whether somebody listens on the return path, whatever else the preamble says.
    pub(crate) const fn has_return_path(&self) -> bool {
        self.flags.get() & RETURN_PATH != 0
    }

    pub(crate) const fn id(&self) -> MigrationId {
        MigrationId::from_bytes(self.id)
    }

    /// Length of the header behind it (bytes).
    pub(crate) const fn header_length(&self) -> u32 {
        self.header_length.get()
    }

    pub(crate) const fn header_crc(&self) -> u32 {
        self.header_crc.get()
    }

    pub(crate) fn check(&self) -> Result<Preamble, PreambleError> {
        // The version first: what else looks wrong may just be new.
        let oldest = FormatVersion(self.oldest.get());
        if oldest > FormatVersion::NEWEST {
            return Err(PreambleError::TooNew { oldest });
        }
        let preamble = Preamble {
            oldest,
            written: FormatVersion(self.written.get()),
            flags: Flags::from_bits(self.flags.get())?,
            kind: match self.kind.get() {
                1 => Kind::Migrate,
                2 => Kind::Resolve,
                3 => Kind::Release,
                4 => Kind::Probe,
                other => return Err(PreambleError::UnknownKind(other)),
            },
            id: self.id(),
        };
        preamble.check()?;
        if self.header_length() > MAX_HEADER {
            return Err(PreambleError::HeaderTooLong(self.header_length()));
        }
        Ok(preamble)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw() -> RawPreamble {
        let flags = Flags { return_path: true, page_sums: true, ..Flags::default() };
        let id = MigrationId::from_bytes(*b"0123456789abcdef");
        RawPreamble::decode(Preamble::migrate(id, flags).encode(b"header")).unwrap()
    }

    #[test]
    fn a_preamble_is_these_bytes() {
        let bytes = raw().encode();
        assert_eq!(bytes[..8], [0x89, b'M', b'I', b'G', 13, 10, 26, 10]);
        assert_eq!(bytes[8..20], [1, 0, 1, 0, 3, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(bytes[20..36], *b"0123456789abcdef");
        assert_eq!(bytes[36..40], [6, 0, 0, 0]);
        assert_eq!(bytes[40..44], crc32c(b"header").to_le_bytes());
        assert_eq!(bytes[44..], crc32c(&bytes[..44]).to_le_bytes());
    }

    #[test]
    fn what_is_in_the_preamble_decides_who_reads_the_stream() {
        type Change = fn(&mut RawPreamble);
        let cases: [(Change, PreambleError); 14] = [
            (
                |raw| (raw.oldest, raw.written) = (3.into(), 4.into()),
                PreambleError::TooNew { oldest: FormatVersion(3) },
            ),
            (|raw| raw.kind = 7.into(), PreambleError::UnknownKind(7)),
            (|raw| raw.flags |= 0x8000, PreambleError::UnknownFlags { bits: 0x8000 }),
            (
                |raw| raw.header_length = (MAX_HEADER + 1).into(),
                PreambleError::HeaderTooLong(MAX_HEADER + 1),
            ),
            (
                |raw| raw.oldest = 0.into(),
                PreambleError::Contradiction(
                    "its oldest version is not one of those up to the version written",
                ),
            ),
            (
                |raw| raw.flags = SEPARATE_COMMIT.into(),
                PreambleError::Contradiction("a separate commit needs a return path"),
            ),
            (
                |raw| (raw.kind, raw.flags) = (2.into(), 0.into()),
                PreambleError::Contradiction("a query needs a return path"),
            ),
            (
                |raw| (raw.kind, raw.flags) = (3.into(), 0.into()),
                PreambleError::Contradiction("a query needs a return path"),
            ),
            (
                |raw| (raw.kind, raw.flags) = (2.into(), (RETURN_PATH | VERIFY).into()),
                PreambleError::Contradiction("a query carries no memory to verify"),
            ),
            (
                |raw| (raw.kind, raw.flags) = (4.into(), PAGE_SUMS.into()),
                PreambleError::Contradiction("a probe needs a return path"),
            ),
            (
                |raw| (raw.kind, raw.flags) = (4.into(), (RETURN_PATH | VERIFY).into()),
                PreambleError::Contradiction("a probe carries no guest to verify or to commit"),
            ),
            (
                |raw| (raw.kind, raw.flags) = (4.into(), (RETURN_PATH | SEPARATE_COMMIT).into()),
                PreambleError::Contradiction("a probe carries no guest to verify or to commit"),
            ),
            (
                |raw| raw.flags = (RETURN_PATH | SAVED).into(),
                PreambleError::Contradiction("nobody waits for answers to a saved guest"),
            ),
            (
                |raw| raw.flags = SNAPSHOT.into(),
                PreambleError::Contradiction("a snapshot is a saved guest"),
            ),
        ];
        for (change, error) in cases {
            let mut raw = raw();
            change(&mut raw);
            assert_eq!(raw.check(), Err(error));
        }
    }

    #[test]
    fn all_flags_come_back_as_they_were_and_each_is_a_bit_of_its_own() {
        const KNOWN: u32 = 6;
        for bits in 0..1 << KNOWN {
            let has = |bit: u32| bits & (1 << bit) != 0;
            let flags = Flags {
                return_path: has(0),
                page_sums: has(1),
                separate_commit: has(2),
                verify: has(3),
                saved: has(4),
                snapshot: has(5),
            };
            assert_eq!(flags.to_bits(), bits);
            assert_eq!(Flags::from_bits(bits), Ok(flags));
            // Through the 48 bytes too, where they do not contradict each other.
            let preamble = Preamble::migrate(MigrationId::from_bytes([7; 16]), flags);
            let read = RawPreamble::decode(preamble.encode(b"header")).unwrap();
            assert_eq!(read.has_return_path(), flags.return_path);
            let alone = flags.separate_commit && !flags.return_path;
            let contradicts =
                alone || (flags.saved && flags.return_path) || (flags.snapshot && !flags.saved);
            match read.check() {
                Ok(read) => assert!(read == preamble && !contradicts, "{flags:?}"),
                Err(PreambleError::Contradiction(_)) => assert!(contradicts, "{flags:?}"),
                Err(error) => panic!("{flags:?}: {error}"),
            }
            for bit in KNOWN..32 {
                let more = Flags::from_bits(bits | (1 << bit));
                match bit {
                    ..16 => assert_eq!(more, Err(PreambleError::UnknownFlags { bits: 1 << bit })),
                    16.. => assert_eq!(more, Ok(flags), "bit {bit} may be ignored"),
                }
            }
        }
    }

    #[test]
    fn a_newer_stream_that_we_can_read_is_read_in_our_version() {
        let mut raw = raw();
        raw.written = 9.into();
        raw.flags |= 0x0001_0000;
        let preamble = raw.check().unwrap();
        assert_eq!(preamble.negotiate(), Ok(FormatVersion::NEWEST));
    }

    #[test]
    fn a_refused_version_says_what_to_do() {
        let error = PreambleError::TooNew { oldest: FormatVersion(3) };
        assert!(
            error.to_string().contains(
                "format 3, this program reads up to 1: use a receiver of the sender's release"
            ),
            "{error}"
        );
    }
}
