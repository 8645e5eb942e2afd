//! Guest memory as a client sees it: the memory files of the regions, mapped.
//!
//! At a source the guest writes to the memory while we copy it, so it is reached through vm-memory's
//! volatile slices alone: the copy may be torn, and then the page is in the dirty log. At a
//! destination the guest does not run, and nobody but the client touches the memory until the vmrun
//! is told to load the state.
#![warn(missing_docs)]

mod pipe_pages;

pub use pipe_pages::{PipePages, splice_from};

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::Arc;

use migpipe_units::{Bytes, PAGE_SIZE, PageRange, Pages, RegionId};
use nix::errno::Errno;
use nix::sys::mman::{MmapAdvise, madvise};
use nix::sys::stat::fstat;
use nix::unistd::{Whence, lseek};
use thiserror::Error;
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{FileOffset, MmapRegion, VolatileMemory, VolatileSlice};
use vm_state::MemoryRegion;

/// Why memory cannot be mapped.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// There are more or fewer descriptors than regions.
    #[error("{fds} descriptors came for {regions} regions")]
    WrongCount {
        /// How many came.
        fds: usize,
        /// How many regions the description has.
        regions: usize,
    },
    /// A file is shorter than its region.
    #[error("the memory of {region} has {found} bytes, its description says {expected}")]
    WrongSize {
        /// Which region.
        region: RegionId,
        /// Size of the file.
        found: u64,
        /// Size in the description.
        expected: u64,
    },
    /// The kernel refused.
    #[error("cannot {what} {size} of guest memory")]
    System {
        /// What it refused.
        what: &'static str,
        /// How much of it.
        size: Bytes,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What a mapping is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A source copies pages out.
    Read,
    /// The same of a guest that gives pages back to the host meanwhile. A look at such a page
    /// through a mapping would make it exist again, and the host would lose by the migration what
    /// it had gained; read through its file a hole is zeros and stays one. It takes the sender a
    /// quarter more time.
    ReadSparse,
    /// A destination fills them.
    ReadWrite,
}

/// A shared mapping of a whole file.
fn map(file: &Arc<File>, len: u64, access: Access) -> Result<MmapRegion, MemoryError> {
    let protection = match access {
        Access::Read | Access::ReadSparse => libc::PROT_READ,
        Access::ReadWrite => libc::PROT_READ | libc::PROT_WRITE,
    };
    let mapped = MmapRegionBuilder::new_with_bitmap(len as usize, ())
        .with_file_offset(FileOffset::from_arc(Arc::clone(file), 0))
        .with_mmap_prot(protection)
        .with_mmap_flags(libc::MAP_SHARED)
        .build();
    let mapping = mapped.map_err(|error| {
        let source = match error {
            MmapRegionError::Mmap(source) => source,
            other => io::Error::other(other),
        };
        MemoryError::System { what: "map", size: Bytes(len), source }
    })?;
    // What a guest has in its memory is nobody's but the guest's.
    advise(&mapping, MmapAdvise::MADV_DONTDUMP);
    if access == Access::ReadWrite {
        advise(&mapping, MmapAdvise::MADV_HUGEPAGE);
    }
    Ok(mapping)
}

/// A hint: a kernel that does not know it refuses, and nothing is lost.
fn advise(mapping: &MmapRegion, advice: MmapAdvise) {
    if let Some(start) = NonNull::new(mapping.as_ptr().cast()) {
        // SAFETY: the range is exactly one mapping that `mapping` owns, and neither of the two
        // pieces of advice that are given changes a byte of it.
        let _ = unsafe { madvise(start, mapping.size(), advice) };
    }
}

/// `len` bytes from `offset` on.
fn slice(mapping: &MmapRegion, offset: u64, len: usize) -> VolatileSlice<'_> {
    let slice = mapping.get_slice(offset as usize, len);
    slice.unwrap_or_else(|error| panic!("beyond the end of the mapping: {error}"))
}

/// One region of guest memory.
#[derive(Debug)]
struct Region {
    id: RegionId,
    pages: Pages,
    file: Arc<File>,
    mapping: Arc<MmapRegion>,
}

/// The memory of one guest, mapped.
#[derive(Debug)]
pub struct GuestMemory {
    regions: Vec<Region>,
    access: Access,
}

impl GuestMemory {
    /// Maps the files `fds` of the regions `described`, in the same order.
    ///
    /// # Errors
    /// [`MemoryError`] if they do not fit each other or cannot be mapped.
    pub fn map(
        described: &[MemoryRegion],
        fds: Vec<OwnedFd>,
        access: Access,
    ) -> Result<Self, MemoryError> {
        if described.len() != fds.len() {
            return Err(MemoryError::WrongCount { fds: fds.len(), regions: described.len() });
        }
        let regions = described
            .iter()
            .zip(fds)
            .map(|(region, fd)| {
                let expected = region.pages.bytes().0;
                let found = size_of_file(&fd)?;
                if found < expected {
                    return Err(MemoryError::WrongSize { region: region.id, found, expected });
                }
                let file = Arc::new(File::from(fd));
                let mapping = Arc::new(map(&file, expected, access)?);
                Ok(Region { id: region.id, pages: region.pages, file, mapping })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { regions, access })
    }

    fn region(&self, id: RegionId) -> &Region {
        self.regions.iter().find(|region| region.id == id).expect("a region of this guest")
    }

    /// The regions and their lengths, in order.
    pub fn regions(&self) -> impl Iterator<Item = (RegionId, Pages)> + '_ {
        self.regions.iter().map(|region| (region.id, region.pages))
    }

