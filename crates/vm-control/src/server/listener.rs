//! The socket itself: who may have it, and who may connect.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use std::{fs, thread};

use nix::sys::socket::{getsockopt, sockopt};
use thiserror::Error;
use tracing::warn;
use unix_socket::{SocketFile, Taken};
use vm_paths::PathError;

use super::connection::{self, Connections};
use super::peer::ConnectionId;
use super::service::Service;
use crate::frame;
use crate::message::Reply;
use crate::refusal::Refusal;

/// More connections at once are turned away.
pub(super) const MAX_CONNECTIONS: usize = 64;

/// Of connections that have just been closed the places are free within this time.
const SLOT_TIMEOUT: Duration = Duration::from_millis(100);

/// Why the socket cannot be served.
#[derive(Debug, Error)]
pub enum ServerError {
    /// Another vmrun answers there.
    #[error("a guest is already at {0}: choose another --name, or end that one")]
    InUse(PathBuf),
    /// Something else is there.
    #[error("cannot make the control socket; choose another --socket")]
    Taken(#[from] Taken),
    /// The socket cannot be made.
    #[error("cannot listen on {path}")]
    Listen {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its directory cannot be made.
    #[error(transparent)]
    Place(#[from] PathError),
}

/// A socket that is bound and listens. It is removed when this is dropped.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    file: SocketFile,
    connections: Arc<Connections>,
}

impl Server {
    /// Binds `path`, for its user alone; a socket of this user that nobody listens on any more is
    /// replaced.
    ///
    /// # Errors
    /// [`ServerError::InUse`] if a vmrun answers there, [`ServerError::Taken`] if it is anything else
    /// that is not to be replaced.
    pub fn bind(path: &Path) -> Result<Self, ServerError> {
        if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
            vm_paths::ensure_dir(dir)?;
        }
        let failed = |source| ServerError::Listen { path: path.to_owned(), source };
        unix_socket::make_room(path).map_err(|taken| match taken {
            Taken::InUse(path) => ServerError::InUse(path),
            taken => taken.into(),
        })?;
        let listener = UnixListener::bind(path).map_err(failed)?;
        let server = Self { listener, file: SocketFile::new(path), connections: Arc::default() };
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
        Ok(server)
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Serves connections in threads of its own until the process ends. The socket stays until
    /// `self` is dropped.
    ///
    /// # Errors
    /// [`ServerError::Listen`] if the thread cannot be started.
    pub fn serve(&self, service: Arc<dyn Service>) -> Result<(), ServerError> {
        let failed = |source| ServerError::Listen { path: self.path().to_owned(), source };
        let listener = self.listener.try_clone().map_err(failed)?;
        let connections = Arc::clone(&self.connections);
        thread::Builder::new()
            .name("control".into())
            .spawn(move || accept(&listener, &service, &connections))
            .map_err(failed)?;
        Ok(())
    }

    /// Serves one connection that is there already.
    ///
    /// # Errors
    /// [`ServerError::Listen`] if the thread cannot be started.
    pub fn serve_connection(
        &self,
        stream: UnixStream,
        service: Arc<dyn Service>,
    ) -> Result<ConnectionId, ServerError> {
        connection::spawn(stream, service, &self.connections)
            .map_err(|source| ServerError::Listen { path: self.path().to_owned(), source })
    }

    /// Waits until the requests that have come are answered, but no longer than `within`.
    pub fn drain(&self, within: Duration) {
        self.connections.drain(within);
    }

    /// Removes the socket, and then ends all connections: whoever waits for the end of a connection
    /// finds the name free.
    pub fn close(self) {
        let Self { listener, file, connections } = self;
        drop((listener, file));
        connections.close();
    }
}

fn accept(listener: &UnixListener, service: &Arc<dyn Service>, connections: &Arc<Connections>) {
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, say: there will be some when a connection ends.
                warn!("cannot accept a connection: {error}");
                thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        if let Err(refusal) = admit(&stream, connections) {
            let _ = stream.set_write_timeout(Some(Duration::from_millis(100)));
            let _ = frame::send(&stream, &Reply::Refused(refusal), &[]);
            continue;
        }
        if let Err(error) = connection::spawn(stream, Arc::clone(service), connections) {
            warn!("cannot serve a connection: {error}");
        }
    }
}

/// Whether this peer is served: vmrun's own user and root are, as long as there is a place.
fn admit(stream: &UnixStream, connections: &Connections) -> Result<(), Refusal> {
    let owner = nix::unistd::geteuid().as_raw();
    let peer = getsockopt(stream, sockopt::PeerCredentials)
        .map_err(|errno| Refusal::UnknownUser { reason: errno.to_string() })?;
    if peer.uid() != owner && peer.uid() != 0 {
        return Err(Refusal::OtherUser { owner, client: peer.uid() });
    }
    match connections.wait_for_slot(MAX_CONNECTIONS, SLOT_TIMEOUT) {
        true => Ok(()),
        false => Err(Refusal::TooManyClients { most: MAX_CONNECTIONS as u32 }),
    }
}
