//! What a destination host remembers of a migration when its processes are gone.
//!
//! One small file per migration id in the state directory. It says "may run" before the first page
//! is taken, "refused" before a refusal takes effect, and "ran" some time after the guest started.
//! The first writer wins: a file is made by `link(2)`, which fails where one exists, so a query
//! about an unknown migration and the arrival of that very migration cannot both succeed. Every
//! write is on the disk (fsync of the file and of its directory) before the function returns.
//!
//! A saved guest may be restored again until it has run, and is recorded otherwise: see [`Claim`].

mod claim;
mod keep;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use mig_engine::ownership::Decision;
use migpipe_confine::Call;
use migpipe_units::MigrationId;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use vm_paths::durable::{self, Draft};

pub use claim::Claim;
pub use keep::{Entry, MOST_REFUSALS, TIDIED_AFTER, is_served};

/// What writing records takes beside opening them in [`Records::dir`].
pub const CALLS: &[Call] = durable::CALLS;

/// What is remembered of one migration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// What was decided.
    pub decision: Decision,
    /// The guest's name here; empty where none arrived.
    pub name: String,
    /// The socket of the vmrun that took it, from the root; empty where none did.
    pub socket: PathBuf,
    /// Whether the guest came from a file, which can be read again at any time.
    pub saved: bool,
    /// When this was written, in seconds since 1970.
    pub time: u64,
}

impl Record {
    /// What a vmrun at `socket` decides now of a guest called `name`.
    pub fn new(decision: Decision, name: &str, socket: &Path, saved: bool) -> Self {
        let socket = std::path::absolute(socket).unwrap_or_else(|_| socket.to_owned());
        Self { decision, name: name.to_owned(), socket, saved, time: now() }
    }

    /// A refusal of a migration that this host knows nothing of.
    pub fn unknown() -> Self {
        Self {
            decision: Decision::Refused,
            name: String::new(),
            socket: PathBuf::new(),
            saved: false,
            time: now(),
        }
    }

    /// How long ago this was written; nothing if the clock was set back since.
    pub fn age(&self) -> Duration {
        Duration::from_secs(now().saturating_sub(self.time))
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Why a record cannot be read or written.
#[derive(Debug, Error)]
pub enum RecordError {
    /// Somebody decided about this migration before.
    #[error("{}", already(*id, before))]
    Exists {
        /// The migration.
        id: MigrationId,
        /// What was decided.
        before: Box<Record>,
    },
    /// A saved guest is being restored by another vmrun.
    #[error(
        "this saved guest is being restored as {name} at this moment: wait for that, or end it \
         (vmctl quit {name})"
    )]
    BeingRestored {
        /// The guest's name there.
        name: String,
    },
    /// Whoever restores a saved guest has lost its record.
    #[error(
        "the record {path} of this restore was removed by somebody else: the guest does not run, \
         and can be restored again"
    )]
    Taken {
        /// The record.
        path: PathBuf,
    },
    /// The directory or the file failed.
    #[error("cannot {what} {path}: the record of a migration must be on disk first")]
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
    #[error("the record {path} is damaged: look at the guest, then remove it by hand")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// Queries about unknown migrations have left too many records.
    #[error(
        "{path} holds {MOST_REFUSALS} records, and a refusal of one more unknown migration is not \
         added: vmctl records shows them, and vmctl records --tidy removes what is old"
    )]
    Full {
        /// The directory.
        path: PathBuf,
    },
    /// The directory cannot be made.
    #[error(transparent)]
    Place(#[from] vm_paths::PathError),
}

/// What is said to somebody who brings a migration again.
fn already(id: MigrationId, before: &Record) -> String {
    let verb = match before.decision {
        Decision::Restoring => "begun to restore",
        Decision::MayRun if before.saved => "begun to run",
        Decision::MayRun => "received",
        Decision::Ran => "run",
        Decision::Refused => "refused",
    };
    match before.saved {
        true => format!(
            "this host has {verb} this saved guest before, as {} (migration {id}), and a guest is \
             not run twice: mig-recv --clone makes a copy of it",
            before.name
        ),
        false => format!(
            "this host has {verb} the migration {id} before, and the same stream is not run twice{}",
            match before.decision {
                // The guest may be at its source again, or at another destination.
                Decision::Refused => "",
                _ => " (of a one-way stream, mig-recv --clone makes a copy)",
            }
        ),
    }
}

/// The records of one host.
#[derive(Clone, Debug)]
pub struct Records {
    dir: PathBuf,
}

impl Records {
    /// The records in the state directory; see [`vm_paths::state_dir`].
    pub fn of_this_host() -> Self {
        Self::at(&vm_paths::state_dir())
    }

    /// The records below `state_dir`.
    pub fn at(state_dir: &Path) -> Self {
        Self { dir: state_dir.join("migrations") }
    }

    /// Where they are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes their directory, for one who cannot later.
    ///
    /// # Errors
    /// [`RecordError::Place`].
    pub fn make_dir(&self) -> Result<(), RecordError> {
        Ok(vm_paths::ensure_dir(&self.dir)?)
    }

    fn path(&self, id: MigrationId) -> PathBuf {
        self.dir.join(id.to_string())
    }

    /// What is remembered of `id`.
    ///
    /// # Errors
    /// [`RecordError`] if there is a record that cannot be read.
    pub fn read(&self, id: MigrationId) -> Result<Option<Record>, RecordError> {
        read_file(self.path(id))
    }

