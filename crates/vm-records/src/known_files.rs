//! Which files a guest of this host was given by its user: what a command line named here for a
//! guest, a stream may name again for one of that name.
//!
//! So a guest that is restored, that moves within a host, or that comes home finds its console and
//! its disks without a word about them, while a stream from elsewhere cannot have any other file of
//! this user. One small file per name, replaced as a whole; without it the user has to name the
//! files once more.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// The directory below that of the host's state.
const DIR: &str = "files";

/// Between two paths: what no path holds.
const END: u8 = 0;

/// Notes the `files` that this user has given to `guest`, in place of those that it had before.
///
/// # Errors
/// If the directory of the host's state cannot be written.
pub fn remember(guest: &str, files: &[PathBuf]) -> io::Result<()> {
    remember_in(&vm_paths::state_dir().join(DIR), guest, files)
}

/// The files that this user has given to `guest` when it was last started here.
pub fn known(guest: &str) -> Vec<PathBuf> {
    known_in(&vm_paths::state_dir().join(DIR), guest)
}

fn remember_in(dir: &Path, guest: &str, files: &[PathBuf]) -> io::Result<()> {
    vm_paths::check_name(guest).map_err(io::Error::other)?;
    vm_paths::ensure_dir(dir).map_err(io::Error::other)?;
    let mut text = Vec::new();
    for file in files {
        text.extend(std::path::absolute(file)?.as_os_str().as_bytes());
        text.push(END);
    }
    // No name of a guest begins so.
    let new = dir.join(format!(".{guest}-{}", std::process::id()));
    fs::write(&new, text)?;
    fs::rename(new, dir.join(guest))
}

fn known_in(dir: &Path, guest: &str) -> Vec<PathBuf> {
    if vm_paths::check_name(guest).is_err() {
        return Vec::new();
    }
    let text = fs::read(dir.join(guest)).unwrap_or_default();
    let files = text.split(|byte| *byte == END).filter(|file| !file.is_empty());
    files.map(|file| OsString::from_vec(file.to_vec()).into()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_a_guest_are_those_it_was_given_last() {
        let state = tempfile::tempdir().unwrap();
        let dir = state.path().join("files");
        assert_eq!(known_in(&dir, "web"), [] as [PathBuf; 0]);
        let odd = PathBuf::from(OsString::from_vec(b"/srv/a b\n\xff".to_vec()));
        for files in [vec![odd, "/dev/vg0/web".into()], vec!["/srv/web.log".into()], vec![]] {
            remember_in(&dir, "web", &files).unwrap();
            assert_eq!(known_in(&dir, "web"), files);
        }
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "nothing else is left there");
    }

    #[test]
    fn what_was_named_from_here_is_known_from_everywhere() {
        let dir = tempfile::tempdir().unwrap();
        remember_in(dir.path(), "web", &["web.raw".into()]).unwrap();
        assert_eq!(known_in(dir.path(), "web"), [std::env::current_dir().unwrap().join("web.raw")]);
    }

    #[test]
    fn a_name_does_not_lead_out_of_the_directory() {
        let state = tempfile::tempdir().unwrap();
        let dir = state.path().join("files");
        fs::write(state.path().join("other"), "/etc/shadow\0").unwrap();
        assert!(remember_in(&dir, "../other", &[]).is_err());
        assert_eq!(known_in(&dir, "../other"), [] as [PathBuf; 0]);
    }
}
