//! A raw disk image: reading, writing, and the lock that says who may.
//!
//! The lock is an open file description lock (fcntl(2), F_OFD_SETLK) on the whole file: for
//! writing, or shared where the disk is read-only. It is given back by the kernel when the process
//! dies. On NFS (version 4) and CIFS the server keeps it, so that it holds between hosts, and
//! giving it back writes out what this host has cached; 9p and most FUSE file systems keep it on
//! one host only.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;

use nix::fcntl::{FallocateFlags, FcntlArg, fallocate, fcntl};
use units::Bytes;

use crate::virtio::error::VirtioError;

/// What direct I/O is aligned to, in memory and in the file: no device in use asks for more.
pub(super) const DIRECT_BLOCK: u64 = 4096;

/// A piece of zeros, where the file system cannot make them by itself.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// See the module.
pub(super) struct Image {
    device: String,
    path: PathBuf,
    file: File,
    len: u64,
    read_only: bool,
    direct: bool,
    locked: bool,
    bounce: Bounce,
}

impl Image {
    /// Opens the image at `path` without its lock.
    pub(super) fn open(
        device: &str,
        path: PathBuf,
        read_only: bool,
        direct: bool,
        sector: u64,
    ) -> Result<Self, VirtioError> {
        let flags = if direct { libc::O_DIRECT } else { 0 };
        let device = device.to_owned();
        let open = || {
            let file =
                OpenOptions::new().read(true).write(!read_only).custom_flags(flags).open(&path)?;
            // A block device has no length of its own in its metadata.
            let len = io::Seek::seek(&mut &file, io::SeekFrom::End(0))?;
            Ok((file, len))
        };
        let (file, len) = match open() {
            Ok(opened) => opened,
            Err(source) => return Err(VirtioError::OpenImage { device, path, source }),
        };
        let block = if direct { DIRECT_BLOCK } else { sector };
        if len == 0 || !len.is_multiple_of(block) {
            return Err(VirtioError::ImageLength { device, path, bytes: Bytes(len), block });
        }
        let bounce = Bounce::default();
        Ok(Self { device, path, file, len, read_only, direct, locked: false, bounce })
    }

    /// Its length in bytes.
    pub(super) const fn len(&self) -> u64 {
        self.len
    }

    pub(super) const fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// That the image is `expected` bytes long.
    pub(super) fn must_have(&self, expected: u64) -> Result<(), VirtioError> {
        if self.len == expected {
            return Ok(());
        }
        Err(VirtioError::OtherImage {
            device: self.device.clone(),
            path: self.path.clone(),
            here: Bytes(self.len),
            expected: Bytes(expected),
        })
    }

    /// Takes the lock, without waiting for it.
    pub(super) fn lock(&mut self) -> Result<(), VirtioError> {
        if self.locked {
            return Ok(());
        }
        let kind = if self.read_only { libc::F_RDLCK } else { libc::F_WRLCK };
        let (device, path) = (self.device.clone(), self.path.clone());
        match self.set_lock(kind) {
            Ok(()) => {
                self.locked = true;
                Ok(())
            }
            Err(nix::Error::EAGAIN | nix::Error::EACCES) => {
                Err(VirtioError::Locked { device, path })
            }
            Err(error) => Err(VirtioError::NoLock { device, path, source: error.into() }),
        }
    }

    pub(super) fn unlock(&mut self) {
        if self.locked && self.set_lock(libc::F_UNLCK).is_ok() {
            self.locked = false;
        }
    }

    fn set_lock(&self, kind: libc::c_int) -> nix::Result<()> {
        let whole = libc::flock {
            l_type: kind as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        fcntl(&self.file, FcntlArg::F_OFD_SETLK(&whole)).map(drop)
    }

    /// Fills `into` from `offset` on; the range is inside the image.
    pub(super) fn read(&mut self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        if !self.direct {
            return self.file.read_exact_at(into, offset);
        }
        let (start, end) = around(offset, into.len());
        let buffer = self.bounce.of((end - start) as usize);
        self.file.read_exact_at(buffer, start)?;
        let from = (offset - start) as usize;
        into.copy_from_slice(&buffer[from..from + into.len()]);
        Ok(())
    }

    /// Writes `bytes` from `offset` on; the range is inside the image.
    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if !self.direct {
            return self.file.write_all_at(bytes, offset);
        }
        let (start, end) = around(offset, bytes.len());
        let len = (end - start) as usize;
        let buffer = self.bounce.of(len);
        let block = DIRECT_BLOCK as usize;
        // Sectors that share a block with what is written keep what they hold. Nobody else writes
        // the image (the lock), and a disk has one worker.
        if start != offset {
            self.file.read_exact_at(&mut buffer[..block], start)?;
        }
        if end != offset + bytes.len() as u64 {
            self.file.read_exact_at(&mut buffer[len - block..], end - DIRECT_BLOCK)?;
        }
        let from = (offset - start) as usize;
        buffer[from..from + bytes.len()].copy_from_slice(bytes);
        self.file.write_all_at(buffer, start)
    }

    /// Puts what was written on stable storage.
    pub(super) fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Gives back the space of a range; what it holds then is not defined. A file system that
    /// cannot do it keeps it.
    pub(super) fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        match self.allocate(FallocateFlags::FALLOC_FL_PUNCH_HOLE, offset, len) {
            Ok(()) | Err(nix::Error::EOPNOTSUPP) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes a range zeros, giving back its space if `unmap`.
    pub(super) fn write_zeroes(&mut self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        let flag = match unmap {
            true => FallocateFlags::FALLOC_FL_PUNCH_HOLE,
            false => FallocateFlags::FALLOC_FL_ZERO_RANGE,
        };
        match self.allocate(flag, offset, len) {
            Ok(()) => Ok(()),
            Err(nix::Error::EOPNOTSUPP) => {
                let mut at = 0;
                while at < len {
                    let piece = (len - at).min(ZEROS.len() as u64);
                    self.write(offset + at, &ZEROS[..piece as usize])?;
                    at += piece;
                }
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn allocate(&self, flag: FallocateFlags, offset: u64, len: u64) -> nix::Result<()> {
        let flags = flag | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&self.file, flags, offset as i64, len as i64)
    }
}

/// The whole blocks around a range: start and end.
const fn around(offset: u64, len: usize) -> (u64, u64) {
    let start = offset / DIRECT_BLOCK * DIRECT_BLOCK;
    (start, (offset + len as u64).next_multiple_of(DIRECT_BLOCK))
}

/// A buffer that begins at an aligned address and is kept for the next time.
#[derive(Default)]
struct Bounce(Vec<u8>);

impl Bounce {
    fn of(&mut self, len: usize) -> &mut [u8] {
        let block = DIRECT_BLOCK as usize;
        if self.0.len() < len + block {
            self.0.resize(len + block, 0);
        }
        let skip = self.0.as_ptr().align_offset(block);
        &mut self.0[skip..skip + len]
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        // Also while a copy of the descriptor lives on in a child.
        self.unlock();
    }
}
