//! Guest memory as a client sees it: the memfds of the regions, mapped.
//!
//! This module owns the mappings. At a source the guest writes to the memory while we copy it: the
//! copy may be torn, and then the page is in the dirty log. At a destination nobody but the client
//! touches the memory until the vmrun is told to load the state.
#![warn(missing_docs)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use migpipe_units::{Bytes, PAGE_SIZE, PageRange, Pages, RegionId};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, munmap};
use nix::sys::stat::fstat;
use nix::unistd::{Whence, lseek};
use thiserror::Error;
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
    /// A memfd is shorter than its region.
    #[error("the memory of {region} has {found} bytes, its description says {expected}")]
    WrongSize {
        /// Which region.
        region: RegionId,
        /// Size of the memfd.
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

/// A shared mapping of a whole memfd.
#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping is an address range of the process, not of a thread; every access goes through
// the methods below, which say who may use them at once.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(fd: &OwnedFd, len: u64, access: Access) -> Result<Self, MemoryError> {
        let failed =
            |source: io::Error| MemoryError::System { what: "map", size: Bytes(len), source };
        let length = usize::try_from(len)
            .ok()
            .and_then(std::num::NonZeroUsize::new)
            .ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
        let protection = match access {
            Access::Read | Access::ReadSparse => ProtFlags::PROT_READ,
            Access::ReadWrite => ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
        };
        // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
        let start = unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, fd, 0) }
            .map_err(|errno| failed(errno.into()))?;
        let mapping = Self { start: start.cast(), len: length.get() };
        mapping.keep_out_of_core_dumps();
        Ok(mapping)
    }

    /// What a guest has in its memory is nobody's but the guest's.
    fn keep_out_of_core_dumps(&self) {
        // SAFETY: an advice for a mapping of ours; it changes no byte of it. The kernel refuses it
        // for memory of devices alone.
        let _ = unsafe { madvise(self.start.cast(), self.len, MmapAdvise::MADV_DONTDUMP) };
    }

    fn check(&self, offset: u64, len: usize) -> usize {
        let end = offset.checked_add(len as u64);
        assert!(end.is_some_and(|end| end <= self.len as u64), "beyond the end of the mapping");
        offset as usize
    }

    fn copy_out(&self, offset: u64, into: &mut [u8]) {
        let offset = self.check(offset, into.len());
        // SAFETY: the range is inside the mapping (checked), `into` is ours alone, and the two
        // cannot overlap. The guest may write meanwhile: the copy is then torn and dirty.
        unsafe {
            ptr::copy_nonoverlapping(
                self.start.as_ptr().add(offset),
                into.as_mut_ptr(),
                into.len(),
            );
        }
    }

    fn copy_in(&self, offset: u64, from: &[u8]) {
        let offset = self.check(offset, from.len());
        // SAFETY: the range is inside the mapping (checked), and the two cannot overlap.
        unsafe {
            ptr::copy_nonoverlapping(from.as_ptr(), self.start.as_ptr().add(offset), from.len());
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `new`, and no reference into it outlives `self`.
        let _ = unsafe { munmap(self.start.cast(), self.len) };
    }
}

/// One region of guest memory.
#[derive(Debug)]
struct Region {
    id: RegionId,
    pages: Pages,
    file: File,
    mapping: Arc<Mapping>,
}

/// The memory of one guest, mapped.
#[derive(Debug)]
pub struct GuestMemory {
    regions: Vec<Region>,
    access: Access,
}

impl GuestMemory {
    /// Maps the memfds `fds` of the regions `described`, in the same order.
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
                let mapping = Arc::new(Mapping::new(&fd, expected, access)?);
                if access == Access::ReadWrite {
                    advise_huge(&mapping);
                }
                Ok(Region { id: region.id, pages: region.pages, file: fd.into(), mapping })
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
        region.mapping.check(offset, into.len());
        if self.access == Access::ReadSparse && region.file.read_exact_at(into, offset).is_ok() {
            return;
        }
        // A range that is in the file and cannot be read from it is memory in trouble: the mapping
        // is the last try.
        region.mapping.copy_out(offset, into);
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
        let mapping = &self.region(range.region).mapping;
        let len = (range.len().0 as usize).saturating_sub(from);
        let offset = mapping.check(range.offset().0 + from as u64, len);
        // SAFETY: the address stays inside the mapping (checked).
        let start = unsafe { mapping.start.as_ptr().add(offset) };
        let slice = libc::iovec { iov_base: start.cast(), iov_len: len };
        // SAFETY: the kernel takes references to the pages of a range that is mapped and lives
        // longer than the call; it does not write to them.
        let moved = unsafe {
            libc::vmsplice(pipe.as_raw_fd(), &raw const slice, 1, libc::SPLICE_F_NONBLOCK)
        };
        usize::try_from(moved).map_err(|_| io::Error::last_os_error())
    }

    /// The pages of `range`, to be filled.
    ///
    /// # Panics
    /// If the range is not inside its region, or the memory was mapped for reading.
    pub fn pages_mut(&mut self, range: PageRange) -> &mut [u8] {
        assert!(self.access == Access::ReadWrite, "this mapping is for reading");
        let mapping = &self.region(range.region).mapping;
        let offset = mapping.check(range.offset().0, range.len().0 as usize);
        // SAFETY: the range is inside the mapping (checked). `&mut self` keeps other users of this
        // process away, and the receiving vmrun does not touch the memory before it is told to
        // load the state.
        unsafe {
            std::slice::from_raw_parts_mut(
                mapping.start.as_ptr().add(offset),
                range.len().0 as usize,
            )
        }
    }

    /// The runs of pages that exist: what was never touched is a hole in its memfd (SEEK_DATA and
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
    regions: Vec<(RegionId, Arc<Mapping>)>,
}

