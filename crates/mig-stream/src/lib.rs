//! The wire format of a migration: records in, records out.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod answer;
mod bytes;
mod checksum;
mod foreign;
mod frame;
mod header;
mod io_util;
mod memory;
mod open;
mod order;
mod preamble;
mod read_error;
mod reader;
mod record;
mod return_path;
mod tally;
mod text;
mod writer;

pub use answer::{MAX_PHASE_NAME, MAX_PHASES, Message, Outcome, Timings};
pub use bytes::Malformed;
pub use checksum::{StreamDigest, checksum_implementation};
pub use foreign::Foreign;
pub use frame::{MAX_PAYLOAD, MAX_RUN, RecordType};
pub use header::{Header, HeaderError, MAX_NAME, MAX_REGIONS, RangeError, Region};
pub use memory::{MemoryDigest, RegionDigest};
pub use open::{OpenError, OpenProblem};
pub use order::{MAX_ALL_SECTIONS, MAX_SECTIONS, OrderError};
pub use preamble::{Flags, FormatVersion, Kind, MAX_HEADER, Preamble, PreambleError};
pub use read_error::{Inside, ReadError};
pub use reader::StreamReader;
pub use record::{MAX_EXTENTS, Record, RoundStats};
pub use return_path::{ReturnError, ReturnReader, ReturnWriter};
pub use tally::Totals;
pub use text::MAX_REASON;
pub use writer::{StreamWriter, WriteError};
