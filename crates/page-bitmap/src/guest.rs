//! The bitmaps of all regions of a guest.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use migpipe_units::{Bytes, Pages, RegionId};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use thiserror::Error;
use vm_memory::FileOffset;
use vm_memory::mmap::MmapRegionBuilder;

use crate::bitmap::PageBitmap;
use crate::layout::{layout, words_for};
use crate::words::Words;

/// Why a shared bitmap cannot be had.
#[derive(Debug, Error)]
pub enum BitmapError {
    /// The memory file has not as many bytes as the guest's memory asks for.
    #[error("the dirty bitmap has {found} bytes; the memory of the guest asks for {expected}", found = .found.0, expected = .expected.0)]
    TooShort {
        /// What it has.
        found: Bytes,
        /// What it must have.
        expected: Bytes,
    },
    /// The kernel refused.
    #[error("cannot {what} the dirty bitmap of {size}")]
    System {
        /// What it refused.
        what: &'static str,
        /// The size of the bitmap.
        size: Bytes,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A bitmap for each region of a guest, in the order of their numbers: a slice of them.
///
/// One that is shared lies in a memory file, which vmrun and one client have mapped. vmrun adds what
/// is dirty when it is asked to, and never takes a bit away; the client takes a bit out when it
/// sends the page, and can put it back. Neither believes that the other keeps to that.
#[derive(Debug)]
pub struct GuestBitmap(Vec<PageBitmap>);

impl GuestBitmap {
    /// Empty bitmaps for these regions, for this process alone.
    pub fn new(regions: impl IntoIterator<Item = (RegionId, Pages)>) -> Self {
        Self(regions.into_iter().map(|(region, pages)| PageBitmap::new(region, pages)).collect())
    }

    /// Empty bitmaps for these regions, and the memory file with which another process can
    /// [map](Self::map) them. Nobody can make that file shorter.
    ///
    /// # Errors
    /// [`BitmapError::System`] if the kernel refuses.
    pub fn share(
        regions: impl IntoIterator<Item = (RegionId, Pages)> + Clone,
    ) -> Result<(Self, OwnedFd), BitmapError> {
        let size = Bytes(layout(regions.clone()).1 as u64 * 8);
        let failed = |what| move |source: io::Error| BitmapError::System { what, size, source };
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let make = || -> io::Result<OwnedFd> {
            let fd = memfd_create(c"dirty-bitmap", flags)?;
            nix::unistd::ftruncate(&fd, size.0 as i64)?;
            // One that could shrink it could kill the other with SIGBUS.
            let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
            fcntl(&fd, FcntlArg::F_ADD_SEALS(seals))?;
            Ok(fd)
        };
        let fd = make().map_err(failed("make"))?;
        let ours = fd.try_clone().map_err(failed("share"))?;
        Ok((Self::map(ours, regions)?, fd))
    }

    /// The bitmaps of these regions, which another process shares by the memory file `fd`.
    ///
    /// # Errors
    /// [`BitmapError`] if it is too short or cannot be mapped.
    pub fn map(
        fd: OwnedFd,
        regions: impl IntoIterator<Item = (RegionId, Pages)>,
    ) -> Result<Self, BitmapError> {
        let (places, words) = layout(regions);
        let expected = Bytes(words as u64 * 8);
        let failed = |what| move |source| BitmapError::System { what, size: expected, source };
        let stat = nix::sys::stat::fstat(fd.as_fd());
        let stat = stat.map_err(|errno| failed("look at")(errno.into()))?;
        let found = Bytes(u64::try_from(stat.st_size).unwrap_or(0));
        if found < expected {
            return Err(BitmapError::TooShort { found, expected });
        }
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let file = FileOffset::new(File::from(fd), 0);
        let size = expected.0 as usize;
        let map = MmapRegionBuilder::new_with_bitmap(size, ())
            .with_file_offset(file)
            .with_mmap_prot(protection)
            .with_mmap_flags(libc::MAP_SHARED)
            .build();
        let map = Arc::new(map.map_err(|error| failed("map")(io::Error::other(error)))?);
        let bitmaps = places.into_iter().map(|place| {
            let count = words_for(place.pages);
            let words = Words::mapped(Arc::clone(&map), place.first_word, count);
            PageBitmap::over(place.region, place.pages, words)
        });
        Ok(Self(bitmaps.collect()))
    }

    /// How many pages are in it.
    pub fn count(&self) -> Pages {
        self.iter().map(PageBitmap::count).sum()
    }

    /// Takes all pages out.
    pub fn clear(&self) {
        self.iter().for_each(PageBitmap::clear);
    }
}

impl Deref for GuestBitmap {
    type Target = [PageBitmap];

    fn deref(&self) -> &[PageBitmap] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

    use super::*;

    const REGIONS: [(RegionId, Pages); 2] = [(RegionId(0), Pages(65)), (RegionId(1), Pages(64))];

    fn words(bitmap: &GuestBitmap) -> Vec<u64> {
        bitmap.iter().flat_map(PageBitmap::words).collect()
    }

    #[test]
    fn both_sides_see_one_bitmap() {
        let (vmrun, fd) = GuestBitmap::share(REGIONS).unwrap();
        let client = GuestBitmap::map(fd, REGIONS).unwrap();
        assert_eq!(vmrun[0].merge([1, 1]), Pages(2));
        vmrun[1].insert(1, Pages(1));
        assert_eq!(words(&client), [1, 1, 2]);
        assert_eq!(client.count(), Pages(3));
        client[0].remove(0, Pages(1));
        assert_eq!(words(&vmrun), [0, 1, 2]);
        client.clear();
        assert_eq!(vmrun.count(), Pages(0));
    }

    #[test]
    fn what_a_client_leaves_in_the_bitmap_or_puts_back_is_there_after_the_next_harvest() {
        let (vmrun, fd) = GuestBitmap::share(REGIONS).unwrap();
        let client = GuestBitmap::map(fd, REGIONS).unwrap();
        vmrun[0].merge([0b111]);
        let taken = client[0].take_runs(Pages(2)).next().unwrap();
        assert_eq!(vmrun[0].merge([0b1000]), Pages(1));
        assert_eq!(words(&client), [0b1100, 0, 0]);
        client[0].insert(taken.first, taken.count);
        vmrun[0].merge([0]);
        assert_eq!(words(&client), [0b1111, 0, 0]);
    }

    #[test]
    fn what_a_hostile_peer_writes_is_no_page_that_the_guest_does_not_have() {
        let (vmrun, fd) = GuestBitmap::share(REGIONS).unwrap();
        let file = File::from(fd.try_clone().unwrap());
        std::os::unix::fs::FileExt::write_all_at(&file, &[0xff; 24], 0).unwrap();
        assert_eq!(words(&vmrun), [u64::MAX, 1, u64::MAX]);
        let runs: Vec<_> = vmrun[0].take_runs(Pages(1000)).collect();
        assert_eq!((runs.len(), runs[0].count), (1, Pages(65)));
        assert!(vmrun[0].is_empty());
    }

    #[test]
    fn nobody_can_take_the_bitmap_away_from_under_the_other() {
        let regions = [(RegionId(0), Pages(4096 * 64))];
        let (bitmap, theirs) = GuestBitmap::share(regions).unwrap();
        assert_eq!(nix::unistd::ftruncate(&theirs, 0), Err(Errno::EPERM));
        assert_eq!(nix::unistd::ftruncate(&theirs, 1 << 20), Err(Errno::EPERM));
        assert!(fcntl(&theirs, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE)).is_err());
        bitmap[0].merge([7; 4096]);
        assert_eq!(words(&GuestBitmap::map(theirs, regions).unwrap()), [7; 4096]);
    }

    #[test]
    fn a_bitmap_that_is_too_short_is_refused() {
        let regions = |pages| [(RegionId(0), Pages(pages))];
        let (_bitmap, fd) = GuestBitmap::share(regions(64)).unwrap();
        let longer = GuestBitmap::map(fd.try_clone().unwrap(), regions(65));
        let expected = (Bytes(8), Bytes(16));
        assert!(
            matches!(longer, Err(BitmapError::TooShort { found, expected: e }) if (found, e) == expected)
        );
        GuestBitmap::map(fd, regions(64)).unwrap();
    }
}