impl Populator {
    /// Makes the pages of `range` exist, without changing what is in them. It is a help and not a
    /// promise: a kernel that refuses leaves the work to the first write.
    pub fn populate(&self, range: PageRange) {
        let Some((_, mapping)) = self.regions.iter().find(|(id, _)| *id == range.region) else {
            return;
        };
        let (offset, len) = (range.offset().0, range.len().0);
        if offset.checked_add(len).is_none_or(|end| end > mapping.len as u64) {
            return;
        }
        // SAFETY: the range is inside a mapping that lives as long as `mapping`, and populating
        // changes no byte of it (madvise(2), MADV_POPULATE_WRITE).
        unsafe {
            libc::madvise(
                mapping.start.as_ptr().add(offset as usize).cast(),
                len as usize,
                libc::MADV_POPULATE_WRITE,
            );
        }
    }
}

fn advise_huge(mapping: &Mapping) {
    // SAFETY: an advice for a mapping of ours; it changes no byte of it. Where the host has no
    // huge pages for shared memory nothing is lost but speed, and vmrun says so.
    let _ = unsafe { madvise(mapping.start.cast(), mapping.len, MmapAdvise::MADV_HUGEPAGE) };
}

fn size_of_file(fd: &OwnedFd) -> Result<u64, MemoryError> {
    let stat = fstat(fd.as_fd()).map_err(|errno| MemoryError::System {
        what: "look at",
        size: Bytes(0),
        source: io::Error::from_raw_os_error(errno as i32),
    })?;
    Ok(u64::try_from(stat.st_size).unwrap_or(0))
}

/// The dirty bitmap that vmrun and one client share: one bit per page, all regions one behind the
/// other, each starting at a new u64 word. It is written by one side while the other waits for
/// it, so it needs no lock.
#[derive(Debug)]
pub struct SharedBitmap {
    mapping: Mapping,
    words: usize,
}

impl SharedBitmap {
    /// How many words the bitmap of these regions has.
    pub fn words_for(regions: &[MemoryRegion]) -> usize {
        regions.iter().map(|region| region.pages.0.div_ceil(64) as usize).sum()
    }

    /// Maps the bitmap of `regions`, which is in the memfd `fd`.
    ///
    /// # Errors
    /// [`MemoryError`] if it is too short or cannot be mapped.
    pub fn map(fd: OwnedFd, regions: &[MemoryRegion]) -> Result<Self, MemoryError> {
        let words = Self::words_for(regions);
        let (found, expected) = (size_of_file(&fd)?, words as u64 * 8);
        if found < expected {
            return Err(MemoryError::WrongSize { region: RegionId(0), found, expected });
        }
        Ok(Self { mapping: Mapping::new(&fd, expected, Access::ReadWrite)?, words })
    }

    /// Makes a memfd for the bitmap of `regions` and maps it.
    ///
    /// # Errors
    /// [`MemoryError::System`] if the kernel refuses.
    pub fn create(regions: &[MemoryRegion]) -> Result<(Self, OwnedFd), MemoryError> {
        use nix::sys::memfd::{MFdFlags, memfd_create};
        let size = Bytes(Self::words_for(regions) as u64 * 8);
        let failed = |errno: Errno| MemoryError::System {
            what: "make the bitmap for",
            size,
            source: errno.into(),
        };
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let fd = memfd_create(c"dirty-bitmap", flags).map_err(failed)?;
        nix::unistd::ftruncate(&fd, size.0 as i64).map_err(failed)?;
        // The other side has it too; one that shrank it would kill us with SIGBUS.
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&fd, FcntlArg::F_ADD_SEALS(seals)).map_err(failed)?;
        let ours = fd.try_clone().map_err(|source| MemoryError::System {
            what: "share the bitmap for",
            size,
            source,
        })?;
        Ok((Self::map(ours, regions)?, fd))
    }

    /// The bitmap as it is now.
    pub fn read(&self) -> Vec<u64> {
        let mut words = Vec::new();
        self.read_into(&mut words);
        words
    }

    /// As [`Self::read`], into `words`.
    pub fn read_into(&self, words: &mut Vec<u64>) {
        words.resize(self.words, 0);
        // SAFETY: every bit pattern is a valid u8 and the slice covers exactly the words.
        let bytes = unsafe {
            std::slice::from_raw_parts_mut(words.as_mut_ptr().cast::<u8>(), self.words * 8)
        };
        self.mapping.copy_out(0, bytes);
    }

    /// Replaces the bitmap by `words`.
    ///
    /// # Panics
    /// If there are more words than the bitmap has.
    pub fn write(&self, words: &[u64]) {
        // SAFETY: u64 has no padding, and the slice covers exactly the words.
        let bytes =
            unsafe { std::slice::from_raw_parts(words.as_ptr().cast::<u8>(), words.len() * 8) };
        self.mapping.copy_in(0, bytes);
    }
}

#[cfg(test)]
mod tests;
