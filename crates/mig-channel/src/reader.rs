//! The half of a channel that bytes come out of.
#![forbid(unsafe_code)]

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use crate::interrupt::Interrupt;
use crate::port::{Direction, Port};
use crate::socket::is_connection;

/// How much one read(2) takes for a caller that wants less. Frames of a few bytes then cost no
/// system call each; runs of pages are longer and go past it.
const BUFFER_BYTES: usize = 64 << 10;

/// The half of a channel that bytes come out of.
///
/// A read of less than 64 KiB goes through a buffer, a longer one straight into the caller's
/// memory. Errors carry a [`ChannelError`](crate::ChannelError); 0 bytes say end of file.
#[derive(Debug)]
pub struct ChannelReader {
    port: Port,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl ChannelReader {
    pub(crate) fn new(
        fd: OwnedFd,
        name: impl Into<String>,
        interrupt: &Interrupt,
    ) -> io::Result<Self> {
        Ok(Self {
            port: Port::new(fd, Direction::Read, name, interrupt)?,
            buffer: vec![0; BUFFER_BYTES].into_boxed_slice(),
            start: 0,
            end: 0,
        })
    }

    /// What messages call this half, such as `stdin` or `tunnel command 'ssh hostb mig-recv'`.
    pub fn describe(&self) -> &str {
        self.port.name()
    }

    /// Lets every read fail with `TimedOut` that waits longer than this for its first byte;
    /// `None` waits for ever, as a new channel does.
    pub fn set_stall_limit(&mut self, limit: Option<Duration>) {
        self.port.limits.stall = limit;
    }

    /// Lets every read fail with `TimedOut` from `after` now on; `None` takes the deadline away.
    pub fn set_deadline(&mut self, after: Option<Duration>) {
        self.port.limits.deadline =
            after.and_then(|after| Some((Instant::now().checked_add(after)?, after)));
    }

    /// Whether somebody has connected to this program, or to the socket unit that started it, and is
    /// expected to say something at once.
    pub fn is_connection(&self) -> bool {
        self.port.is_socket() && is_connection(&self.port.as_fd())
    }

    /// Waits until a read would not wait: there are bytes, an end of file or an error.
    ///
    /// # Errors
    /// As a read: interrupted, or a limit passed.
    pub fn wait_readable(&self) -> io::Result<()> {
        if self.start < self.end {
            return Ok(());
        }
        self.port.wait_ready()
    }

    /// Reads ahead until there is a byte to take; false says end of file.
    pub(crate) fn fill(&mut self) -> io::Result<bool> {
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
            self.end = self.port.read(&mut self.buffer)?;
        }
        Ok(self.start < self.end)
    }
}

impl Read for ChannelReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.start == self.end && out.len() >= self.buffer.len() {
            return self.port.read(out);
        }
        if out.is_empty() || !self.fill()? {
            return Ok(0);
        }
        let count = out.len().min(self.end - self.start);
        out[..count].copy_from_slice(&self.buffer[self.start..][..count]);
        self.start += count;
        Ok(count)
    }
}
