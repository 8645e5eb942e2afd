//! The receiving side of the forward path.

use std::io::{self, Read};

use migpipe_units::Bytes;

use crate::bytes::Malformed;
use crate::checksum::{Crc32c, crc32c};
use crate::counters::{Counters, Totals};
use crate::frame::{FRAME_BYTES, Frame, MAX_FILL, MAX_PAYLOAD, RecordType};
use crate::header::Header;
use crate::io_util::{read_full, read_growing};
use crate::open::{Beginning, OpenError, open};
use crate::order::Order;
use crate::preamble::Preamble;
use crate::query::QueryBody;
use crate::read_error::{Inside, ReadError};
use crate::record::Record;

/// How much of a payload that nobody wants is read at a time (bytes).
const DRAIN_BYTES: usize = 64 << 10;

/// The payload of a run of pages that is not read yet.
#[derive(Clone, Copy, Debug)]
struct Pending {
    left: usize,
    length: usize,
    /// The sum so far and the sum it should come to; nothing in a stream without page checksums.
    sums: Option<(Crc32c, u32)>,
}

/// Reads one stream and holds every byte of it against the format.
///
/// A stream is hostile input: a record is handed out only when its frame is whole, in sequence, in
/// its place, and inside the guest's memory. Pages are the one thing that is checked *after* it
/// was stored: their payload goes straight to where it belongs, and its checksum is compared with
/// the last byte. Who cares for a damaged page must not run the guest after an error, which nobody
/// may anyway.
///
/// Small records cost two reads each; an [`io::BufReader`] under it gathers them and passes long
/// payloads through.
#[derive(Debug)]
pub struct StreamReader<R> {
    from: R,
    preamble: Preamble,
    header: Header,
    query: Option<QueryBody>,
    counters: Counters,
    order: Order,
    pending: Option<Pending>,
    /// Type and beginning of the record that was handed out last.
    current: (RecordType, Bytes),
    skipped: u64,
    given_up: bool,
}

impl<R: Read> StreamReader<R> {
    /// Reads preamble and header.
    ///
    /// # Errors
    /// [`OpenError`], which knows whether the sender waits for an answer.
    pub fn open(mut from: R) -> Result<Self, OpenError> {
        let Beginning { preamble, header, query, counters } = open(&mut from)?;
        Ok(Self {
            order: Order::new(&preamble, header.memory()),
            current: (RecordType::Blackout, counters.bytes()),
            from,
            preamble,
            header,
            query,
            counters,
            pending: None,
            skipped: 0,
            given_up: false,
        })
    }

    /// The next record, or nothing at an end of the stream that is in its place: behind `End`,
    /// `Go` or `Abort`, or behind the header of a query. Payload of the last run of pages that
    /// was not read is checked and dropped.
    ///
    /// # Errors
    /// [`ReadError`]; from then on [`ReadError::GivenUp`].
    pub fn next_record(&mut self) -> Result<Option<Record>, ReadError> {
        self.guarded(Self::advance)
    }

    /// Reads the next bytes of the run of pages that was handed out last into `buf`: all of them,
    /// or piece by piece. With the last piece the checksum of the run is compared.
    ///
    /// # Errors
    /// [`ReadError::PayloadDamaged`], [`ReadError::Truncated`], [`ReadError::Io`], and
    /// [`ReadError::NoSuchPayload`] if `buf` is longer than what is left of the run.
    pub fn read_payload(&mut self, buf: &mut [u8]) -> Result<(), ReadError> {
        self.guarded(|reader| reader.read_pending(buf))
    }

    /// Makes sure that nothing follows.
    ///
    /// # Errors
    /// [`ReadError::Trailing`] if something does, [`ReadError::Truncated`] if the stream may not
    /// end here, [`ReadError::Io`].
    pub fn expect_eof(&mut self) -> Result<(), ReadError> {
        self.guarded(|reader| {
            reader.drain()?;
            let mut byte = [0];
            match reader.fill(&mut byte, Inside::Between)? {
                0 if reader.order.may_end() => Ok(()),
                0 => Err(reader.truncated(Inside::Between, 0)),
                _ => Err(ReadError::Trailing { at: reader.counters.bytes() }),
            }
        })
    }

    fn guarded<T>(
        &mut self,
        step: impl FnOnce(&mut Self) -> Result<T, ReadError>,
    ) -> Result<T, ReadError> {
        if self.given_up {
            return Err(ReadError::GivenUp);
        }
        let result = step(self);
        self.given_up = result.is_err();
        result
    }

