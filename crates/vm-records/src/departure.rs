//! What a host remembers of the guests that left it.
//!
//! A guest that has moved away, or was saved to a file, is started at home again by whatever
//! started it before: an init system, a reboot, a habit. So its vmrun notes its name before the
//! guest can be gone, and takes the note back if it stays. A vmrun that is to boot a guest of a noted
//! name holds it back until the operator says otherwise.
//!
//! One small file per name in the state directory. It says "leaving" from the beginning of the
//! migration on, outside the blackout, so that no handover waits for a disk: what is found after a
//! crash may have left or not. "Gone" replaces it when the destination runs the guest, or the file
//! has it.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use migpipe_units::MigrationId;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::record::now;
use vm_paths::PathError;
use vm_paths::durable::{self, Draft};

/// How a guest left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Departure {
    /// The migration by which it left.
    pub id: MigrationId,
    /// Where it went, as mig-send was told; empty if nobody said.
    pub to: String,
    /// Whether it is there: otherwise its vmrun ended while it was on its way.
    pub gone: bool,
    /// When this was written, in seconds since 1970.
    pub time: u64,
}

impl Departure {
    /// A guest that sets out now.
    pub fn now(id: MigrationId, to: &str) -> Self {
        Self { id, to: to.to_owned(), gone: false, time: now() }
    }

    /// The same guest, which has arrived.
    #[must_use]
    pub fn arrived(self) -> Self {
        Self { gone: true, time: now(), ..self }
    }
}

impl fmt::Display for Departure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let to = if self.to.is_empty() { "another place" } else { &self.to };
        match self.gone {
            true => write!(f, "it went to {to}")?,
            false => write!(f, "it was on its way to {to} when its vmrun ended, and may be there")?,
        }
        write!(f, " ({} ago, migration {})", Ago(now().saturating_sub(self.time)), self.id)
    }
}

/// Seconds, for people.
struct Ago(u64);

impl fmt::Display for Ago {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MINUTE: u64 = 60;
        const HOUR: u64 = 60 * MINUTE;
        const DAY: u64 = 24 * HOUR;
        match self.0 {
            seconds if seconds < 2 * MINUTE => write!(f, "{seconds} s"),
            seconds if seconds < 2 * HOUR => write!(f, "{} min", seconds / MINUTE),
            seconds if seconds < 2 * DAY => write!(f, "{} h", seconds / HOUR),
            seconds => write!(f, "{} days", seconds / DAY),
        }
    }
}

