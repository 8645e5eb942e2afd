//! A control connection that goes from one process to another: mig-recv makes it, and the vmrun that a
//! service manager starts for an arriving guest gets it by SCM_RIGHTS.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::frame::{self, FrameError};

/// Passes `connection` to the process at the other end of `to`.
///
/// # Errors
/// If it is gone.
pub fn pass_connection(to: &UnixStream, connection: &impl AsFd) -> io::Result<()> {
    frame::send(to, &(), &[connection.as_fd()]).map_err(into_io)
}

/// Takes what [`pass_connection`] has sent, which is there within this time.
///
/// # Errors
/// If nothing is, or something else.
pub fn take_connection(from: &UnixStream, within: Duration) -> io::Result<OwnedFd> {
    from.set_read_timeout(Some(within))?;
    let ((), mut fds) = frame::receive(from).map_err(into_io)?;
    match (fds.pop(), fds.is_empty()) {
        (Some(connection), true) => Ok(connection),
        _ => Err(ErrorKind::InvalidData.into()),
    }
}

fn into_io(error: FrameError) -> io::Error {
    match error {
        FrameError::Io(error) => error,
        other => io::Error::other(other),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    const HANG_TIMEOUT: Duration = Duration::from_secs(600);

    #[test]
    fn a_connection_goes_to_another_process() {
        let (here, there) = UnixStream::pair().unwrap();
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        pass_connection(&here, &theirs).unwrap();
        drop(theirs);
        let mut taken = UnixStream::from(take_connection(&there, HANG_TIMEOUT).unwrap());
        taken.write_all(b"x").unwrap();
        drop(taken);
        let mut got = Vec::new();
        ours.read_to_end(&mut got).unwrap();
        assert_eq!(got, b"x");
    }

    #[test]
    fn without_a_connection_there_is_none() {
        let (here, there) = UnixStream::pair().unwrap();
        frame::send(&here, &(), &[]).unwrap();
        let error = take_connection(&there, HANG_TIMEOUT).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData);
        drop(here);
        take_connection(&there, HANG_TIMEOUT).unwrap_err();
    }
}
