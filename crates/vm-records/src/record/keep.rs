//! How long records are kept, and how many.
//!
//! A record can go when nothing can come of its migration any more. That nobody can tell for
//! certain: a stream may lie in some buffer for as long as it likes, and a source may stay
//! handed-over until somebody resolves it. So there is an age ([`TIDIED_AFTER`]): a host remembers
//! the migrations of so long a time and says of an older one that it does not know, which is safe.
//! Never removed by itself is the record
//! - of a vmrun that still answers: it may run the guest;
//! - of a saved guest that may have run: a file can be read again in ten years.
//!
//! Whoever may ask about migrations that this host never heard of leaves a record each time, so
//! those are bounded ([`MOST_REFUSALS`]). The oldest of them is not removed for a new one: a flood of
//! queries would make the host forget a refusal that somebody relies on. The query is not
//! answered then, and may be asked again.

use std::fs;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, SystemTime};

use mig_engine::ownership::Decision;
use migpipe_units::MigrationId;

use super::claim::Found;
use super::{Record, RecordError, Records};
use vm_paths::durable::{self, DRAFT};

/// Records of migrations are removed after this time, 30 days: longer than any stream is on its
/// way, and than anybody leaves a guest handed-over.
pub const TIDIED_AFTER: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Where so many records are, none is added for a query about an unknown migration: 40 MiB of
/// a file system with blocks of 4 KiB.
pub const MOST_REFUSALS: usize = 10_000;

/// A draft is written within milliseconds. One that is older than this has lost its writer.
const DRAFT_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// A record in the directory, or why it cannot be read.
pub type Entry = (MigrationId, Result<Record, RecordError>);

impl Records {
    /// All records, by their ids; those that cannot be read as errors.
    ///
    /// # Errors
    /// [`RecordError::Io`] if the directory cannot be listed.
    pub fn all(&self) -> Result<Vec<Entry>, RecordError> {
        let mut all = Vec::new();
        for (name, _) in self.names()? {
            let Ok(id) = name.parse::<MigrationId>() else { continue };
            match self.read(id) {
                Ok(Some(record)) => all.push((id, Ok(record))),
                // Removed meanwhile.
                Ok(None) => {}
                Err(error) => all.push((id, Err(error))),
            }
        }
        Ok(all)
    }

    /// The names in the directory, with the times of their last change.
    fn names(&self) -> Result<Vec<(String, SystemTime)>, RecordError> {
        let entries = durable::list(&self.dir).map_err(|source| RecordError::Io {
            what: "list",
            path: self.dir.clone(),
            source,
        })?;
        let name_and_time = |entry: &fs::DirEntry| {
            let changed = entry.metadata().and_then(|it| it.modified()).ok()?;
            Some((entry.file_name().into_string().ok()?, changed))
        };
        let mut names: Vec<_> = entries.iter().filter_map(name_and_time).collect();
        names.sort();
        Ok(names)
    }

    /// Records that a migration which this host does not know will never run here.
    ///
    /// # Errors
    /// [`RecordError::Full`] if there are too many such; as [`Records::create`].
    pub fn refuse_unknown(&self, id: MigrationId) -> Result<(), RecordError> {
        self.refuse_within(id, MOST_REFUSALS)
    }

    fn refuse_within(&self, id: MigrationId, most: usize) -> Result<(), RecordError> {
        if self.names()?.len() >= most {
            return Err(RecordError::Full { path: self.dir.clone() });
        }
        self.create(id, &Record::unknown())
    }

    /// Removes what can go, and returns the ids of those.
    ///
    /// # Errors
    /// [`RecordError::Io`] if the directory cannot be listed or a record not be removed.
    pub fn tidy(&self) -> Result<Vec<MigrationId>, RecordError> {
        self.tidy_older_than(TIDIED_AFTER)
    }

    fn tidy_older_than(&self, age: Duration) -> Result<Vec<MigrationId>, RecordError> {
        let mut tidied = Vec::new();
        for (name, changed) in self.names()? {
            let idle = changed.elapsed().unwrap_or_default();
            if name.starts_with(DRAFT) && idle > DRAFT_AGE {
                self.remove(&name)?;
            }
            let Ok(id) = name.parse::<MigrationId>() else { continue };
            if idle < age {
                continue;
            }
            match self.look(id) {
                Ok(Found::Decided(record)) if record.age() >= age && can_go(&record) => {
                    self.remove(&name)?;
                    tidied.push(id);
                }
                // With its lock held.
                Ok(Found::Abandoned(_locked)) => {
                    self.remove(&name)?;
                    tidied.push(id);
                }
                // A damaged record is for its reader to look at.
                Ok(_) | Err(_) => {}
            }
        }
        Ok(tidied)
    }

    /// Removes the record of `id`, whatever it says; false if there is none. By the operator's
    /// word: the migration is as unknown then as if it had never arrived.
    ///
    /// # Errors
    /// [`RecordError::BeingRestored`]; [`RecordError::Io`] if it cannot be removed.
    pub fn forget(&self, id: MigrationId) -> Result<bool, RecordError> {
        match self.look(id) {
            Ok(Found::Nothing) => return Ok(false),
            Ok(Found::Restoring(record)) => {
                return Err(RecordError::BeingRestored { name: record.name });
            }
            Ok(Found::Abandoned(_) | Found::Decided(_)) | Err(RecordError::Damaged { .. }) => {}
            Err(error) => return Err(error),
        }
        self.remove(&id.to_string())?;
        Ok(true)
    }

