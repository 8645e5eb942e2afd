//! The gate in front of guest mode: whether vCPUs may run, and who has stopped.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::kick::Kick;
use crate::monotonic_time::MonotonicTime;

/// How long to wait for a vCPU before it is called again. One call is enough; this only keeps a
/// mistake in that reasoning from hanging a migration.
const KICK_INTERVAL: Duration = Duration::from_millis(20);

/// What is wanted of the vCPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RunRequest {
    /// Run the guest.
    Run,
    /// Stop and stay.
    Pause,
    /// End the thread.
    Quit,
}

/// What one vCPU's thread is to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Run,
    /// Wait a little: the guest is throttled.
    Hold,
    Pause,
    Quit,
}

struct Inner {
    request: RunRequest,
    /// The throttle holds all vCPUs right now.
    held: bool,
    parked: usize,
    last_exit: MonotonicTime,
}

/// See the module.
pub(super) struct Gate {
    inner: Mutex<Inner>,
    changed: Condvar,
    /// A copy of what `inner` says, read before every KVM_RUN.
    next: AtomicU8,
    /// MonotonicTime of the first KVM_RUN after a resume, in nanoseconds; 0 before it.
    first_entry: AtomicU64,
    kicks: Vec<Kick>,
}

const RUN: u8 = 0;
const HOLD: u8 = 1;
const PAUSE: u8 = 2;
const QUIT: u8 = 3;

impl Gate {
    /// A closed gate.
    pub(super) fn new(kicks: Vec<Kick>) -> Self {
        Self {
            inner: Mutex::new(Inner {
                request: RunRequest::Pause,
                held: false,
                parked: 0,
                last_exit: MonotonicTime::now(),
            }),
            changed: Condvar::new(),
            next: AtomicU8::new(PAUSE),
            first_entry: AtomicU64::new(0),
            kicks,
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Every change is one assignment, whole even if the thread panics after it.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, inner: &Inner) {
        let next = match inner.request {
            RunRequest::Quit => QUIT,
            RunRequest::Pause => PAUSE,
            RunRequest::Run if inner.held => HOLD,
            RunRequest::Run => RUN,
        };
        self.next.store(next, Ordering::SeqCst);
        if next != RUN {
            for kick in &self.kicks {
                kick.call();
            }
        }
        self.changed.notify_all();
    }

    /// Says what is wanted from now on. Nothing is wanted any more after [`RunRequest::Quit`].
    pub(super) fn set(&self, request: RunRequest) {
        let mut inner = self.inner();
        if inner.request == request || inner.request == RunRequest::Quit {
            return;
        }
        if request == RunRequest::Run {
            self.first_entry.store(0, Ordering::SeqCst);
        }
        inner.request = request;
        self.publish(&inner);
    }

    pub(super) fn request(&self) -> RunRequest {
        self.inner().request
    }

    /// Holds running vCPUs up, or no more.
    pub(super) fn hold(&self, held: bool) {
        let mut inner = self.inner();
        if inner.held != held {
            inner.held = held;
            self.publish(&inner);
        }
    }

    /// Waits until so many vCPUs are parked, or one of them may run again.
    pub(super) fn wait_until_parked(&self, vcpus: usize) {
        let mut inner = self.inner();
        while inner.parked < vcpus && inner.request == RunRequest::Pause {
            let (again, timeout) = self
                .changed
                .wait_timeout(inner, KICK_INTERVAL)
                .unwrap_or_else(PoisonError::into_inner);
            inner = again;
            if timeout.timed_out() {
                self.publish(&inner);
            }
        }
    }

    /// When the last vCPU left guest mode.
    pub(super) fn last_exit(&self) -> MonotonicTime {
        self.inner().last_exit
    }

    pub(super) fn first_entry(&self) -> Option<MonotonicTime> {
        match self.first_entry.load(Ordering::SeqCst) {
            0 => None,
            nanos => Some(MonotonicTime::from_clock(Duration::from_nanos(nanos))),
        }
    }

    // What follows is for the threads of the vCPUs.

    pub(super) fn kick(&self, number: u32) -> &Kick {
        &self.kicks[number as usize]
    }

    pub(super) fn next(&self) -> Next {
        match self.next.load(Ordering::SeqCst) {
            RUN => Next::Run,
            HOLD => Next::Hold,
            PAUSE => Next::Pause,
            _ => Next::Quit,
        }
    }

    /// A vCPU is about to enter guest mode.
    pub(super) fn entering(&self) {
        if self.first_entry.load(Ordering::Relaxed) == 0 {
            let now = MonotonicTime::now().to_clock().as_nanos() as u64;
            let order = Ordering::SeqCst;
            let _ = self.first_entry.compare_exchange(0, now, order, order);
        }
    }

    /// Counts the calling vCPU as stopped until something else is wanted.
    pub(super) fn park(&self, left_guest: Option<MonotonicTime>) {
        let mut inner = self.inner();
        if let Some(left_guest) = left_guest {
            inner.last_exit = inner.last_exit.max(left_guest);
        }
        inner.parked += 1;
        self.changed.notify_all();
        let mut inner = self
            .changed
            .wait_while(inner, |inner| inner.request == RunRequest::Pause)
            .unwrap_or_else(PoisonError::into_inner);
        inner.parked -= 1;
    }

    /// Waits until the throttle lets go or something else is wanted.
    pub(super) fn wait_while_held(&self) {
        let held = |inner: &mut Inner| inner.request == RunRequest::Run && inner.held;
        drop(self.changed.wait_while(self.inner(), held));
    }

    /// Sleeps for `time`, or until something else than running is wanted.
    pub(super) fn sleep(&self, time: Duration) {
        let end = Instant::now() + time;
        let mut inner = self.inner();
        while inner.request == RunRequest::Run && !inner.held {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            (inner, _) =
                self.changed.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
