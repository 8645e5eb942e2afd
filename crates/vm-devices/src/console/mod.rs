//! The far end of a console, serial or virtio: a file, a socket, the terminal.
//!
//! One thread per console does all reading and writing, so that neither a slow reader nor a full
//! disk ever holds the guest up; what nobody takes is kept up to [`BACKLOG`] bytes.

mod backlog;
mod shared;
mod spec;
mod thread;

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};
use thiserror::Error;

pub use self::shared::Input;
pub use self::spec::{ConsoleSpec, ConsoleSpecError};

use self::backlog::Backlog;
use self::shared::Shared;
use self::thread::Ends;
use crate::confinement;

/// How many bytes wait for a reader at most: a boot log of a Linux kernel twice over.
const BACKLOG: usize = 256 << 10;

/// How long the thread may take to end; it gives a slow reader a fifth of that.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Why a console cannot be opened.
#[derive(Debug, Error)]
pub enum ConsoleError {
    /// Its file or socket cannot be had.
    #[error("cannot open console {spec}; name another place for it")]
    Open {
        /// The console.
        spec: ConsoleSpec,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// Somebody else listens on its socket.
    #[error("console {0} is in use by another process; name another place for it")]
    InUse(ConsoleSpec),
}

/// An open console.
pub struct Console {
    spec: ConsoleSpec,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Console {
    /// Opens it and starts its thread.
    ///
    /// # Errors
    /// [`ConsoleError`] if the file or socket cannot be had.
    pub fn open(spec: &ConsoleSpec) -> Result<Self, ConsoleError> {
        let failed = |source| ConsoleError::Open { spec: spec.clone(), source };
        let ends = Ends::open(spec).map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => ConsoleError::InUse(spec.clone()),
            _ => failed(error),
        })?;
        let shared = Arc::new(Shared {
            backlog: Mutex::new(Backlog::new(BACKLOG)),
            input: Mutex::new(None),
            wake: EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)
                .map_err(|error| failed(error.into()))?,
            ending: false.into(),
        });
        let thread = match ends {
            None => None,
            Some(ends) => {
                let shared = Arc::clone(&shared);
                let thread = std::thread::Builder::new().name("console".to_owned());
                let serve = move || {
                    migpipe_confine::thread(&confinement::CONSOLE);
                    ends.serve(&shared);
                };
                Some(thread.spawn(serve).map_err(failed)?)
            }
        };
        Ok(Self { spec: spec.clone(), shared, thread })
    }

    /// Whether it could be opened. Nothing is made for that: neither a file nor a socket.
    ///
    /// # Errors
    /// [`ConsoleError`] if the file or socket cannot be had.
    pub fn examine(spec: &ConsoleSpec) -> Result<(), ConsoleError> {
        thread::examine(spec).map_err(|source| ConsoleError::Open { spec: spec.clone(), source })
    }

    /// Where it goes.
    pub const fn spec(&self) -> &ConsoleSpec {
        &self.spec
    }

    /// Prints bytes; never waits.
    pub fn print(&self, bytes: &[u8]) {
        if self.thread.is_none() {
            return;
        }
        self.shared.backlog().push(bytes);
        // A full eventfd has woken the thread already.
        let _ = self.shared.wake.write(1);
    }

    /// Says who takes what is typed.
    pub fn attach(&self, input: &Arc<dyn Input>) {
        *self.shared.input.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Arc::downgrade(input));
    }
}

/// Writes out what can be written without waiting, and ends the thread. One that is in the middle of
/// a write which does not return (a server that hangs) is left: it ends with the process.
impl Drop for Console {
    fn drop(&mut self) {
        self.shared.ending.store(true, Ordering::SeqCst);
        let _ = self.shared.wake.write(1);
        let Some(thread) = self.thread.take() else { return };
        let began = Instant::now();
        while !thread.is_finished() {
            if began.elapsed() > FLUSH_TIMEOUT {
                tracing::warn!("console {} does not take what is printed: it is left", self.spec);
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        if thread.join().is_err() {
            tracing::error!("the thread of console {} panicked", self.spec);
        }
    }
}
