//! Connections of our own.
#![forbid(unsafe_code)]

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrLike, SockaddrStorage, UnixAddr, connect,
    getsockname, getsockopt, setsockopt, socket, sockopt,
};

use crate::error::{ChannelError, OpenError};
use crate::interrupt::{Interrupt, Waited};

/// The send buffer of a Unix socket (bytes): with the default one it carries 0.08 GB/s, with
/// 1 MiB 6-7 (measured).
const UNIX_BUFFER: usize = 1 << 20;

/// How long one address is tried: longer than a lost SYN takes to be sent five times (1+2+4+8 s).
const CONNECT_TIMEOUT: Duration = Duration::from_secs(16);

/// How soon a Unix listener with a full backlog is tried again; poll(2) cannot wait for one.
const BACKLOG_RETRY_INTERVAL: Duration = Duration::from_millis(10);

/// Enlarges the send buffer of a Unix socket as far as the host lets us
/// (/proc/sys/net/core/wmem_max, which root may pass). A smaller one is slower and as good.
pub(crate) fn enlarge_unix(fd: &impl AsFd) {
    if setsockopt(fd, sockopt::SndBufForce, &UNIX_BUFFER).is_err() {
        let _ = setsockopt(fd, sockopt::SndBuf, &UNIX_BUFFER);
    }
}

/// Sets up a connected socket. The buffers of TCP are left alone: the kernel sizes them to the
/// path by itself, and a size of ours would stop that.
pub(crate) fn tune(fd: &impl AsFd) {
    let address = getsockname::<SockaddrStorage>(fd.as_fd().as_raw_fd());
    match address.ok().and_then(|address| address.family()) {
        Some(AddressFamily::Unix) => enlarge_unix(fd),
        // The last bytes of a record must not wait for an acknowledgement: the blackout would.
        Some(AddressFamily::Inet | AddressFamily::Inet6) => {
            let _ = setsockopt(fd, sockopt::TcpNoDelay, &true);
            let _ = setsockopt(fd, sockopt::KeepAlive, &true);
        }
        _ => {}
    }
}

/// Whether this is a socket to which somebody has connected: such a one has an address, and one of
/// a pair has none.
pub(crate) fn is_connection(fd: &impl AsFd) -> bool {
    let Ok(address) = getsockname::<SockaddrStorage>(fd.as_fd().as_raw_fd()) else { return false };
    match address.family() {
        Some(AddressFamily::Unix) => address
            .as_unix_addr()
            .is_some_and(|unix| unix.path().is_some() || unix.as_abstract().is_some()),
        Some(AddressFamily::Inet | AddressFamily::Inet6) => true,
        _ => false,
    }
}

/// The addresses of a host, in the order in which the resolver prefers them.
pub(crate) fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, OpenError> {
    let failed = |source| OpenError::Resolve { host: host.to_owned(), source };
    let addresses: Vec<_> = (host, port).to_socket_addrs().map_err(failed)?.collect();
    if addresses.is_empty() {
        return Err(failed(io::ErrorKind::NotFound.into()));
    }
    Ok(addresses)
}

/// An internet address as the system calls take it, with its family.
pub(crate) fn internet(address: SocketAddr) -> (AddressFamily, SockaddrStorage) {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    (family, SockaddrStorage::from(address))
}

/// Connects to the first address of `host` that answers.
pub(crate) fn connect_tcp(
    host: &str,
    port: u16,
    name: &str,
    interrupt: &Interrupt,
) -> Result<OwnedFd, OpenError> {
    let mut last = None;
    for address in resolve(host, port)? {
        let (family, address) = internet(address);
        match connect_one(family, &address, name, interrupt) {
            Ok(fd) => return Ok(fd),
            Err(error @ OpenError::Wait(ChannelError::Interrupted { .. })) => return Err(error),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or(OpenError::Resolve {
        host: host.to_owned(),
        source: io::ErrorKind::NotFound.into(),
    }))
}

/// Connects to the socket at `path`.
pub(crate) fn connect_unix(
    path: &Path,
    name: &str,
    interrupt: &Interrupt,
) -> Result<OwnedFd, OpenError> {
    let address = UnixAddr::new(path)
        .map_err(|errno| OpenError::system(format!("connect to {name}"), errno))?;
    connect_one(AddressFamily::Unix, &address, name, interrupt)
}

fn connect_one(
    family: AddressFamily,
    address: &dyn SockaddrLike,
    name: &str,
    interrupt: &Interrupt,
) -> Result<OwnedFd, OpenError> {
    let doing = || format!("connecting to {name}");
    let failed = |errno: Errno| OpenError::system(format!("connect to {name}"), errno);
    // The socket is ours alone, so it may be non-blocking for good.
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(family, SockType::Stream, flags, None).map_err(failed)?;
    let until = Instant::now() + CONNECT_TIMEOUT;
    let wait = |ready, limit| {
        interrupt
            .wait(ready, Some(limit))
            .map_err(|error| OpenError::system(format!("connect to {name}"), error))
    };
    let interrupted = || Err(OpenError::Wait(ChannelError::Interrupted { doing: doing() }));
    let timed_out =
        || Err(OpenError::Wait(ChannelError::TimedOut { after: CONNECT_TIMEOUT, doing: doing() }));
    loop {
        let left = until.saturating_duration_since(Instant::now());
        match connect(fd.as_raw_fd(), address) {
            Ok(()) => break,
            Err(Errno::EINPROGRESS | Errno::EINTR) => {
                match wait(Some((fd.as_fd(), PollFlags::POLLOUT)), left)? {
                    Waited::Ready => {}
                    Waited::Interrupted => return interrupted(),
                    Waited::TimedOut => return timed_out(),
                }
                match getsockopt(&fd, sockopt::SocketError).map_err(failed)? {
                    0 => break,
                    error => return Err(failed(Errno::from_raw(error))),
                }
            }
            Err(Errno::EAGAIN) if !left.is_zero() => {
                if wait(None, BACKLOG_RETRY_INTERVAL)? == Waited::Interrupted {
                    return interrupted();
                }
            }
            Err(Errno::EAGAIN) => return timed_out(),
            Err(errno) => return Err(failed(errno)),
        }
    }
    tune(&fd);
    Ok(fd)
}
