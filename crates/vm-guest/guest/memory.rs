//! Where things are in the guest's memory, and the page tables for what lies above 1 GiB.

use crate::boot;
use crate::options::Options;

pub const PAGE: u64 = 4096;
const GIB: u64 = 1 << 30;
/// What the one PML4 entry reaches.
const MAX_MAPPED: u64 = 512 * GIB;
/// Present, writable, user, accessed, dirty, 2 MiB.
const LARGE_PAGE: u64 = 0xe7;
/// Present, writable, user.
const TABLE: u64 = 0x07;
/// The memory type of RAM in the memory map, which is the E820 one.
const RAM: u32 = 1;
const MAX_RUNS: usize = 8;

/// The start of struct hvm_start_info (Xen, public/arch-x86/hvm/start_info.h).
#[repr(C)]
pub struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    nr_modules: u32,
    modlist: u64,
    command_line: u64,
    rsdp: u64,
    memory_map: u64,
    memory_map_entries: u32,
    reserved: u32,
}

/// struct hvm_memmap_table_entry.
#[repr(C)]
#[derive(Clone, Copy)]
struct MapEntry {
    address: u64,
    size: u64,
    kind: u32,
    reserved: u32,
}

impl StartInfo {
    /// The structure that vmrun wrote at `address`.
    pub fn at(address: u32) -> &'static Self {
        // SAFETY: `boot.rs` checked its magic; vmrun wrote it below 1 MiB, where nothing else is.
        unsafe { &*(address as usize as *const Self) }
    }

    pub fn command_line(&self) -> &'static [u8] {
        let text = self.command_line as *const u8;
        let mut len = 0;
        // SAFETY: vmrun ends the line with a zero.
        while unsafe { text.add(len).read() } != 0 {
            len += 1;
        }
        // SAFETY: as many bytes as were just read.
        unsafe { core::slice::from_raw_parts(text, len) }
    }

    fn map(&self) -> &'static [MapEntry] {
        // SAFETY: vmrun wrote as many entries as it says.
        unsafe {
            core::slice::from_raw_parts(
                self.memory_map as *const MapEntry,
                self.memory_map_entries as usize,
            )
        }
    }
}

/// A run of pages.
#[derive(Clone, Copy, Default)]
struct Run {
    start: u64,
    pages: u64,
}

/// Pages numbered from 0, in a few runs of memory.
#[derive(Clone, Copy, Default)]
pub struct Area {
    runs: [Run; MAX_RUNS],
}

impl Area {
    /// Where page `index` is.
    #[inline]
    pub fn page(&self, mut index: u64) -> *mut u64 {
        for run in &self.runs {
            if index < run.pages {
                return (run.start + index * PAGE) as *mut u64;
            }
            index -= run.pages;
        }
        unreachable!()
    }

    pub fn start(&self) -> u64 {
        self.runs[0].start
    }
}

/// Where everything is.
pub struct Layout {
    pub hot: Area,
    pub hot_pages: u64,
    pub generations: u64,
    pub fill: Area,
    pub fill_pages: u64,
}

/// Finds a place for everything and maps all memory; nothing if it does not fit.
///
/// The hot pages go to the highest range that holds them, so that a guest with memory above 4 GiB
/// uses it; the filled pages start at the bottom.
pub fn lay_out(start: &StartInfo, options: &Options) -> Option<Layout> {
    let mut free = [Run::default(); MAX_RUNS];
    let mut top = 0;
    let above = boot::end_of_image();
    let ram = start.map().iter().filter(|entry| entry.kind == RAM);
    let usable = ram.filter(|entry| entry.address + entry.size > above);
    for (run, entry) in free.iter_mut().zip(usable) {
        let end = (entry.address + entry.size).min(MAX_MAPPED) & !(PAGE - 1);
        run.start = entry.address.max(above).next_multiple_of(PAGE);
        run.pages = end.saturating_sub(run.start) / PAGE;
        top = top.max(end);
    }
    map_up_to(top, &mut free[0])?;

    let generations = (options.pages * 8).div_ceil(PAGE);
    let needed = options.pages + generations;
    let run = free.iter_mut().rfind(|run| run.pages >= needed)?;
    let mut hot = Area::default();
    hot.runs[0] = Run { start: take(run, options.pages)?, pages: options.pages };
    let generations = take(run, generations)?;

    let fill_pages = (options.fill_mb << 20) / PAGE;
    let mut fill = Area::default();
    let mut missing = fill_pages;
    for (to, from) in fill.runs.iter_mut().zip(&mut free) {
        let pages = missing.min(from.pages);
        *to = Run { start: take(from, pages)?, pages };
        missing -= pages;
    }
    (missing == 0).then_some(Layout {
        hot,
        hot_pages: options.pages,
        generations,
        fill,
        fill_pages,
    })
}

fn take(run: &mut Run, pages: u64) -> Option<u64> {
    let start = run.start;
    run.pages = run.pages.checked_sub(pages)?;
    run.start += pages * PAGE;
    Some(start)
}

/// Maps all memory up to `top` where it is. The first GiB is mapped since the start; each further
/// one costs a page of `free`, which is in the first. A table is complete before it is linked, and
/// nothing was mapped there before, so that no translation has to be flushed.
fn map_up_to(top: u64, free: &mut Run) -> Option<()> {
    let pointers = boot::page_directory_pointers() as *mut u64;
    for gib in 1..top.div_ceil(GIB) {
        let table = take(free, 1)? as *mut u64;
        for entry in 0..512 {
            let page = gib * GIB + entry * (2 << 20);
            // SAFETY: a page of free memory that this loop took.
            unsafe { table.add(entry as usize).write_volatile(page | LARGE_PAGE) };
        }
        // SAFETY: the table is mapped for CPL 3 and only vCPU 0 comes here.
        unsafe { pointers.add(gib as usize).write_volatile(table as u64 | TABLE) };
    }
    Some(())
}
