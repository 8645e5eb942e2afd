//! The wire format of a migration: records in, records out.
//!
//! Bytes only: this crate knows no KVM, no socket, no policy, and no device. What it carries of
//! them, the machine description and the device sections, is opaque here, so that a stream can be
//! checked to its last byte by a program that knows nothing of a hypervisor (`mig-inspect`).
//!
//! ```text
//!  source                                                destination
//!  StreamWriter ── preamble header record ... End Go ──> StreamReader      forward path
//!  ReturnReader <── opening Ready Ack Running ───────── ReturnWriter       return path, if any
//! ```
//!
//! # One way and both ways
//!
//! Without a return path ([`Flags::return_path`]) the stream is `preamble header record* End` and
//! nothing behind it. The destination runs the guest when it has `End`, found its totals right,
//! and [`StreamReader::expect_eof`] has seen the end of the channel; the source has given the
//! guest up before it wrote `End`.
//!
//! ```text
//!  source                                              destination
//!    preamble, header  ──────────────────────────────>   can this host take the guest?
//!    Pages, Fill, Round, ..., Section, [Digest]  ────>   memory and state
//!    (commit)  End, end of the channel  ─────────────>   totals right? run
//! ```
//!
//! With a return path the header is answered before the guest is touched, and the handover takes
//! four messages:
//!
//! ```text
//!    preamble, header  ──────────────────────────────>
//!    <───────────────────────────  Ready (or Refused)
//!    Pages, Fill, Round, ..., Section, [Digest], End ─>
//!    <──────  Ack: the digest of End, host, nonce (or Failed)
//!    (commit)  Go, with that nonce  ─────────────────>
//!    <────────────────────────────────────  Running
//! ```
//!
//! With [`Flags::separate_commit`] the forward path is closed behind `End`, which flushes every
//! filter in it, and a query brings GO.
//!
//! A query is a preamble and a header without machine and regions, and nothing behind it; the
//! answer is [`Message::Resolved`]. With [`Kind::Resolve`] a source that has committed asks what
//! became of the guest, and that is GO for a destination which waits for it. With
//! [`Kind::Release`] a source says that it took the guest back before its commit.
//!
//! With [`Kind::Probe`] a source asks beforehand. The header is that of the guest, and is answered by
//! [`Message::Examined`]: what of that guest this host could not take. Then pages may follow, which are
//! thrown away, and each `Round` among them is answered by [`Message::Measured`], which is how a source
//! times the path. `End` is the last word, and nothing comes of it.
//!
//! The stream of a migration can be copied on its way (`tee`), and be read again later, and the
//! name of a destination can lead to another host at the second call. So a destination puts into
//! `Ack` who it is, and a nonce that nobody else can know: `Go` carries the nonce, and a query
//! both ([`QueryBody`]). One way there is no `Ack`, and nothing to carry.
//!
//! # Forward path
//!
//! All integers are little-endian. All checksums of single parts are CRC-32C (CRC-32/ISCSI); the
//! digest over the whole and those of the memory are CRC-64/NVME.
//!
//! **Preamble**, 48 bytes that never move between versions:
//!
//! | offset | size | field |
//! | --- | --- | --- |
//! | 0 | 8 | magic, `89 4d 49 47 0d 0a 1a 0a` |
//! | 8 | 2 | oldest format version whose readers can read this |
//! | 10 | 2 | format version written |
//! | 12 | 4 | flags: 1 return path, 2 page sums, 4 separate commit, 8 verify, 16 saved, 32 snapshot; a reader refuses unknown bits of 0-15 and ignores those of 16-31 |
//! | 16 | 2 | kind: 1 migrate, 2 resolve, 3 release, 4 probe |
//! | 18 | 2 | reserved, 0; ignored by readers |
//! | 20 | 16 | migration id |
//! | 36 | 4 | length of the header, at most 2 MiB |
//! | 40 | 4 | CRC-32C of the header |
//! | 44 | 4 | CRC-32C of bytes 0 to 43 |
//!
//! **Header**, format version 1:
//!
//! | size | field |
//! | --- | --- |
//! | 2 + n | length and bytes of the guest's name: UTF-8, 1 to 255 bytes, no control characters |
//! | 4 + n | length and bytes of the encoded machine description without its memory, opaque; of kinds 2 and 3, the query |
//! | 2 | number of regions, at most 256 |
//! | 18 each | region: number (2), first guest frame (8), pages (8); numbered from 0, in address order, apart |
//! | 16 each | to the end of the header, at most 16: earlier migrations of this guest that the source released. A destination that still waits for the GO of one refuses it |
//!
//! **Query**: acknowledged (1): 0 or 1; then, if 1, host id (16) and nonce (16) of the `Ack`; the
//! age of the migration at its source in nanoseconds (8).
//!
//! **Frame**, 32 bytes in front of the payload of every record:
//!
//! | offset | size | field |
//! | --- | --- | --- |
//! | 0 | 2 | type; bit 15: may be skipped by who does not know it |
//! | 2 | 2 | region, of `Pages` and `Fill`; else 0 |
//! | 4 | 4 | sequence: records in front of this one, modulo 2^32 |
//! | 8 | 8 | first page, counted from the start of the region, of `Pages` and `Fill`; else 0 |
//! | 16 | 4 | count of pages, of `Pages` and `Fill`; else 0 |
//! | 20 | 4 | length of the payload, at most 16 MiB |
//! | 24 | 4 | CRC-32C of the payload; 0 for `Pages` in a stream without page sums |
//! | 28 | 4 | CRC-32C of bytes 0 to 27 |
//!
//! A frame has its own checksum so that a damaged length or page number is found before anything
//! is done by it. The sum of the payload stands in front, under the sum of the frame: the sender
//! has summed what it is about to send, and the digest over all frames covers all payloads too.
//!
//! **Records**, format version 1:
//!
//! | type | name | payload |
//! | --- | --- | --- |
//! | 1 | `Pages` | 4096 bytes for each page, at most 256 pages |
//! | 2 | `Fill` | 8 bytes that every page repeats, at most 1024 pages; all fills of a stream cover the guest's memory at most 16 times |
//! | 0x8003 | `Extents` | up to 65,536 runs that hold data at the source: region (2), first page (8), pages (8) |
//! | 0x8004 | `Round` | number (4); pages raw, pages filled, bytes, pages dirty at its end, nanoseconds (8 each) |
//! | 0x8005 | `Blackout` | none |
//! | 6 | `Section` | an encoded section, opaque |
//! | 7 | `Digest` | CRC-64/NVME of each region's bytes, 8 bytes each, in order; there if and only if the verify flag is set |
//! | 8 | `End` | records, pages raw, pages filled, sections, bytes in front of `End`, digest (8 each) |
//! | 9 | `Go` | migration id (16), nonce of the `Ack` (16) |
//! | 10 | `Abort` | why: UTF-8, at most 4096 bytes |
//!
//! `Pages`, `Fill`, `Section` and the hints come in any order. Nothing follows `End` but `Go` or
//! `Abort`, and these only with a return path and without a separate commit; in a probe nothing does,
//! and it has no `Extents`, `Blackout`, `Section` or `Digest`. The digest of `End`
//! is that of the preamble and of all frames in front of `End`: see [`StreamDigest`].
//!
//! # Return path
//!
//! **Opening**, 32 bytes: magic `89 4d 49 52 0d 0a 1a 0a` (8), migration id (16), reserved 0 (4),
//! CRC-32C of bytes 0 to 27 (4). The id tells an answer from what an earlier migration left in a
//! fifo. Then messages, each with a frame of 16 bytes:
//!
//! | offset | size | field |
//! | --- | --- | --- |
//! | 0 | 2 | type; bit 15: may be skipped by who does not know it |
//! | 2 | 2 | sequence: messages in front of this one, modulo 2^16 |
//! | 4 | 4 | length of the payload, at most 64 KiB |
//! | 8 | 4 | CRC-32C of the payload |
//! | 12 | 4 | CRC-32C of bytes 0 to 11 |
//!
//! | type | name | payload |
//! | --- | --- | --- |
//! | 1 | `Ready` | format version (2) |
//! | 2 | `Ack` | digest of `End` (8), host id (16), nonce (16), timings |
//! | 3 | `Running` | timings |
//! | 4 | `Refused` | why: UTF-8, at most 4096 bytes |
//! | 5 | `Failed` | why: UTF-8, at most 4096 bytes |
//! | 6 | `Resolved` | outcome (1): 1 prepared, 2 running, 3 refused, 4 may have run, then why: UTF-8, 5 another host, then its id (16) |
//! | 7 | `Examined` | count (2, at most 60), then for each finding: in the way (1): 0 or 1, length (1, at most 64) and bytes of its subject, length (2, at most 992) and bytes of its text: UTF-8 |
//! | 8 | `Measured` | length of the stream up to the end of the `Round` that it answers (8) |
//!
//! Timings: count (2, at most 64), then for each phase the length (1, at most 64) and bytes of its
//! name and its nanoseconds (8).
//!
//! # Versions
//!
//! A sender writes the newest format it knows and says which is the oldest that can read it. A
//! destination with a return path answers `Ready` with the newest version that both know
//! ([`Preamble::negotiate`]), and the records follow in that one; the header is in a form that the
//! oldest version reads. A new optional record needs no new version; a new mandatory one, or a new
//! payload, does. Golden files of every version ever released stand in the tests.
//!
//! # Errors and bounds
//!
//! A stream is hostile input. No length in it allocates more than arrives, and no more than the
//! bounds above; state is bounded over the whole stream ([`MAX_SECTIONS`](migpipe_units::limits::MAX_SECTIONS),
//! [`MAX_STATE`](migpipe_units::limits::MAX_STATE));
//! fills, which cost a sender nothing, make a reader write a bounded amount ([`MOST_FILLS`]);
//! no page outside its region is handed out; nothing panics. Text from the peer has no control
//! characters left when it is handed out. Whoever reads gets everything right up to an error, or
//! one error that says what failed, where in the stream, and what that means: the tunnel died
//! ([`ReadError::Truncated`]), the tunnel changes bytes (the damage errors), the tunnel loses or
//! repeats data ([`ReadError::Sequence`], [`ReadError::Totals`]), the other side is newer, the
//! pipeline is put together wrongly ([`UnrecognisedStream`]). After an error nothing more is read. What the
//! guest's fate is says the caller, who knows it.
//!
//! The checksums find damage, not forgery: who can write to the channel can write a valid stream.
//! Keeping strangers out is the tunnel's work.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod answer;
mod bytes;
mod checksum;
mod counters;
mod frame;
mod header;
mod io_util;
mod memory;
mod open;
mod order;
mod preamble;
mod query;
mod read_error;
mod reader;
mod record;
mod return_path;
mod text;
mod unrecognised;
mod write_error;
mod writer;

pub use answer::{DestinationOutcome, MAX_FINDINGS, MAX_PHASE_NAME, MAX_PHASES, Message, Timings};
pub use bytes::Malformed;
pub use checksum::{StreamDigest, checksum_implementation};
pub use counters::Totals;
pub use frame::{MAX_FILL, MAX_PAYLOAD, MAX_RUN, RecordType};
pub use header::{Header, HeaderError, MAX_REGIONS, RangeError};
pub use memory::{MemoryDigest, RegionDigest};
pub use open::{OpenError, OpenProblem};
pub use order::{MOST_FILLS, OrderError};
pub use preamble::{Flags, FormatVersion, Kind, Preamble, PreambleError};
pub use query::QueryBody;
pub use read_error::{Inside, ReadError};
pub use reader::StreamReader;
pub use record::{MAX_EXTENTS, Record, RoundStats};
pub use return_path::{ReturnError, ReturnReader, ReturnWriter};
pub use text::MAX_REASON;
pub use unrecognised::UnrecognisedStream;
pub use write_error::WriteError;
pub use writer::StreamWriter;
