//! Small files that are on the disk when the function returns, or not there.
//!
//! A file appears under its name complete or not at all, also after a power loss. The order, and
//! why:
//! 1. A draft is written under a name of its own: whoever reads the directory finds no half.
//! 2. The draft is synced: a name must never lead to content that the disk does not have.
//! 3. It gets its name, by link(2) where no other may be there, else by rename(2).
//! 4. The directory is synced: until then the name may be lost.

use std::fs::{self, DirBuilder, DirEntry, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What it takes, beside opening files in the directory.
pub const CALLS: &[migpipe_confine::Call] = migpipe_confine::calls![
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
    SYS_flock => "whoever restores a saved guest holds its record";
];

/// A file that has no name yet. Dropping it removes it.
#[derive(Debug)]
pub struct Draft {
    /// The open file.
    pub file: File,
    path: PathBuf,
}

impl Draft {
    /// Writes and syncs a draft of the file `name` in `dir`.
    pub fn write(dir: &Path, name: &str, content: &[u8]) -> io::Result<Self> {
        // Two processes may write about one thing at once: each has a draft of its own.
        let path = dir.join(format!("{DRAFT}{name}.{}", std::process::id()));
        let mut options = File::options();
        let file = options.read(true).write(true).create(true).truncate(true).mode(0o600);
        let mut draft = Self { file: file.open(&path)?, path };
        draft.file.write_all(content)?;
        draft.file.sync_all()?;
        Ok(draft)
    }

    /// Gives it its name, if there is no file of that name. The directory is not synced.
    pub fn link(&self, to: &Path) -> io::Result<()> {
        fs::hard_link(&self.path, to)
    }

    /// Gives it its name in place of whatever has it. The directory is not synced.
    pub fn rename(&self, to: &Path) -> io::Result<()> {
        fs::rename(&self.path, to)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // After a rename there is none.
        let _ = fs::remove_file(&self.path);
    }
}

/// How the name of a draft begins.
pub const DRAFT: &str = ".";

/// Puts the names in `dir` on the disk.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// What is in `dir`: nothing where there is no such directory.
///
/// # Errors
/// If it cannot be read.
pub fn list(dir: &Path) -> io::Result<Vec<DirEntry>> {
    match fs::read_dir(dir) {
        Ok(entries) => entries.collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Makes `dir` and what is missing above it, for its user alone, each of them on the disk.
pub fn make_dir(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    let above = match dir.parent() {
        Some(above) if !above.as_os_str().is_empty() => above,
        _ => Path::new("."),
    };
    make_dir(above)?;
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => {}
        made => made?,
    }
    // Its name, without which all that is synced in it may be lost.
    sync_dir(above)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn directories_are_made_for_their_user_alone_and_others_are_left_as_they_are() {
        let top = tempfile::tempdir().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        let open = top.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o755)).unwrap();
        let dir = open.join("a/b");
        make_dir(&dir).unwrap();
        make_dir(&dir).unwrap();
        assert_eq!((mode(&dir), mode(&open.join("a")), mode(&open)), (0o700, 0o700, 0o755));
        fs::write(open.join("file"), "").unwrap();
        assert!(make_dir(&open.join("file")).is_err());
        assert!(make_dir(&open.join("file/below")).is_err());
    }

    #[test]
    fn a_directory_that_is_not_there_is_empty_and_one_that_cannot_be_read_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(list(&dir.path().join("missing")).unwrap().len(), 0);
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let names: Vec<_> =
            list(dir.path()).unwrap().iter().map(|entry| entry.file_name()).collect();
        assert_eq!(names, ["file"]);
        assert_eq!(list(&file).unwrap_err().kind(), io::ErrorKind::NotADirectory);
    }

    #[test]
    fn a_draft_is_gone_with_its_writer_and_a_name_is_taken_once() {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("web");
        drop(Draft::write(dir.path(), "web", b"given up").unwrap());
        Draft::write(dir.path(), "web", b"first").unwrap().link(&to).unwrap();
        let second = Draft::write(dir.path(), "web", b"second").unwrap();
        assert_eq!(second.link(&to).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&to).unwrap(), b"first");
        second.rename(&to).unwrap();
        drop(second);
        assert_eq!(fs::read(&to).unwrap(), b"second");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
