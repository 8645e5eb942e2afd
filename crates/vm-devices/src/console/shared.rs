//! What a console and its thread share.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, Weak};

use nix::sys::eventfd::EventFd;

use super::backlog::Backlog;

/// Who takes what is typed.
pub trait Input: Send + Sync {
    /// Takes bytes from the front; returns how many. The rest is offered again later.
    fn receive(&self, bytes: &[u8]) -> usize;
}

pub(super) struct Shared {
    pub(super) backlog: Mutex<Backlog>,
    pub(super) input: Mutex<Option<Weak<dyn Input>>>,
    /// Wakes the thread: there is output, or the end.
    pub(super) wake: EventFd,
    pub(super) ending: AtomicBool,
}

impl Shared {
    pub(super) fn backlog(&self) -> MutexGuard<'_, Backlog> {
        self.backlog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_ending(&self) -> bool {
        self.ending.load(Ordering::SeqCst)
    }

    /// Offers typed bytes to whoever takes them; returns how many were taken. Without a taker all
    /// are gone.
    pub(super) fn offer(&self, bytes: &[u8]) -> usize {
        let input = self.input.lock().unwrap_or_else(PoisonError::into_inner);
        match input.as_ref().and_then(Weak::upgrade) {
            Some(input) => input.receive(bytes),
            None => bytes.len(),
        }
    }
}
