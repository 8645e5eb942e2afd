//! The sending side of the forward path.

use std::io::{self, Write};

use migpipe_units::{Bytes, Nonce, PAGE_SIZE, PageRange, Pages, RegionId};
use zerocopy::IntoBytes;
use zerocopy::little_endian::U64;

use crate::checksum::crc32c;
use crate::counters::{Counters, Totals, TotalsBytes};
use crate::frame::{Frame, MAX_FILL, MAX_PAYLOAD, MAX_RUN, RecordType};
use crate::header::Header;
use crate::io_util::write_both;
use crate::memory::MemoryDigest;
use crate::order::Order;
use crate::preamble::Preamble;
use crate::record::{GoBytes, MAX_EXTENTS, RoundBytes, RoundStats, encode_extents};
use crate::text::{MAX_REASON, clean};
use crate::write_error::WriteError;

/// Writes one stream.
///
/// Every record is written at once, frame and payload in one vectored write, and nothing is
/// buffered or copied here: give it a channel that takes large writes well. A [`io::BufWriter`]
/// under it gathers small records and passes large ones on; [`Self::flush`] empties it.
///
/// ```
/// use mig_stream::{Flags, Header, Preamble, StreamWriter};
/// use migpipe_units::{Gfn, MemoryRegion, MigrationId, PageRange, Pages, RegionId};
///
/// let flags = Flags { page_sums: true, ..Flags::default() };
/// let header = Header {
///     guest: "web".into(),
///     machine: vec![],
///     regions: vec![MemoryRegion { id: RegionId(0), base: Gfn(0), pages: Pages(16) }],
///     ..Header::default()
/// };
/// let preamble = Preamble::migrate(MigrationId::random(), flags);
/// let mut stream = StreamWriter::new(Vec::new(), preamble, header)?;
/// let run = PageRange { region: RegionId(0), first: 3, count: Pages(1) };
/// stream.pages(run, &[7; 4096])?;
/// stream.section(b"state of a device")?;
/// assert_eq!(stream.end()?.pages, Pages(1));
/// # Ok::<(), mig_stream::WriteError>(())
/// ```
#[derive(Debug)]
pub struct StreamWriter<W> {
    out: W,
    preamble: Preamble,
    header: Header,
    counters: Counters,
    order: Order,
    broken: bool,
}

impl<W: Write> StreamWriter<W> {
    /// Begins a stream: writes preamble and header.
    ///
    /// # Errors
    /// [`WriteError::Preamble`] and [`WriteError::Header`] where a reader would refuse them, with
    /// nothing written; [`WriteError::Io`].
    pub fn new(mut out: W, preamble: Preamble, header: Header) -> Result<Self, WriteError> {
        preamble.check().map_err(WriteError::Preamble)?;
        header.query(preamble.kind).map_err(WriteError::Header)?;
        let body = header.encode().map_err(WriteError::Header)?;
        let leading = preamble.encode(&body);
        write_both(&mut out, &leading, &body).map_err(|source| WriteError::Io {
            what: "the header",
            at: Bytes(0),
            source,
        })?;
        Ok(Self {
            counters: Counters::new(&leading, body.len()),
            order: Order::new(&preamble, header.memory()),
            out,
            preamble,
            header,
            broken: false,
        })
    }

    /// Sends a run of at most [`MAX_RUN`] pages. `bytes` must not change during the call: of a
    /// running guest's memory, pass a copy.
    ///
    /// # Errors
    /// [`WriteError::Range`], [`WriteError::RunTooLong`], [`WriteError::WrongLength`],
    /// [`WriteError::Order`], [`WriteError::Io`].
    pub fn pages(&mut self, range: PageRange, bytes: &[u8]) -> Result<(), WriteError> {
        let sum = self.check_pages(&range, bytes)?;
        self.put(RecordType::Pages, range, bytes, bytes.len() as u32, sum)
    }

    /// Announces a run as [`Self::pages`] sends it, whose `bytes` the caller moves by itself, say with
    /// vmsplice(2), into the channel that [`Self::get_mut`] gives: all of them, before any other
    /// call. They count as written from here on.
    ///
    /// # Errors
    /// As [`Self::pages`].
    pub fn begin_pages(&mut self, range: PageRange, bytes: &[u8]) -> Result<(), WriteError> {
        let sum = self.check_pages(&range, bytes)?;
        self.put(RecordType::Pages, range, &[], bytes.len() as u32, sum)
    }

