//! From guest memory to records: pages as they are, and pages that repeat one pattern.

use std::io::{self, Write};
use std::os::fd::BorrowedFd;

use mig_channel::ChannelWriter;
use mig_engine::precopy::SentHistogram;
use mig_stream::{MAX_RUN, MemoryDigest, StreamWriter, WriteError};
use migpipe_units::{PAGE_SIZE, PageRange, Pages};
use page_bitmap::GuestBitmap;
use vm_mapping::{GuestMemory, MemoryError, PipePages, splice_from};
use vm_state::MachineDescription;

/// Bytes of a page.
const PAGE: usize = PAGE_SIZE as usize;

/// A shorter run costs a pipe less as a write.
const LEAST_SPLICE: Pages = Pages(8);

/// What was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Pages as they are.
    pub raw: Pages,
    /// Pages as a pattern.
    pub fills: Pages,
}

/// Copies runs of pages out of a running guest and writes them as records.
#[derive(Debug)]
pub struct PageSender {
    /// The guest may change a page while it is read, so a run is copied once, and the copy is
    /// summed and sent.
    buffer: Vec<u8>,
    /// Where the copy is made for a pipe.
    pipe_pages: Option<PipePages>,
    pub histogram: SentHistogram,
    /// Whether the kernel may be asked to pass pages on by itself.
    splices: bool,
}

impl PageSender {
    /// A pipe is given pages of `pipe_pages`.
    pub fn new(machine: &MachineDescription, pipe_pages: Option<PipePages>) -> Self {
        Self {
            buffer: vec![0; MAX_RUN.bytes().0 as usize],
            pipe_pages,
            histogram: SentHistogram::new(machine.memory.iter().map(|region| region.pages)),
            splices: true,
        }
    }

    /// Sends the pages of `range`, at most [`MAX_RUN`]: of a copy, so that what is summed is what is
    /// sent. A pipe is given the pages of the copy where that pays.
    pub fn send(
        &mut self,
        memory: &GuestMemory,
        range: PageRange,
        stream: &mut StreamWriter<ChannelWriter>,
    ) -> Result<Sent, WriteError> {
        let length = range.len().0 as usize;
        let is_long = range.count >= LEAST_SPLICE;
        let room = match &mut self.pipe_pages {
            Some(pages) if is_long && self.splices && stream.get_mut().as_pipe_fd().is_some() => {
                pages.room(length).ok()
            }
            _ => None,
        };
        let splices = room.is_some().then_some(&mut self.splices);
        let is_in_room = splices.is_some();
        let bytes = memory.copy_pages(range, room.unwrap_or(&mut self.buffer));
        let sent = send_copy(range, bytes, splices, stream);
        if let Some(pages) = &mut self.pipe_pages
            && is_in_room
            && !matches!(sent, Ok(Sent { raw: Pages(0), .. }))
        {
            pages.keep(length);
        }
        self.histogram.record(range);
        sent
    }

    /// Sends the pages of `range`, and none as a pattern.
    pub fn send_as_they_are(
        &mut self,
        memory: &GuestMemory,
        range: PageRange,
        stream: &mut StreamWriter<ChannelWriter>,
    ) -> Result<(), WriteError> {
        let bytes = memory.copy_pages(range, &mut self.buffer);
        stream.pages(range, bytes)
    }

    /// Sends the pages of `range` without looking at all of their bytes and without page
    /// checksums: through a pipe the kernel passes the pages themselves on, where it still does
    /// that.
    pub fn send_unsummed(
        &mut self,
        memory: &GuestMemory,
        range: PageRange,
        stream: &mut StreamWriter<ChannelWriter>,
    ) -> Result<Sent, WriteError> {
        let mut sent = Sent::default();
        let patterns = self.patterns(memory, range);
        for piece in pieces(patterns) {
            let place = piece.place(range);
            match piece.pattern.filter(|_| stream.has_room_for_fill(place.count)) {
                Some(pattern) => {
                    stream.fill(place, pattern)?;
                    sent.fills += place.count;
                }
                None => {
                    stream.begin_unsummed_pages(place)?;
                    let passed = self.pass_on(memory, place, stream.get_mut());
                    passed.map_err(|source| broken_off(stream, source))?;
                    sent.raw += place.count;
                }
            }
        }
        self.histogram.record(range);
        Ok(sent)
    }

    /// The pattern of each page, if it has one. Where none begins like one, nothing is copied to
    /// find out.
    fn patterns(&mut self, memory: &GuestMemory, range: PageRange) -> Vec<Option<u64>> {
        let begins_like_one = |page| {
            let first = memory.first_bytes(range.region, page);
            first[..8] == first[8..]
        };
        let pages = range.first..range.first + range.count.0;
        match pages.clone().any(begins_like_one) {
            true => {
                let copy = memory.copy_pages(range, &mut self.buffer);
                copy.chunks_exact(PAGE).map(pattern_of).collect()
            }
            false => pages.map(|_| None).collect(),
        }
    }

    fn pass_on(
        &mut self,
        memory: &GuestMemory,
        range: PageRange,
        channel: &mut ChannelWriter,
    ) -> io::Result<()> {
        let length = range.len().0 as usize;
        let from = splice(length, &mut self.splices, channel, |from, pipe| {
            memory.splice_into(range, from, pipe)
        })?;
        if from == length {
            return Ok(());
        }
        let bytes = memory.copy_pages(range, &mut self.buffer);
        channel.write_all(&bytes[from..])
    }
}

