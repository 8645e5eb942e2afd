//! The note that the guest leaves this host, or has left it.
//!
//! A thread of its own writes it: no request, and no handover, waits for the disk. What is to be
//! noted replaces what was to be noted before, so a slow disk falls behind by one note and no more.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tracing::warn;
use vm_records::departure::{Departure, Departures};

/// The note of one guest.
pub struct DepartureWriter {
    departures: Departures,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// What is to be noted; nothing of a guest that stays.
    note: Option<Departure>,
    /// How often that has changed, and how much of it was seen to.
    wanted: u64,
    written: u64,
}

impl DepartureWriter {
    pub fn new(departures: Departures) -> Arc<Self> {
        Arc::new(Self { departures, state: Mutex::default(), changed: Condvar::new() })
    }

    /// Starts the thread for a guest of this name.
    pub fn start(self: &Arc<Self>, name: String) -> io::Result<()> {
        let this = Arc::clone(self);
        thread::Builder::new().name("departures".into()).spawn(move || this.write(&name))?;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, note: Option<Departure>) {
        let mut state = self.lock();
        state.note = note;
        state.wanted += 1;
        self.changed.notify_all();
    }

    /// The guest sets out.
    pub fn leaves(&self, departure: Departure) {
        self.set(Some(departure));
    }

    /// The guest that set out has arrived.
    pub fn arrived(&self) {
        let note = self.lock().note.clone().map(Departure::arrived);
        self.set(note);
    }

    /// The guest is here, and stays.
    pub fn stays(&self) {
        self.set(None);
    }

    /// Waits until everything is noted, for no longer than `within`.
    pub fn settle(&self, within: Duration) {
        let behind = |state: &mut State| state.written < state.wanted;
        let _ = self.changed.wait_timeout_while(self.lock(), within, behind);
    }

    fn write(&self, name: &str) {
        let mut state = self.lock();
        loop {
            while state.written == state.wanted {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            let (note, number) = (state.note.clone(), state.wanted);
            drop(state);
            let done = match &note {
                Some(departure) => self.departures.note(name, departure),
                None => self.departures.forget(name).map(drop),
            };
            if let Err(error) = done {
                warn!("{}", migpipe_cli::one_line(&error.into()));
            }
            state = self.lock();
            state.written = number;
            self.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use migpipe_units::MigrationId;

    use super::*;

    const HANG_TIMEOUT: Duration = Duration::from_secs(600);

    #[test]
    fn a_guest_that_left_is_noted_and_one_that_stayed_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let departures = Departures::at(dir.path());
        let notes = DepartureWriter::new(departures.clone());
        notes.start("web".into()).unwrap();
        let id = MigrationId::random();
        notes.leaves(Departure::now(id, "tcp:hostb:1"));
        notes.settle(HANG_TIMEOUT);
        assert!(!departures.read("web").unwrap().unwrap().gone);
        notes.arrived();
        notes.settle(HANG_TIMEOUT);
        assert!(departures.read("web").unwrap().unwrap().gone);
        notes.stays();
        notes.settle(HANG_TIMEOUT);
        assert_eq!(departures.read("web").unwrap(), None);
    }
}
