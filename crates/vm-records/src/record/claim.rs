//! A saved guest that is being restored.
//!
//! Its file is the guest until the guest has run, so a restore that fails uses nothing up; and of
//! two restores at once one runs. The record says [`Decision::Restoring`] meanwhile, and whoever
//! made it holds a lock on its inode (flock(2), which ends with the process, however that ends): a
//! record that says so and is not locked was left by a restore that is over.
//!
//! The order, and why:
//! 1. The draft of the record is locked, then it gets its name: nobody ever sees it unlocked while
//!    its maker lives.
//! 2. Whoever finds an unlocked one locks it and looks whether the name still leads to it. As long
//!    as that lock is held nobody else can replace or remove the file, so the next draft, locked
//!    before, can take its place: whoever waited for the old inode finds that the name leads
//!    elsewhere.
//! 3. Before the guest runs its record becomes [`Decision::MayRun`], by the same rename under the
//!    same lock, and is on the disk. From then on nobody takes it over.
//! 4. A restore that is given up removes its record under the same lock.
//!
//! Only step 3 must be on the disk: after a crash of the host a record that was lost and one that
//! says "restoring" mean the same.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use mig_engine::ownership::Decision;
use migpipe_units::MigrationId;

use super::{Record, RecordError, Records, parse};
use vm_paths::durable::Draft;

/// Each further turn means that another restore has just ended, or another has begun.
const ATTEMPTS: u32 = 16;

/// A restore of a saved guest. While this lives no other restore of it gets anywhere on this host.
#[derive(Debug)]
pub struct Claim {
    records: Records,
    id: MigrationId,
    /// Locked.
    file: File,
}

impl Claim {
    /// The guest may run from now on, and this is on the disk.
    ///
    /// # Errors
    /// [`RecordError::Taken`] if the record is not ours any more, [`RecordError::Io`] if the new
    /// one is not on the disk. The guest must not run then.
    pub fn may_run(&self, record: &Record) -> Result<(), RecordError> {
        let path = self.records.path(self.id);
        if !leads_to(&path, &self.file).map_err(|error| failed("read", &path, error))? {
            return Err(RecordError::Taken { path });
        }
        self.records.replace(self.id, record)
    }

    /// The guest has not run, and can be restored again.
    ///
    /// # Errors
    /// [`RecordError::Io`] if the record cannot be removed: it does no harm.
    pub fn give_up(self) -> Result<(), RecordError> {
        let path = self.records.path(self.id);
        match leads_to(&path, &self.file) {
            Ok(true) => fs::remove_file(&path).map_err(|error| failed("remove", &path, error)),
            Ok(false) => Ok(()),
            Err(error) => Err(failed("read", &path, error)),
        }
    }
}

impl Records {
    /// Begins a restore of the saved guest `id`; `record` says [`Decision::Restoring`].
    ///
    /// # Errors
    /// [`RecordError::Exists`] if it has run here, or may have; [`RecordError::BeingRestored`] if
    /// another vmrun restores it.
    pub fn claim(&self, id: MigrationId, record: &Record) -> Result<Claim, RecordError> {
        let draft = self.draft(id, record)?;
        let path = self.path(id);
        let file = draft.file.try_clone().map_err(|error| failed("write", &path, error))?;
        file.try_lock().map_err(|error| failed("lock", &path, error.into()))?;
        self.place(id, &draft)?;
        Ok(Claim { records: self.clone(), id, file })
    }

    /// Whether `id` is free: there is no record, or what a restore left that is over.
    ///
    /// # Errors
    /// [`RecordError`] if there is a record that cannot be read.
    pub fn is_free(&self, id: MigrationId) -> Result<bool, RecordError> {
        Ok(match self.look(id)? {
            Found::Nothing | Found::Abandoned(_) => true,
            Found::Restoring(_) | Found::Decided(_) => false,
        })
    }

    /// Gives `draft` the name of the record of `id`, in place of one that was abandoned.
    pub(super) fn place(&self, id: MigrationId, draft: &Draft) -> Result<(), RecordError> {
        let path = self.path(id);
        for _ in 0..ATTEMPTS {
            match draft.link(&path) {
                Ok(()) => return self.sync_dir(),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(source) => return Err(failed("create", &path, source)),
            }
            match self.look(id)? {
                Found::Nothing => {}
                Found::Decided(before) => return Err(RecordError::Exists { id, before }),
                Found::Restoring(record) => {
                    return Err(RecordError::BeingRestored { name: record.name });
                }
                Found::Abandoned(locked) => {
                    self.rename(id, draft)?;
                    drop(locked);
                    return self.sync_dir();
                }
            }
        }
        Err(failed("create", &path, io::ErrorKind::ResourceBusy.into()))
    }

    /// What the record of `id` says, and whether somebody holds it.
    pub(super) fn look(&self, id: MigrationId) -> Result<Found, RecordError> {
        let path = self.path(id);
        for _ in 0..ATTEMPTS {
            // For writing, since some file systems lock nothing else for one alone.
            let mut file = match File::options().read(true).write(true).open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
                Err(error) => return Err(failed("read", &path, error)),
            };
            let mut text = Vec::new();
            file.read_to_end(&mut text).map_err(|error| failed("read", &path, error))?;
            let record: Box<Record> = Box::new(parse(&path, &text)?);
            if record.decision != Decision::Restoring {
                return Ok(Found::Decided(record));
            }
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(Found::Restoring(record)),
                Err(TryLockError::Error(error)) => return Err(failed("lock", &path, error)),
            }
            if leads_to(&path, &file).map_err(|error| failed("read", &path, error))? {
                return Ok(Found::Abandoned(file));
            }
        }
        Err(failed("read", &path, io::ErrorKind::ResourceBusy.into()))
    }
}