    /// Copies the pages of `range` into the first bytes of `buffer`, and returns those.
    ///
    /// # Panics
    /// If the range is not inside its region or longer than `buffer`.
    pub fn copy_pages<'a>(&self, range: PageRange, buffer: &'a mut [u8]) -> &'a mut [u8] {
        let into = &mut buffer[..range.len().0 as usize];
        self.copy(range.region, range.offset().0, into);
        into
    }

    /// The first bytes of a page: enough to tell most pages that repeat nothing.
    ///
    /// # Panics
    /// If the page is not inside its region.
    pub fn first_bytes(&self, region: RegionId, page: u64) -> [u8; 16] {
        let mut bytes = [0; 16];
        self.copy(region, page.saturating_mul(PAGE_SIZE), &mut bytes);
        bytes
    }

    fn copy(&self, region: RegionId, offset: u64, into: &mut [u8]) {
        let region = self.region(region);
        let pages = slice(&region.mapping, offset, into.len());
        if self.access == Access::ReadSparse && region.file.read_exact_at(into, offset).is_ok() {
            return;
        }
        // A range that is in the file and cannot be read from it is memory in trouble: the mapping
        // is the last try.
        pages.copy_to(into);
    }

    /// Puts bytes of `range`, from its byte `from` on, into a non-blocking pipe without a copy
    /// (vmsplice(2)), and returns how many. The pipe refers to the pages: whoever reads it sees
    /// what the guest writes meanwhile.
    ///
    /// # Errors
    /// As vmsplice(2): `WouldBlock` while the pipe is full, `InvalidInput` where the kernel does
    /// not do this.
    ///
    /// # Panics
    /// If the range is not inside its region.
    pub fn splice_into(
        &self,
        range: PageRange,
        from: usize,
        pipe: BorrowedFd<'_>,
    ) -> io::Result<usize> {
        let len = (range.len().0 as usize).saturating_sub(from);
        let mapping = &self.region(range.region).mapping;
        let pages = slice(mapping, range.offset().0 + from as u64, len);
        // SAFETY: the pages are inside a mapping that lives longer than the call.
        unsafe { pipe_pages::vmsplice(pages.ptr_guard().as_ptr(), len, pipe) }
    }

    /// The pages of `range`, to be filled.
    ///
    /// # Panics
    /// If the range is not inside its region, or the memory was mapped for reading.
    pub fn pages_mut(&mut self, range: PageRange) -> &mut [u8] {
        assert!(self.access == Access::ReadWrite, "this mapping is for reading");
        let len = range.len().0 as usize;
        let pages = slice(&self.region(range.region).mapping, range.offset().0, len);
        // SAFETY: the slice is inside the mapping (checked), which lives as long as `self`. `&mut
        // self` keeps other users of this process away, the guest does not run, and the receiving
        // vmrun does not touch the memory before it is told to load the state.
        unsafe { std::slice::from_raw_parts_mut(pages.ptr_guard_mut().as_ptr(), len) }
    }

    /// The runs of pages that exist: what was never touched is a hole in its file (SEEK_DATA and
    /// SEEK_HOLE, lseek(2)), and is neither read nor sent.
    ///
    /// # Errors
    /// [`MemoryError::System`] if the kernel does not say.
    pub fn existing(&self) -> Result<Vec<PageRange>, MemoryError> {
        let mut found = Vec::new();
        for region in &self.regions {
            let size = region.pages.bytes();
            let failed = |errno: Errno| MemoryError::System {
                what: "look for holes in",
                size,
                source: errno.into(),
            };
            let mut at = 0;
            while at < size.0 {
                let data = match lseek(&region.file, at as i64, Whence::SeekData) {
                    Ok(data) => data as u64,
                    // There is no data behind `at`.
                    Err(Errno::ENXIO) => break,
                    Err(errno) => return Err(failed(errno)),
                };
                let hole =
                    lseek(&region.file, data as i64, Whence::SeekHole).map_err(failed)? as u64;
                let end = hole.min(size.0).div_ceil(PAGE_SIZE);
                let first = data / PAGE_SIZE;
                if first < end {
                    found.push(PageRange { region: region.id, first, count: Pages(end - first) });
                }
                at = hole;
            }
        }
        Ok(found)
    }

    /// A handle with which another thread makes pages exist before they are filled.
    pub fn populator(&self) -> Populator {
        Populator {
            regions: self
                .regions
                .iter()
                .map(|region| (region.id, Arc::clone(&region.mapping)))
                .collect(),
        }
    }
}

/// Makes pages of a destination exist ahead of the stream: a fault costs more than the copy.
#[derive(Clone, Debug)]
pub struct Populator {
    regions: Vec<(RegionId, Arc<MmapRegion>)>,
}

impl Populator {
    /// Makes the pages of `range` exist, without changing what is in them. It is a help and not a
    /// promise: a kernel that refuses leaves the work to the first write.
    pub fn populate(&self, range: PageRange) {
        let Some((_, mapping)) = self.regions.iter().find(|(id, _)| *id == range.region) else {
            return;
        };
        let (offset, len) = (range.offset().0 as usize, range.len().0 as usize);
        let Ok(pages) = mapping.get_slice(offset, len) else { return };
        // SAFETY: the range is inside a mapping that lives as long as `mapping`, and populating
        // changes no byte of it (madvise(2), MADV_POPULATE_WRITE).
        unsafe {
            let start = pages.ptr_guard_mut().as_ptr();
            libc::madvise(start.cast(), len, libc::MADV_POPULATE_WRITE);
        }
    }
}

fn size_of_file(fd: &OwnedFd) -> Result<u64, MemoryError> {
    let stat = fstat(fd.as_fd()).map_err(|errno| MemoryError::System {
        what: "look at",
        size: Bytes(0),
        source: io::Error::from_raw_os_error(errno as i32),
    })?;
    Ok(u64::try_from(stat.st_size).unwrap_or(0))
}

#[cfg(test)]
mod tests;
