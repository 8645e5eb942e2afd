//! What was written and is still on this host: it goes out ahead of everything that is written
//! from now on.

use std::os::fd::{AsRawFd, BorrowedFd};

use migpipe_units::Bytes;
use nix::libc;

/// Bytes that a pipe holds (pipe(7), FIONREAD); 0 where the kernel does not say.
pub(crate) fn of_pipe(fd: BorrowedFd<'_>) -> Bytes {
    count(fd, libc::FIONREAD)
}

/// Bytes that a socket has not delivered yet: to the reader of a Unix socket, or to the peer of a
/// TCP connection (unix(7), tcp(7), SIOCOUTQ). For a Unix socket the kernel counts its own
/// overhead too, so this is never too little.
pub(crate) fn of_socket(fd: BorrowedFd<'_>) -> Bytes {
    count(fd, libc::TIOCOUTQ)
}

fn count(fd: BorrowedFd<'_>, request: libc::c_ulong) -> Bytes {
    let mut bytes: libc::c_int = 0;
    // SAFETY: both requests write one int, and `bytes` is one that lives until the call returns.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request, &raw mut bytes) };
    match result {
        0 => Bytes(u64::try_from(bytes).unwrap_or(0)),
        _ => Bytes(0),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn what_nobody_has_read_is_counted() {
        let (mut reader, mut writer) = std::io::pipe().unwrap();
        writer.write_all(&[0; 5000]).unwrap();
        assert_eq!(of_pipe(writer.as_fd()), Bytes(5000));
        reader.read_exact(&mut [0; 3000]).unwrap();
        assert_eq!(of_pipe(writer.as_fd()), Bytes(2000));

        let (mut theirs, mut ours) = UnixStream::pair().unwrap();
        assert_eq!(of_socket(ours.as_fd()), Bytes(0));
        ours.write_all(&[0; 5000]).unwrap();
        assert!(of_socket(ours.as_fd()) >= Bytes(5000));
        theirs.read_exact(&mut [0; 5000]).unwrap();
        assert_eq!(of_socket(ours.as_fd()), Bytes(0));
    }
}
