//! The files of Unix sockets. A program that listens at a path replaces what a dead one left there,
//! and nothing else: connect(2) is refused by a regular file as it is by a dead socket, so the file
//! itself is looked at.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Why nobody can listen at a path.
#[derive(Debug, Error)]
pub enum Taken {
    /// Somebody listens there.
    #[error("another program listens at {0}")]
    InUse(PathBuf),
    /// It is no socket.
    #[error("{0} is no socket, and is not replaced")]
    NoSocket(PathBuf),
    /// It is somebody else's.
    #[error("{path} is a socket of user {owner}, and is not replaced")]
    NotOurs {
        /// The socket.
        path: PathBuf,
        /// The user id of its owner.
        owner: u32,
    },
    /// It cannot be looked at, or not be removed.
    #[error("cannot {what} {path}")]
    Io {
        /// What failed.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Taken {
    /// As an error of the system, for those who report one.
    pub fn into_io(self) -> io::Error {
        let kind = match &self {
            Self::InUse(_) => io::ErrorKind::AddrInUse,
            Self::NoSocket(_) | Self::NotOurs { .. } => io::ErrorKind::AlreadyExists,
            Self::Io { source, .. } => source.kind(),
        };
        io::Error::new(kind, self)
    }
}

/// Removes a socket of this user at `path` that nobody listens on any more; leaves everything else
/// as it is.
///
/// # Errors
/// [`Taken`] names what is in the way.
pub fn make_room(path: &Path) -> Result<(), Taken> {
    let failed = |what| move |source| Taken::Io { what, path: path.to_owned(), source };
    let there = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        there => there.map_err(failed("look at"))?,
    };
    if !there.file_type().is_socket() {
        return Err(Taken::NoSocket(path.to_owned()));
    }
    // A live listener of ours sees this as a peer that leaves without a byte.
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
        // One that is full, or not for us, is alive all the same.
        _ => return Err(Taken::InUse(path.to_owned())),
    }
    if there.uid() != nix::unistd::geteuid().as_raw() {
        return Err(Taken::NotOurs { path: path.to_owned(), owner: there.uid() });
    }
    fs::remove_file(path).map_err(failed("remove"))
}

/// The file of a socket of ours: removed on drop, unless something else has taken its name.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    identity: Option<(u64, u64)>,
}

impl SocketFile {
    /// The one that was just made at `path`.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), identity: identity(path) }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.identity.is_some() && identity(&self.path) == self.identity {
            // What stays behind is found dead by the next listener.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let file = fs::symlink_metadata(path).ok()?;
    Some((file.dev(), file.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    fn dir() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn a_dead_socket_makes_room_and_a_living_one_does_not() {
        let dir = dir();
        let path = dir.path().join("socket");
        make_room(&path).unwrap();
        let listener = UnixListener::bind(&path).unwrap();
        assert!(matches!(make_room(&path), Err(Taken::InUse(_))));
        drop(listener);
        make_room(&path).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn nothing_but_a_socket_is_ever_removed() {
        let dir = dir();
        let file = dir.path().join("file");
        fs::write(&file, "precious").unwrap();
        let dead = dir.path().join("dead");
        drop(UnixListener::bind(&dead).unwrap());
        for target in ["file", "dead", "nothing"] {
            let link = dir.path().join(format!("to-{target}"));
            symlink(dir.path().join(target), &link).unwrap();
            let error = make_room(&link).unwrap_err();
            assert!(matches!(error, Taken::NoSocket(_)), "{error}");
            assert!(link.symlink_metadata().is_ok() && dead.exists());
        }
        let error = make_room(&file).unwrap_err().to_string();
        assert!(error.contains("file is no socket"), "{error}");
        assert!(make_room(dir.path()).is_err());
        assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
    }

    #[test]
    fn a_dead_socket_of_another_user_stays() {
        let dir = dir();
        let path = dir.path().join("socket");
        drop(UnixListener::bind(&path).unwrap());
        if std::os::unix::fs::chown(&path, Some(65534), None).is_err() {
            println!("SKIPPED: only root can give files away");
            return;
        }
        assert!(matches!(make_room(&path), Err(Taken::NotOurs { owner: 65534, .. })));
        assert!(path.exists());
    }

    #[test]
    fn a_socket_goes_with_its_listener_unless_its_name_is_anothers() {
        let dir = dir();
        let path = dir.path().join("socket");
        let _listener = UnixListener::bind(&path).unwrap();
        let file = SocketFile::new(&path);
        fs::remove_file(&path).unwrap();
        let _another = UnixListener::bind(&path).unwrap();
        drop(file);
        assert!(path.exists());
        drop(SocketFile::new(&path));
        assert!(!path.exists());
    }
}
