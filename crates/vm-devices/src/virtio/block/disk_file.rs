//! The open file of a disk image, as those see it who do not serve the guest: they put it on
//! stable storage and forget what this host has cached of it, without the device's lock, which is
//! held as long as the storage takes for a request.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::sys::statfs::{self, FsType, fstatfs};

use crate::virtio::error::VirtioError;

/// File systems that one host alone has, so that there is one cache of what is in them. What is
/// not known is taken for shared: to forget a cache costs time and nothing else.
const LOCAL: &[FsType] = &[
    statfs::EXT4_SUPER_MAGIC,
    statfs::XFS_SUPER_MAGIC,
    statfs::BTRFS_SUPER_MAGIC,
    statfs::TMPFS_MAGIC,
    statfs::OVERLAYFS_SUPER_MAGIC,
    F2FS,
    ZFS,
    BCACHEFS,
];

/// Of their own headers, not among those of statfs(2).
const F2FS: FsType = FsType(0xf2f5_2010);
const ZFS: FsType = FsType(0x2fc1_2fc1);
const BCACHEFS: FsType = FsType(0xca45_1a4e);

/// See the module.
#[derive(Debug)]
pub struct DiskFile {
    device: String,
    path: PathBuf,
    file: File,
    /// Another host may have changed it while this one did not run its guest.
    is_shared: bool,
    /// A flush failed, and the guest was not told. The kernel tells of lost writes once.
    unreported: AtomicBool,
}

impl DiskFile {
    pub(super) fn new(device: String, path: PathBuf, file: File) -> Self {
        let is_local = fstatfs(&file).is_ok_and(|there| LOCAL.contains(&there.filesystem_type()));
        Self { device, path, file, is_shared: !is_local, unreported: AtomicBool::new(false) }
    }

    pub(super) const fn file(&self) -> &File {
        &self.file
    }

    /// Puts what was written on stable storage, on behalf of a migration. If that fails the guest
    /// hears of it at its own next flush.
    ///
    /// # Errors
    /// [`VirtioError::Flush`] names the device and its image.
    pub fn flush(&self) -> Result<(), VirtioError> {
        self.file.sync_data().map_err(|source| {
            self.unreported.store(true, Ordering::SeqCst);
            VirtioError::Flush { device: self.device.clone(), path: self.path.clone(), source }
        })
    }

    /// The same on behalf of the guest.
    pub(super) fn flush_for_guest(&self) -> io::Result<()> {
        let flushed = self.file.sync_data();
        match self.unreported.swap(false, Ordering::SeqCst) {
            true => Err(flushed.err().unwrap_or_else(|| io::ErrorKind::Other.into())),
            false => flushed,
        }
    }

    /// As if a flush for a migration had found that a write was lost.
    #[cfg(test)]
    pub(super) fn lose_a_write(&self) {
        self.unreported.store(true, Ordering::SeqCst);
    }

    /// Forgets what this host has cached of an image that another host may have changed. To be
    /// called with its lock held. Whatever was written here is on stable storage before the guest
    /// leaves ([`Self::flush`]), so that nothing is lost by it.
    pub(super) fn forget_cached(&self) {
        if !self.is_shared {
            return;
        }
        let advice = PosixFadviseAdvice::POSIX_FADV_DONTNEED;
        if let Err(error) = posix_fadvise(&self.file, 0, 0, advice) {
            let path = self.path.display();
            tracing::warn!("{}: what is cached of {path} cannot be dropped: {error}", self.device);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::OwnedFd;
    use std::path::Path;
    use std::process::Command;

    use tempfile::NamedTempFile;

    use super::*;

    fn disk(path: &Path) -> DiskFile {
        let file = File::options().read(true).write(true).open(path).unwrap();
        DiskFile::new("block disk0".to_owned(), path.to_owned(), file)
    }

    /// How much of a file is in the page cache; nothing where nobody can say.
    fn cached(path: &Path) -> Option<u64> {
        let mut look = Command::new("fincore");
        look.args(["--bytes", "--noheadings", "--output", "RES"]).arg(path);
        let done = look.output().ok().filter(|done| done.status.success())?;
        String::from_utf8(done.stdout).unwrap().trim().parse().ok()
    }

    #[test]
    fn what_another_host_may_have_changed_is_forgotten_and_the_rest_is_kept() {
        // Not in /tmp: what is in memory alone cannot be forgotten.
        let file = NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        fs::write(file.path(), [1; 64 << 10]).unwrap();
        let mut disk = disk(file.path());
        disk.flush().unwrap();
        let Some(before) = cached(file.path()) else {
            println!("SKIPPED what is cached of an image: there is no fincore");
            return;
        };
        assert_eq!(before, 64 << 10);
        disk.is_shared = false;
        disk.forget_cached();
        assert_eq!(cached(file.path()), Some(64 << 10), "of a file system of one host");
        disk.is_shared = true;
        disk.forget_cached();
        assert_eq!(cached(file.path()), Some(0));
    }

    #[test]
    fn a_file_in_memory_is_seen_by_this_host_alone() {
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        assert!(!DiskFile::new(String::new(), PathBuf::new(), file).is_shared);
        let proc = File::open("/proc/version").unwrap();
        assert!(DiskFile::new(String::new(), PathBuf::new(), proc).is_shared, "what is not known");
    }

    #[test]
    fn a_flush_that_fails_for_a_migration_is_told_to_the_guest_once() {
        let (_reader, writer) = io::pipe().unwrap();
        // A pipe has no storage, so that its flush fails.
        let mut disk = disk(Path::new("/dev/null"));
        let null = std::mem::replace(&mut disk.file, File::from(OwnedFd::from(writer)));
        let error = disk.flush().unwrap_err();
        for word in ["block disk0", "/dev/null", "flush"] {
            assert!(error.to_string().contains(word), "{error}");
        }
        drop(null);
        // Its storage is there again.
        disk.file = tempfile::tempfile().unwrap();
        assert!(disk.flush().is_ok(), "for the migration this is past");
        assert!(disk.flush_for_guest().is_err(), "the guest has not heard of it");
        assert!(disk.flush_for_guest().is_ok());
    }
}
