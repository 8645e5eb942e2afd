//! The beginning of a stream that arrives: is it one, and can this program read it?

use std::fmt;
use std::io::{self, Read};

use migpipe_units::MigrationId;
use thiserror::Error;

use crate::checksum::crc32c;
use crate::counters::Counters;
use crate::header::{Header, HeaderError};
use crate::io_util::{read_full, read_growing};
use crate::preamble::{MAGIC, PREAMBLE_BYTES, Preamble, PreambleError, RawPreamble};
use crate::query::QueryBody;
use crate::unrecognised::UnrecognisedStream;

/// Why a stream could not be opened. The text is that of [`OpenProblem`].
#[derive(Debug)]
pub struct OpenError {
    /// The migration whose sender waits for an answer on the return path, if that much could be
    /// read: tell it why with [`crate::Message::Refused`].
    pub answer_to: Option<MigrationId>,
    /// What is wrong.
    pub problem: OpenProblem,
}

/// What is wrong with the beginning of a stream.
#[derive(Debug, Error)]
pub enum OpenProblem {
    /// The channel failed.
    #[error("reading the header of the stream failed")]
    Io(#[source] io::Error),
    /// It is something else.
    #[error("{0}")]
    UnrecognisedStream(UnrecognisedStream),
    /// It ends too early.
    #[error(
        "the stream ends inside its {inside} after {after} bytes: the sender or the tunnel died"
    )]
    Truncated {
        /// What was being read.
        inside: &'static str,
        /// How many bytes came.
        after: usize,
    },
    /// This program cannot read it.
    #[error(transparent)]
    Preamble(PreambleError),
    /// The header does not fit its checksum.
    #[error("the header of the stream is damaged (CRC-32C): the tunnel changes what it carries")]
    HeaderDamaged,
    /// The header is none that a guest can have.
    #[error("the header of the stream cannot be used")]
    Header(#[source] HeaderError),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.problem.fmt(f)
    }
}

impl std::error::Error for OpenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.problem.source()
    }
}

/// All that stands in front of the records.
pub(crate) struct Beginning {
    pub preamble: Preamble,
    pub header: Header,
    /// What the header asks, if the stream is a query.
    pub query: Option<QueryBody>,
    /// What came so far.
    pub counters: Counters,
}

pub(crate) fn open(from: &mut impl Read) -> Result<Beginning, OpenError> {
    let mut answer_to = None;
    open_inner(from, &mut answer_to).map_err(|problem| OpenError { answer_to, problem })
}

fn open_inner(
    from: &mut impl Read,
    answer_to: &mut Option<MigrationId>,
) -> Result<Beginning, OpenProblem> {
    let mut leading = [0; PREAMBLE_BYTES];
    // Never more than a preamble: what stands behind it is read where it belongs.
    let came = read_full(from, &mut leading).map_err(OpenProblem::Io)?;
    if !leading[..came].starts_with(&MAGIC) {
        // Of a stream that broke off in its first bytes nothing can be said but that.
        if came > 0 && came < MAGIC.len() && MAGIC.starts_with(&leading[..came]) {
            return Err(OpenProblem::Truncated { inside: "preamble", after: came });
        }
        return Err(OpenProblem::UnrecognisedStream(UnrecognisedStream::recognise(
            &leading[..came],
            &MAGIC,
        )));
    }
    if came < PREAMBLE_BYTES {
        return Err(OpenProblem::Truncated { inside: "preamble", after: came });
    }
    let raw = RawPreamble::decode(leading).ok_or(PreambleError::Damaged)?;
    if raw.has_return_path() {
        *answer_to = Some(raw.id());
    }
    let preamble = raw.check()?;
    let body = read_growing(from, raw.header_length()).map_err(OpenProblem::Io)?;
    if body.len() < raw.header_length() as usize {
        return Err(OpenProblem::Truncated {
            inside: "header",
            after: PREAMBLE_BYTES + body.len(),
        });
    }
    if crc32c(&body) != raw.header_crc() {
        return Err(OpenProblem::HeaderDamaged);
    }
    let header = Header::decode(&body).map_err(OpenProblem::Header)?;
    let query = header.query(preamble.kind).map_err(OpenProblem::Header)?;
    let counters = Counters::new(&leading, body.len());
    Ok(Beginning { preamble, header, query, counters })
}

impl From<PreambleError> for OpenProblem {
    fn from(error: PreambleError) -> Self {
        Self::Preamble(error)
    }
}
