//! A file that is there whole or not at all.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::error::OpenError;

/// A file under construction: `PATH.part`, locked (flock) for as long as somebody writes it, so
/// that what a killed program left behind can be told from what a running one writes. Removed on
/// drop unless [`Self::finish`] gave it its name.
#[derive(Debug)]
pub(crate) struct FileSink {
    file: File,
    part: PathBuf,
    path: PathBuf,
    finished: bool,
}

impl FileSink {
    /// Begins a file that will be called `path`, readable by its owner only: it holds a guest's
    /// memory.
    pub fn create(path: &Path) -> Result<Self, OpenError> {
        let path = target(path)?;
        let mut part = OsString::from(&path);
        part.push(".part");
        let part = PathBuf::from(part);
        let file = create_part(&part)?;
        Ok(Self { file, part, path, finished: false })
    }

    /// A descriptor to write through.
    pub fn writable(&self) -> io::Result<OwnedFd> {
        self.file.try_clone().map(OwnedFd::from)
    }

    /// Makes what was written durable; the end of the stream is not among it.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Makes the content durable, gives the file its name in place of any older one, and makes
    /// the name durable.
    pub fn finish(&mut self) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.part, &self.path)?;
        self.finished = true;
        File::open(directory_of(&self.path))?.sync_all()
    }

    /// Removes a file that never got its name: after this it is not there, and will not be there
    /// after a power loss either. False if it has its name already: somebody may have opened it.
    pub fn abandon(self) -> io::Result<bool> {
        if self.finished {
            return Ok(false);
        }
        match fs::remove_file(&self.part) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        File::open(directory_of(&self.part))?.sync_all()?;
        Ok(true)
    }
}

impl Drop for FileSink {
    fn drop(&mut self) {
        if !self.finished {
            // Nobody is left to tell; what stays behind is told from a live file by its lock.
            let _ = fs::remove_file(&self.part);
        }
    }
}

/// The file that `path` means: behind a symbolic link, so that the link survives the rename; and
/// never something that a rename would destroy.
fn target(path: &Path) -> Result<PathBuf, OpenError> {
    let refuse = |reason| OpenError::InTheWay { path: path.display().to_string(), reason };
    if path.file_name().is_none() {
        return Err(refuse("this names no file"));
    }
    match fs::metadata(path) {
        Ok(there) if there.is_dir() => Err(refuse("this is a directory; name a file in it")),
        Ok(there) if !there.is_file() => Err(refuse(
            "this is no regular file and would be replaced by one; write to it through stdout, \
             as in mig-send NAME >PATH",
        )),
        Ok(_) => fs::canonicalize(path).map_err(|error| {
            OpenError::system(format!("find the file behind {}", path.display()), error)
        }),
        Err(_) => Ok(path.to_owned()),
    }
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Creates and locks `part`, taking the place of one that nobody writes any more.
fn create_part(part: &Path) -> Result<File, OpenError> {
    let failed = |error| OpenError::system(format!("create {}", part.display()), error);
    let in_use = || OpenError::InTheWay {
        path: part.display().to_string(),
        reason: "another program is writing this file now; wait for it, or choose another name",
    };
    // Each further turn means that another program has just removed or replaced the file.
    for _ in 0..8 {
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(part) {
            Ok(file) => match lock_if_named(&file, part).map_err(failed)? {
                Lock::Held => return Ok(file),
                Lock::Busy | Lock::Replaced => continue,
            },
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(failed(error)),
        }
        let stale = match OpenOptions::new().write(true).open(part) {
            Ok(stale) => stale,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(failed(error)),
        };
        match lock_if_named(&stale, part).map_err(failed)? {
            Lock::Busy => return Err(in_use()),
            Lock::Replaced => continue,
            Lock::Held => fs::remove_file(part).map_err(failed)?,
        }
    }
    Err(in_use())
}

enum Lock {
    Held,
    Busy,
    Replaced,
}

/// Locks `file`, and makes sure that `path` still means it: between the open and the lock another
/// program may have taken it for stale.
fn lock_if_named(file: &File, path: &Path) -> io::Result<Lock> {
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(Lock::Busy),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    let ours = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(named) if (named.dev(), named.ino()) == (ours.dev(), ours.ino()) => Ok(Lock::Held),
        Ok(_) => Ok(Lock::Replaced),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Lock::Replaced),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn write(path: &Path, text: &str) {
        let mut sink = FileSink::create(path).unwrap();
        (&sink.file).write_all(text.as_bytes()).unwrap();
        sink.finish().unwrap();
    }

    #[test]
    fn a_file_replaces_an_older_one_only_when_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("web.mig");
        write(&path, "old");
        let mut sink = FileSink::create(&path).unwrap();
        (&sink.file).write_all(b"new").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        sink.finish().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_given_up_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        drop(FileSink::create(&dir.path().join("web.mig")).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_can_be_abandoned_until_it_has_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("web.mig");
        let mut sink = FileSink::create(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(sink.finish().is_err());
        assert!(sink.abandon().unwrap());
        assert!(path.is_dir());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);

        let whole = dir.path().join("b.mig");
        let mut sink = FileSink::create(&whole).unwrap();
        sink.finish().unwrap();
        assert!(!sink.abandon().unwrap());
        assert!(whole.exists(), "somebody may have opened it");
    }

    #[test]
    fn what_a_killed_program_left_is_replaced_and_what_a_live_one_writes_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("web.mig");
        fs::write(dir.path().join("web.mig.part"), "left behind").unwrap();
        let mut live = FileSink::create(&path).unwrap();
        let error = FileSink::create(&path).unwrap_err().to_string();
        assert!(error.contains("web.mig.part"), "{error}");
        assert!(error.contains("another program is writing"), "{error}");
        (&live.file).write_all(b"whole").unwrap();
        live.finish().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "whole");
    }

    #[test]
    fn a_symbolic_link_is_followed_and_a_fifo_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        fs::write(&real, "old").unwrap();
        symlink(&real, &link).unwrap();
        write(&link, "new");
        assert_eq!(fs::read_to_string(&real).unwrap(), "new");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());

        for path in [dir.path(), Path::new("/dev/null"), Path::new("..")] {
            let refused = FileSink::create(path);
            assert!(matches!(refused, Err(OpenError::InTheWay { .. })), "{path:?}");
        }
    }
}
