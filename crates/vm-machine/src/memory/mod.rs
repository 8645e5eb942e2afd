//! Guest memory: one file per region, so that a client can map it with no copy. It is of huge pages
//! where the host has any, in this order: hugetlbfs where the user asks for it, a tmpfs of our own
//! ([`HugeTmpfs`]), a memfd.
//!
//! A client that only reads gets descriptors that are open for reading, and the file's mode keeps
//! other processes of this user (but root's) from opening it for writing by its name in /proc.
//! Guest memory is in no core dump: neither of vmrun nor, by the same advice, of its clients.

mod file;
mod tmpfs;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use migpipe_units::{Bytes, PAGE_SIZE, RegionId};
use page_bitmap::{PageBitmap, TrackedMemory};
use thiserror::Error;
use vm_memory::mmap::MmapRegionError;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestRegionMmap, MmapRegion};
use vm_state::{MemoryBacking, MemoryRegion};

use crate::layout::MOST_MEMORY;

pub use file::MemorySource;
pub use tmpfs::{HugeTmpfs, TmpfsError};

/// The size of a huge page; hugetlbfs memory comes in whole ones.
const HUGE_PAGE: u64 = 2 << 20;

/// Why guest memory cannot be had.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// No machine has so much or so little, or it is not whole pages.
    #[error("a guest cannot have {bytes} bytes of memory: give it whole pages of {page} bytes, {MOST_MEMORY} at most", bytes = .asked.0, page = .page.0)]
    Size {
        /// What was asked for.
        asked: Bytes,
        /// The size of a page of the kind that was asked for.
        page: Bytes,
    },
    /// A description whose regions overlap, are out of order, or are numbered otherwise than from
    /// 0.
    #[error("{0} of the machine description is out of order or overlaps the one before")]
    Regions(RegionId),
    /// The kernel gives no memory file.
    #[error("cannot create a memory file of {bytes} for {region}{}", hint(*.hugetlb))]
    File {
        /// The region.
        region: RegionId,
        /// Its size.
        bytes: Bytes,
        /// Whether it was to be of huge pages.
        hugetlb: bool,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// It cannot be opened a second time.
    #[error("cannot open the memory of {region} for reading")]
    Reader {
        /// The region.
        region: RegionId,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The kernel does not map it.
    #[error("cannot map {bytes} of memory for {region}{}", hint(*.hugetlb))]
    Map {
        /// The region.
        region: RegionId,
        /// Its size.
        bytes: Bytes,
        /// Whether it was to be of huge pages.
        hugetlb: bool,
        /// What the kernel says.
        #[source]
        source: MmapRegionError,
    },
    /// The host has less memory left than the guest may fill.
    #[error(
        "the guest needs {needed} of memory, this host has {available} left{}; free some or choose another host",
        if *.in_cgroup { " in this cgroup" } else { "" }
    )]
    TooLittle {
        /// What the guest has.
        needed: Bytes,
        /// What the host has.
        available: Bytes,
        /// Whether the limit is that of the cgroup and not of the host.
        in_cgroup: bool,
    },
}

fn hint(hugetlb: bool) -> &'static str {
    if hugetlb { "; are there enough huge pages (vm.nr_hugepages)?" } else { "" }
}

/// The memory of one guest.
#[derive(Debug)]
pub struct Memory {
    regions: Vec<MemoryRegion>,
    files: Vec<Arc<File>>,
    /// The same files, open for reading only.
    readers: Vec<File>,
    mapped: TrackedMemory,
    backing: MemoryBacking,
}

impl Memory {
    /// Fresh memory for these regions, of zeros.
    ///
    /// # Errors
    /// [`MemoryError`] if the regions are none or the kernel refuses.
    pub fn new(regions: &[MemoryRegion], from: &MemorySource) -> Result<Self, MemoryError> {
        let hugetlb = from.is_hugetlb();
        check(regions, hugetlb)?;
        // Huge pages are reserved here: without, a host that has too few of them would kill us with
        // SIGBUS at the first touch.
        let flags = if hugetlb { 0 } else { libc::MAP_NORESERVE };
        let mut files = Vec::new();
        let mut readers = Vec::new();
        let mut mapped = Vec::new();
        for region in regions {
            let (id, bytes) = (region.id, region.pages.bytes());
            let file = from
                .file(&format!("guest-memory-{}", id.0), bytes.0)
                .map_err(|source| MemoryError::File { region: id, bytes, hugetlb, source })?;
            let file = Arc::new(File::from(file));
            let written = PageBitmap::new(id, region.pages);
            let map = file::map_shared(Arc::clone(&file), bytes.0 as usize, flags, written)
                .map_err(|source| MemoryError::Map { region: id, bytes, hugetlb, source })?;
            if from.asks_for_huge_pages() {
                file::advise_huge(&map);
            }
            file::advise_private(&map);
            let reader = file::reader_of(&file);
            readers.push(reader.map_err(|source| MemoryError::Reader { region: id, source })?);
            files.push(file);
            let map = GuestRegionMmap::new(map, GuestAddress(region.base.address()));
            mapped.push(map.ok_or(MemoryError::Regions(id))?);
        }
        let mapped = TrackedMemory::from_regions(mapped)
            // Checked above, so that the region has a name.
            .map_err(|_| MemoryError::Regions(RegionId(0)))?;
        let backing = from.backing();
        Ok(Self { regions: regions.to_vec(), files, readers, mapped, backing })
    }

    /// What the memory is made of.
    pub const fn backing(&self) -> MemoryBacking {
        self.backing
    }

    /// The regions in address order.
    pub fn regions(&self) -> &[MemoryRegion] {
        &self.regions
    }

