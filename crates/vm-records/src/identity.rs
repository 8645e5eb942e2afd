//! Who a host is, as far as migrations are concerned, and since when it has remembered them.
//!
//! A host answers "never heard of it" from its records. That is worth something only if they are
//! the records that the migration would be in: not those of another host to which the same name
//! leads, nor those that were begun anew after the directory was lost. So the directory of the
//! records has an identity, made with it and lost with it: a file beside the records, which the
//! first who needs it makes by `link(2)`, as a record is, and which is on the disk before anybody
//! is told of it.

use std::io;
use std::time::{Duration, SystemTime};

use migpipe_units::HostId;
use nix::sys::statfs::{self, FsType};
use serde::{Deserialize, Serialize};
use vm_paths::durable::Draft;

use crate::record::{RecordError, Records, read_file};

/// The name of the file; a record's is the id of a migration.
const FILE: &str = "host-id";

/// `RAMFS_MAGIC` of linux/magic.h.
const RAMFS: FsType = FsType(0x8584_58f6);

/// Who a host is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Its id.
    pub id: HostId,
    /// When its memory of migrations began.
    since: SystemTime,
}

impl Identity {
    /// How long this host has remembered migrations. A clock that was set back since makes that
    /// less, never more.
    pub fn age(&self) -> Duration {
        self.since.elapsed().unwrap_or_default()
    }
}

impl Records {
    /// Who this host is.
    ///
    /// # Errors
    /// [`RecordError`] if that cannot be read, or be written down for the first time.
    pub fn identity(&self) -> Result<Identity, RecordError> {
        if let Some(known) = self.read_identity()? {
            // Its maker may not have come to that yet.
            self.settle()?;
            return Ok(known);
        }
        let new = Identity { id: HostId::random(), since: SystemTime::now() };
        self.make_dir()?;
        let path = self.dir().join(FILE);
        let failed = |what, source| RecordError::Io { what, path: path.clone(), source };
        // Two may make one at once, in one process too: each has a draft of its own.
        let name = format!("{FILE}.{}", new.id);
        let made = serde_json::to_vec(&new)
            .map_err(io::Error::from)
            .and_then(|text| Draft::write(self.dir(), &name, &text));
        match made.map_err(|source| failed("write", source))?.link(&path) {
            Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed("create", source));
            }
            _ => self.settle()?,
        }
        // The first one wins.
        Ok(self.read_identity()?.unwrap_or(new))
    }

    fn read_identity(&self) -> Result<Option<Identity>, RecordError> {
        read_file(self.dir().join(FILE))
    }

    /// Whether this host forgets its migrations when it starts again: the records are in memory.
    /// An overlay that is in memory cannot be told.
    pub fn end_with_the_boot(&self) -> bool {
        statfs::statfs(self.dir())
            .is_ok_and(|fs| [statfs::TMPFS_MAGIC, RAMFS].contains(&fs.filesystem_type()))
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, thread};

    use super::*;

    #[test]
    fn a_host_is_the_same_for_as_long_as_its_records_are_there() {
        let dir = tempfile::tempdir().unwrap();
        let first = Records::at(dir.path()).identity().unwrap();
        assert_eq!(Records::at(dir.path()).identity().unwrap(), first);
        fs::remove_dir_all(Records::at(dir.path()).dir()).unwrap();
        assert_ne!(Records::at(dir.path()).identity().unwrap().id, first.id);
    }

    #[test]
    fn all_who_ask_at_once_hear_of_one_host() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::at(dir.path());
        let ask = || records.identity().unwrap();
        let all: Vec<_> = thread::scope(|scope| {
            let asking: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
            asking.into_iter().map(|it| it.join().unwrap()).collect()
        });
        assert!(all.iter().all(|it| *it == all[0]), "{all:?}");
        let files = fs::read_dir(records.dir()).unwrap().count();
        assert_eq!(files, 1, "drafts are left over");
    }

    #[test]
    fn a_damaged_identity_is_an_error_and_never_a_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::at(dir.path());
        records.identity().unwrap();
        fs::write(records.dir().join(FILE), "{").unwrap();
        assert!(matches!(records.identity(), Err(RecordError::Damaged { .. })));
    }

    #[test]
    fn a_clock_that_was_set_back_makes_the_memory_no_older() {
        let since = SystemTime::now() + Duration::from_secs(3600);
        assert_eq!(Identity { id: HostId::random(), since }.age(), Duration::ZERO);
    }
}
