//! What the thread of a guest that arrives does: it limits the time until GO, if the user wants
//! that, and records that the guest ran.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use mig_engine::ownership::{Decision, Input, State};
use migpipe_units::MigrationId;
use tracing::warn;

use crate::go_timer::Event;
use crate::guest::Guest;

/// How long to wait before a refusal that could not be recorded is tried again.
const RECORD_RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Serves the guest that arrives as `name` by the migration `id`, to the end of that.
pub fn serve(guest: &Guest, name: &str, id: MigrationId, events: &Receiver<Event>) {
    let Ok(Event::Prepared) = events.recv() else { return };
    let saved = guest.lock().ownership.is_saved();
    let mut timeout = guest.go_timeout;
    loop {
        let heard = match timeout {
            Some(timeout) => events.recv_timeout(timeout),
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
        timeout = Some(RECORD_RETRY_INTERVAL);
        let mut inner = guest.lock();
        // A GO that came just now says so by its events.
        if inner.ownership.state() == State::Prepared(id)
            && let Err(refusal) = guest.step(&mut inner, Input::Refuse(id))
        {
            warn!("cannot refuse the guest yet: {refusal}");
        }
    }
}
