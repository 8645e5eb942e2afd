//! A file that the parent opened for the stream, as in `mig-send web >web.mig`.
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::error::OpenError;

/// A regular file that was empty and has a name. What is in it when this is dropped is removed,
/// unless [`Self::finish`] was called: half a guest is nothing to keep.
#[derive(Debug)]
pub(crate) struct PassedFile {
    file: File,
    /// Where its name is, if that can be found.
    directory: Option<File>,
    /// Whether it may be whole.
    finished: bool,
}

impl PassedFile {
    /// Takes a copy of `fd` if a guest can be saved there: it is a regular file with a name, so
    /// that it is there when this program has ended.
    pub fn of(fd: &OwnedFd, what: &str) -> Result<Option<Self>, OpenError> {
        let system = |error| OpenError::system(format!("use {what}"), error);
        let mut file = File::from(fd.try_clone().map_err(system)?);
        let status = file.metadata().map_err(system)?;
        if !status.is_file() || status.nlink() == 0 {
            return Ok(None);
        }
        // In the middle of a file nobody finds a guest, and behind its end nothing may follow.
        if status.len() > 0 || io::Seek::stream_position(&mut file).map_err(system)? > 0 {
            return Err(OpenError::Unsuitable {
                what: what.to_owned(),
                reason: "it is a file that holds something already, and a saved guest has a file \
                         of its own: write to it with > and not with >>, or pipe into cat >>",
            });
        }
        let directory = directory_of(&file);
        Ok(Some(Self { file, directory, finished: false }))
    }

    /// Makes what was written durable; the end of the stream is not among it.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Makes the whole file and its name durable.
    pub fn finish(&mut self) -> io::Result<()> {
        // From here on somebody may read the whole guest, whatever becomes of the rest.
        self.finished = true;
        self.file.sync_all()?;
        self.directory.as_ref().map_or(Ok(()), File::sync_all)
    }

    /// Removes what was written, the end of which nobody has seen. False if it may be whole.
    pub fn abandon(self) -> io::Result<bool> {
        if self.finished {
            return Ok(false);
        }
        self.file.set_len(0)?;
        self.file.sync_all()?;
        Ok(true)
    }
}

impl Drop for PassedFile {
    fn drop(&mut self) {
        if !self.finished {
            // Nobody is left to tell, and what stays behind has no end.
            let _ = self.file.set_len(0);
        }
    }
}

/// The directory with the name of `file`. None where /proc is missing, or the file has moved.
fn directory_of(file: &File) -> Option<File> {
    let path = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()?;
    let (ours, named) = (file.metadata().ok()?, fs::symlink_metadata(&path).ok()?);
    let same = (ours.dev(), ours.ino()) == (named.dev(), named.ino());
    same.then(|| path.parent().and_then(|parent: &Path| File::open(parent).ok())).flatten()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn passed(path: &Path, options: &mut fs::OpenOptions) -> Result<Option<PassedFile>, OpenError> {
        PassedFile::of(&options.open(path).unwrap().into(), "stdout")
    }

    #[test]
    fn a_file_that_is_given_up_is_empty_and_one_that_is_whole_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("web.mig");
        for finish in [false, true] {
            let mut file =
                passed(&path, File::options().write(true).create(true)).unwrap().unwrap();
            assert!(file.directory.is_some());
            (&file.file).write_all(b"guest").unwrap();
            file.sync().unwrap();
            if finish {
                file.finish().unwrap();
                assert!(!file.abandon().unwrap(), "somebody may have read it");
            } else {
                assert!(file.abandon().unwrap());
            }
            assert_eq!(fs::read(&path).unwrap(), if finish { &b"guest"[..] } else { b"" });
        }
        let other = dir.path().join("other");
        let file = passed(&other, File::options().write(true).create(true)).unwrap().unwrap();
        (&file.file).write_all(b"half").unwrap();
        drop(file);
        assert_eq!(fs::read(&other).unwrap(), b"");
    }

    #[test]
    fn a_file_that_holds_something_is_no_place_and_one_without_a_name_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        fs::write(&path, "something").unwrap();
        for options in [File::options().append(true), File::options().write(true)] {
            let refused = passed(&path, options).unwrap_err().to_string();
            assert!(refused.contains("not with >>"), "{refused}");
        }
        assert_eq!(fs::read(&path).unwrap(), b"something");
        let nameless: OwnedFd = tempfile::tempfile().unwrap().into();
        assert!(PassedFile::of(&nameless, "stdout").unwrap().is_none());
        let (_reader, pipe) = io::pipe().unwrap();
        assert!(PassedFile::of(&pipe.into(), "stdout").unwrap().is_none());
    }
}
