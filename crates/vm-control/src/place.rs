//! Where a guest's socket and a host's memory of migrations are.

use std::env;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Names of guests are file names: no longer than leaves room for the directory in the 108 bytes
/// of a socket's address (unix(7)).
const MAX_NAME: usize = 48;

/// Why a name does not lead to a place.
#[derive(Debug, Error)]
pub enum PlaceError {
    /// The name cannot be a file name.
    #[error(
        "'{0}' is no name for a guest: use letters, digits, '-', '_' and '.', at most {MAX_NAME}"
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
}

/// Checks that `name` can name a guest.
///
/// # Errors
/// [`PlaceError::BadName`].
pub fn check_name(name: &str) -> Result<(), PlaceError> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty()
        || name.len() > MAX_NAME
        || name.starts_with(['.', '-'])
        || !name.chars().all(fits)
    {
        return Err(PlaceError::BadName(name.chars().take(80).collect()));
    }
    Ok(())
}

/// The directory of the sockets: `$XDG_RUNTIME_DIR/vmrun`, or `/run/vmrun`.
pub fn runtime_dir() -> PathBuf {
    env::var_os("XDG_RUNTIME_DIR")
        .filter(|dir| !dir.is_empty())
        .map_or_else(|| PathBuf::from("/run"), PathBuf::from)
        .join("vmrun")
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

/// Makes `dir`, for its user alone, if it does not exist.
///
/// # Errors
/// [`PlaceError::Directory`].
pub fn ensure_dir(dir: &Path) -> Result<(), PlaceError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|source| PlaceError::Directory { path: dir.to_owned(), source })
}

/// The socket of a guest that is given by its name or by its socket's path (anything with a `/`).
///
/// # Errors
/// [`PlaceError::BadName`].
pub fn socket_of(guest: &str) -> Result<PathBuf, PlaceError> {
    if guest.contains('/') {
        return Ok(PathBuf::from(guest));
    }
    check_name(guest)?;
    Ok(runtime_dir().join(format!("{guest}.sock")))
}

/// The sockets of all guests of this user, by name.
pub fn all_sockets() -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(runtime_dir()) else {
        return Vec::new();
    };
    let mut sockets: Vec<_> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|end| end == "sock"))
        .collect();
    sockets.sort();
    sockets
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
}
