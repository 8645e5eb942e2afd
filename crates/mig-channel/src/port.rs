//! One direction of one open file: how to move bytes through it without ever waiting where an
//! interrupt or a deadline could not reach.
#![forbid(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::time::{Duration, Instant};

use migpipe_units::Bytes;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::poll::PollFlags;
use nix::sys::socket::{MsgFlags, recv, sendmsg};
use nix::sys::uio::writev;
use nix::unistd::read;

use crate::backlog;
use crate::error::ChannelError;
use crate::interrupt::{Interrupt, Waited};

/// What a pipe is asked to hold: a pipe of 64 KiB carries 0.9 GB/s where one of 1 MiB carries
/// 2.2 (measured, one writer and one reader on two cores).
const PIPE_BYTES: usize = 1 << 20;

/// How much goes into one write where the kernel sets no better measure; an interrupt is seen
/// between two of them even where writes block.
const MAX_WRITE: usize = 1 << 20;

/// What fits into any pipe that poll(2) calls writable (POSIX PIPE_BUF on Linux).
const PIPE_BUF: usize = 4096;

/// The kernel takes no more slices than this in one call (IOV_MAX on Linux).
const MAX_SLICES: usize = 1024;

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Read,
    Write,
}

impl Direction {
    fn events(self) -> PollFlags {
        match self {
            Self::Read => PollFlags::POLLIN,
            Self::Write => PollFlags::POLLOUT,
        }
    }

    fn peer(self) -> &'static str {
        match self {
            Self::Read => "writer",
            Self::Write => "reader",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Asked not to wait call by call (MSG_DONTWAIT): its flags may be shared.
    Socket,
    /// A pipe through a description of our own, which is non-blocking.
    OwnPipe,
    /// A pipe that could not be reopened: poll(2) first, and never write more than surely fits.
    SharedPipe,
    /// A file or a device: blocks as long as the device takes.
    Blocking,
}

/// How long an operation may take.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Limits {
    /// Longest time in which nothing moves.
    pub stall: Option<Duration>,
    /// An instant, and the duration that was asked for.
    pub deadline: Option<(Instant, Duration)>,
}

/// One direction of one open file.
#[derive(Debug)]
pub(crate) struct Port {
    fd: OwnedFd,
    kind: Kind,
    direction: Direction,
    piece: usize,
    name: String,
    interrupt: Interrupt,
    pub limits: Limits,
}

impl Port {
    /// Takes `fd` for one direction; `name` is what messages call it. A pipe is enlarged and
    /// reopened, since the flags of the description that came with it belong to others too.
    pub fn new(
        fd: OwnedFd,
        direction: Direction,
        name: impl Into<String>,
        interrupt: &Interrupt,
    ) -> io::Result<Self> {
        let file = File::from(fd);
        let file_type = file.metadata()?.file_type();
        let fd = OwnedFd::from(file);
        let (fd, kind, piece) = if file_type.is_socket() {
            (fd, Kind::Socket, MAX_WRITE)
        } else if file_type.is_fifo() {
            let piece = enlarge_pipe(&fd) / 2;
            match reopen_pipe(&fd) {
                Some(own) => (own, Kind::OwnPipe, piece.max(PIPE_BUF)),
                None => (fd, Kind::SharedPipe, PIPE_BUF),
            }
        } else {
            (fd, Kind::Blocking, MAX_WRITE)
        };
        Ok(Self {
            fd,
            kind,
            direction,
            piece,
            name: name.into(),
            interrupt: interrupt.clone(),
            limits: Limits::default(),
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn is_socket(&self) -> bool {
        self.kind == Kind::Socket
    }

    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The pipe, for splice(2) and vmsplice(2).
    pub fn as_pipe(&self) -> Option<BorrowedFd<'_>> {
        matches!(self.kind, Kind::OwnPipe | Kind::SharedPipe).then(|| self.fd.as_fd())
    }

    /// Reads at least one byte; 0 says end of file.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        match self.kind {
            Kind::Socket => self.run(|| recv(self.fd.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT)),
            _ => self.run(|| read(&self.fd, buffer)),
        }
    }