    fn advance(&mut self) -> Result<Option<Record>, ReadError> {
        self.drain()?;
        loop {
            let at = self.counters.bytes();
            let mut encoded = [0; FRAME_BYTES];
            match self.fill(&mut encoded, Inside::Frame)? {
                0 if self.order.may_end() => return Ok(None),
                0 => return Err(self.truncated(Inside::Between, 0)),
                _ if !self.order.may_continue() => return Err(ReadError::Trailing { at }),
                FRAME_BYTES => {}
                came => return Err(self.truncated(Inside::Frame, came)),
            }
            let frame = Frame::decode(encoded).ok_or(ReadError::FrameDamaged { at })?;
            let (expected, found) = (self.counters.sequence(), frame.sequence.get());
            if found != expected {
                return Err(ReadError::Sequence { expected, found, at });
            }
            let Some(kind) = RecordType::from_number(frame.kind.get()) else {
                self.skip(&frame)?;
                continue;
            };
            return self.record(kind, &frame).map(Some);
        }
    }

    fn record(&mut self, kind: RecordType, frame: &Frame) -> Result<Record, ReadError> {
        let (at, length) = (self.counters.bytes(), frame.length.get());
        self.check_length(frame, kind.max_payload())?;
        self.order.admit(kind, length.into()).map_err(|source| ReadError::Order { at, source })?;
        self.check_frame(kind, frame)?;
        if kind == RecordType::Fill {
            let count = frame.place().count;
            self.order.admit_fill(count).map_err(|source| ReadError::Order { at, source })?;
        }
        self.current = (kind, at);
        let totals = self.counters.totals();
        self.counters.record(frame);
        if kind == RecordType::Pages {
            let sums = self.preamble.flags.page_sums;
            self.pending = Some(Pending {
                left: length as usize,
                length: length as usize,
                sums: sums.then(|| (Crc32c::new(), frame.payload_crc.get())),
            });
            return Ok(Record::Pages(frame.place()));
        }
        let payload = read_growing(&mut self.from, length).map_err(|source| ReadError::Io {
            inside: Inside::Record(kind),
            at,
            source,
        })?;
        if payload.len() < length as usize {
            return Err(ReadError::Truncated {
                inside: Inside::Record(kind),
                at: Bytes(at.0 + (FRAME_BYTES + payload.len()) as u64),
            });
        }
        if crc32c(&payload) != frame.payload_crc.get() {
            return Err(ReadError::PayloadDamaged { kind, at });
        }
        let record = Record::decode(kind, frame, payload)
            .map_err(|source| ReadError::Malformed { kind, at, source })?;
        self.check_record(&record, &totals)?;
        Ok(record)
    }

    /// What can be said of a record before its payload is there.
    fn check_frame(&self, kind: RecordType, frame: &Frame) -> Result<(), ReadError> {
        let at = self.counters.bytes();
        let malformed = |what| ReadError::Malformed { kind, at, source: Malformed(what) };
        if !kind.has_place() {
            return if frame.is_placeless() {
                Ok(())
            } else {
                Err(malformed("it has no place in memory and names one"))
            };
        }
        let place = frame.place();
        self.header.check_range(&place).map_err(|source| ReadError::Range { kind, at, source })?;
        if kind == RecordType::Fill && place.count > MAX_FILL {
            return Err(malformed("it fills more pages than one record may"));
        }
        if kind == RecordType::Pages {
            if u64::from(frame.length.get()) != place.len().0 {
                return Err(malformed("its length is not that of its pages"));
            }
            if !self.preamble.flags.page_sums && frame.payload_crc.get() != 0 {
                return Err(malformed("it has a checksum in a stream without page checksums"));
            }
        }
        Ok(())
    }

    /// What can be said of a record when its payload is there.
    fn check_record(&self, record: &Record, totals: &Totals) -> Result<(), ReadError> {
        let (kind, at) = self.current;
        match record {
            Record::Extents(extents) => extents
                .iter()
                .try_for_each(|extent| self.header.check_range(extent))
                .map_err(|source| ReadError::Range { kind, at, source }),
            Record::Digest(digest) if digest.regions() != self.header.regions.len() => {
                Err(ReadError::Malformed {
                    kind,
                    at,
                    source: Malformed("it does not cover every region of the guest's memory"),
                })
            }
            Record::End(stated) => match totals.difference(stated) {
                None => Ok(()),
                Some((what, counted, stated)) => Err(ReadError::Totals { what, counted, stated }),
            },
            Record::Go { id: found, .. } if *found != self.preamble.id => {
                Err(ReadError::WrongId { found: *found, expected: self.preamble.id })
            }
            _ => Ok(()),
        }
    }

