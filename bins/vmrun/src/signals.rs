//! SIGTERM, SIGINT and SIGHUP end the guest, unless this may be its last copy. While it is still being
//! started they end the process: a kernel or a disk that is opened may be on a server that hangs.
//!
//! One thread takes the signals from the beginning, and confines itself to that. What ends a guest
//! takes rights of the service, and is done by another.

use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::Context;
use nix::sys::signal::{SigSet, Signal};
use tracing::error;

use crate::confinement::SIGNALS;
use crate::guest::Guest;

/// Where the signals go once there is a guest.
#[derive(Clone, Default)]
pub struct Signals(Arc<Mutex<Option<Sender<Signal>>>>);

impl Signals {
    /// Blocks the signals in this thread and in those that it starts from now on, but for the one
    /// that takes them. To be called before any thread that serves the guest exists.
    pub fn take() -> anyhow::Result<Self> {
        let mut set = SigSet::empty();
        set.add(Signal::SIGTERM);
        set.add(Signal::SIGINT);
        if !migpipe_cli::is_ignored(Signal::SIGHUP) {
            set.add(Signal::SIGHUP);
        }
        set.thread_block().context("cannot block signals")?;
        let signals = Self::default();
        let to = signals.clone();
        let thread = thread::Builder::new().name("signals".into());
        let body = move || {
            migpipe_confine::thread(&SIGNALS);
            while let Ok(signal) = set.wait() {
                match &*to.lock() {
                    Some(guest) => drop(guest.send(signal)),
                    None => {
                        error!("ended by {signal} before the guest ran");
                        migpipe_cli::output::finish();
                        std::process::exit(1);
                    }
                }
            }
        };
        thread.spawn(body).context("cannot start a thread")?;
        Ok(signals)
    }

    /// From here on they end the guest, in a thread with the rights of this one.
    pub fn end(&self, guest: &Arc<Guest>) -> anyhow::Result<()> {
        let (sender, signals) = channel();
        let guest = Arc::clone(guest);
        let thread = thread::Builder::new().name("quit".into());
        let body = move || {
            for signal in signals {
                if let Err(refusal) = guest.quit(false) {
                    error!("{signal} does not end {}: {refusal}", guest.name);
                }
            }
        };
        thread.spawn(body).context("cannot start a thread")?;
        *self.lock() = Some(sender);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Option<Sender<Signal>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