    /// What was written and has not left this host.
    pub fn backlog(&self) -> Bytes {
        match self.kind {
            Kind::Socket => backlog::of_socket(self.as_fd()),
            Kind::OwnPipe | Kind::SharedPipe => backlog::of_pipe(self.as_fd()),
            Kind::Blocking => Bytes(0),
        }
    }

    /// Writes at least one byte of `slices`, and no more than a piece.
    pub fn write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        // An empty sendmsg would be fine, an endless retry of it by the caller would not.
        let Some(first) = slices.iter().position(|slice| !slice.is_empty()) else {
            return Ok(0);
        };
        let slices = &slices[first..];
        let mut whole = 0;
        let mut room = self.piece;
        while whole < slices.len().min(MAX_SLICES) && slices[whole].len() <= room {
            room -= slices[whole].len();
            whole += 1;
        }
        if whole == 0 {
            return self.write_slices(&[IoSlice::new(&slices[0][..self.piece])]);
        }
        if whole == slices.len() || whole == MAX_SLICES || room == 0 {
            return self.write_slices(&slices[..whole]);
        }
        // A header and the start of its payload: cut where the piece ends.
        let mut cut: Vec<IoSlice<'_>> = Vec::with_capacity(whole + 1);
        cut.extend_from_slice(&slices[..whole]);
        cut.push(IoSlice::new(&slices[whole][..room]));
        self.write_slices(&cut[..cut.len().min(MAX_SLICES)])
    }

    fn write_slices(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        match self.kind {
            Kind::Socket => {
                self.run(|| sendmsg::<()>(self.fd.as_raw_fd(), slices, &[], flags, None))
            }
            _ => self.run(|| writev(&self.fd, slices)),
        }
    }

    /// Waits until the file takes or has bytes, or is broken.
    pub fn wait_ready(&self) -> io::Result<()> {
        self.check()?;
        if self.kind == Kind::Blocking {
            return Ok(());
        }
        self.wait(Instant::now())
    }

    fn run(&self, mut attempt: impl FnMut() -> nix::Result<usize>) -> io::Result<usize> {
        self.check()?;
        let mut started = None;
        if self.kind == Kind::SharedPipe {
            self.wait(*started.insert(Instant::now()))?;
        }
        loop {
            match attempt() {
                Ok(moved) => return Ok(moved),
                Err(Errno::EINTR) => self.check()?,
                Err(Errno::EAGAIN) => {
                    self.wait(*started.get_or_insert_with(Instant::now))?;
                }
                Err(Errno::EPIPE | Errno::ECONNRESET) => {
                    return Err(ChannelError::PeerClosed {
                        doing: self.doing(),
                        peer: self.direction.peer(),
                    }
                    .into());
                }
                Err(errno) => return Err(self.failed(errno.into())),
            }
        }
    }

    /// Ends an operation that must not begin.
    fn check(&self) -> io::Result<()> {
        if self.interrupt.is_triggered() {
            return Err(self.interrupted());
        }
        match self.limits.deadline {
            Some((at, after)) if Instant::now() >= at => Err(self.timed_out(after)),
            _ => Ok(()),
        }
    }

    /// Waits within what is left of the limits of an operation that began at `started`.
    fn wait(&self, started: Instant) -> io::Result<()> {
        let now = Instant::now();
        let stall = self.limits.stall.map(|after| (after.saturating_sub(now - started), after));
        let deadline =
            self.limits.deadline.map(|(at, after)| (at.saturating_duration_since(now), after));
        let limit = stall.into_iter().chain(deadline).min();
        let data = Some((self.fd.as_fd(), self.direction.events()));
        match self
            .interrupt
            .wait(data, limit.map(|(left, _)| left))
            .map_err(|error| self.failed(error))?
        {
            Waited::Ready => Ok(()),
            Waited::Interrupted => Err(self.interrupted()),
            Waited::TimedOut => {
                Err(self.timed_out(limit.map_or(Duration::ZERO, |(_, after)| after)))
            }
        }
    }

    pub fn doing(&self) -> String {
        match self.direction {
            Direction::Read => format!("reading from {}", self.name),
            Direction::Write => format!("writing to {}", self.name),
        }
    }

    pub fn failed(&self, source: io::Error) -> io::Error {
        ChannelError::Failed { doing: self.doing(), source }.into()
    }

    fn interrupted(&self) -> io::Error {
        ChannelError::Interrupted { doing: self.doing() }.into()
    }

    fn timed_out(&self, after: Duration) -> io::Error {
        ChannelError::TimedOut { after, doing: self.doing() }.into()
    }
}

