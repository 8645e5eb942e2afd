//! The thread of a guest that arrives; what it does is in [`crate::go_wait`].
//!
//! It is made before the first page, where it costs no downtime, and it is waited for: a new thread
//! takes memory for itself, and where there is none the program ends. That may happen only as long as
//! nobody was told that the guest is whole, and never to one that runs.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use mig_engine::ownership::Decision;
use vm_control::Refusal;

/// What becomes of the guest.
pub enum Event {
    /// It is whole and waits for GO.
    Prepared,
    /// It was decided so; the record has time.
    Decided(Decision),
}

/// The thread of one guest that arrives. Dropping it ends that.
pub struct GoTimer {
    said: SyncSender<Event>,
    /// Nothing is ever sent: the thread closes it when it ends.
    end: Receiver<()>,
}

/// A decision that is being recorded.
pub struct Recording(Receiver<()>);

impl Recording {
    /// Waits until it is recorded, or could not be, for no longer than `within`.
    pub fn settle(&self, within: Duration) {
        let _ = self.0.recv_timeout(within);
    }
}

impl GoTimer {
    /// Starts the thread, which does what `serve` does.
    pub fn start(serve: impl FnOnce(&Receiver<Event>) + Send + 'static) -> Result<Self, Refusal> {
        // Room for all that can be said, so that nobody waits for the thread.
        let (said, events) = sync_channel(2);
        let (ready, is_ready) = sync_channel(1);
        let (ends, end) = sync_channel(0);
        let cannot = |error: String| Refusal::failed(format!("cannot wait for GO: {error}"));
        let spawned = thread::Builder::new().name("go-timer".into()).spawn(move || {
            let _ends = ends;
            let _ = ready.send(());
            serve(&events);
        });
        spawned.map_err(|error| cannot(error.to_string()))?;
        is_ready.recv().map_err(|error| cannot(error.to_string()))?;
        Ok(Self { said, end })
    }

    /// The guest waits for GO from now on: it is refused when its `--go-timeout` is over, if it has
    /// one.
    pub fn prepared(&self) {
        let _ = self.said.send(Event::Prepared);
    }

    /// Has a decision recorded, soon. Without the record the host says "may have run" after a
    /// crash: safe, but less helpful.
    pub fn record(self, decision: Decision) -> Recording {
        let _ = self.said.send(Event::Decided(decision));
        Recording(self.end)
    }
}
