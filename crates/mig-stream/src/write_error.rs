//! Why a stream cannot be written on.

use std::io;

use migpipe_units::{Bytes, Pages};
use thiserror::Error;

use crate::frame::{MAX_PAYLOAD, MAX_RUN};
use crate::header::{HeaderError, RangeError};
use crate::order::OrderError;
use crate::preamble::PreambleError;

/// Why a record was not written. After [`Self::Io`] the stream is broken off in the middle of a
/// record and takes no more; after any other error it is as it was before the call.
#[derive(Debug, Error)]
pub enum WriteError {
    /// The channel took no more.
    #[error("writing {what} failed {at} bytes into the stream: the tunnel or the receiver is gone", at = .at.0)]
    Io {
        /// What was being written.
        what: &'static str,
        /// Where in the stream it begins.
        at: Bytes,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// An earlier write failed in the middle of a record.
    #[error("the stream broke off earlier and takes no more records")]
    BrokenOff,
    /// The preamble contradicts itself.
    #[error("the stream was not begun")]
    Preamble(#[source] PreambleError),
    /// The header is none that a reader takes.
    #[error("the stream was not begun")]
    Header(#[source] HeaderError),
    /// The pages are not the guest's.
    #[error("pages were not sent")]
    Range(#[source] RangeError),
    /// The record may not stand here.
    #[error("a record at the wrong place was not sent")]
    Order(#[source] OrderError),
    /// The bytes are not as long as the run.
    #[error("a run of {pages} was given {bytes} bytes")]
    WrongLength {
        /// Length of the run.
        pages: Pages,
        /// Length of the bytes given.
        bytes: usize,
    },
    /// The run is longer than one record may be.
    #[error("a run of {0} is longer than one record may be, {MAX_RUN}")]
    RunTooLong(Pages),
    /// The section is longer than one record may be.
    #[error("a section of {0} bytes is longer than one record may be, {MAX_PAYLOAD} bytes")]
    SectionTooLong(usize),
    /// Pages without a checksum in a stream that promised checksums.
    #[error("the stream promised checksums of pages; this run would have none")]
    SumsPromised,
    /// The digest does not cover the guest's regions.
    #[error("a digest of {found} regions for a guest that has {expected}")]
    WrongDigest {
        /// How many regions it covers.
        found: usize,
        /// How many regions there are.
        expected: usize,
    },
}