/// Writes the records of `range`, whose copy is `bytes`. A pipe gets the pages of it if it is said
/// whether the kernel does that.
fn send_copy(
    range: PageRange,
    bytes: &[u8],
    mut splices: Option<&mut bool>,
    stream: &mut StreamWriter<ChannelWriter>,
) -> Result<Sent, WriteError> {
    let mut sent = Sent::default();
    for piece in pieces(bytes.chunks_exact(PAGE).map(pattern_of)) {
        let place = piece.place(range);
        let bytes = &bytes[piece.first * PAGE..][..piece.count * PAGE];
        match piece.pattern.filter(|_| stream.has_room_for_fill(place.count)) {
            Some(pattern) => {
                stream.fill(place, pattern)?;
                sent.fills += place.count;
                continue;
            }
            None => sent.raw += place.count,
        }
        let Some(splices) = &mut splices else {
            stream.pages(place, bytes)?;
            continue;
        };
        stream.begin_pages(place, bytes)?;
        let channel = stream.get_mut();
        let put = |from: usize, pipe: BorrowedFd<'_>| splice_from(&bytes[from..], pipe);
        splice(bytes.len(), splices, channel, put)
            .and_then(|from| channel.write_all(&bytes[from..]))
            .map_err(|source| broken_off(stream, source))?;
    }
    Ok(sent)
}

/// Has `put` move `length` bytes, from where it is told on, into the channel if that is a pipe, and
/// returns how many of them it did. A kernel that does not do this is not asked again.
fn splice(
    length: usize,
    splices: &mut bool,
    channel: &ChannelWriter,
    put: impl Fn(usize, BorrowedFd<'_>) -> io::Result<usize>,
) -> io::Result<usize> {
    let mut from = 0;
    while *splices && from < length {
        let Some(pipe) = channel.as_pipe_fd() else { break };
        match put(from, pipe) {
            Ok(moved) => from += moved,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => channel.wait_writable()?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => *splices = false,
            Err(error) => return Err(error),
        }
    }
    Ok(from)
}

/// The error of a run that was announced and did not get out whole.
fn broken_off(stream: &mut StreamWriter<ChannelWriter>, source: io::Error) -> WriteError {
    stream.break_off();
    WriteError::Io { what: "a run of pages", at: stream.bytes_written(), source }
}

/// A run of pages that are sent in one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    first: usize,
    count: usize,
    pattern: Option<u64>,
}

impl Piece {
    /// Where it is, of a run at `range`.
    const fn place(&self, range: PageRange) -> PageRange {
        let (first, count) = (range.first + self.first as u64, Pages(self.count as u64));
        PageRange { region: range.region, first, count }
    }
}

/// Cuts pages, of each of which this is the pattern, where pages as they are and pages of one pattern
/// meet.
fn pieces(patterns: impl IntoIterator<Item = Option<u64>>) -> impl Iterator<Item = Piece> {
    let mut pages = patterns.into_iter().enumerate().peekable();
    std::iter::from_fn(move || {
        let (first, pattern) = pages.next()?;
        let mut count = 1;
        while pages.next_if(|(_, next)| *next == pattern).is_some() {
            count += 1;
        }
        Some(Piece { first, count, pattern })
    })
}

/// The 8 bytes that a page repeats, if it does. Most pages that do not are told by their first 16
/// bytes.
pub fn pattern_of(page: &[u8]) -> Option<u64> {
    let (first, rest) = page.split_first_chunk::<8>()?;
    if !rest.starts_with(first) || rest != &page[..rest.len()] {
        return None;
    }
    Some(u64::from_le_bytes(*first))
}

/// Adds the memory that exists to `bitmap`, and returns it as ranges.
pub fn existing(memory: &GuestMemory, bitmap: &GuestBitmap) -> Result<Vec<PageRange>, MemoryError> {
    let ranges = memory.existing()?;
    for range in &ranges {
        bitmap[usize::from(range.region.0)].insert(range.first, range.count);
    }
    Ok(ranges)
}

/// The digest of the whole memory of a guest that stands still.
pub fn digest(
    machine: &MachineDescription,
    memory: &GuestMemory,
) -> Result<MemoryDigest, MemoryError> {
    let regions: Vec<_> = machine.region_pages().collect();
    Ok(MemoryDigest::of(&regions, &memory.existing()?, |range, buffer| {
        memory.copy_pages(range, buffer);
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pages_that_repeat_eight_bytes_have_a_pattern() {
        let mut page = vec![0; PAGE];
        assert_eq!(pattern_of(&page), Some(0));
        for byte in [0, 7, 8, 2000, PAGE - 1] {
            page[byte] = 1;
            assert_eq!(pattern_of(&page), None, "byte {byte}");
            page[byte] = 0;
        }
        let page: Vec<u8> = (0..PAGE).map(|at| (at % 8) as u8).collect();
        assert_eq!(pattern_of(&page), Some(0x0706_0504_0302_0100));
    }

    #[test]
    fn pieces_cover_all_pages_in_order() {
        let mut bytes = vec![0; 6 * PAGE];
        bytes[2 * PAGE] = 1;
        bytes[3 * PAGE + 5] = 1;
        bytes[4 * PAGE..5 * PAGE].fill(9);
        let found: Vec<_> = pieces(bytes.chunks_exact(PAGE).map(pattern_of))
            .map(|piece| (piece.first, piece.count, piece.pattern))
            .collect();
        assert_eq!(
            found,
            [(0, 2, Some(0)), (2, 2, None), (4, 1, Some(0x0909_0909_0909_0909)), (5, 1, Some(0))]
        );
    }
}
