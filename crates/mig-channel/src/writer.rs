//! The half of a channel that bytes go into.
#![forbid(unsafe_code)]

use std::io::{self, IoSlice, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use migpipe_units::Bytes;
use nix::errno::Errno;
use nix::sys::socket::{Shutdown, shutdown};

use crate::error::{ChannelError, OpenError};
use crate::file_sink::FileSink;
use crate::interrupt::Interrupt;
use crate::passed_file::PassedFile;
use crate::port::{Direction, Port};

/// The half of a channel that bytes go into. Nothing is held back: what a write took is with the
/// kernel.
///
/// One write takes at most half a pipe or 1 MiB, so that limits and interrupts are seen in time;
/// [`write_all`](Write::write_all) goes on to the end. Errors carry a [`ChannelError`].
///
/// Dropping it without [`Self::close`] gives the stream up: a file is removed or emptied, and a peer
/// sees an end of file without an end of stream.
#[derive(Debug)]
pub struct ChannelWriter {
    // None once it is closed.
    port: Option<Port>,
    file: Option<Saved>,
    name: String,
}

/// A file that is a saved guest when the channel is closed.
#[derive(Debug)]
enum Saved {
    /// One that this program makes.
    Named(FileSink),
    /// One that was opened for it.
    Passed(PassedFile),
}

impl ChannelWriter {
    pub(crate) fn new(
        fd: OwnedFd,
        name: impl Into<String>,
        interrupt: &Interrupt,
    ) -> io::Result<Self> {
        let name = name.into();
        Ok(Self {
            port: Some(Port::new(fd, Direction::Write, name.clone(), interrupt)?),
            file: None,
            name,
        })
    }

    /// A writer that makes a file of this name when it is closed.
    pub(crate) fn to_file(path: &Path, interrupt: &Interrupt) -> Result<Self, OpenError> {
        let sink = FileSink::create(path)?;
        let name = format!("file {}", path.display());
        let fd = sink
            .writable()
            .map_err(|error| OpenError::system(format!("write to {name}"), error))?;
        let mut writer = Self::new(fd, name, interrupt)
            .map_err(|error| OpenError::system(format!("write to {}", path.display()), error))?;
        writer.file = Some(Saved::Named(sink));
        Ok(writer)
    }

    /// A writer to a file that the parent opened.
    pub(crate) fn to_passed_file(
        fd: OwnedFd,
        file: PassedFile,
        name: &str,
        interrupt: &Interrupt,
    ) -> io::Result<Self> {
        let mut writer = Self::new(fd, name, interrupt)?;
        writer.file = Some(Saved::Passed(file));
        Ok(writer)
    }

    /// Whether what is written is a saved guest once this is closed: a file, whole and on the disk.
    pub const fn is_file(&self) -> bool {
        self.file.is_some()
    }

    /// Makes what was written to a file durable; anything else has nothing to wait for.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn sync(&mut self) -> io::Result<()> {
        let port = self.open_port()?;
        let synced = match &self.file {
            Some(Saved::Named(file)) => file.sync(),
            Some(Saved::Passed(file)) => file.sync(),
            None => Ok(()),
        };
        synced.map_err(|error| port.failed(error))
    }

    /// What messages call this half, such as `stdout` or `tcp:hostb:4444`.
    pub fn describe(&self) -> &str {
        &self.name
    }

    /// Lets every write fail with `TimedOut` that waits longer than this before it takes a byte;
    /// `None` waits for ever, as a new channel does.
    pub fn set_stall_limit(&mut self, limit: Option<Duration>) {
        if let Some(port) = &mut self.port {
            port.limits.stall = limit;
        }
    }

    /// Lets every write fail with `TimedOut` from `after` now on; `None` takes the deadline away.
    pub fn set_deadline(&mut self, after: Option<Duration>) {
        if let Some(port) = &mut self.port {
            port.limits.deadline =
                after.and_then(|after| Some((Instant::now().checked_add(after)?, after)));
        }
    }

    /// The pipe itself where the channel is one, non-blocking, for vmsplice(2). Wait with
    /// [`Self::wait_writable`] when it answers EAGAIN.
    pub fn as_pipe_fd(&self) -> Option<BorrowedFd<'_>> {
        self.port.as_ref()?.as_pipe()
    }

    /// How many bytes were written and have not left this host: they go out before whatever is
    /// written next. What a tunnel command holds back is not among them.
    pub fn backlog(&self) -> Bytes {
        self.port.as_ref().map_or(Bytes(0), Port::backlog)
    }

    /// Waits until a write would take at least one byte, or fail at once.
    ///
    /// # Errors
    /// As a write: interrupted, or a limit passed.
    pub fn wait_writable(&self) -> io::Result<()> {
        self.open_port()?.wait_ready()
    }

    /// Ends the stream, so that filters flush and the reader sees its end: shuts a socket's
    /// sending direction, closes a pipe. A file is synced, given its name if it has none yet, and its
    /// directory synced; only then is it there. The back half stays open. Closing again does nothing.
    ///
    /// # Errors
    /// When the file could not be made durable (it is then not there), or the system refuses.
    pub fn close(&mut self) -> io::Result<()> {
        let Some(port) = self.port.take() else {
            return Ok(());
        };
        if let Some(file) = &mut self.file {
            let finished = match file {
                Saved::Named(file) => file.finish(),
                Saved::Passed(file) => file.finish(),
            };
            return finished.map_err(|error| port.failed(error));
        }
        if port.is_socket() {
            match shutdown(port.as_fd().as_raw_fd(), Shutdown::Write) {
                // The peer has gone already: that it did not read the end is told by its
                // missing answer, or by the status of its command.
                Ok(()) | Err(Errno::ENOTCONN) => {}
                Err(errno) => return Err(port.failed(errno.into())),
            }
        }
        Ok(())
    }

    /// Gives the stream up. True if it went to a file that was never whole, and is not there, or
    /// empty, any more: nobody can ever read a guest from it.
    ///
    /// # Errors
    /// When the file could not be removed or emptied.
    pub fn abandon(&mut self) -> io::Result<bool> {
        self.port = None;
        match self.file.take() {
            Some(Saved::Named(file)) => file.abandon(),
            Some(Saved::Passed(file)) => file.abandon(),
            None => Ok(false),
        }
    }

    fn open_port(&self) -> io::Result<&Port> {
        self.port.as_ref().ok_or_else(|| {
            ChannelError::Closed { doing: format!("writing to {}", self.name) }.into()
        })
    }
}

impl Write for ChannelWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.open_port()?.write(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.open_port()?.write(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
