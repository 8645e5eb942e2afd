//! What a destination host remembers of a migration when its processes are gone.
//!
//! One small file per migration id in the state directory. It says "may run" before the first page
//! is taken, "refused" before a refusal takes effect, and "ran" some time after the guest started.
//! The first writer wins: a file is made by `link(2)`, which fails where one exists, so a question
//! about an unknown migration and the arrival of that very migration cannot both succeed. Every
//! write is on the disk (fsync of the file and of its directory) before the function returns.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use confine::{Call, calls};
use mig_engine::ownership::Decision;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use units::MigrationId;

use crate::place;

/// What writing records takes beside opening them in [`Records::dir`].
pub const CALLS: &[Call] = calls![
    SYS_mkdir;
    SYS_mkdirat;
    SYS_link => "the first record of a migration wins";
    SYS_linkat;
    SYS_rename => "the next one takes its place";
    SYS_renameat;
    SYS_renameat2;
    SYS_unlink;
    SYS_unlinkat;
    SYS_fsync;
];

/// What is remembered of one migration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// What was decided.
    pub decision: Decision,
    /// The guest's name here.
    pub name: String,
    /// The socket of the vmrun that took it; empty where none did.
    pub socket: PathBuf,
}

/// Why a record cannot be read or written.
#[derive(Debug, Error)]
pub enum RecordError {
    /// Somebody decided about this migration before.
    #[error(
        "this host has {} the migration {id} before, and the same stream is not run twice; \
         mig-recv --clone makes a copy of a saved guest", verb(*.before)
    )]
    Exists {
        /// The migration.
        id: MigrationId,
        /// What was decided.
        before: Decision,
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
    /// The directory cannot be made.
    #[error(transparent)]
    Place(#[from] place::PlaceError),
}

const fn verb(before: Decision) -> &'static str {
    match before {
        Decision::MayRun => "received",
        Decision::Ran => "run",
        Decision::Refused => "refused",
    }
}

/// The records of one host.
#[derive(Clone, Debug)]
pub struct Records {
    dir: PathBuf,
}

impl Records {
    /// The records in the state directory; see [`place::state_dir`].
    pub fn of_this_host() -> Self {
        Self::at(&place::state_dir())
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
        Ok(place::ensure_dir(&self.dir)?)
    }

    fn path(&self, id: MigrationId) -> PathBuf {
        self.dir.join(id.to_string())
    }

    /// What is remembered of `id`.
    ///
    /// # Errors
    /// [`RecordError`] if there is a record that cannot be read.
    pub fn read(&self, id: MigrationId) -> Result<Option<Record>, RecordError> {
        let path = self.path(id);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => {
                return Err(RecordError::Io { what: "read", path, source });
            }
        };
        serde_json::from_slice(&text)
            .map(Some)
            .map_err(|source| RecordError::Damaged { path, source })
    }

    /// Waits until the records that can be seen are on the disk: another process may have made one
    /// and not be so far. To be called before a record that was read is acted upon.
    ///
    /// # Errors
    /// [`RecordError::Io`] if the disk does not take them.
    pub fn settle(&self) -> Result<(), RecordError> {
        self.sync_dir()
    }

    /// Makes the first record of `id`.
    ///
    /// # Errors
    /// [`RecordError::Exists`] if there is one; [`RecordError::Io`] if it is not on the disk.
    pub fn create(&self, id: MigrationId, record: &Record) -> Result<(), RecordError> {
        let path = self.path(id);
        let draft = self.write_draft(id, record)?;
        let linked = fs::hard_link(&draft, &path);
        let _ = fs::remove_file(&draft);
        match linked {
            Ok(()) => self.sync_dir(),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                // A record is never removed, so it is there to be read.
                let before = self.read(id)?.map_or(Decision::MayRun, |record| record.decision);
                Err(RecordError::Exists { id, before })
            }
            Err(source) => Err(RecordError::Io { what: "create", path, source }),
        }
    }

    /// Replaces the record of `id`. Only the vmrun that made it does so.
    ///
    /// # Errors
    /// [`RecordError::Io`] if it is not on the disk; the old record holds then.
    pub fn replace(&self, id: MigrationId, record: &Record) -> Result<(), RecordError> {
        let path = self.path(id);
        let draft = self.write_draft(id, record)?;
        fs::rename(&draft, &path).map_err(|source| RecordError::Io {
            what: "replace",
            path,
            source,
        })?;
        self.sync_dir()
    }

    fn write_draft(&self, id: MigrationId, record: &Record) -> Result<PathBuf, RecordError> {
        self.make_dir()?;
        // Two processes may write about one migration at once: each has a draft of its own.
        let draft = self.dir.join(format!(".{id}.{}", std::process::id()));
        let failed = |source| RecordError::Io { what: "write", path: draft.clone(), source };
        let text = serde_json::to_vec(record)
            .map_err(|source| RecordError::Damaged { path: draft.clone(), source })?;
        let mut file = File::create(&draft).map_err(failed)?;
        let written = file.write_all(&text).and_then(|()| file.sync_all());
        if let Err(source) = written {
            let _ = fs::remove_file(&draft);
            return Err(failed(source));
        }
        Ok(draft)
    }

    fn sync_dir(&self) -> Result<(), RecordError> {
        File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(|source| RecordError::Io {
            what: "sync",
            path: self.dir.clone(),
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: MigrationId = MigrationId::from_bytes([3; 16]);

    fn record(decision: Decision) -> Record {
        Record { decision, name: "web".into(), socket: "/run/vmrun/web.sock".into() }
    }

    #[test]
    fn the_first_decision_wins() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::at(dir.path());
        assert_eq!(records.read(ID).unwrap(), None);
        records.create(ID, &record(Decision::Refused)).unwrap();
        let late = records.create(ID, &record(Decision::MayRun));
        assert!(matches!(late, Err(RecordError::Exists { before: Decision::Refused, .. })));
        assert_eq!(records.read(ID).unwrap(), Some(record(Decision::Refused)));
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
    }
}