    fn remove(&self, name: &str) -> Result<(), RecordError> {
        let path = self.dir.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(|source| RecordError::Io { what: "remove", path, source }),
        }
    }
}

/// Whether nothing can come of the migration that this is about, if it is old enough.
fn can_go(record: &Record) -> bool {
    let may_have_run = matches!(record.decision, Decision::MayRun | Decision::Ran);
    let can_come_back = record.saved && may_have_run;
    !(can_come_back || is_served(&record.socket))
}

/// Whether a vmrun may be at `socket`: only that nobody listens there is certain.
pub fn is_served(socket: &Path) -> bool {
    use io::ErrorKind::{ConnectionRefused, NotFound};
    if socket.as_os_str().is_empty() {
        return false;
    }
    match UnixStream::connect(socket) {
        Ok(_) => true,
        Err(error) => !matches!(error.kind(), NotFound | ConnectionRefused),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn id(number: u8) -> MigrationId {
        MigrationId::from_bytes([number; 16])
    }

    /// Writes a record of a month and a day ago, and so is the file.
    fn old(records: &Records, number: u8, mut record: Record) {
        let age = TIDIED_AFTER + Duration::from_secs(24 * 60 * 60);
        record.time -= age.as_secs();
        records.create(id(number), &record).unwrap();
        set_back(records, &id(number).to_string(), age);
    }

    fn set_back(records: &Records, name: &str, age: Duration) {
        let file = fs::File::options().write(true).open(records.dir().join(name)).unwrap();
        file.set_modified(SystemTime::now() - age).unwrap();
    }

    #[test]
    fn what_is_old_goes_unless_something_can_still_come_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::at(dir.path());
        let dead = dir.path().join("dead.sock");
        drop(UnixListener::bind(&dead).unwrap());
        let living = dir.path().join("living.sock");
        let _listener = UnixListener::bind(&living).unwrap();
        let record = |decision, socket, saved| Record::new(decision, "web", socket, saved);
        old(&records, 1, Record::unknown());
        old(&records, 2, record(Decision::Ran, &dead, false));
        old(&records, 3, record(Decision::MayRun, Path::new("/nowhere"), false));
        old(&records, 4, record(Decision::Refused, &dead, true));
        old(&records, 5, record(Decision::Restoring, &dead, true));
        old(&records, 10, record(Decision::Ran, &living, false));
        old(&records, 11, record(Decision::Ran, &dead, true));
        old(&records, 12, record(Decision::MayRun, &dead, true));
        records.create(id(13), &record(Decision::Ran, &dead, false)).unwrap();
        assert_eq!(records.tidy().unwrap(), [1, 2, 3, 4, 5].map(id));
        let left: Vec<_> = records.all().unwrap().into_iter().map(|(id, _)| id).collect();
        assert_eq!(left, [10, 11, 12, 13].map(id));
    }

    #[test]
    fn a_restore_that_somebody_works_on_is_never_removed() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::at(dir.path());
        let restoring = Record::new(Decision::Restoring, "web", Path::new("/nowhere"), true);
        let claim = records.claim(id(1), &restoring).unwrap();
        set_back(&records, &id(1).to_string(), 2 * TIDIED_AFTER);
        assert_eq!(records.tidy().unwrap(), []);
        assert!(matches!(records.forget(id(1)), Err(RecordError::BeingRestored { .. })));
        drop(claim);
        assert_eq!(records.tidy().unwrap(), [id(1)]);
    }

    #[test]
    fn drafts_of_the_dead_go_and_files_of_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::at(dir.path());
        records.make_dir().unwrap();
        for (name, age) in [(".old.1", 2 * DRAFT_AGE), (".new.1", DRAFT_AGE / 2)] {
            fs::write(records.dir().join(name), "").unwrap();
            set_back(&records, name, age);
        }
        fs::write(records.dir().join("note"), "").unwrap();
        set_back(&records, "note", 2 * TIDIED_AFTER);
        records.tidy().unwrap();
        let left: Vec<_> = records.names().unwrap().into_iter().map(|(name, _)| name).collect();
        assert_eq!(left, [".new.1", "note"]);
    }

    #[test]
    fn queries_about_unknown_migrations_leave_so_many_records_and_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::at(dir.path());
        for number in 0..3 {
            records.refuse_within(id(number), 3).unwrap();
        }
        let full = records.refuse_within(id(3), 3).unwrap_err();
        assert!(full.to_string().contains("vmctl records --tidy"), "{full}");
        assert_eq!(records.read(id(3)).unwrap(), None);
        // What arrives is recorded all the same.
        let arrives = Record::new(Decision::MayRun, "web", Path::new("/nowhere"), false);
        records.create(id(4), &arrives).unwrap();
    }

    #[test]
    fn the_operator_has_any_record_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::at(dir.path());
        assert!(!records.forget(id(1)).unwrap());
        let ran = Record::new(Decision::Ran, "web", Path::new("/nowhere"), true);
        records.create(id(1), &ran).unwrap();
        assert!(records.forget(id(1)).unwrap());
        fs::write(records.dir().join(id(2).to_string()), "{").unwrap();
        assert!(records.all().unwrap()[0].1.is_err());
        assert!(records.forget(id(2)).unwrap(), "a damaged one too");
        assert_eq!(records.all().unwrap().len(), 0);
    }
}
