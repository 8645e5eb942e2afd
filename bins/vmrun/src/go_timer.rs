//! What is done for a guest that arrives, beside the requests that bring it: the time until GO is
//! limited, if the user wants that, and that it ran is recorded.
//!
//! One thread does both. It is made before the first page, where it costs no downtime, and it is
//! waited for: a new thread takes memory for itself, and where there is none the program ends. That
//! may happen only as long as nobody was told that the guest is whole, and never to one that runs.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use mig_engine::ownership::{Decision, Input, State};
use migpipe_units::MigrationId;
use tracing::warn;
use vm_control::Refusal;

use crate::guest::Guest;

/// How long to wait before a refusal that could not be recorded is tried again.
const RECORD_RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// What becomes of the guest.
enum Event {
    /// It is whole and waits for GO.
    Prepared,
    /// It was decided so; the record has time.
    Decided(Decision),
}

/// The thread of one guest that arrives. Dropping it ends that.
pub struct GoTimer(SyncSender<Event>);

impl GoTimer {
    /// Starts the thread for the migration `id`, by which a guest called `name` arrives.
    pub fn start(guest: Arc<Guest>, name: String, id: MigrationId) -> Result<Self, Refusal> {
        // Room for all that can be said, so that nobody waits for the thread.
        let (said, events) = sync_channel(2);
        let (ready, is_ready) = sync_channel(1);
        let cannot = |error: String| Refusal::new(format!("cannot wait for GO: {error}"));
        let spawned = thread::Builder::new().name("go-timer".into()).spawn(move || {
            let _ = ready.send(());
            serve(&guest, &name, id, &events);
        });
        spawned.map_err(|error| cannot(error.to_string()))?;
        is_ready.recv().map_err(|error| cannot(error.to_string()))?;
        Ok(Self(said))
    }

    /// The guest waits for GO from now on: it is refused when its `--go-timeout` is over, if it has
    /// one.
    pub fn prepared(&self) {
        let _ = self.0.send(Event::Prepared);
    }

    /// Has a decision recorded, soon. Without the record the host says "may have run" after a
    /// crash: safe, but less helpful.
    pub fn record(&self, decision: Decision) {
        let _ = self.0.send(Event::Decided(decision));
    }
}

fn serve(guest: &Guest, name: &str, id: MigrationId, events: &Receiver<Event>) {
    let Ok(Event::Prepared) = events.recv() else { return };
    let saved = guest.lock().ownership.is_saved();
    let mut patience = guest.go_timeout;
    loop {
        let heard = match patience {
            Some(patience) => events.recv_timeout(patience),
            None => events.recv().map_err(RecvTimeoutError::from),
        };
        match heard {
            Ok(Event::Decided(decision)) => {
                if let Err(refusal) = guest.record(name, id, decision, saved) {
                    warn!("{refusal}");
                }
                if decision == Decision::Ran {
                    // It is here, whether it left from here once or not.
                    guest.notes.stays();
                }
                return;
            }
            Err(RecvTimeoutError::Timeout) => {}
            Ok(Event::Prepared) | Err(RecvTimeoutError::Disconnected) => return,
        }
        patience = Some(RECORD_RETRY_INTERVAL);
        let mut inner = guest.lock();
        // A GO that came just now says so by its events.
        if inner.ownership.state() == State::Prepared(id)
            && let Err(refusal) = guest.step(&mut inner, Input::Refuse(id))
        {
            warn!("cannot refuse the guest yet: {refusal}");
        }
    }
}