    /// Waits until the records that can be seen are on the disk: another process may have made one
    /// and not be so far. To be called before a record that was read is acted upon.
    ///
    /// # Errors
    /// [`RecordError::Io`] if the disk does not take them.
    pub fn settle(&self) -> Result<(), RecordError> {
        self.sync_dir()
    }

    /// Makes the first record of `id`. What was left by a restore that nobody works on any more
    /// is no record.
    ///
    /// # Errors
    /// [`RecordError::Exists`] if there is one; [`RecordError::BeingRestored`] if somebody works on
    /// that restore; [`RecordError::Io`] if it is not on the disk.
    pub fn create(&self, id: MigrationId, record: &Record) -> Result<(), RecordError> {
        let draft = self.draft(id, record)?;
        self.place(id, &draft)
    }

    /// Replaces the record of `id`. Only the vmrun that made it does so.
    ///
    /// # Errors
    /// [`RecordError::Io`] if it is not on the disk; the old record holds then.
    pub fn replace(&self, id: MigrationId, record: &Record) -> Result<(), RecordError> {
        let draft = self.draft(id, record)?;
        self.rename(id, &draft)?;
        self.sync_dir()
    }

    fn rename(&self, id: MigrationId, draft: &Draft) -> Result<(), RecordError> {
        let path = self.path(id);
        draft.rename(&path).map_err(|source| RecordError::Io { what: "replace", path, source })
    }

    fn draft(&self, id: MigrationId, record: &Record) -> Result<Draft, RecordError> {
        self.make_dir()?;
        let path = self.path(id);
        let text = serde_json::to_vec(record)
            .map_err(|source| RecordError::Damaged { path: path.clone(), source })?;
        Draft::write(&self.dir, &id.to_string(), &text).map_err(|source| RecordError::Io {
            what: "write",
            path,
            source,
        })
    }

    fn sync_dir(&self) -> Result<(), RecordError> {
        durable::sync_dir(&self.dir).map_err(|source| RecordError::Io {
            what: "sync",
            path: self.dir.clone(),
            source,
        })
    }
}

/// What is in a file of the records, if it is there.
pub(crate) fn read_file<T: DeserializeOwned>(path: PathBuf) -> Result<Option<T>, RecordError> {
    match fs::read(&path) {
        Ok(text) => parse(&path, &text).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(RecordError::Io { what: "read", path, source }),
    }
}

fn parse<T: DeserializeOwned>(path: &Path, text: &[u8]) -> Result<T, RecordError> {
    serde_json::from_slice(text)
        .map_err(|source| RecordError::Damaged { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: MigrationId = MigrationId::from_bytes([3; 16]);

    fn record(decision: Decision) -> Record {
        let socket = "/run/vmrun/web.sock".into();
        Record { decision, name: "web".into(), socket, saved: false, time: 1_000 }
    }

    #[test]
    fn the_first_decision_wins() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::at(dir.path());
        assert_eq!(records.read(ID).unwrap(), None);
        records.create(ID, &record(Decision::Refused)).unwrap();
        let late = records.create(ID, &record(Decision::MayRun));
        let Err(RecordError::Exists { before, .. }) = late else { panic!("{late:?}") };
        assert_eq!(*before, record(Decision::Refused));
        assert_eq!(records.read(ID).unwrap(), Some(record(Decision::Refused)));
    }

    #[test]
    fn who_brings_a_guest_again_hears_how_to_make_a_copy_of_it() {
        for (decision, saved, words, copy) in [
            (Decision::MayRun, false, "has received the migration", true),
            (Decision::Ran, false, "has run the migration", true),
            (Decision::Refused, false, "has refused the migration", false),
            (
                Decision::Restoring,
                true,
                "has begun to restore this saved guest before, as web",
                true,
            ),
            (Decision::MayRun, true, "has begun to run this saved guest before, as web", true),
            (Decision::Ran, true, "has run this saved guest before, as web", true),
        ] {
            let before = Box::new(Record { saved, ..record(decision) });
            let text = RecordError::Exists { id: ID, before }.to_string();
            assert!(text.contains(words) && text.contains(&ID.to_string()), "{text}");
            assert_eq!(text.contains("mig-recv --clone makes a copy"), copy, "{text}");
        }
    }

    #[test]
    fn its_own_vmrun_may_change_its_mind() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::at(dir.path());
        records.create(ID, &record(Decision::MayRun)).unwrap();
        records.replace(ID, &record(Decision::Ran)).unwrap();
        assert_eq!(records.read(ID).unwrap(), Some(record(Decision::Ran)));
        let files = fs::read_dir(dir.path().join("migrations")).unwrap().count();
        assert_eq!(files, 1, "drafts are left over");
    }

    #[test]
    fn a_damaged_record_is_an_error_and_never_a_missing_one() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::at(dir.path());
        records.create(ID, &record(Decision::MayRun)).unwrap();
        fs::write(dir.path().join("migrations").join(ID.to_string()), "{").unwrap();
        assert!(matches!(records.read(ID), Err(RecordError::Damaged { .. })));
        assert!(matches!(
            records.create(ID, &record(Decision::MayRun)),
            Err(RecordError::Damaged { .. })
        ));
    }

    #[test]
    fn a_socket_is_remembered_from_the_root() {
        let record = Record::new(Decision::MayRun, "web", Path::new("run/web.sock"), false);
        assert!(record.socket.is_absolute(), "{:?}", record.socket);
        assert!(record.age() < Duration::from_secs(3600));
    }
}