    /// Announces a run of at most [`MAX_RUN`] pages whose bytes the caller moves by itself, say
    /// with vmsplice(2), into the channel that [`Self::get_mut`] gives: exactly as many as the run
    /// is long, before any other call. They count as written from here on.
    ///
    /// # Errors
    /// [`WriteError::SumsPromised`] in a stream with page checksums; else as [`Self::pages`].
    pub fn begin_unsummed_pages(&mut self, range: PageRange) -> Result<(), WriteError> {
        self.check_run(&range)?;
        if self.preamble.flags.page_sums {
            return Err(WriteError::SumsPromised);
        }
        self.put(RecordType::Pages, range, &[], range.len().0 as u32, 0)
    }

    /// Says that the bytes of a run begun by [`Self::begin_unsummed_pages`] did not all get out:
    /// nothing that followed could be read, so nothing is written any more.
    pub const fn break_off(&mut self) {
        self.broken = true;
    }

    /// Whether so many pages may still be sent as a pattern: the fills of a stream cover the guest's
    /// memory at most [`MOST_FILLS`](crate::MOST_FILLS) times. Else they go as they are.
    pub const fn has_room_for_fill(&self, count: Pages) -> bool {
        self.order.has_room_for_fill(count)
    }

    /// Sends a run of pages, of any length, that all repeat `pattern`, in as many records as that
    /// takes.
    ///
    /// # Errors
    /// [`WriteError::Range`], [`WriteError::Order`] beyond [`Self::has_room_for_fill`],
    /// [`WriteError::Io`].
    pub fn fill(&mut self, range: PageRange, pattern: u64) -> Result<(), WriteError> {
        self.header.check_range(&range).map_err(WriteError::Range)?;
        let payload = pattern.to_le_bytes();
        let mut rest = range;
        while rest.count.0 > 0 {
            let count = rest.count.0.min(MAX_FILL.0);
            let piece = PageRange { count: Pages(count), ..rest };
            self.put(RecordType::Fill, piece, &payload, 8, crc32c(&payload))?;
            rest.first += count;
            rest.count.0 -= count;
        }
        Ok(())
    }

    /// Says where the source has data, in as many records as that takes; a hint.
    ///
    /// # Errors
    /// [`WriteError::Range`], [`WriteError::Order`] beyond a million runs in all,
    /// [`WriteError::Io`].
    pub fn extents(&mut self, extents: &[PageRange]) -> Result<(), WriteError> {
        for extent in extents {
            self.header.check_range(extent).map_err(WriteError::Range)?;
        }
        for some in extents.chunks(MAX_EXTENTS) {
            self.put_payload(RecordType::Extents, &encode_extents(some))?;
        }
        Ok(())
    }

    /// Says how the round went that just ended.
    ///
    /// # Errors
    /// [`WriteError::Order`], [`WriteError::Io`].
    pub fn round(&mut self, stats: &RoundStats) -> Result<(), WriteError> {
        self.put_payload(RecordType::Round, RoundBytes::from(stats).as_bytes())
    }

    /// Says that the guest is paused from here on.
    ///
    /// # Errors
    /// [`WriteError::Order`], [`WriteError::Io`].
    pub fn blackout(&mut self) -> Result<(), WriteError> {
        self.put_payload(RecordType::Blackout, &[])
    }

    /// Sends the encoded state of one device, at most [`MAX_PAYLOAD`] bytes.
    ///
    /// # Errors
    /// [`WriteError::SectionTooLong`], [`WriteError::Order`], [`WriteError::Io`].
    pub fn section(&mut self, section: &[u8]) -> Result<(), WriteError> {
        if section.len() > MAX_PAYLOAD as usize {
            return Err(WriteError::SectionTooLong(section.len()));
        }
        self.put_payload(RecordType::Section, section)
    }

    /// Sends the digests of the whole memory, which the preamble has announced.
    ///
    /// # Errors
    /// [`WriteError::WrongDigest`], [`WriteError::Order`], [`WriteError::Io`].
    pub fn digest(&mut self, digest: &MemoryDigest) -> Result<(), WriteError> {
        let (found, expected) = (digest.regions(), self.header.regions.len());
        if found != expected {
            return Err(WriteError::WrongDigest { found, expected });
        }
        let values: Vec<U64> = digest.regions.iter().copied().map(U64::new).collect();
        self.put_payload(RecordType::Digest, values.as_bytes())
    }

    /// Says that everything was sent, and flushes. The destination's `Ack` echoes the digest of
    /// the totals.
    ///
    /// # Errors
    /// [`WriteError::Order`] where an announced digest is missing, [`WriteError::Io`].
    pub fn end(&mut self) -> Result<Totals, WriteError> {
        let totals = self.counters.totals();
        self.put_payload(RecordType::End, TotalsBytes::from(&totals).as_bytes())?;
        self.flush()?;
        Ok(totals)
    }

