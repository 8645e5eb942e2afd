//! A tmpfs of our own for guest memory, because a memfd has huge pages only where
//! `shmem_enabled` says so, and that is `never` on stock distributions. A tmpfs mount has its own
//! switch, the mount option `huge=advise` (tmpfs(5)), and whoever may mount it may set it.
//!
//! The mount is never attached to a path: it is reached through its descriptor alone and is gone
//! with the last file of it. Root mounts it directly. Another user may mount a tmpfs in a user
//! namespace of its own (user_namespaces(7)): a child of a moment enters one, mounts, and passes
//! the descriptor back; this process stays where it is.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::fcntl::{OFlag, openat};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork, getegid, geteuid};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen,
};
use thiserror::Error;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::file::makes_huge_page;

/// Why there is no tmpfs with huge pages.
#[derive(Debug, Error)]
pub enum TmpfsError {
    /// A step of the mount is refused.
    #[error("{step}")]
    Mount {
        /// What was tried.
        step: &'static str,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// The mount is there and gives small pages all the same.
    #[error("this kernel gives no huge pages to a tmpfs with huge=advise")]
    SmallPages,
}

/// The steps of the mount in a user namespace. The child names the one that failed by its number.
const STEPS: [&str; 4] = [
    "cannot make a user namespace",
    "cannot map this user into a user namespace",
    "cannot mount a tmpfs with huge=advise",
    "the helper that mounts a tmpfs ended",
];

/// A tmpfs with huge pages that only this process knows.
#[derive(Debug)]
pub struct HugeTmpfs {
    root: OwnedFd,
}

impl HugeTmpfs {
    /// Mounts one, and makes sure that it gives huge pages. For the beginning of a program: as an
    /// ordinary user it forks.
    ///
    /// # Errors
    /// [`TmpfsError`] says why guest memory has to do without.
    pub fn mount() -> Result<Self, TmpfsError> {
        let root = match mount() {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                mount_in_user_namespace()?
            }
            mounted => mounted.map_err(|source| TmpfsError::Mount { step: STEPS[2], source })?,
        };
        let tmpfs = Self { root };
        match tmpfs.gives_huge_pages() {
            Ok(true) => Ok(tmpfs),
            Ok(false) => Err(TmpfsError::SmallPages),
            Err(source) => Err(TmpfsError::Mount { step: "cannot use a tmpfs", source }),
        }
    }

    /// The root of the mount, below which all of its files are.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// A new file of no bytes, which has no name and can get none.
    pub(super) fn file(&self) -> io::Result<OwnedFd> {
        let flags = OFlag::O_TMPFILE | OFlag::O_EXCL | OFlag::O_RDWR | OFlag::O_CLOEXEC;
        Ok(openat(&self.root, ".", flags, Mode::S_IRUSR | Mode::S_IWUSR)?)
    }

    fn gives_huge_pages(&self) -> io::Result<bool> {
        makes_huge_page(File::from(self.file()?))
    }
}

/// Mounts a tmpfs in the user namespace of this process.
fn mount() -> io::Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let options = [
        ("huge", "advise"),
        // How much the guest may have was decided before; the default is half of the host's memory.
        ("size", "0"),
        ("nr_inodes", "0"),
        ("mode", "0700"),
    ];
    for (key, value) in options {
        fsconfig_set_string(&context, key, value)?;
    }
    fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

/// Mounts a tmpfs in a user namespace in which this user is itself, and nobody else exists.
fn mount_in_user_namespace() -> Result<OwnedFd, TmpfsError> {
    let failed = |step, source| TmpfsError::Mount { step, source };
    let (ours, theirs) = UnixStream::pair().map_err(|error| failed(STEPS[0], error))?;
    let maps = [
        ("/proc/self/setgroups", "deny".to_owned()),
        ("/proc/self/uid_map", format!("{0} {0} 1", geteuid())),
        ("/proc/self/gid_map", format!("{0} {0} 1", getegid())),
    ];
    // SAFETY: the child makes system calls and allocates, which the C library allows after a fork
    // even of a process with threads; it takes no other lock, returns to nobody and runs no
    // destructor.
    match unsafe { fork() }.map_err(|error| failed(STEPS[0], error.into()))? {
        ForkResult::Child => {
            let (step, mounted) = enter_and_mount(&maps);
            let _ = match mounted {
                Ok(root) => theirs.send_with_fd(&[0_u8, 0, 0, 0, 0][..], root.as_raw_fd()),
                Err(error) => {
                    let errno = error.raw_os_error().unwrap_or(0).to_le_bytes();
                    theirs.send_with_fds::<&[u8]>(&[&[step], &errno], &[])
                }
            };
            // SAFETY: ends this process at once.
            unsafe { libc::_exit(0) }
        }
        ForkResult::Parent { child } => {
            drop(theirs);
            let mut said = [0; 5];
            let heard = ours.recv_with_fd(&mut said);
            // It has ended, or is about to.
            let _ = waitpid(child, None);
            match heard {
                Ok((5, Some(root))) => Ok(root.into()),
                Ok((5, None)) => {
                    let [step, errno @ ..] = said;
                    let step = STEPS.get(usize::from(step)).copied().unwrap_or(STEPS[3]);
                    Err(failed(step, io::Error::from_raw_os_error(i32::from_le_bytes(errno))))
                }
                _ => Err(failed(STEPS[3], io::ErrorKind::UnexpectedEof.into())),
            }
        }
    }
}

/// For the child: the descriptor of the mount, with the number of the last step that was tried.
fn enter_and_mount(maps: &[(&str, String)]) -> (u8, io::Result<OwnedFd>) {
    if let Err(error) = unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS) {
        return (0, Err(error.into()));
    }
    for (file, map) in maps {
        if let Err(error) = std::fs::write(file, map) {
            return (1, Err(error));
        }
    }
    (2, mount())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    /// Where the kernel or its settings do not let this user have one.
    fn skipped<T>(made: Result<T, TmpfsError>) -> Option<T> {
        made.inspect_err(|error| {
            let cause = std::error::Error::source(error).map(ToString::to_string);
            eprintln!("SKIPPED: {error}: {}", cause.unwrap_or_default());
        })
        .ok()
    }

    #[test]
    fn a_touch_makes_a_huge_page_whatever_the_host_gives_to_memfds() {
        let Some(tmpfs) = skipped(HugeTmpfs::mount()) else { return };
        assert!(tmpfs.gives_huge_pages().unwrap());
    }

    #[test]
    fn one_made_in_a_user_namespace_is_as_good() {
        let Some(root) = skipped(mount_in_user_namespace()) else { return };
        let tmpfs = HugeTmpfs { root };
        assert!(tmpfs.gives_huge_pages().unwrap());
        let file = File::from(tmpfs.file().unwrap());
        assert_eq!(file.metadata().unwrap().uid(), geteuid().as_raw());
    }

    #[test]
    fn its_files_have_no_name_and_can_get_none() {
        let Some(tmpfs) = skipped(HugeTmpfs::mount()) else { return };
        let file = tmpfs.file().unwrap();
        let link = nix::unistd::linkat(
            &file,
            "",
            tmpfs.root(),
            "name",
            nix::fcntl::AtFlags::AT_EMPTY_PATH,
        );
        assert!(link.is_err());
    }

    #[test]
    fn it_takes_more_than_half_of_the_hosts_memory() {
        let Some(tmpfs) = skipped(HugeTmpfs::mount()) else { return };
        let stat = nix::sys::statvfs::fstatvfs(tmpfs.file().unwrap()).unwrap();
        // No limit is shown as no blocks at all.
        assert_eq!(stat.blocks(), 0);
    }
}
