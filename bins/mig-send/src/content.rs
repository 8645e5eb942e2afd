//! What a guest's memory holds, as round 0 would send it.

use mig_stream::MAX_RUN;
use migpipe_units::{PAGE_SIZE, PageRange, Pages};
use page_bitmap::GuestBitmap;
use vm_mapping::{GuestMemory, MemoryError};
use vm_state::MachineDescription;

use crate::pages;

/// What the guest's memory holds.
#[derive(Debug)]
pub struct Content {
    /// Pages that go as they are.
    pub raw: Pages,
    /// Pages that repeat one pattern.
    pub fills: Pages,
    /// Pages that were never touched.
    pub holes: Pages,
    /// Runs of the first.
    pub sample: Vec<PageRange>,
}

impl Content {
    /// Looks at all of its pages.
    pub fn of(machine: &MachineDescription, memory: &GuestMemory) -> Result<Self, MemoryError> {
        let existing = GuestBitmap::new(machine.region_pages());
        pages::existing(memory, &existing)?;
        let mut buffer = vec![0; MAX_RUN.bytes().0 as usize];
        let mut content =
            Self { raw: Pages(0), fills: Pages(0), holes: Pages(0), sample: Vec::new() };
        for range in existing.iter().flat_map(|bitmap| bitmap.runs(MAX_RUN)) {
            let before = content.raw;
            for page in memory.copy_pages(range, &mut buffer).chunks_exact(PAGE_SIZE as usize) {
                match pages::pattern_of(page) {
                    Some(_) => content.fills += Pages(1),
                    None => content.raw += Pages(1),
                }
            }
            if content.raw > before {
                content.sample.push(range);
            }
        }
        content.holes = machine.pages() - content.raw - content.fills;
        Ok(content)
    }
}