/// What there is of a migration.
pub(super) enum Found {
    /// No record.
    Nothing,
    /// It was decided.
    Decided(Box<Record>),
    /// It is a saved guest, and somebody restores it.
    Restoring(Box<Record>),
    /// Somebody has restored it and given up. Nobody else can touch the record while this is open.
    Abandoned(File),
}

/// Whether `path` is the name of `file`.
fn leads_to(path: &Path, file: &File) -> io::Result<bool> {
    let ours = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(named) => Ok((named.dev(), named.ino()) == (ours.dev(), ours.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn failed(what: &'static str, path: &Path, source: io::Error) -> RecordError {
    RecordError::Io { what, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::thread;

    use super::*;

    const ID: MigrationId = MigrationId::from_bytes([5; 16]);

    fn record(decision: Decision, name: &str) -> Record {
        Record::new(decision, name, Path::new("/run/vmrun/web.sock"), true)
    }

    fn restoring(name: &str) -> Record {
        record(Decision::Restoring, name)
    }

    #[test]
    fn a_restore_that_is_under_way_is_refused_by_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::at(dir.path());
        let first = records.claim(ID, &restoring("one")).unwrap();
        let second = records.claim(ID, &restoring("two")).unwrap_err();
        assert!(second.to_string().contains("being restored as one"), "{second}");
        let refusal = records.create(ID, &Record::unknown());
        assert!(matches!(refusal, Err(RecordError::BeingRestored { .. })), "{refusal:?}");
        assert!(!records.is_free(ID).unwrap());
        first.give_up().unwrap();
        assert_eq!(records.read(ID).unwrap(), None);
        records.claim(ID, &restoring("two")).unwrap();
    }

    #[test]
    fn a_restore_whose_process_is_gone_is_taken_over_and_so_it_is_by_a_refusal() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::at(dir.path());
        drop(records.claim(ID, &restoring("one")).unwrap());
        assert_eq!(records.read(ID).unwrap(), Some(restoring("one")), "the record is left");
        assert!(records.is_free(ID).unwrap());
        let second = records.claim(ID, &restoring("two")).unwrap();
        assert_eq!(records.read(ID).unwrap().unwrap().name, "two");
        drop(second);
        records.create(ID, &Record::unknown()).unwrap();
        let late = records.claim(ID, &restoring("three"));
        assert!(matches!(late, Err(RecordError::Exists { .. })), "{late:?}");
    }

    #[test]
    fn a_guest_that_may_have_run_is_not_restored_again() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::at(dir.path());
        let claim = records.claim(ID, &restoring("one")).unwrap();
        claim.may_run(&record(Decision::MayRun, "one")).unwrap();
        drop(claim);
        let again = records.claim(ID, &restoring("two")).unwrap_err().to_string();
        assert!(again.contains("as one") && again.contains("--clone"), "{again}");
        assert_eq!(fs::read_dir(records.dir()).unwrap().count(), 1, "drafts are left over");
    }

    #[test]
    fn whoever_has_lost_its_record_does_not_run() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::at(dir.path());
        let first = records.claim(ID, &restoring("one")).unwrap();
        fs::remove_file(records.path(ID)).unwrap();
        let second = records.claim(ID, &restoring("two")).unwrap();
        let lost = first.may_run(&record(Decision::MayRun, "one"));
        assert!(matches!(lost, Err(RecordError::Taken { .. })), "{lost:?}");
        first.give_up().unwrap();
        second.may_run(&record(Decision::MayRun, "two")).unwrap();
    }

    #[test]
    fn of_many_restores_at_once_one_runs() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::at(dir.path());
        // Left by one that is over, so that all of them find something to take over.
        drop(records.claim(ID, &restoring("before")).unwrap());
        let ran = AtomicU32::new(0);
        thread::scope(|scope| {
            for number in 0..8 {
                let (dir, ran) = (dir.path(), &ran);
                scope.spawn(move || {
                    // As processes of their own would have.
                    let name = format!("guest{number}");
                    let records = Records::at(dir);
                    for turn in 0..200 {
                        let Ok(claim) = claim_as(&records, number, &name) else { continue };
                        match turn % 3 {
                            0 => claim.give_up().unwrap(),
                            1 => drop(claim),
                            _ => {
                                if claim.may_run(&record(Decision::MayRun, &name)).is_ok() {
                                    ran.fetch_add(1, Ordering::SeqCst);
                                }
                            }
                        }
                    }
                });
            }
        });
        assert_eq!(ran.load(Ordering::SeqCst), 1);
    }

    /// A claim whose draft has a name of its own: threads share a process id.
    fn claim_as(records: &Records, number: u32, name: &str) -> Result<Claim, RecordError> {
        let text = serde_json::to_vec(&restoring(name)).unwrap();
        let draft = Draft::write(&records.dir, &format!("{ID}-{number}"), &text)
            .map_err(|error| failed("write", &records.dir, error))?;
        let file = draft.file.try_clone().unwrap();
        file.try_lock().unwrap();
        records.place(ID, &draft)?;
        Ok(Claim { records: records.clone(), id: ID, file })
    }
}