    /// Lets the destination run the guest that it acknowledged with this nonce, and flushes: the
    /// commit must be recorded before.
    ///
    /// # Errors
    /// [`WriteError::Order`] before [`Self::end`] or in a stream that has no place for it,
    /// [`WriteError::Io`].
    pub fn go(&mut self, nonce: Nonce) -> Result<(), WriteError> {
        self.put_payload(RecordType::Go, GoBytes::new(self.preamble.id, nonce).as_bytes())?;
        self.flush()
    }

    /// Gives up and says why (cut at [`MAX_REASON`] bytes), and flushes.
    ///
    /// # Errors
    /// [`WriteError::Order`] behind [`Self::go`], [`WriteError::Io`].
    pub fn abort(&mut self, reason: &str) -> Result<(), WriteError> {
        self.put_payload(RecordType::Abort, clean(reason, MAX_REASON).as_bytes())?;
        self.flush()
    }

    /// Hands everything that the channel still holds on to whoever reads it.
    ///
    /// # Errors
    /// [`WriteError::Io`].
    pub fn flush(&mut self) -> Result<(), WriteError> {
        let flushed = self.out.flush();
        self.io("the end of a record", flushed)
    }

    /// The checksum of a run that may be sent.
    fn check_pages(&self, range: &PageRange, bytes: &[u8]) -> Result<u32, WriteError> {
        self.check_run(range)?;
        if bytes.len() as u64 != range.len().0 {
            return Err(WriteError::WrongLength { pages: range.count, bytes: bytes.len() });
        }
        Ok(if self.preamble.flags.page_sums { crc32c(bytes) } else { 0 })
    }

    fn check_run(&self, range: &PageRange) -> Result<(), WriteError> {
        self.header.check_range(range).map_err(WriteError::Range)?;
        if range.count > MAX_RUN {
            return Err(WriteError::RunTooLong(range.count));
        }
        Ok(())
    }

    fn put_payload(&mut self, kind: RecordType, payload: &[u8]) -> Result<(), WriteError> {
        let nowhere = PageRange { region: RegionId(0), first: 0, count: Pages(0) };
        let length = payload.len() as u32;
        self.put(kind, nowhere, payload, length, crc32c(payload))
    }

    fn put(
        &mut self,
        kind: RecordType,
        place: PageRange,
        payload: &[u8],
        length: u32,
        payload_crc: u32,
    ) -> Result<(), WriteError> {
        if self.broken {
            return Err(WriteError::BrokenOff);
        }
        let mut order = self.order;
        order.admit(kind, length.into()).map_err(WriteError::Order)?;
        if kind == RecordType::Fill {
            order.admit_fill(place.count).map_err(WriteError::Order)?;
        }
        self.order = order;
        let frame = Frame::new(kind, self.counters.sequence(), &place, length, payload_crc);
        let written = write_both(&mut self.out, frame.as_bytes(), payload);
        self.io("a record", written)?;
        self.counters.record(&frame);
        Ok(())
    }

    fn io(&mut self, what: &'static str, result: io::Result<()>) -> Result<(), WriteError> {
        result.map_err(|source| {
            self.broken = true;
            WriteError::Io { what, at: self.counters.bytes(), source }
        })
    }
}

impl<W> StreamWriter<W> {
    /// How many bytes of stream were written so far, with the payloads that the caller moves.
    pub const fn bytes_written(&self) -> Bytes {
        self.counters.bytes()
    }

    /// What was written so far.
    pub fn totals(&self) -> Totals {
        self.counters.totals()
    }

    /// What the stream says of itself.
    pub const fn preamble(&self) -> &Preamble {
        &self.preamble
    }

    /// The channel, for payloads that the caller moves and for its settings.
    pub const fn get_mut(&mut self) -> &mut W {
        &mut self.out
    }

    /// Gives the channel back.
    pub fn into_inner(self) -> W {
        self.out
    }
}

const _: () = assert!(MAX_RUN.0 * PAGE_SIZE <= MAX_PAYLOAD as u64);

#[cfg(test)]
mod tests {
    use migpipe_units::{Gfn, MemoryRegion, MigrationId};

    use super::*;
    use crate::header::HeaderError;
    use crate::preamble::Flags;
    use crate::query::QueryBody;

    fn writer<W: Write>(out: W, flags: Flags) -> StreamWriter<W> {
        let region = |id, base, pages| MemoryRegion {
            id: RegionId(id),
            base: Gfn(base),
            pages: Pages(pages),
        };
        let header = Header {
            guest: "web".into(),
            machine: vec![],
            regions: vec![region(0, 0, 512), region(1, 1 << 20, 1 << 33)],
            ..Header::default()
        };
        let preamble = Preamble::migrate(MigrationId::from_bytes([1; 16]), flags);
        StreamWriter::new(out, preamble, header).unwrap()
    }

