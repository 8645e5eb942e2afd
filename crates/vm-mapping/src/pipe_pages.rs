//! Copies of guest pages that a pipe takes over.
//!
//! A write to a pipe allocates a page for each 4 KiB and copies once more. vmsplice(2) hands the
//! pages of the copy on instead; but they may be read much later (a filter may pass them on to yet
//! another pipe, or a socket that keeps them until they are acknowledged), so they must never be
//! written again. Each copy is therefore made in fresh memory, which is unmapped when it is used up
//! and lives on until its last reader is done. That pays where fresh memory comes in huge pages: one
//! fault for 2 MiB.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::sys::mman::MmapAdvise;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{MmapRegion, VolatileMemory};

use crate::advise;

/// The size of a huge page.
const HUGE_PAGE: usize = 2 << 20;

const SETTING: &str = "/sys/kernel/mm/transparent_hugepage/enabled";

/// A supply of fresh memory for a pipe.
#[derive(Debug)]
pub struct PipePages {
    chunk: Option<Chunk>,
}

/// One huge page.
#[derive(Debug)]
struct Chunk {
    mapping: MmapRegion,
    /// Where in the mapping the huge page begins.
    start: usize,
    /// How much of it pipes have (bytes).
    used: usize,
}

impl PipePages {
    /// Nothing where the host gives no huge pages to private memory: a write is faster then.
    pub fn new() -> Option<Self> {
        let setting = std::fs::read_to_string(SETTING).ok()?;
        (!setting.contains("[never]")).then_some(Self { chunk: None })
    }

    /// Room for `len` bytes, at most 2 MiB, in whole pages that no pipe has. What they hold is
    /// of no use. The same room comes again, unless [`Self::keep`] says that a pipe has it now.
    ///
    /// # Errors
    /// When there is no memory.
    ///
    /// # Panics
    /// If it is more than 2 MiB.
    pub fn room(&mut self, len: usize) -> io::Result<&mut [u8]> {
        assert!(len <= HUGE_PAGE, "more than a huge page");
        if self.chunk.as_ref().is_none_or(|chunk| chunk.used + len > HUGE_PAGE) {
            // The old one first, so that its memory can be the new one's if nobody reads it.
            self.chunk = None;
            self.chunk = Some(Chunk::new()?);
        }
        let chunk = self.chunk.as_mut().expect("set above");
        let room = chunk.mapping.get_slice(chunk.start + chunk.used, len);
        let room = room.map_err(io::Error::other)?;
        // SAFETY: private memory of this process, which nobody else has: what a pipe may have is
        // behind `used`. It stays mapped until the next call, which `&mut self` puts after the end
        // of the slice.
        Ok(unsafe { std::slice::from_raw_parts_mut(room.ptr_guard_mut().as_ptr(), len) })
    }

    /// Leaves the first `len` bytes of the room to the pipe that was given any of them.
    pub const fn keep(&mut self, len: usize) {
        if let Some(chunk) = &mut self.chunk {
            chunk.used += len;
        }
    }
}

impl Chunk {
    fn new() -> io::Result<Self> {
        // So much that an aligned huge page is in it.
        let mapping = MmapRegionBuilder::new_with_bitmap(2 * HUGE_PAGE, ())
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE)
            .build()
            .map_err(io::Error::other)?;
        advise(&mapping, MmapAdvise::MADV_DONTDUMP);
        advise(&mapping, MmapAdvise::MADV_HUGEPAGE);
        let start = (mapping.as_ptr() as usize).next_multiple_of(HUGE_PAGE);
        Ok(Self { start: start - mapping.as_ptr() as usize, mapping, used: 0 })
    }
}

/// Puts the pages of `bytes`, which begin at a page, into a non-blocking pipe without a copy
/// (vmsplice(2)), and returns how many bytes. The pipe refers to the pages: whoever reads it sees
/// what is written to them meanwhile.
///
/// # Errors
/// As vmsplice(2): `WouldBlock` while the pipe is full, `InvalidInput` where the kernel does not do
/// this.
pub fn splice_from(bytes: &[u8], pipe: BorrowedFd<'_>) -> io::Result<usize> {
    // SAFETY: `bytes` is borrowed for the length of the call.
    unsafe { vmsplice(bytes.as_ptr(), bytes.len(), pipe) }
}

/// # Safety
/// The `len` bytes at `start` are mapped as long as the call lasts.
pub(crate) unsafe fn vmsplice(
    start: *const u8,
    len: usize,
    pipe: BorrowedFd<'_>,
) -> io::Result<usize> {
    let slice = libc::iovec { iov_base: start.cast_mut().cast(), iov_len: len };
    // SAFETY: the kernel takes references to the pages of the range, which the caller keeps mapped;
    // it does not write to them.
    let moved =
        unsafe { libc::vmsplice(pipe.as_raw_fd(), &raw const slice, 1, libc::SPLICE_F_NONBLOCK) };
    usize::try_from(moved).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn what_a_pipe_was_given_stays_what_it_was() {
        let Some(mut pipe_pages) = PipePages::new() else {
            eprintln!("SKIPPED: {SETTING} is never");
            return;
        };
        const LEN: usize = 64 << 10;
        let (mut from, into) = io::pipe().unwrap();
        let size = nix::fcntl::fcntl(&into, nix::fcntl::FcntlArg::F_SETPIPE_SZ(8 * LEN as i32));
        assert!(size.is_ok());
        // Far more than one huge page, so that all but the last are unmapped before they are read.
        for round in 0..80_u8 {
            let room = pipe_pages.room(LEN).unwrap();
            room.fill(round);
            match splice_from(room, into.as_fd()) {
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                    eprintln!("SKIPPED: this kernel does not splice memory");
                    return;
                }
                moved => assert_eq!(moved.unwrap(), LEN),
            }
            pipe_pages.keep(LEN);
            if round >= 7 {
                let mut read = vec![0; LEN];
                from.read_exact(&mut read).unwrap();
                assert!(read.iter().all(|byte| *byte == round - 7), "round {round}");
            }
        }
    }

    #[test]
    fn room_comes_again_until_a_pipe_has_it_and_never_after_that() {
        let Some(mut pages) = PipePages::new() else {
            eprintln!("SKIPPED: {SETTING} is never");
            return;
        };
        const LEN: usize = 192 << 10;
        pages.room(LEN).unwrap().fill(7);
        let again = pages.room(LEN).unwrap();
        assert!(again.iter().all(|byte| *byte == 7), "it was not used up");
        pages.keep(LEN);
        for _ in 0..100 {
            let room = pages.room(LEN).unwrap();
            assert!(room.iter().all(|byte| *byte == 0), "a pipe may have it");
            room.fill(7);
            pages.keep(LEN);
        }
    }
}
