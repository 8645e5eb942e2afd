//! Where the sockets of guests, the records of migrations and the files of guests are on a host.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod durable;

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use migpipe_units::limits::MAX_GUEST_NAME;
use thiserror::Error;

/// Why a name does not lead to a place.
#[derive(Debug, Error)]
pub enum PathError {
    /// The name cannot be a file name.
    #[error(
        "'{0}' is no name for a guest: use letters, digits, '-', '_' and '.', at most {MAX_GUEST_NAME}"
    )]
    BadName(String),
    /// A directory cannot be made.
    #[error("cannot make the directory {path}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A directory of sockets cannot be read: nobody knows which guests are there.
    #[error("cannot look for guests in {path}")]
    Unreadable {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Checks that `name` can name a guest.
///
/// # Errors
/// [`PathError::BadName`].
pub fn check_name(name: &str) -> Result<(), PathError> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty()
        || name.len() > MAX_GUEST_NAME
        || name.starts_with(['.', '-'])
        || !name.chars().all(fits)
    {
        return Err(PathError::BadName(name.chars().take(80).collect()));
    }
    Ok(())
}

/// The name of a guest on a command line.
///
/// # Errors
/// [`PathError::BadName`].
pub fn name(text: &str) -> Result<String, PathError> {
    check_name(text)?;
    Ok(text.to_owned())
}

/// A guest on a command line: its name, or the path of its socket (anything with a `/`).
///
/// # Errors
/// [`PathError::BadName`].
pub fn guest(text: &str) -> Result<String, PathError> {
    if text.contains('/') { Ok(text.to_owned()) } else { name(text) }
}

/// The names of this user's guests, as far as they can be seen: for completion.
pub fn names() -> Vec<String> {
    let sockets = all_sockets().unwrap_or_default();
    let names = sockets.iter().filter_map(|socket| socket.file_stem()?.to_str());
    names.map(str::to_owned).collect()
}

/// Where the system's guests are: those of root, and of units.
const SYSTEM_DIR: &str = "/run/vmrun";

/// Where logins have a runtime directory each, which goes away with the last of them.
const LOGINS: &str = "/run/user";

/// The directory of the sockets: `$XDG_RUNTIME_DIR/vmrun`, or `/run/vmrun`.
///
/// Root's guests are the system's, and in `/run/vmrun` also where a login has set
/// `$XDG_RUNTIME_DIR`: units and every login of root find each other's, and a socket outlives the
/// login that made it. Any other directory was chosen on purpose and counts.
fn runtime_dir() -> PathBuf {
    let set = env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    runtime_dir_of(nix::unistd::geteuid().is_root(), set)
}

fn runtime_dir_of(root: bool, set: Option<PathBuf>) -> PathBuf {
    match set {
        Some(dir) if !(root && dir.starts_with(LOGINS)) => dir.join("vmrun"),
        _ => PathBuf::from(SYSTEM_DIR),
    }
}

/// The directories of all guests on this host, whoever's they are, as far as this user can see:
/// its own first.
fn runtime_dirs() -> Vec<PathBuf> {
    let logins = fs::read_dir(LOGINS).into_iter().flatten().flatten();
    let others = logins.map(|login| login.path().join("vmrun"));
    let mut dirs = vec![runtime_dir()];
    for dir in [PathBuf::from(SYSTEM_DIR)].into_iter().chain(others) {
        if !dirs.contains(&dir) {
            dirs.push(dir);
        }
    }
    dirs
}

/// The directory of what outlives the processes: `$XDG_STATE_HOME/vmrun`, `/var/lib/vmrun` for
/// root, `~/.local/state/vmrun` for anybody else.
pub fn state_dir() -> PathBuf {
    let set = |name| env::var_os(name).filter(|dir| !dir.is_empty()).map(PathBuf::from);
    if let Some(dir) = set("XDG_STATE_HOME") {
        return dir.join("vmrun");
    }
    match set("HOME") {
        Some(home) if !nix::unistd::geteuid().is_root() => home.join(".local/state/vmrun"),
        _ => PathBuf::from("/var/lib/vmrun"),
    }
}

/// The directory below it where a guest that arrives may have files.
pub fn guests_dir() -> PathBuf {
    state_dir().join("guests")
}

/// Makes `dir` and what is missing above it, for its user alone. What it makes is on the disk when
/// it returns: what is synced in a directory whose own name was not may be lost with it.
///
/// # Errors
/// [`PathError::Directory`].
pub fn ensure_dir(dir: &Path) -> Result<(), PathError> {
    durable::make_dir(dir).map_err(|source| PathError::Directory { path: dir.to_owned(), source })
}

/// The socket of a guest that is given by its name or by its socket's path (anything with a `/`).
///
/// # Errors
/// [`PathError::BadName`].
pub fn socket_of(guest: &str) -> Result<PathBuf, PathError> {
    if guest.contains('/') {
        return Ok(PathBuf::from(guest));
    }
    let guest = name(guest)?;
    Ok(runtime_dir().join(format!("{guest}.sock")))
}

