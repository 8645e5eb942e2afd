//! From records to guest memory.

use std::io::Read;

use anyhow::ensure;
use mig_stream::{MemoryDigest, ReadError, StreamReader};
use migpipe_units::{MemoryRegion, PageRange, Pages};
use page_bitmap::GuestBitmap;
use vm_mapping::GuestMemory;

use crate::populate::Populate;

/// How much is read at a time (bytes): half of what a pipe holds, so that its writer goes on
/// meanwhile, and not more than a processor's cache.
const PIECE: usize = 512 << 10;

/// Memory that is being filled.
#[derive(Debug)]
pub struct Incoming {
    memory: GuestMemory,
    /// Pages that hold something: a fill of zeros is not written where nothing was.
    written: GuestBitmap,
    populate: Option<Populate>,
}

impl Incoming {
    pub fn new(memory: GuestMemory) -> Self {
        let written = GuestBitmap::new(memory.regions());
        Self { memory, written, populate: None }
    }

    /// Takes the bytes of a run of pages from the stream straight to where they belong, in pieces
    /// that are still in the processor's cache when they are summed.
    pub fn receive<R: Read>(
        &mut self,
        range: PageRange,
        reader: &mut StreamReader<R>,
    ) -> Result<(), ReadError> {
        self.written[usize::from(range.region.0)].insert(range.first, range.count);
        self.pass(range, false);
        let mut pieces = self.memory.pages_mut(range).chunks_mut(PIECE);
        pieces.try_for_each(|piece| reader.read_payload(piece))
    }

    /// Fills a run of pages with one pattern.
    pub fn fill(&mut self, range: PageRange, pattern: u64) {
        self.pass(range, pattern == 0);
        let written = &self.written[usize::from(range.region.0)];
        for page in range.first..range.first + range.count.0 {
            if pattern == 0 && !written.contains(page) {
                continue;
            }
            let one = PageRange { first: page, count: Pages(1), ..range };
            for word in self.memory.pages_mut(one).chunks_exact_mut(8) {
                word.copy_from_slice(&pattern.to_le_bytes());
            }
        }
        if pattern != 0 {
            written.insert(range.first, range.count);
        }
    }

    /// These pages exist at the source: what of them comes as it is exists here before it does.
    pub fn expect(&mut self, extents: Vec<PageRange>) {
        let memory = &self.memory;
        self.populate.get_or_insert_with(|| Populate::start(memory.populator())).expect(extents);
    }

    fn pass(&self, range: PageRange, is_pattern: bool) {
        if let Some(populate) = &self.populate {
            populate.pass(range, is_pattern);
        }
    }

    /// Compares the whole memory with what the source had.
    pub fn verify(&self, expected: &MemoryDigest) -> anyhow::Result<()> {
        let existing = self.memory.existing()?;
        let regions: Vec<_> = self.memory.regions().collect();
        let found = MemoryDigest::of(&regions, &existing, |range, buffer| {
            self.memory.copy_pages(range, buffer);
        });
        if let Some(region) = expected.first_difference(&found) {
            anyhow::bail!("{region} of the guest's memory is not what the source had");
        }
        Ok(())
    }
}

/// Checks that the guest has any memory.
pub fn check_memory(regions: &[MemoryRegion]) -> anyhow::Result<()> {
    ensure!(!regions.is_empty(), "the guest has no memory");
    Ok(())
}
