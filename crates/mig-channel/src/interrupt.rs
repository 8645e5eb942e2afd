//! An interrupt ends every wait of the channels that hold it: a cancel takes effect at once.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{fmt, io};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

/// Ends every read, write, connect and accept of the channels that were opened with it, from any
/// thread. Clones are the same interrupt.
///
/// It stays triggered until [`reset`](Self::reset), so that a wait which begins later ends at
/// once too.
#[derive(Clone)]
pub struct Interrupt(Arc<Inner>);

struct Inner {
    triggered: AtomicBool,
    event: EventFd,
}

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waited {
    Ready,
    Interrupted,
    TimedOut,
}

impl Interrupt {
    /// A new interrupt, not triggered.
    ///
    /// # Errors
    /// When the system gives no eventfd (too many open files).
    pub fn new() -> io::Result<Self> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self(Arc::new(Inner { triggered: AtomicBool::new(false), event })))
    }

    /// Ends all waits. Does nothing but an atomic store and one write(2), so a signal handler may
    /// call it.
    pub fn trigger(&self) {
        self.0.triggered.store(true, Ordering::SeqCst);
        // It fails only when the counter is full, and then every wait has ended already.
        let _ = self.0.event.write(1);
    }

    /// Whether it was triggered since the last reset.
    pub fn is_triggered(&self) -> bool {
        self.0.triggered.load(Ordering::SeqCst)
    }

    /// Lets the channels work again.
    pub fn reset(&self) {
        self.0.triggered.store(false, Ordering::SeqCst);
        // EAGAIN says that nothing had been written: it was not triggered.
        let _ = self.0.event.read();
    }

    /// Waits until `fd` is ready for `events` or broken, for at most `limit`; `None` waits for
    /// ever. Without an `fd` it only waits.
    pub(crate) fn wait(
        &self,
        fd: Option<(BorrowedFd<'_>, PollFlags)>,
        limit: Option<Duration>,
    ) -> io::Result<Waited> {
        let until = limit.and_then(|limit| Instant::now().checked_add(limit));
        loop {
            if self.is_triggered() {
                return Ok(Waited::Interrupted);
            }
            let mut fds = vec![PollFd::new(self.0.event.as_fd(), PollFlags::POLLIN)];
            fds.extend(fd.map(|(fd, events)| PollFd::new(fd, events)));
            match poll(&mut fds, timeout_until(until)) {
                Ok(0) if until.is_some_and(|until| Instant::now() >= until) => {
                    return Ok(Waited::TimedOut);
                }
                Ok(0) | Err(Errno::EINTR) => continue,
                Ok(_) => {}
                Err(errno) => return Err(errno.into()),
            }
            if fds.get(1).is_some_and(|fd| fd.any() != Some(false)) {
                return Ok(Waited::Ready);
            }
        }
    }
}

/// The time left as poll(2) takes it: whole milliseconds rounded up, so that a wait never spins
/// through its last fraction.
fn timeout_until(until: Option<Instant>) -> PollTimeout {
    let Some(until) = until else {
        return PollTimeout::NONE;
    };
    let left = until.saturating_duration_since(Instant::now());
    let millis = left.as_nanos().div_ceil(1_000_000);
    PollTimeout::try_from(millis.min(i32::MAX as u128) as i32).unwrap_or(PollTimeout::MAX)
}

impl fmt::Debug for Interrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Interrupt").field(&self.is_triggered()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stays_triggered_until_it_is_reset() {
        let interrupt = Interrupt::new().unwrap();
        let clone = interrupt.clone();
        clone.trigger();
        clone.trigger();
        assert!(interrupt.is_triggered());
        assert_eq!(interrupt.wait(None, None).unwrap(), Waited::Interrupted);
        interrupt.reset();
        assert!(!clone.is_triggered());
        let limit = Some(Duration::from_millis(20));
        assert_eq!(interrupt.wait(None, limit).unwrap(), Waited::TimedOut);
    }

    #[test]
    fn a_wait_is_never_shorter_than_its_limit() {
        let interrupt = Interrupt::new().unwrap();
        for micros in [1, 300, 1_700] {
            let limit = Duration::from_micros(micros);
            let started = Instant::now();
            assert_eq!(interrupt.wait(None, Some(limit)).unwrap(), Waited::TimedOut);
            assert!(started.elapsed() >= limit);
        }
    }
}