/// What a service manager is told by of a guest that arrives: three files beside the guest's socket,
/// which the unit `vmrun@NAME.service` names as well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArrivalFiles {
    /// The environment file with which the unit starts a vmrun that waits for the guest.
    pub environment: PathBuf,
    /// The socket where that vmrun gets its control connection from the mig-recv that brings the
    /// guest.
    pub socket: PathBuf,
    /// The definition that came with the guest, until the unit keeps it.
    pub definition: PathBuf,
}

impl ArrivalFiles {
    /// Those of a guest whose control socket is `socket`.
    pub fn beside(socket: &Path) -> Self {
        let with = |end| socket.with_extension(end);
        Self {
            environment: with("arrival.env"),
            socket: with("arrival"),
            definition: with("definition"),
        }
    }
}

/// The directory of the definitions that came with guests which arrived as units.
pub fn definitions_dir() -> PathBuf {
    state_dir().join("definitions")
}

/// The sockets of all guests of this user, by name.
///
/// # Errors
/// [`PathError::Unreadable`]: that is not the same as that there are none.
pub fn all_sockets() -> Result<Vec<PathBuf>, PathError> {
    sockets_in(&runtime_dir())
}

/// The sockets of all guests on this host, whoever's they are, as far as this user can see: those
/// of its own first.
///
/// # Errors
/// [`PathError::Unreadable`] for its own directory; another's may be closed to it.
pub fn every_socket() -> Result<Vec<PathBuf>, PathError> {
    let mut sockets = all_sockets()?;
    for dir in &runtime_dirs()[1..] {
        sockets.extend(sockets_in(dir).unwrap_or_default());
    }
    Ok(sockets)
}

fn sockets_in(dir: &Path) -> Result<Vec<PathBuf>, PathError> {
    // In a directory that is not there no guest was started yet.
    let entries = durable::list(dir)
        .map_err(|source| PathError::Unreadable { path: dir.to_owned(), source })?;
    let paths = entries.iter().map(fs::DirEntry::path);
    let mut sockets: Vec<_> =
        paths.filter(|path| path.extension().is_some_and(|end| end == "sock")).collect();
    sockets.sort();
    Ok(sockets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_lead_out_of_the_directory() {
        for name in ["", ".", "..", ".hidden", "--incoming", "a b", "a\0b", "ü", &"x".repeat(49)] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
        assert!(check_name("web-1.example_2").is_ok());
    }

    #[test]
    fn a_path_names_its_own_socket() {
        assert_eq!(socket_of("./web.sock").unwrap(), PathBuf::from("./web.sock"));
        assert!(socket_of("web").unwrap().ends_with("vmrun/web.sock"));
    }

    #[test]
    fn what_belongs_to_an_arrival_is_no_guest() {
        let dir = tempfile::tempdir().unwrap();
        let files = ArrivalFiles::beside(&dir.path().join("web.example.sock"));
        assert_eq!(files.environment, dir.path().join("web.example.arrival.env"));
        for file in [&files.environment, &files.socket, &files.definition] {
            fs::write(file, "").unwrap();
        }
        assert!(sockets_in(dir.path()).unwrap().is_empty());
    }

    #[test]
    fn roots_guests_are_the_systems_however_root_came_in() {
        let of = |root, set: Option<&str>| runtime_dir_of(root, set.map(PathBuf::from));
        for login in [None, Some("/run/user/0"), Some("/run/user/1000")] {
            assert_eq!(of(true, login), Path::new("/run/vmrun"), "{login:?}");
        }
        assert_eq!(of(true, Some("/run/private")), Path::new("/run/private/vmrun"));
        assert_eq!(of(false, Some("/run/user/1000")), Path::new("/run/user/1000/vmrun"));
        assert_eq!(of(false, None), Path::new("/run/vmrun"));
    }

    #[test]
    fn a_directory_that_cannot_be_read_is_not_an_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        assert!(sockets_in(&dir.path().join("missing")).unwrap().is_empty());
        for name in ["web.sock", "db.sock", "web.sock.lock"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let names = ["db.sock", "web.sock"].map(|name| dir.path().join(name));
        assert_eq!(sockets_in(dir.path()).unwrap(), names);
        // Root may read every directory; what is no directory nobody can.
        let error = sockets_in(&names[0]).unwrap_err();
        assert!(error.to_string().contains("db.sock"), "{error}");
    }

    #[test]
    fn every_directory_of_the_host_is_named_once_and_the_users_own_first() {
        let dirs = runtime_dirs();
        assert_eq!(dirs[0], runtime_dir());
        assert!(dirs.contains(&PathBuf::from("/run/vmrun")));
        for (index, dir) in dirs.iter().enumerate() {
            assert!(!dirs[..index].contains(dir), "{}", dir.display());
        }
    }
}
