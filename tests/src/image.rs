//! A disk image of a host, and who holds its lock.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

/// A raw disk image.
#[derive(Clone, Debug)]
pub struct Image {
    path: PathBuf,
}

impl Image {
    /// An image of so many KiB at `path`.
    pub fn create(path: &Path, kib: usize) -> Self {
        fs::write(path, vec![0x5a; kib << 10]).expect("an image");
        Self { path: path.to_owned() }
    }

    /// The file, as a command line names it.
    pub fn name(&self) -> &str {
        self.path.to_str().expect("UTF-8")
    }

    /// Whether the process `pid` holds the lock: its descriptors say so (proc(5), fdinfo).
    pub fn is_held_by(&self, pid: i32) -> bool {
        let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
        descriptors.filter_map(Result::ok).any(|descriptor| {
            let is_image = fs::read_link(descriptor.path()).is_ok_and(|path| path == self.path);
            let number = descriptor.file_name();
            let info = format!("/proc/{pid}/fdinfo/{}", number.to_string_lossy());
            is_image && fs::read_to_string(info).is_ok_and(|info| info.contains("OFDLCK"))
        })
    }

    /// Waits in a thread for the lock, first of all who want it, and takes it. Dropping the file
    /// gives it back.
    pub fn take_when_free(&self) -> JoinHandle<File> {
        let file = File::options().read(true).write(true).open(&self.path).expect("an image");
        thread::spawn(move || {
            let whole = libc::flock {
                l_type: libc::F_WRLCK as libc::c_short,
                l_whence: libc::SEEK_SET as libc::c_short,
                l_start: 0,
                l_len: 0,
                l_pid: 0,
            };
            fcntl(&file, FcntlArg::F_OFD_SETLKW(&whole)).expect("the lock");
            file
        })
    }
}