/// Why a note cannot be read or written.
#[derive(Debug, Error)]
pub enum DepartureError {
    /// The directory or the file failed.
    #[error("cannot {what} {path}, the note that a guest has left this host")]
    Io {
        /// What failed.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file holds something else.
    #[error(
        "the note {path} of a guest that left is damaged: remove it by hand if the guest is here"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The name or the directory.
    #[error(transparent)]
    Place(#[from] PathError),
}

/// The guests that left one host.
#[derive(Clone, Debug)]
pub struct Departures {
    dir: PathBuf,
}

impl Departures {
    /// Those of the state directory; see [`vm_paths::state_dir`].
    pub fn of_this_host() -> Self {
        Self::at(&vm_paths::state_dir())
    }

    /// Those below `state_dir`.
    pub fn at(state_dir: &Path) -> Self {
        Self { dir: state_dir.join("departures") }
    }

    /// Where they are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes their directory, for one who cannot later.
    ///
    /// # Errors
    /// [`DepartureError::Place`].
    pub fn make_dir(&self) -> Result<(), DepartureError> {
        Ok(vm_paths::ensure_dir(&self.dir)?)
    }

    /// The name is checked, so that none leads elsewhere.
    fn path(&self, name: &str) -> Result<PathBuf, DepartureError> {
        vm_paths::check_name(name)?;
        Ok(self.dir.join(name))
    }

    /// How the guest of this name left, if it did.
    ///
    /// # Errors
    /// [`DepartureError`] if there is a note that cannot be read.
    pub fn read(&self, name: &str) -> Result<Option<Departure>, DepartureError> {
        let path = self.path(name)?;
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .map(Some)
                .map_err(|source| DepartureError::Damaged { path, source }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(DepartureError::Io { what: "read", path, source }),
        }
    }

    /// The names of all that left.
    ///
    /// # Errors
    /// [`DepartureError::Io`] if the directory cannot be listed.
    pub fn names(&self) -> Result<Vec<String>, DepartureError> {
        let entries = durable::list(&self.dir).map_err(|source| DepartureError::Io {
            what: "list",
            path: self.dir.clone(),
            source,
        })?;
        let names = entries.iter().filter_map(|entry| entry.file_name().into_string().ok());
        let mut names: Vec<_> = names.filter(|name| vm_paths::check_name(name).is_ok()).collect();
        names.sort();
        Ok(names)
    }

    /// Notes how the guest of this name leaves, in place of an older note.
    ///
    /// # Errors
    /// [`DepartureError`] if that is not on the disk.
    pub fn note(&self, name: &str, departure: &Departure) -> Result<(), DepartureError> {
        let path = self.path(name)?;
        self.make_dir()?;
        let text = serde_json::to_vec(departure)
            .map_err(|source| DepartureError::Damaged { path: path.clone(), source })?;
        Draft::write(&self.dir, name, &text)
            .and_then(|draft| draft.rename(&path))
            .and_then(|()| durable::sync_dir(&self.dir))
            .map_err(|source| DepartureError::Io { what: "write", path, source })
    }

    /// The guest of this name is here, or may be started here; false if nothing was noted.
    ///
    /// # Errors
    /// [`DepartureError`] if the note cannot be removed.
    pub fn forget(&self, name: &str) -> Result<bool, DepartureError> {
        let path = self.path(name)?;
        match fs::remove_file(&path).and_then(|()| durable::sync_dir(&self.dir)) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(DepartureError::Io { what: "remove", path, source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: MigrationId = MigrationId::from_bytes([3; 16]);

    #[test]
    fn what_is_noted_is_read_until_it_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let departures = Departures::at(dir.path());
        assert_eq!(departures.read("web").unwrap(), None);
        assert!(!departures.forget("web").unwrap());
        let leaves = Departure::now(ID, "exec:ssh hostb mig-recv");
        departures.note("web", &leaves).unwrap();
        departures.note("web", &leaves.clone().arrived()).unwrap();
        let read = departures.read("web").unwrap().unwrap();
        assert!(read.gone && read.to == leaves.to);
        assert_eq!(departures.names().unwrap(), ["web"]);
        assert!(departures.forget("web").unwrap());
        assert_eq!(departures.read("web").unwrap(), None);
    }

    #[test]
    fn a_note_says_where_to_and_whether_that_is_certain() {
        let leaves = Departure::now(ID, "tcp:hostb:4444");
        let text = leaves.to_string();
        assert!(text.contains("on its way to tcp:hostb:4444") && text.contains("may be"), "{text}");
        let text = leaves.arrived().to_string();
        assert!(text.contains("went to tcp:hostb:4444") && !text.contains("may be"), "{text}");
        let nowhere = Departure { to: String::new(), ..Departure::now(ID, "") };
        assert!(nowhere.to_string().contains("another place"));
        for (seconds, text) in [(3, "3 s"), (300, "5 min"), (40_000, "11 h"), (400_000, "4 days")] {
            assert_eq!(Ago(seconds).to_string(), text);
        }
    }

    #[test]
    fn a_name_leads_nowhere_else() {
        let dir = tempfile::tempdir().unwrap();
        let departures = Departures::at(dir.path());
        let outside = dir.path().join("kept");
        fs::write(&outside, "").unwrap();
        for name in ["../kept", "..", "", "a/b"] {
            assert!(departures.note(name, &Departure::now(ID, "")).is_err(), "{name}");
            assert!(departures.forget(name).is_err(), "{name}");
        }
        assert!(outside.exists());
    }
}
