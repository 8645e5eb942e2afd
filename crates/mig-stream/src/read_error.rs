//! Why a stream cannot be read on.

use std::fmt;
use std::io;

use migpipe_units::{Bytes, MigrationId};
use thiserror::Error;

use crate::bytes::Malformed;
use crate::frame::RecordType;
use crate::header::RangeError;
use crate::order::OrderError;

/// Why a stream cannot be read on. After any of these nothing more is read of it.
#[derive(Debug, Error)]
pub enum ReadError {
    /// The channel failed.
    #[error("reading {inside} failed {at} bytes into the stream", at = .at.0)]
    Io {
        /// What was being read.
        inside: Inside,
        /// How many bytes had come.
        at: Bytes,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It ends too early.
    #[error(
        "the stream ends {} after {} bytes: the sender or the tunnel died before all was sent",
        .inside.place(), .at.0
    )]
    Truncated {
        /// What was being read.
        inside: Inside,
        /// How many bytes came.
        at: Bytes,
    },
    /// A frame does not fit its checksum.
    #[error("the frame of the record at byte {} is damaged (CRC-32C): the tunnel changes what it carries", .at.0)]
    FrameDamaged {
        /// Where the record begins.
        at: Bytes,
    },
    /// A payload does not fit its checksum.
    #[error("the payload of the {kind} record at byte {at} is damaged (CRC-32C): the tunnel changes what it carries", at = .at.0)]
    PayloadDamaged {
        /// What the record is.
        kind: RecordType,
        /// Where it begins.
        at: Bytes,
    },
    /// The payload of a record that is skipped does not fit its checksum.
    #[error("the payload of the unknown record {number:#06x} at byte {at} is damaged (CRC-32C): the tunnel changes what it carries", at = .at.0)]
    SkippedDamaged {
        /// The number of its type.
        number: u16,
        /// Where it begins.
        at: Bytes,
    },
    /// A record has another number than its place in the stream.
    #[error("record {found} stands at byte {at}, where record {expected} belongs: the tunnel lost, repeated or reordered data", at = .at.0)]
    Sequence {
        /// The number it should have.
        expected: u32,
        /// The number it has.
        found: u32,
        /// Where it begins.
        at: Bytes,
    },
    /// A record that must not be skipped and is not known.
    #[error("the record at byte {at} is of type {number}, which this program does not know and must not skip: update the receiver", at = .at.0)]
    Unknown {
        /// The number of its type.
        number: u16,
        /// Where it begins.
        at: Bytes,
    },
    /// A payload is longer than its type may be.
    #[error("the record of type {number:#06x} at byte {at} announces {length} bytes; at most {max} are read", at = .at.0)]
    TooLong {
        /// The number of its type.
        number: u16,
        /// The length it announces.
        length: u32,
        /// The length it may have.
        max: u32,
        /// Where it begins.
        at: Bytes,
    },
    /// The fields of a record do not hold together.
    #[error("the {kind} record at byte {at} is malformed", at = .at.0)]
    Malformed {
        /// What the record is.
        kind: RecordType,
        /// Where it begins.
        at: Bytes,
        /// What is wrong with it.
        #[source]
        source: Malformed,
    },
    /// A record names pages that the guest does not have.
    #[error("the {kind} record at byte {at} leaves the guest's memory", at = .at.0)]
    Range {
        /// What the record is.
        kind: RecordType,
        /// Where it begins.
        at: Bytes,
        /// What is wrong with its pages.
        #[source]
        source: RangeError,
    },
    /// A record stands where it may not.
    #[error("the record at byte {at} is at the wrong place", at = .at.0)]
    Order {
        /// Where it begins.
        at: Bytes,
        /// Which rule it breaks.
        #[source]
        source: OrderError,
    },
    /// `End` says something else than was read.
    #[error(
        "the stream ends with {stated} {what} by its own account, and {counted} came: the tunnel lost, repeated or reordered data"
    )]
    Totals {
        /// Which figure.
        what: &'static str,
        /// What was read.
        counted: String,
        /// What `End` says.
        stated: String,
    },
    /// `Go` belongs to another migration.
    #[error("Go for migration {found} in the stream of migration {expected}")]
    WrongId {
        /// The migration that `Go` names.
        found: MigrationId,
        /// The migration of this stream.
        expected: MigrationId,
    },
    /// Bytes follow where the stream must end.
    #[error("bytes follow at byte {}, where the stream must end", .at.0)]
    Trailing {
        /// Where they begin.
        at: Bytes,
    },
    /// The caller asked for payload that is not there.
    #[error("{wanted} bytes of pages were asked for where {left} are left")]
    NoSuchPayload {
        /// How many bytes were asked for.
        wanted: usize,
        /// How many bytes of the run are left.
        left: usize,
    },
    /// An earlier error ended the reading.
    #[error("the stream was given up at an earlier error")]
    GivenUp,
}

/// Where in a stream something happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inside {
    /// Between two records.
    Between,
    /// In the frame in front of a record.
    Frame,
    /// In the payload of a record.
    Record(RecordType),
    /// In the payload of a record that is skipped.
    Skipped,
}

impl Inside {
    fn place(self) -> String {
        match self {
            Self::Between => "between two records".into(),
            other => format!("inside {other}"),
        }
    }
}

impl fmt::Display for Inside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Between => f.write_str("the next record"),
            Self::Frame => f.write_str("the frame of a record"),
            Self::Record(kind) => write!(f, "the payload of a {kind} record"),
            Self::Skipped => f.write_str("the payload of an unknown record"),
        }
    }
}
