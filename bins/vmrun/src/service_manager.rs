//! What the service manager is told that started this vmrun as a unit (sd_notify(3)): that the guest is
//! there, how it is, that it ends; and that this process lives, if the unit has a watchdog.
//!
//! The socket is connected before this process gives up the right to open one, so that a library
//! which opens it for each message cannot be used. Nothing depends on what is sent: a manager that
//! does not read loses it.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::thread;
use std::time::{Duration, Instant};

use mig_engine::ownership::State;
use tracing::{debug, warn};
use vm_control::Status;

use crate::end::End;
use crate::guest::Guest;

/// How long the thread sleeps when there is no watchdog to be fed.
const IDLE: Duration = Duration::from_secs(3600);

/// How long a guest may take to arrive, which is for those to bound who bring it. The manager's own
/// limit is for a boot.
const ARRIVAL: Duration = Duration::from_secs(365 * 24 * 3600);

/// The service manager, if one waits for messages of this process.
#[derive(Debug, Default)]
pub struct ServiceManager {
    socket: Option<UnixDatagram>,
    /// Within which time it wants a sign of life.
    watchdog: Option<Duration>,
}

impl ServiceManager {
    /// The one that the environment names (NOTIFY_SOCKET; WATCHDOG_USEC and WATCHDOG_PID).
    ///
    /// The variable may be inherited from somebody else's service, so a manager that cannot be reached
    /// keeps no guest from running.
    pub fn of_environment() -> Self {
        let Some(address) = std::env::var_os("NOTIFY_SOCKET") else { return Self::default() };
        let socket = match connect(&address) {
            Ok(socket) => socket,
            Err(error) => {
                warn!("no service manager at NOTIFY_SOCKET {}: {error}", address.display());
                return Self::default();
            }
        };
        let number = |name| std::env::var(name).ok()?.parse::<u64>().ok();
        let is_ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog = number("WATCHDOG_USEC").filter(|usec| is_ours && *usec > 0);
        Self { socket: Some(socket), watchdog: watchdog.map(Duration::from_micros) }
    }

    /// From here on the manager hears how the guest is, whenever that changes. The unit has started
    /// with the guest: at once, or when the one has arrived that this start is for.
    pub fn begin(self: &Arc<Self>, guest: &Arc<Guest>, arrives: bool) -> io::Result<()> {
        if self.socket.is_none() {
            return Ok(());
        }
        match arrives {
            true => self.send(&format!("EXTEND_TIMEOUT_USEC={}", ARRIVAL.as_micros())),
            false => self.send(&format!("READY=1\nSTATUS={}", describe(&guest.status()))),
        }
        let (manager, guest) = (Arc::clone(self), Arc::clone(guest));
        let thread = thread::Builder::new().name("service-manager".into());
        thread.spawn(move || manager.follow(&guest, !arrives)).map(drop)
    }

    /// The unit ends, for this reason.
    pub fn stopping(&self, end: &End) {
        self.send(&format!("STOPPING=1\nSTATUS={}", migpipe_cli::printable(&end.to_string())));
    }

    fn follow(&self, guest: &Guest, mut ready: bool) {
        let interval = self.watchdog.map_or(IDLE, |within| within / 2);
        let mut events = guest.subscribe();
        let mut shown = String::new();
        let mut fed = Instant::now();
        loop {
            // Storage that hangs is in the guest's way, and no reason to end it: this answers all the
            // same.
            let status = guest.status();
            let text = describe(&status);
            if !ready && has_arrived(status.ownership) {
                self.send(&format!("READY=1\nSTATUS={text}"));
                ready = true;
            } else if shown != text {
                self.send(&format!("STATUS={text}"));
            }
            shown = text;
            match events.recv_timeout(interval.saturating_sub(fed.elapsed())) {
                Ok(_) | Err(RecvTimeoutError::Timeout) => {}
                // It was too far behind.
                Err(RecvTimeoutError::Disconnected) => events = guest.subscribe(),
            }
            if fed.elapsed() >= interval {
                if self.watchdog.is_some() {
                    self.send("WATCHDOG=1");
                }
                fed = Instant::now();
            }
        }
    }

    fn send(&self, message: &str) {
        if let Some(socket) = &self.socket
            && let Err(error) = socket.send(message.as_bytes())
        {
            debug!("the service manager was not told {message:?}: {error}");
        }
    }
}

/// A name that begins with @ is one of the abstract namespace (unix(7)).
fn connect(address: &OsStr) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    // Nothing waits for a manager that does not read.
    socket.set_nonblocking(true)?;
    match address.as_bytes() {
        [b'@', name @ ..] => socket.connect_addr(&SocketAddr::from_abstract_name(name)?)?,
        _ => socket.connect(Path::new(address))?,
    }
    Ok(socket)
}

/// Whether a guest that arrived is this vmrun's.
const fn has_arrived(ownership: State) -> bool {
    match ownership {
        State::Owned | State::Migrating(_) | State::HandedOver(_) => true,
        State::Incoming
        | State::Receiving(_)
        | State::Prepared(_)
        | State::Refused(_)
        | State::Finished => false,
    }
}

/// How the guest is, in a line.
fn describe(guest: &Status) -> String {
    match (&guest.held, &guest.handover) {
        (Some(held), _) => migpipe_cli::printable(held),
        (None, Some(_)) => format!(
            "{}: mig-send --resolve {} finds out what became of the guest",
            guest.word(),
            guest.name
        ),
        (None, None) => guest.word().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(socket: &UnixDatagram) -> String {
        let mut room = [0; 4096];
        let length = socket.recv(&mut room).unwrap();
        String::from_utf8(room[..length].to_vec()).unwrap()
    }

    #[test]
    fn a_manager_is_reached_at_a_path_and_at_an_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let name = format!("migpipe-notify-{}", std::process::id());
        let abstract_address = SocketAddr::from_abstract_name(&name).unwrap();
        for (manager, address) in [
            (UnixDatagram::bind(&path).unwrap(), path.into_os_string()),
            (UnixDatagram::bind_addr(&abstract_address).unwrap(), format!("@{name}").into()),
        ] {
            let socket = Some(connect(&address).unwrap());
            ServiceManager { socket, watchdog: None }.stopping(&End::PowerOff);
            assert_eq!(received(&manager), "STOPPING=1\nSTATUS=the guest powered off");
        }
    }

    #[test]
    fn what_ends_a_guest_is_one_line_of_the_status() {
        let (manager, socket) = UnixDatagram::pair().unwrap();
        let manager_of = ServiceManager { socket: Some(socket), watchdog: None };
        manager_of.stopping(&End::Failed("broken\nWATCHDOG=trigger".into()));
        assert_eq!(received(&manager).lines().count(), 2);
    }

    #[test]
    fn a_manager_that_does_not_read_holds_nothing_up() {
        let (_manager, socket) = UnixDatagram::pair().unwrap();
        socket.set_nonblocking(true).unwrap();
        let full = ServiceManager { socket: Some(socket), watchdog: None };
        (0..100_000).for_each(|_| full.send("STATUS=running"));
    }
}