    /// The file of each region, which holds it from offset 0.
    pub fn files(&self) -> impl Iterator<Item = (RegionId, BorrowedFd<'_>)> {
        let ids = self.regions.iter().map(|region| region.id);
        ids.zip(self.files.iter().map(|file| file.as_fd()))
    }

    /// As [`Self::files`], for one who only reads.
    pub fn readers(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.readers.iter().map(|file| file.as_fd())
    }

    /// The mapped memory, which marks what this process writes through it.
    pub const fn mapped(&self) -> &TrackedMemory {
        &self.mapped
    }

    /// Each region with its mapping in this process.
    pub(crate) fn mappings(
        &self,
    ) -> impl Iterator<Item = (&MemoryRegion, Arc<MmapRegion<PageBitmap>>)> {
        self.regions.iter().zip(self.mapped.iter().map(GuestRegionMmap::get_mmap))
    }
}

fn check(regions: &[MemoryRegion], hugetlb: bool) -> Result<(), MemoryError> {
    let page = if hugetlb { HUGE_PAGE } else { PAGE_SIZE };
    let mut end = 0_u64;
    let mut sum = 0_u64;
    for (number, region) in regions.iter().enumerate() {
        let bytes = region.pages.bytes();
        if bytes.0 == 0 || bytes.0 % page != 0 || bytes > MOST_MEMORY {
            return Err(MemoryError::Size { asked: bytes, page: Bytes(page) });
        }
        let base = region.base.address();
        let next = base.checked_add(bytes.0);
        match next {
            Some(next)
                if usize::from(region.id.0) == number
                    && base >= end
                    && next <= 2 * MOST_MEMORY.0 =>
            {
                end = next;
            }
            _ => return Err(MemoryError::Regions(region.id)),
        }
        sum += bytes.0;
    }
    if sum == 0 || sum > MOST_MEMORY.0 {
        return Err(MemoryError::Size { asked: Bytes(sum), page: Bytes(page) });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, PermissionsExt};

    use migpipe_units::{Gfn, Pages};
    use vm_memory::Bytes as _;

    use super::*;
    use crate::layout;

    fn region(id: u16, base: u64, pages: u64) -> MemoryRegion {
        MemoryRegion { id: RegionId(id), base: Gfn(base), pages: Pages(pages) }
    }

    #[test]
    fn what_is_written_to_a_file_is_in_the_guests_memory() {
        let memory =
            Memory::new(&layout::regions(Bytes(5 << 30)), &MemorySource::default()).unwrap();
        let files: Vec<_> = memory.files().collect();
        assert_eq!(files.len(), 2);
        let file = File::from(files[1].1.try_clone_to_owned().unwrap());
        file.write_all_at(b"above the hole", 4096).unwrap();
        let mut found = [0; 14];
        let place = GuestAddress(layout::HOLE_END + 4096);
        memory.mapped().read_slice(&mut found, place).unwrap();
        assert_eq!(&found, b"above the hole");
    }

    #[test]
    fn nobody_can_take_memory_away_from_under_the_guest() {
        let memory = Memory::new(&[region(0, 0, 16)], &MemorySource::default()).unwrap();
        let (_, fd) = memory.files().next().unwrap();
        let file = File::from(fd.try_clone_to_owned().unwrap());
        assert!(file.set_len(4096).is_err());
        assert!(file.set_len(1 << 20).is_err());
    }

    #[test]
    fn one_who_reads_the_guests_memory_cannot_write_it() {
        use nix::sys::mman::{MapFlags, ProtFlags, mmap};
        let memory = Memory::new(&[region(0, 0, 16)], &MemorySource::default()).unwrap();
        let (_, writer) = memory.files().next().unwrap();
        let reader = memory.readers().next().unwrap();
        let map = |fd, protection| {
            let len = std::num::NonZeroUsize::new(4096).unwrap();
            // SAFETY: a new mapping at an address of the kernel's choice, which nobody uses.
            unsafe { mmap(None, len, protection, MapFlags::MAP_SHARED, fd, 0) }.is_ok()
        };
        let both = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        assert!(map(writer, both) && map(reader, ProtFlags::PROT_READ));
        assert!(!map(reader, both));
        let reader = File::from(reader.try_clone_to_owned().unwrap());
        assert!(reader.write_all_at(b"x", 0).is_err());
        assert_eq!(reader.metadata().unwrap().permissions().mode() & 0o777, 0o400);
    }

    #[test]
    fn guest_memory_is_in_no_core_dump() {
        let memory =
            Memory::new(&layout::regions(Bytes(5 << 30)), &MemorySource::default()).unwrap();
        for (region, map) in memory.mappings() {
            assert!(flags_of(map.as_ptr() as u64).contains(" dd"), "{:?}", region.id);
        }
    }

    /// What the kernel says of the mapping that begins at `address` (proc(5), smaps).
    fn flags_of(address: u64) -> String {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut lines =
            smaps.lines().skip_while(|line| !line.starts_with(&format!("{address:x}-")));
        lines.find(|line| line.starts_with("VmFlags:")).unwrap().to_owned()
    }

    #[test]
    fn regions_that_no_machine_has_are_refused() {
        let refused =
            |regions: &[MemoryRegion]| Memory::new(regions, &MemorySource::default()).is_err();
        assert!(refused(&[]));
        assert!(refused(&[region(0, 0, 0)]));
        assert!(refused(&[region(1, 0, 16)]));
        assert!(refused(&[region(0, 0, 16), region(1, 8, 16)]));
        assert!(refused(&[region(0, u64::MAX, 16)]));
        assert!(refused(&[region(0, 0, u64::MAX)]));
        assert!(refused(&[region(0, 0, 1 << 30), region(1, 1 << 30, 1 << 30)]));
    }
}