    fn run(region: u16, first: u64, count: u64) -> PageRange {
        PageRange { region: RegionId(region), first, count: Pages(count) }
    }

    const SUMS: Flags = Flags {
        return_path: true,
        page_sums: true,
        separate_commit: false,
        verify: false,
        saved: false,
        snapshot: false,
    };

    #[test]
    fn a_refused_call_leaves_the_stream_as_it_was() {
        let mut stream = writer(Vec::new(), SUMS);
        let before = stream.bytes_written();
        let page = [0; 4096];
        assert!(matches!(stream.pages(run(0, 512, 1), &page), Err(WriteError::Range(_))));
        assert!(matches!(stream.pages(run(0, 0, 2), &page), Err(WriteError::WrongLength { .. })));
        assert!(matches!(
            stream.pages(run(0, 0, 257), &[0; 257 * 4096]),
            Err(WriteError::RunTooLong(Pages(257)))
        ));
        assert!(matches!(stream.begin_unsummed_pages(run(0, 0, 1)), Err(WriteError::SumsPromised)));
        assert!(matches!(stream.go(Nonce::from_bytes([2; 16])), Err(WriteError::Order(_))));
        let too_long = vec![0; MAX_PAYLOAD as usize + 1];
        assert!(matches!(stream.section(&too_long), Err(WriteError::SectionTooLong(_))));
        assert_eq!(stream.bytes_written(), before);
        assert_eq!(stream.get_mut().len() as u64, before.0);
        stream.pages(run(0, 511, 1), &page).unwrap();
        stream.end().unwrap();
        stream.go(Nonce::from_bytes([2; 16])).unwrap();
    }

    #[test]
    fn a_fill_of_more_than_a_record_may_have_becomes_several() {
        let mut stream = writer(Vec::new(), SUMS);
        stream.fill(run(1, 0, 2 * MAX_FILL.0 + 1), 0).unwrap();
        let totals = stream.end().unwrap();
        assert_eq!((totals.filled, totals.records), (Pages(2 * MAX_FILL.0 + 1), 3));
    }

    #[test]
    fn a_sender_knows_when_it_may_fill_no_more() {
        let region = MemoryRegion { id: RegionId(0), base: Gfn(0), pages: Pages(8) };
        let header = Header {
            guest: "web".into(),
            machine: vec![],
            regions: vec![region],
            ..Header::default()
        };
        let preamble = Preamble::migrate(MigrationId::from_bytes([1; 16]), SUMS);
        let mut stream = StreamWriter::new(Vec::new(), preamble, header).unwrap();
        while stream.has_room_for_fill(Pages(8)) {
            stream.fill(run(0, 0, 8), 7).unwrap();
        }
        let before = stream.bytes_written();
        assert!(matches!(stream.fill(run(0, 0, 1), 7), Err(WriteError::Order(_))));
        assert_eq!(stream.bytes_written(), before);
        stream.pages(run(0, 0, 1), &[7; 4096]).unwrap();
        let filled = stream.end().unwrap().filled;
        assert_eq!(filled, Pages(8 * crate::MOST_FILLS));
    }

    #[test]
    fn nothing_is_written_behind_a_record_that_broke_off() {
        let mut room = [0u8; 200];
        let mut stream = writer(&mut room[..], SUMS);
        assert!(matches!(stream.pages(run(0, 0, 1), &[0; 4096]), Err(WriteError::Io { .. })));
        assert!(matches!(stream.abort("full"), Err(WriteError::BrokenOff)));
    }

    #[test]
    fn pages_that_the_caller_moves_count_from_their_announcement() {
        let mut stream = writer(Vec::new(), Flags::default());
        let before = stream.bytes_written().0;
        stream.begin_unsummed_pages(run(0, 0, 2)).unwrap();
        assert_eq!(stream.get_mut().len() as u64, before + 32);
        assert_eq!(stream.bytes_written().0, before + 32 + 8192);
    }

    #[test]
    fn a_query_with_a_guest_in_it_is_not_begun() {
        let preamble = Preamble::resolve(MigrationId::from_bytes([1; 16]));
        for header in [
            Header { guest: "web".into(), machine: vec![1], ..Header::default() },
            Header {
                regions: vec![MemoryRegion { id: RegionId(0), base: Gfn(0), pages: Pages(1) }],
                ..Header::from(&QueryBody::default())
            },
            Header {
                released: vec![MigrationId::from_bytes([2; 16])],
                ..Header::from(&QueryBody::default())
            },
        ] {
            let result = StreamWriter::new(Vec::new(), preamble, header);
            assert!(matches!(result, Err(WriteError::Header(HeaderError::Query(_)))));
        }
    }
}
