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
use tracing::warn;
use units::MigrationId;
use vm_control::Refusal;

use crate::guest::Guest;

/// How long to wait before a refusal that could not be recorded is tried again.
const REFUSE_AGAIN: Duration = Duration::from_secs(1);

/// What becomes of the guest.
enum News {
    /// It is whole and waits for GO.
    Prepared,
    /// It was decided so; the record has time.
    Decided(Decision),
}

/// The thread of one guest that arrives. Dropping it ends that.
pub struct Arrival(SyncSender<News>);

impl Arrival {
    /// Starts the thread for the migration `id`, by which a guest called `name` arrives.
    pub fn start(guest: Arc<Guest>, name: String, id: MigrationId) -> Result<Self, Refusal> {
        // Room for all that can be said, so that nobody waits for the thread.
        let (said, news) = sync_channel(2);
        let (ready, is_ready) = sync_channel(1);
        let cannot = |error: String| Refusal::new(format!("cannot wait for GO: {error}"));
        let spawned = thread::Builder::new().name("arrival".into()).spawn(move || {
            let _ = ready.send(());
            attend(&guest, &name, id, &news);
        });
        spawned.map_err(|error| cannot(error.to_string()))?;
        is_ready.recv().map_err(|error| cannot(error.to_string()))?;
        Ok(Self(said))
    }

    /// The guest waits for GO from now on: it is refused when its `--go-timeout` is over, if it has
    /// one.
    pub fn prepared(&self) {
        let _ = self.0.send(News::Prepared);
    }

    /// Has a decision recorded, soon. Without the record the host says "may have run" after a
    /// crash: safe, but less helpful.
    pub fn record(&self, decision: Decision) {
        let _ = self.0.send(News::Decided(decision));
    }
}

fn attend(guest: &Guest, name: &str, id: MigrationId, news: &Receiver<News>) {
    let Ok(News::Prepared) = news.recv() else { return };
    let saved = guest.lock().ownership.is_saved();
    let mut patience = guest.go_timeout;
    loop {
        let heard = match patience {
            Some(patience) => news.recv_timeout(patience),
            None => news.recv().map_err(RecvTimeoutError::from),
        };
        match heard {
            Ok(News::Decided(decision)) => {
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
            Ok(News::Prepared) | Err(RecvTimeoutError::Disconnected) => return,
        }
        patience = Some(REFUSE_AGAIN);
        let mut inner = guest.lock();
        // A GO that came just now says so by its news.
        if inner.ownership.state() == State::Prepared(id)
            && let Err(refusal) = guest.step(&mut inner, Input::Refuse(id))
        {
            warn!("cannot refuse the guest yet: {refusal}");
        }
    }
}
