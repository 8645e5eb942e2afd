//! Waits for the one peer that brings a stream.
#![forbid(unsafe_code)]

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, SockaddrStorage, UnixAddr, accept4, bind,
    getsockname, listen, recv, setsockopt, socket, sockopt,
};
use nix::sys::stat::{Mode, fchmod};
use unix_socket::SocketFile;

use crate::error::{ChannelError, OpenError};
use crate::interrupt::{Interrupt, Waited};
use crate::socket::{internet, resolve, tune};

/// How long a peer that says nothing keeps others waiting.
const SILENT_TIMEOUT: Duration = Duration::from_secs(10);

/// One peer is taken; a few more may knock meanwhile, such as a port scan.
const BACKLOG: i32 = 4;

/// A listening socket.
#[derive(Debug)]
pub(crate) struct Listener {
    fd: OwnedFd,
    name: String,
    // Kept for its Drop.
    _path: Option<SocketFile>,
}

impl Listener {
    /// Listens on the first address of `host` that this machine has.
    pub fn tcp(host: &str, port: u16) -> Result<Self, OpenError> {
        let mut last = None;
        for address in resolve(host, port)? {
            match bind_tcp(address) {
                Ok(fd) => {
                    let name = match getsockname::<SockaddrStorage>(fd.as_raw_fd()) {
                        Ok(bound) => format!("tcp:{bound}"),
                        Err(_) => format!("tcp:{address}"),
                    };
                    return Ok(Self { fd, name, _path: None });
                }
                Err(errno) => last = Some((address, errno)),
            }
        }
        Err(match last {
            Some((address, errno)) => OpenError::system(format!("listen on tcp:{address}"), errno),
            None => {
                OpenError::Resolve { host: host.to_owned(), source: io::ErrorKind::NotFound.into() }
            }
        })
    }

    /// Listens at `path`, for this user only, and removes the socket when it is dropped.
    pub fn unix(path: &Path) -> Result<Self, OpenError> {
        let name = format!("unix:{}", path.display());
        let failed = |errno: Errno| OpenError::system(format!("listen on {name}"), errno);
        unix_socket::make_room(path)?;
        let address = UnixAddr::new(path).map_err(failed)?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None).map_err(failed)?;
        // On Linux the socket file gets the mode of the socket, so that there is no instant at
        // which others could connect.
        fchmod(&fd, Mode::S_IRUSR | Mode::S_IWUSR).map_err(failed)?;
        bind(fd.as_raw_fd(), &address).map_err(failed)?;
        let path = Some(SocketFile::new(path));
        Backlog::new(BACKLOG).and_then(|backlog| listen(&fd, backlog)).map_err(failed)?;
        Ok(Self { fd, name, _path: path })
    }

    /// A socket that the parent (systemd) listens on.
    pub fn inherited(fd: OwnedFd, name: String) -> Self {
        Self { fd, name, _path: None }
    }

    /// Where it listens, with the port that was really taken.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Takes the first peer that sends something. One that goes away without a byte (a port
    /// scan, a look whether this socket is alive) is not the one we wait for.
    pub fn accept(
        &self,
        limit: Option<Duration>,
        interrupt: &Interrupt,
    ) -> Result<OwnedFd, OpenError> {
        let until = limit.and_then(|limit| Instant::now().checked_add(limit));
        let left = || until.map(|until| until.saturating_duration_since(Instant::now()));
        let failed =
            |error: io::Error| OpenError::system(format!("accept a peer on {}", self.name), error);
        let doing = || format!("waiting for a peer on {}", self.name);
        let ended = |waited| {
            Err(OpenError::Wait(match waited {
                Waited::Interrupted => ChannelError::Interrupted { doing: doing() },
                _ => ChannelError::TimedOut { after: limit.unwrap_or_default(), doing: doing() },
            }))
        };
        loop {
            let knock = (self.fd.as_fd(), PollFlags::POLLIN);
            match interrupt.wait(Some(knock), left()).map_err(failed)? {
                Waited::Ready => {}
                waited => return ended(waited),
            }
            // An inherited listener is shared, so it may block here if a peer leaves between the
            // poll and the accept; its flags are not ours to change.
            let peer = match accept4(&self.fd, SockFlag::SOCK_CLOEXEC) {
                Ok(peer) => peer,
                Err(Errno::EAGAIN | Errno::EINTR | Errno::ECONNABORTED | Errno::EPROTO) => continue,
                Err(errno) => return Err(failed(errno.into())),
            };
            loop {
                let silent = left().map_or(SILENT_TIMEOUT, |left| left.min(SILENT_TIMEOUT));
                let first_byte = (peer.as_fd(), PollFlags::POLLIN);
                match interrupt.wait(Some(first_byte), Some(silent)).map_err(failed)? {
                    Waited::Ready if sends(&peer) => {
                        tune(&peer);
                        return Ok(peer);
                    }
                    Waited::Ready => break,
                    Waited::Interrupted => return ended(Waited::Interrupted),
                    Waited::TimedOut if left().is_some_and(|left| left.is_zero()) => {
                        return ended(Waited::TimedOut);
                    }
                    Waited::TimedOut => {}
                }
                let next = interrupt.wait(Some(knock), Some(Duration::ZERO)).map_err(failed)?;
                if next == Waited::Ready {
                    break;
                }
            }
        }
    }
}

/// Whether a peer that poll(2) calls readable has sent a byte, rather than gone.
fn sends(peer: &OwnedFd) -> bool {
    let look = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    matches!(recv(peer.as_raw_fd(), &mut [0], look), Ok(1))
}

fn bind_tcp(address: SocketAddr) -> nix::Result<OwnedFd> {
    let (family, address) = internet(address);
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(family, SockType::Stream, flags, None)?;
    // The next migration may come while connections of the last one are in TIME_WAIT.
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    bind(fd.as_raw_fd(), &address)?;
    listen(&fd, Backlog::new(BACKLOG)?)?;
    Ok(fd)
}
