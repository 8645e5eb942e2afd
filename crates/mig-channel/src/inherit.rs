//! Descriptors that the parent passed: stdin, stdout and `fd:N`.

use std::fs::OpenOptions;
use std::io::IsTerminal;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::libc;
use nix::sys::socket::{SockType, getsockopt, sockopt};
use nix::sys::stat::{SFlag, fstat, makedev};

use crate::error::OpenError;
use crate::port::Direction;

const STDIN: i32 = 0;
const STDOUT: i32 = 1;
const STDERR: i32 = 2;

/// The numbers of /dev/null, /dev/zero, /dev/random and /dev/urandom
/// (Documentation/admin-guide/devices.txt of Linux). What is written to any of them is gone without a
/// word, and nothing that comes from one is a stream.
///
/// A program that is started with stdin, stdout or stderr closed has /dev/null there before its
/// first line runs: the runtime opens it, so that no file lands on such a number by chance.
const NOWHERE: [u64; 4] = [makedev(1, 3), makedev(1, 5), makedev(1, 8), makedev(1, 9)];

const WRITTEN_NOWHERE: &str = "nobody would have the guest; open it, or write exec:'cat >/dev/null' \
     to throw a stream away";
const READ_FROM_NOWHERE: &str = "nothing comes from there; connect it to the other side";

/// The standard numbers that were taken: /dev/null is in their place and must not be taken for
/// a stream.
static TAKEN: [AtomicBool; 2] = [const { AtomicBool::new(false) }; 2];

/// What an inherited descriptor turned out to be.
#[derive(Debug)]
pub(crate) enum Inherited {
    /// A connected stream socket: it carries bytes both ways.
    Socket(OwnedFd),
    /// A listening socket, as systemd passes it.
    Listener(OwnedFd),
    /// A pipe, a file or a device.
    OneWay(OwnedFd),
}

/// Takes stdin for the stream. Nothing else of this program reads it afterwards: /dev/null is in
/// its place, so that no child inherits the stream and the writer learns when it is closed.
pub(crate) fn take_stdin(terminal_remedy: &'static str) -> Result<Inherited, OpenError> {
    take(STDIN, "stdin".to_owned(), Direction::Read, terminal_remedy)
}

/// Takes stdout for the stream, as [`take_stdin`] takes stdin.
pub(crate) fn take_stdout(terminal_remedy: &'static str) -> Result<Inherited, OpenError> {
    take(STDOUT, "stdout".to_owned(), Direction::Write, terminal_remedy)
}

/// Takes the descriptor that `fd:N` names.
pub(crate) fn take_fd(fd: i32, direction: Direction) -> Result<Inherited, OpenError> {
    let name = format!("descriptor {fd}");
    let remedy = "pass a pipe, a socket or a file";
    if fd == STDERR {
        return Err(OpenError::Unsuitable {
            what: name,
            reason: "it is stderr, where the messages go",
        });
    }
    take(fd, name, direction, remedy)
}

fn take(
    raw: i32,
    what: String,
    direction: Direction,
    remedy: &'static str,
) -> Result<Inherited, OpenError> {
    let unsuitable = |reason| OpenError::Unsuitable { what: what.clone(), reason };
    let system = |errno: Errno| OpenError::system(format!("use {what}"), errno);
    let borrowed = borrow(raw).ok_or(OpenError::NotPassed { fd: raw })?;
    let flags = fcntl(borrowed, FcntlArg::F_GETFL).map_err(system)?;
    let mode = OFlag::from_bits_truncate(flags) & OFlag::O_ACCMODE;
    match direction {
        Direction::Read if mode == OFlag::O_WRONLY => {
            return Err(unsuitable("it is open for writing only"));
        }
        Direction::Write if mode == OFlag::O_RDONLY => {
            return Err(unsuitable("it is open for reading only"));
        }
        _ => {}
    }
    if borrowed.is_terminal() {
        return Err(OpenError::Terminal { what, remedy });
    }
    let status = fstat(borrowed).map_err(system)?;
    let listens = match SFlag::from_bits_truncate(status.st_mode) & SFlag::S_IFMT {
        SFlag::S_IFDIR => return Err(unsuitable("it is a directory")),
        SFlag::S_IFCHR if NOWHERE.contains(&status.st_rdev) => {
            return Err(OpenError::Nowhere {
                what,
                remedy: match direction {
                    Direction::Write => WRITTEN_NOWHERE,
                    Direction::Read => READ_FROM_NOWHERE,
                },
            });
        }
        SFlag::S_IFSOCK => {
            if getsockopt(&borrowed, sockopt::SockType).map_err(system)? != SockType::Stream {
                return Err(unsuitable("it is a socket that carries no byte stream"));
            }
            Some(getsockopt(&borrowed, sockopt::AcceptConn).map_err(system)?)
        }
        _ => None,
    };
    let fd = take_number(borrowed).map_err(system)?;
    Ok(match listens {
        Some(true) => Inherited::Listener(fd),
        Some(false) => Inherited::Socket(fd),
        None => Inherited::OneWay(fd),
    })
}

/// The descriptor, if the parent passed it: what this program opened by itself is close-on-exec,
/// which no descriptor is that came through exec(2).
fn borrow<'a>(raw: i32) -> Option<BorrowedFd<'a>> {
    let number = usize::try_from(raw).ok()?;
    if TAKEN.get(number).is_some_and(|taken| taken.load(Ordering::SeqCst)) {
        return None;
    }
    // SAFETY: fcntl looks the number up in the table of this process and harms nothing where it
    // is not in use; F_GETFD below answers EBADF then and the borrow ends here.
    let fd = unsafe { BorrowedFd::borrow_raw(raw) };
    let flags = fcntl(fd, FcntlArg::F_GETFD).ok()?;
    let passed = !FdFlag::from_bits_truncate(flags).contains(FdFlag::FD_CLOEXEC);
    passed.then_some(fd)
}

/// Keeps a descriptor that the parent passed to this program: none that it starts holds it open, and
/// least of all one that outlives it. stdin, stdout and stderr stay as they are. False if the parent
/// did not pass it, or it is taken for a stream.
pub fn claim(fd: i32) -> bool {
    let Some(passed) = borrow(fd) else { return false };
    fd <= STDERR || fcntl(passed, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).is_ok()
}

/// Moves the file behind an inherited number to a close-on-exec number of our own. The standard
/// numbers get /dev/null, since whatever is opened next would land on a free one and be written
/// to by a stray print; other numbers are closed.
fn take_number(fd: BorrowedFd<'_>) -> nix::Result<OwnedFd> {
    let own = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(STDERR + 1))?;
    // SAFETY: F_DUPFD_CLOEXEC has just made this number; nobody else owns it.
    let own = unsafe { OwnedFd::from_raw_fd(own) };
    let raw = fd.as_raw_fd();
    if raw <= STDERR {
        let null = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/null")
            .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))?;
        // SAFETY: replaces the file behind a standard number, which stays open all the time, so
        // that std's handles of it stay valid.
        Errno::result(unsafe { libc::dup2(null.as_raw_fd(), raw) })?;
        if let Some(taken) = TAKEN.get(raw as usize) {
            taken.store(true, Ordering::SeqCst);
        }
    } else {
        // SAFETY: the number came through exec(2) (it was not close-on-exec), so no object of
        // this program owns it; the user gave it to us to take.
        Errno::result(unsafe { libc::close(raw) })?;
    }
    Ok(own)
}
