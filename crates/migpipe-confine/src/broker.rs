//! A child that keeps the rights which its parent gives up, and does a few fixed things for it.
//!
//! It is the same program, started again before the parent confines itself, and is asked over a
//! socket pair: one JSON value to a line, [`LONGEST`] bytes at most. What it may be asked is an
//! enum of the program's own, and its parameters are things that cannot be turned against the host:
//! a checked name, an id. So whoever takes the parent over gets no more than those few things.
//!
//! It ends when its parent does. A parent waits for each answer as long as it said at the start, and
//! asks no more after one that did not come.
#![forbid(unsafe_code)]

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// A broker that nobody asks any more ends within this time, unless it is stopped.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// How often its end is looked for.
const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// A request or an answer is no longer (bytes).
pub const LONGEST: u64 = 64 << 10;

/// Why a broker did not do what it was asked for.
#[derive(Debug, Error)]
pub enum BrokerError {
    /// It cannot be started.
    #[error("cannot start a helper process")]
    Start(#[source] io::Error),
    /// It is gone, or says nothing that makes sense.
    #[error("lost the helper process")]
    Lost(#[source] io::Error),
    /// It has not answered in time.
    #[error("the helper process does not answer")]
    Silent,
}

/// A running broker. Dropping it ends it.
#[derive(Debug)]
pub struct Broker {
    stream: BufReader<UnixStream>,
    child: Child,
}

/// This very program, to be started again.
pub fn this_program() -> Command {
    // The file itself, even if another one has its name by now (an upgrade).
    let program = std::env::current_exe().ok().filter(|path| path.exists());
    Command::new(program.unwrap_or_else(|| PathBuf::from("/proc/self/exe")))
}

impl Broker {
    /// Starts `command`, which serves at its stdin ([`serve`]) and answers within `timeout`.
    ///
    /// # Errors
    /// [`BrokerError::Start`].
    pub fn start(mut command: Command, timeout: Duration) -> Result<Self, BrokerError> {
        let (ours, theirs) = UnixStream::pair().map_err(BrokerError::Start)?;
        let limited = ours.set_read_timeout(Some(timeout));
        limited.and_then(|()| ours.set_write_timeout(Some(timeout))).map_err(BrokerError::Start)?;
        command.stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)));
        let child = command.spawn().map_err(BrokerError::Start)?;
        Ok(Self { stream: BufReader::new(ours), child })
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// [`BrokerError::Lost`], [`BrokerError::Silent`].
    pub fn ask<A: DeserializeOwned>(&mut self, request: &impl Serialize) -> Result<A, BrokerError> {
        self.send(request)?;
        self.answer()
    }

    /// Asks; [`Self::answer`] has the answer.
    ///
    /// # Errors
    /// [`BrokerError::Lost`].
    pub fn send(&mut self, request: &impl Serialize) -> Result<(), BrokerError> {
        write_line(self.stream.get_mut(), request).map_err(|error| self.lost(error))
    }

    /// Waits for the answer to what was sent.
    ///
    /// # Errors
    /// [`BrokerError::Lost`], [`BrokerError::Silent`].
    pub fn answer<A: DeserializeOwned>(&mut self) -> Result<A, BrokerError> {
        read_line(&mut self.stream)
            .and_then(|line| line.ok_or_else(|| io::ErrorKind::UnexpectedEof.into()))
            .map_err(|error| self.lost(error))
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    fn lost(&mut self, error: io::Error) -> BrokerError {
        // A late answer must not be taken for that to the next request.
        let _ = self.stream.get_mut().shutdown(Shutdown::Both);
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => BrokerError::Silent,
            _ => BrokerError::Lost(error),
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.stream.get_mut().shutdown(Shutdown::Both);
        let began = Instant::now();
        // One that is stopped ends when it goes on: nobody waits for that.
        while let Ok(None) = self.child.try_wait()
            && began.elapsed() < END_TIMEOUT
        {
            thread::sleep(POLL_INTERVAL);
        }
    }
}

/// The broker's end: answers what comes at stdin until the parent is gone.
///
/// # Errors
/// When stdin fails, or brings what is no request.
pub fn serve<Q: DeserializeOwned, A: Serialize>(mut answer: impl FnMut(Q) -> A) -> io::Result<()> {
    let stream = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut requests = BufReader::new(stream.try_clone()?);
    let mut answers = stream;
    while let Some(request) = read_line(&mut requests)? {
        if write_line(&mut answers, &answer(request)).is_err() {
            // Nobody waits for it any more.
            break;
        }
    }
    Ok(())
}

fn write_line(stream: &mut UnixStream, value: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    if line.len() as u64 > LONGEST {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    stream.write_all(&line)
}

fn read_line<T: DeserializeOwned>(stream: &mut BufReader<UnixStream>) -> io::Result<Option<T>> {
    let mut line = Vec::new();
    if stream.take(LONGEST).read_until(b'\n', &mut line)? == 0 {
        return Ok(None);
    }
    if line.last() != Some(&b'\n') {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some(serde_json::from_slice(&line)?))
}