    fn check_length(&self, frame: &Frame, max: u32) -> Result<(), ReadError> {
        let (number, length) = (frame.kind.get(), frame.length.get());
        if length > max {
            return Err(ReadError::TooLong { number, length, max, at: self.counters.bytes() });
        }
        Ok(())
    }

    fn skip(&mut self, frame: &Frame) -> Result<(), ReadError> {
        let (at, number) = (self.counters.bytes(), frame.kind.get());
        if !frame.is_optional() {
            return Err(ReadError::Unknown { number, at });
        }
        self.check_length(frame, MAX_PAYLOAD)?;
        self.order.admit_unknown().map_err(|source| ReadError::Order { at, source })?;
        let mut sum = Crc32c::new();
        let length = frame.length.get() as usize;
        let mut scratch = vec![0; DRAIN_BYTES.min(length)];
        let mut left = length;
        while left > 0 {
            let piece = left.min(scratch.len());
            let came = self.fill(&mut scratch[..piece], Inside::Skipped)?;
            if came < piece {
                let before = FRAME_BYTES + length - left;
                return Err(self.truncated(Inside::Skipped, before + came));
            }
            sum.update(&scratch[..piece]);
            left -= piece;
        }
        if sum.value() != frame.payload_crc.get() {
            return Err(ReadError::SkippedDamaged { number, at });
        }
        self.counters.record(frame);
        self.skipped += 1;
        Ok(())
    }

    fn read_pending(&mut self, buf: &mut [u8]) -> Result<(), ReadError> {
        let (kind, at) = self.current;
        let inside = Inside::Record(kind);
        let left = self.pending.map_or(0, |pending| pending.left);
        let Some(mut pending) = self.pending.filter(|_| buf.len() <= left) else {
            return Err(ReadError::NoSuchPayload { wanted: buf.len(), left });
        };
        let mut filled = 0;
        // Summed piece by piece as they come, while they are still in the processor's cache.
        while filled < buf.len() {
            let came = match self.from.read(&mut buf[filled..]) {
                Ok(came) => came,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(ReadError::Io { inside, at, source }),
            };
            if came == 0 {
                let done = FRAME_BYTES + pending.length - pending.left;
                let at = Bytes(at.0 + done as u64);
                return Err(ReadError::Truncated { inside, at });
            }
            if let Some((sum, _)) = &mut pending.sums {
                sum.update(&buf[filled..filled + came]);
            }
            filled += came;
            pending.left -= came;
        }
        self.pending = (pending.left > 0).then_some(pending);
        match pending.sums {
            Some((sum, expected)) if pending.left == 0 && sum.value() != expected => {
                Err(ReadError::PayloadDamaged { kind, at })
            }
            _ => Ok(()),
        }
    }

    fn drain(&mut self) -> Result<(), ReadError> {
        let Some(pending) = self.pending else {
            return Ok(());
        };
        let mut scratch = vec![0; DRAIN_BYTES.min(pending.left)];
        while let Some(pending) = self.pending {
            let piece = pending.left.min(scratch.len());
            self.read_pending(&mut scratch[..piece])?;
        }
        Ok(())
    }

    fn fill(&mut self, buf: &mut [u8], inside: Inside) -> Result<usize, ReadError> {
        read_full(&mut self.from, buf).map_err(|source| ReadError::Io {
            inside,
            at: self.counters.bytes(),
            source,
        })
    }

    /// The error of a stream that ends `came` bytes into the record that begins here.
    const fn truncated(&self, inside: Inside, came: usize) -> ReadError {
        ReadError::Truncated { inside, at: Bytes(self.counters.bytes().0 + came as u64) }
    }
}

impl<R> StreamReader<R> {
    /// What the stream says of itself.
    pub const fn preamble(&self) -> &Preamble {
        &self.preamble
    }

    /// Which guest, which machine, which memory.
    pub const fn header(&self) -> &Header {
        &self.header
    }

    /// What is asked, if the stream is a query.
    pub const fn query(&self) -> Option<QueryBody> {
        self.query
    }

    /// How many bytes of stream were read, with the payload of the last record, read or not.
    pub const fn bytes_read(&self) -> Bytes {
        self.counters.bytes()
    }

    /// Where in the stream the record begins that was handed out last.
    pub const fn record_at(&self) -> Bytes {
        self.current.1
    }

    /// What was read so far; in front of `End`, what `End` must say.
    pub fn totals(&self) -> Totals {
        self.counters.totals()
    }

    /// How many records were skipped because they are unknown and optional.
    pub const fn skipped(&self) -> u64 {
        self.skipped
    }

    /// The channel, for its settings.
    pub const fn get_mut(&mut self) -> &mut R {
        &mut self.from
    }

    /// Gives the channel back.
    pub fn into_inner(self) -> R {
        self.from
    }
}