/// Makes a pipe as large as the host allows, up to [`PIPE_BYTES`], and says how large it is. The
/// host may refuse (/proc/sys/fs/pipe-max-size, pipe-user-pages-soft); a smaller pipe is slower
/// and otherwise as good.
fn enlarge_pipe(fd: &OwnedFd) -> usize {
    let current =
        || fcntl(fd, FcntlArg::F_GETPIPE_SZ).map_or(PIPE_BUF, |size| size.max(0) as usize);
    let mut wanted = PIPE_BYTES;
    while wanted > current() {
        if fcntl(fd, FcntlArg::F_SETPIPE_SZ(wanted as libc::c_int)).is_ok() {
            break;
        }
        wanted /= 2;
    }
    current()
}

/// The same pipe through a description of our own, non-blocking. None where /proc is missing,
/// where the pipe belongs to another user, or where its readers have gone (ENXIO).
fn reopen_pipe(fd: &OwnedFd) -> Option<OwnedFd> {
    let access = OFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GETFL).ok()?) & OFlag::O_ACCMODE;
    OpenOptions::new()
        // A pipe that is open both ways has itself as its peer and must keep it: reopened one
        // way it would see an end of file too early.
        .read(access != OFlag::O_WRONLY)
        .write(access != OFlag::O_RDONLY)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(format!("/proc/self/fd/{}", fd.as_raw_fd()))
        .ok()
        .map(OwnedFd::from)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// Both ends of a pipe as they are where /proc is missing.
    fn shared_pipe(interrupt: &Interrupt) -> (Port, Port) {
        let (reader, writer) = io::pipe().unwrap();
        let port = |fd: OwnedFd, direction| Port {
            fd,
            kind: Kind::SharedPipe,
            direction,
            piece: PIPE_BUF,
            name: "pipe".to_owned(),
            interrupt: interrupt.clone(),
            limits: Limits::default(),
        };
        (port(reader.into(), Direction::Read), port(writer.into(), Direction::Write))
    }

    #[test]
    fn a_pipe_that_cannot_be_reopened_still_obeys_its_limits() {
        let interrupt = Interrupt::new().unwrap();
        let (mut reader, mut writer) = shared_pipe(&interrupt);
        let limit = Duration::from_millis(30);
        reader.limits.stall = Some(limit);
        writer.limits.stall = Some(limit);
        let empty = reader.read(&mut [0; 8]).unwrap_err();
        assert_eq!(empty.kind(), io::ErrorKind::TimedOut);
        let page = [7; 10_000];
        let full = loop {
            match writer.write(&[IoSlice::new(&page)]) {
                Ok(written) => assert_eq!(written, PIPE_BUF),
                Err(error) => break error,
            }
        };
        assert_eq!(full.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn a_pipe_that_cannot_be_reopened_can_be_interrupted() {
        let interrupt = Interrupt::new().unwrap();
        let (reader, _writer) = shared_pipe(&interrupt);
        let (error, took) = thread::scope(|scope| {
            let reading = scope.spawn(|| (reader.read(&mut [0; 8]).unwrap_err(), Instant::now()));
            thread::sleep(Duration::from_millis(100));
            let triggered = Instant::now();
            interrupt.trigger();
            let (error, ended) = reading.join().unwrap();
            (error, ended - triggered)
        });
        assert!(ChannelError::is_interrupted(&error));
        assert!(took < Duration::from_millis(100));
    }

    #[test]
    fn no_bytes_are_no_write_and_no_end_of_file() {
        let interrupt = Interrupt::new().unwrap();
        let (reader, writer) = shared_pipe(&interrupt);
        assert_eq!(writer.write(&[IoSlice::new(&[])]).unwrap(), 0);
        assert_eq!(reader.read(&mut []).unwrap(), 0);
    }
}
