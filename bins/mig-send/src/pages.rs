//! From guest memory to records: pages as they are, and pages that repeat one pattern.

use std::io::{self, Write};

use mig_channel::ChannelWriter;
use mig_engine::precopy::SentHistogram;
use mig_stream::{MAX_RUN, MemoryDigest, StreamWriter, WriteError};
use migpipe_units::{PAGE_SIZE, PageRange, Pages};
use page_bitmap::GuestBitmap;
use vm_mapping::{GuestMemory, MemoryError};
use vm_state::MachineDescription;

/// Bytes of a page.
const PAGE: usize = PAGE_SIZE as usize;

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
    pub histogram: SentHistogram,
    /// Whether the kernel may be asked to pass pages on by itself.
    splices: bool,
}

impl PageSender {
    pub fn new(machine: &MachineDescription) -> Self {
        Self {
            buffer: vec![0; MAX_RUN.bytes().0 as usize],
            histogram: SentHistogram::new(machine.memory.iter().map(|region| region.pages)),
            splices: true,
        }
    }

    /// Sends the pages of `range`, at most [`MAX_RUN`].
    pub fn send<W: Write>(
        &mut self,
        memory: &GuestMemory,
        range: PageRange,
        stream: &mut StreamWriter<W>,
    ) -> Result<Sent, WriteError> {
        let bytes = memory.copy_pages(range, &mut self.buffer);
        let mut sent = Sent::default();
        for piece in pieces(bytes) {
            let place = PageRange {
                region: range.region,
                first: range.first + piece.first as u64,
                count: Pages(piece.count as u64),
            };
            match piece.pattern.filter(|_| stream.has_room_for_fill(place.count)) {
                Some(pattern) => {
                    stream.fill(place, pattern)?;
                    sent.fills += place.count;
                }
                None => {
                    let from = piece.first * PAGE;
                    stream.pages(place, &bytes[from..from + piece.count * PAGE])?;
                    sent.raw += place.count;
                }
            }
        }
        self.histogram.record(range);
        Ok(sent)
    }
}

impl PageSender {
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
        let mut patterns = (range.first..range.first + range.count.0)
            .map(|page| {
                self.pattern_at(memory, PageRange { first: page, count: Pages(1), ..range })
            })
            .collect::<Vec<_>>()
            .into_iter()
            .enumerate()
            .peekable();
        while let Some((first, pattern)) = patterns.next() {
            let mut place =
                PageRange { first: range.first + first as u64, count: Pages(1), ..range };
            while patterns.next_if(|(_, next)| *next == pattern).is_some() {
                place.count += Pages(1);
            }
            match pattern.filter(|_| stream.has_room_for_fill(place.count)) {
                Some(pattern) => {
                    stream.fill(place, pattern)?;
                    sent.fills += place.count;
                }
                None => {
                    stream.begin_unsummed_pages(place)?;
                    if let Err(source) = self.pass_on(memory, place, stream.get_mut()) {
                        stream.break_off();
                        let at = stream.bytes_written();
                        return Err(WriteError::Io { what: "a run of pages", at, source });
                    }
                    sent.raw += place.count;
                }
            }
        }
        self.histogram.record(range);
        Ok(sent)
    }

    fn pattern_at(&mut self, memory: &GuestMemory, page: PageRange) -> Option<u64> {
        let first = memory.first_bytes(page.region, page.first);
        (first[..8] == first[8..]).then(|| pattern_of(memory.copy_pages(page, &mut self.buffer)))?
    }

    fn pass_on(
        &mut self,
        memory: &GuestMemory,
        range: PageRange,
        channel: &mut ChannelWriter,
    ) -> io::Result<()> {
        let length = range.len().0 as usize;
        let mut from = 0;
        while self.splices && from < length {
            let Some(pipe) = channel.as_pipe_fd() else { break };
            match memory.splice_into(range, from, pipe) {
                Ok(moved) => from += moved,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    channel.wait_writable()?;
                }
                // This kernel does not, so it is not asked again.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => self.splices = false,
                Err(error) => return Err(error),
            }
        }
        if from == length {
            return Ok(());
        }
        let bytes = memory.copy_pages(range, &mut self.buffer);
        channel.write_all(&bytes[from..])
    }
}

/// A run of pages that are sent in one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    first: usize,
    count: usize,
    pattern: Option<u64>,
}

/// Cuts `bytes` where pages as they are and pages of one pattern meet.
fn pieces(bytes: &[u8]) -> impl Iterator<Item = Piece> + '_ {
    let mut pages = bytes.chunks_exact(PAGE).map(pattern_of).enumerate().peekable();
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
        let found: Vec<_> =
            pieces(&bytes).map(|piece| (piece.first, piece.count, piece.pattern)).collect();
        assert_eq!(
            found,
            [(0, 2, Some(0)), (2, 2, None), (4, 1, Some(0x0909_0909_0909_0909)), (5, 1, Some(0))]
        );
    }
}
