//! SIGTERM and SIGINT end the guest, unless this may be its last copy.

use std::sync::Arc;
use std::thread;

use anyhow::Context;
use mig_engine::ownership::Input;
use nix::sys::signal::{SigSet, Signal};
use tracing::error;

use crate::guest::Guest;

/// Blocks the signals in this thread and in those that it starts from now on.
pub fn block() -> anyhow::Result<SigSet> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block().context("cannot block signals")?;
    Ok(signals)
}

/// Waits for the signals in a thread of its own.
pub fn watch(signals: SigSet, guest: &Arc<Guest>) {
    let guest = Arc::clone(guest);
    thread::spawn(move || {
        while let Ok(signal) = signals.wait() {
            let mut inner = guest.lock();
            if let Err(refusal) = guest.step(&mut inner, Input::Quit { force: false }) {
                error!("{signal} does not end {}: {refusal}", inner.name);
            }
        }
    });
}
