//! What is answered though the guest's lock is held for long: storage that hangs (a record on a
//! server that is gone, a disk in the middle of a request when the guest is paused) must not make a
//! vmrun that nobody can look at or end.

use std::sync::{MutexGuard, PoisonError, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use mig_engine::ownership::{Denied, Input, State};
use vm_control::{Refusal, Status};

use crate::end::End;
use crate::guest::{Guest, Inner};

/// How long a look at the guest waits for the lock; what was true last is shown then.
const STATUS_LOCK_TIMEOUT: Duration = Duration::from_millis(200);

/// How long the end of the guest waits for it.
const QUIT_LOCK_TIMEOUT: Duration = Duration::from_secs(2);

/// How long an order waits for it, which cannot be carried out without: longer than a disk in order
/// takes.
const ORDER_LOCK_TIMEOUT: Duration = Duration::from_secs(10);

/// How often the lock is tried meanwhile.
const LOCK_POLL_INTERVAL: Duration = Duration::from_millis(2);

impl Guest {
    /// The lock, if it is to be had within `time`.
    pub fn lock_within(&self, time: Duration) -> Option<MutexGuard<'_, Inner>> {
        let began = Instant::now();
        loop {
            match self.try_lock() {
                Ok(inner) => return Some(inner),
                Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) if began.elapsed() > time => return None,
                Err(TryLockError::WouldBlock) => thread::sleep(LOCK_POLL_INTERVAL),
            }
        }
    }

    /// How the guest is, or was when the lock was last free.
    pub fn status(&self) -> Status {
        match self.lock_within(STATUS_LOCK_TIMEOUT) {
            Some(inner) => self.show(&inner),
            None => self.shown(),
        }
    }

    /// Keeps how the guest is, for those who cannot have the lock.
    pub fn show(&self, inner: &Inner) -> Status {
        let status = inner.status();
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&status);
        status
    }

    fn shown(&self) -> Status {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The lock for an order of the operator: carried out, or refused and not carried out later.
    pub fn lock_for_order(&self) -> Result<MutexGuard<'_, Inner>, Refusal> {
        self.lock_within(ORDER_LOCK_TIMEOUT).ok_or(Refusal::StorageHangs)
    }

    /// The operator ends the guest.
    pub fn quit(&self, force: bool) -> Result<(), Refusal> {
        if let Some(mut inner) = self.lock_within(QUIT_LOCK_TIMEOUT) {
            return self.step(&mut inner, Input::Quit { force });
        }
        // Without the lock it is an end as by kill -9, which harms no handover; only the last copy of
        // a guest is not thrown away so. Each state is shown before anything that follows from it.
        match self.shown().ownership {
            State::HandedOver(id) if !force => Err(Denied::MayBeLastCopy(id).into()),
            State::Prepared(_) if !force => Err(Refusal::CannotRecordRefusal),
            _ => {
                self.end(End::Quit);
                Ok(())
            }
        }
    }
}
