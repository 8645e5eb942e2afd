//! A raw disk image: reading, writing, and the lock that says who may.
//!
//! The lock is an open file description lock (fcntl(2), F_OFD_SETLK) on the whole file: for
//! writing, or shared where the disk is read-only. It is given back by the kernel when the process
//! dies. On NFS (version 4) and CIFS the server keeps it, so that it holds between hosts, and
//! giving it back writes out what this host has cached; 9p and most FUSE file systems keep it on
//! one host only, and so does every host for its device node of a shared LUN.
//!
//! A LUN that several hosts see has a page cache on each, which no lock keeps together: a host that
//! looked at it before (udev does) would read what was there then. So a block device is always
//! accessed directly (O_DIRECT), past the cache: its reads come from the device, and its writes are
//! there when they are complete. For a file on a network file system the cache is dropped when the
//! lock is taken.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use migpipe_units::Bytes;
use nix::fcntl::{FallocateFlags, FcntlArg, OFlag, fallocate, fcntl};

use super::disk_file::DiskFile;
use crate::virtio::error::VirtioError;

/// What direct I/O is aligned to, in memory and in the file: no device in use asks for more.
pub(super) const DIRECT_BLOCK: u64 = 4096;

/// A piece of zeros, where the file system cannot make them by itself.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// See the module.
pub(super) struct Image {
    device: String,
    path: PathBuf,
    disk: Arc<DiskFile>,
    len: u64,
    read_only: bool,
    direct: bool,
    locked: bool,
    bounce: Bounce,
}

impl Image {
    /// Opens the image at `path` without its lock. A block device is `direct` whether it is asked
    /// for or not.
    pub(super) fn open(
        device: &str,
        path: PathBuf,
        read_only: bool,
        direct: bool,
        sector: u64,
    ) -> Result<Self, VirtioError> {
        let device = device.to_owned();
        let (file, is_device) = match open(&path, read_only, direct) {
            Ok(opened) => opened,
            Err(source) => return Err(VirtioError::OpenImage { device, path, source }),
        };
        // A block device has no length of its own in its metadata.
        let len = match io::Seek::seek(&mut &file, io::SeekFrom::End(0)) {
            Ok(len) => len,
            Err(source) => return Err(VirtioError::OpenImage { device, path, source }),
        };
        // The last block of a device may be cut short, at one of its own.
        let block = if direct && !is_device { DIRECT_BLOCK } else { sector };
        if len == 0 || !len.is_multiple_of(block) {
            return Err(VirtioError::ImageLength { device, path, bytes: Bytes(len), block });
        }
        Ok(Self {
            disk: Arc::new(DiskFile::new(device.clone(), path.clone(), file)),
            device,
            path,
            len,
            read_only,
            direct: direct || is_device,
            locked: false,
            bounce: Bounce::default(),
        })
    }

    /// Its file, for those who do not serve the guest.
    pub(super) const fn disk(&self) -> &Arc<DiskFile> {
        &self.disk
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

    /// Takes the lock, without waiting for it. What is read from then on is what is there now.
    pub(super) fn lock(&mut self) -> Result<(), VirtioError> {
        if self.locked {
            return Ok(());
        }
        let kind = if self.read_only { libc::F_RDLCK } else { libc::F_WRLCK };
        let (device, path) = (self.device.clone(), self.path.clone());
        match self.set_lock(kind) {
            Ok(()) => {
                self.locked = true;
                // Not before: up to here another host may write.
                self.disk.forget_cached();
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
        fcntl(self.disk.file(), FcntlArg::F_OFD_SETLK(&whole)).map(drop)
    }

    /// Fills `into` from `offset` on; the range is inside the image.
    pub(super) fn read(&mut self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        if !self.direct {
            return self.disk.file().read_exact_at(into, offset);
        }
        let (start, end) = self.around(offset, into.len());
        let buffer = self.bounce.of((end - start) as usize);
        self.disk.file().read_exact_at(buffer, start)?;
        let from = (offset - start) as usize;
        into.copy_from_slice(&buffer[from..from + into.len()]);
        Ok(())
    }

    /// Writes `bytes` from `offset` on; the range is inside the image.
    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if !self.direct {
            return self.disk.file().write_all_at(bytes, offset);
        }
        let (start, end) = self.around(offset, bytes.len());
        let len = (end - start) as usize;
        let last = (end - start - 1) / DIRECT_BLOCK * DIRECT_BLOCK;
        let buffer = self.bounce.of(len);
        // Sectors that share a block with what is written keep what they hold. Nobody else writes
        // the image (the lock), and a disk has one worker.
        if start != offset {
            let first = len.min(DIRECT_BLOCK as usize);
            self.disk.file().read_exact_at(&mut buffer[..first], start)?;
        }
        if end != offset + bytes.len() as u64 {
            self.disk.file().read_exact_at(&mut buffer[last as usize..], start + last)?;
        }
        let from = (offset - start) as usize;
        buffer[from..from + bytes.len()].copy_from_slice(bytes);
        self.disk.file().write_all_at(buffer, start)
    }

    /// Puts what was written on stable storage.
    pub(super) fn flush(&self) -> io::Result<()> {
        self.disk.flush_for_guest()
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
        fallocate(self.disk.file(), flags, offset as i64, len as i64)
    }

    /// The whole blocks around a range: start and end. The last block of a device may be a part of
    /// one.
    fn around(&self, offset: u64, len: usize) -> (u64, u64) {
        let start = offset / DIRECT_BLOCK * DIRECT_BLOCK;
        let end = (offset + len as u64).next_multiple_of(DIRECT_BLOCK);
        (start, end.min(self.len))
    }
}

/// Opens an image, and says whether it is a block device. Nothing else but a file is one: a FIFO
/// would be waited for.
fn open(path: &Path, read_only: bool, direct: bool) -> io::Result<(File, bool)> {
    let mut options = OpenOptions::new();
    options.read(true).write(!read_only).custom_flags(libc::O_NONBLOCK);
    let file = options.open(path)?;
    let there = file.metadata()?.file_type();
    let is_device = there.is_block_device();
    if !is_device && !there.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is neither a file nor a block device",
        ));
    }
    let flags = if direct || is_device { OFlag::O_DIRECT } else { OFlag::empty() };
    fcntl(&file, FcntlArg::F_SETFL(flags))?;
    Ok((file, is_device))
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
