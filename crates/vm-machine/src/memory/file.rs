//! The file behind one region, and its mapping.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::ptr::NonNull;
use std::sync::Arc;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MmapAdvise, madvise};
use vm_memory::bitmap::Bitmap;
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};
use vm_state::MemoryBacking;

use super::{HUGE_PAGE, HugeTmpfs};

/// Where a guest's memory comes from.
#[derive(Clone, Debug)]
pub enum MemorySource {
    /// Huge pages that the administrator has set apart (hugetlbfs).
    HugeTlb,
    /// A tmpfs of huge pages.
    Tmpfs(Arc<HugeTmpfs>),
    /// A memfd.
    Memfd {
        /// Whether it is to have huge pages where the host gives them.
        huge: bool,
    },
}

impl Default for MemorySource {
    fn default() -> Self {
        Self::Memfd { huge: true }
    }
}

impl MemorySource {
    pub(crate) const fn is_hugetlb(&self) -> bool {
        matches!(self, Self::HugeTlb)
    }

    /// Whether transparent huge pages are to be asked for.
    pub(super) const fn asks_for_huge_pages(&self) -> bool {
        matches!(self, Self::Tmpfs(_) | Self::Memfd { huge: true })
    }

    /// What memory of it is made of. Whether a memfd has huge pages is found out by one.
    pub(super) fn backing(&self) -> MemoryBacking {
        match self {
            Self::HugeTlb => MemoryBacking::HugeTlb,
            Self::Tmpfs(_) => MemoryBacking::HugeTmpfs,
            Self::Memfd { huge: false } => MemoryBacking::Memfd { huge: false },
            Self::Memfd { huge: true } => {
                let probe = memfd_create("probe", MFdFlags::MFD_CLOEXEC);
                let huge = probe.map_err(io::Error::from).map(File::from).and_then(makes_huge_page);
                MemoryBacking::Memfd { huge: huge.unwrap_or(false) }
            }
        }
    }

    /// A file of `bytes`.
    ///
    /// A memfd is sealed: a client that maps it cannot take memory away from under us, which would
    /// be SIGBUS. A file of a tmpfs takes no seals. Whoever gets its descriptor for writing is the
    /// user that this process belongs to, or root, either of which can end it anyway; and those are
    /// the programs that fill an arriving guest, no others.
    pub(super) fn file(&self, name: &str, bytes: u64) -> io::Result<OwnedFd> {
        let memfd = |flags| memfd_create(name, MFdFlags::MFD_CLOEXEC | flags);
        let file = match self {
            Self::HugeTlb => {
                let huge = MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB;
                memfd(MFdFlags::MFD_ALLOW_SEALING | huge)?
            }
            Self::Tmpfs(tmpfs) => tmpfs.file()?,
            Self::Memfd { .. } => memfd(MFdFlags::MFD_ALLOW_SEALING)?,
        };
        nix::unistd::ftruncate(&file, bytes as i64)?;
        if !matches!(self, Self::Tmpfs(_)) {
            let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
            fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
        }
        Ok(file)
    }
}

/// The file once more, open for reading alone: what a descriptor may do is decided when it is
/// opened.
pub(super) fn reader_of(file: &File) -> io::Result<File> {
    nix::sys::stat::fchmod(file, nix::sys::stat::Mode::S_IRUSR)?;
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Maps the first `bytes` of `file` for reading and writing.
pub(super) fn map_shared<B: Bitmap>(
    file: Arc<File>,
    bytes: usize,
    flags: i32,
    written: B,
) -> Result<MmapRegion<B>, MmapRegionError> {
    MmapRegionBuilder::new_with_bitmap(bytes, written)
        .with_file_offset(FileOffset::from_arc(file, 0))
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_SHARED | flags)
        .build()
}

/// Whether one byte that is written to the fresh `file` makes a huge page.
pub(super) fn makes_huge_page(file: File) -> io::Result<bool> {
    file.set_len(HUGE_PAGE)?;
    let file = Arc::new(file);
    let map = map_shared(Arc::clone(&file), HUGE_PAGE as usize, 0, ()).map_err(io::Error::other)?;
    advise_huge(&map);
    map.get_slice(0, 1).map_err(io::Error::other)?.copy_from(&[1_u8]);
    // In units of 512 bytes (stat(2)).
    Ok(file.metadata()?.blocks() * 512 >= HUGE_PAGE)
}

/// Asks for huge pages.
pub(super) fn advise_huge<B: Bitmap>(map: &MmapRegion<B>) {
    advise(map, MmapAdvise::MADV_HUGEPAGE);
}

/// Keeps the memory out of children, as a fork would otherwise copy the page tables of the whole
/// guest, and out of core dumps, where others may read it.
pub(super) fn advise_private<B: Bitmap>(map: &MmapRegion<B>) {
    advise(map, MmapAdvise::MADV_DONTFORK);
    advise(map, MmapAdvise::MADV_DONTDUMP);
}

/// A hint: a kernel that knows it never refuses it for such a mapping.
fn advise<B: Bitmap>(map: &MmapRegion<B>, advice: MmapAdvise) {
    if let Some(start) = NonNull::new(map.as_ptr().cast()) {
        // SAFETY: the range is exactly one mapping that `map` owns, the three pieces of advice that
        // are given leave its content alone, and no child of this process uses guest memory.
        let _ = unsafe { madvise(start, map.size(), advice) };
    }
}
