//! The pause belongs to the guest's vmrun: it bounds that of a client that does nothing.
//!
//! A mig-send that was stopped (Ctrl-Z, a freezer, a debugger) in the blackout is connected, so that
//! nothing else would tell its vmrun that it will not go on. A client that lives says so ten times a
//! second by its progress, whatever it waits for. One thread looks; it exists before any blackout,
//! sleeps while no guest stands still, and counts what it saw and not what a clock says: a vmrun that
//! was stopped itself, or a host without time for either, has missed one look and not ten.

use std::io;
use std::sync::{Arc, PoisonError};
use std::thread;

use migpipe_units::MigrationId;
use tracing::warn;

use crate::guest::{Guest, Inner};
use crate::withdrawn::{SILENT_POLLS, STATUS_POLL_INTERVAL, Withdrawal};

/// What was seen of one client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seen {
    signs: u64,
    silent: u32,
}

impl Seen {
    /// Takes note of how many signs of life there were so far; whether there were none for too long.
    fn look(&mut self, signs: u64) -> bool {
        if signs == self.signs {
            self.silent += 1;
        } else {
            *self = Self { signs, silent: 0 };
        }
        self.silent >= SILENT_POLLS
    }
}

/// Starts the thread.
pub fn start(guest: &Arc<Guest>) -> io::Result<()> {
    let guest = Arc::clone(guest);
    let thread = thread::Builder::new().name("client-watchdog".into());
    thread.spawn(move || watch(&guest)).map(drop)
}

fn watch(guest: &Guest) {
    let mut inner = guest.lock();
    loop {
        let Some((id, signs)) = inner.held_up() else {
            inner = guest.held_up.wait(inner).unwrap_or_else(PoisonError::into_inner);
            continue;
        };
        let mut seen = Seen { signs, silent: 0 };
        loop {
            let lasts = |inner: &mut _| is_held_up(inner, id);
            let waited = guest.held_up.wait_timeout_while(inner, STATUS_POLL_INTERVAL, lasts);
            inner = waited.unwrap_or_else(PoisonError::into_inner).0;
            match inner.held_up() {
                Some((same, signs)) if same == id => {
                    if !seen.look(signs) {
                        continue;
                    }
                }
                _ => break,
            }
            if !inner.is_in_blackout() {
                inner.lift_throttle();
                warn!(
                    "the client of migration {id} does nothing: its guest is slowed down no more"
                );
                break;
            }
            match guest.withdraw(&mut inner, id, Withdrawal::Silent) {
                Ok(()) => warn!("the client of migration {id} does nothing: the guest runs on"),
                Err(refusal) => warn!("cannot run the guest on: {refusal}"),
            }
            break;
        }
    }
}

fn is_held_up(inner: &Inner, id: MigrationId) -> bool {
    inner.held_up().is_some_and(|(same, _)| same == id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_given_up_after_ten_looks_without_a_sign() {
        let mut seen = Seen::default();
        assert!(!(1..SILENT_POLLS).any(|_| seen.look(0)));
        assert!(seen.look(0));
    }

    #[test]
    fn one_sign_of_life_is_as_good_as_many() {
        let mut seen = Seen::default();
        for signs in 1..=3 {
            assert!(!(1..SILENT_POLLS).any(|_| seen.look(signs)), "after sign {signs}");
        }
        // What was seen by the first of these looks was the sign itself.
        assert!(!seen.look(3));
        assert!(seen.look(3));
    }
}
