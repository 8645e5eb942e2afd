//! Taking time from a guest that dirties memory faster than it can be sent.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::gate::Gate;
use crate::confinement;

/// In each period the vCPUs run first and are then held. Short, so that the guest is slow rather
/// than jerky.
const PERIOD: Duration = Duration::from_millis(10);

/// A busy host lets the vCPUs run for longer than they should, for this thread comes late; they are
/// held the longer for it, so that their share is what was asked for. But nothing in the guest waits
/// longer than this for the throttle.
const LONGEST_HOLD: Duration = Duration::from_millis(50);

/// A guest is never held altogether.
const MOST_PERCENT: u8 = 99;

struct Order {
    percent: u8,
    ending: bool,
}

struct Shared {
    order: Mutex<Order>,
    changed: Condvar,
}

/// The thread that holds the vCPUs.
pub(super) struct Throttle {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Throttle {
    pub(super) fn start(gate: &Arc<Gate>) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            order: Mutex::new(Order { percent: 0, ending: false }),
            changed: Condvar::new(),
        });
        let (gate, of_thread) = (Arc::clone(gate), Arc::clone(&shared));
        let thread = std::thread::Builder::new().name("throttle".to_owned()).spawn(move || {
            migpipe_confine::thread(&confinement::THROTTLE);
            of_thread.serve(&gate);
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Takes so many percent of their time from the vCPUs, 99 at most; 0 is none.
    pub(super) fn set(&self, percent: u8) {
        self.shared.order().percent = percent.min(MOST_PERCENT);
        self.shared.changed.notify_all();
    }
}

impl Throttle {
    /// Ends the thread: nobody is called any more when this returns.
    pub(super) fn end(&mut self) {
        self.shared.order().ending = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the throttle's thread panicked");
        }
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        self.end();
    }
}

/// How long vCPUs that ran for so long are held, for so many percent of their time (less than 100)
/// to be taken.
fn hold_after(ran: Duration, percent: u8) -> Duration {
    (ran * u32::from(percent) / u32::from(100 - percent)).min(LONGEST_HOLD)
}

impl Shared {
    fn order(&self) -> MutexGuard<'_, Order> {
        self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, gate: &Gate) {
        let mut order = self.order();
        while !order.ending {
            if order.percent == 0 {
                order = self.changed.wait(order).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let running = PERIOD * u32::from(100 - order.percent) / 100;
            let began = Instant::now();
            order = self.wait(order, running);
            gate.hold(true);
            let held = hold_after(began.elapsed(), order.percent);
            order = self.wait(order, held);
            gate.hold(false);
        }
    }

    /// Waits for `time`, or until the throttle is set anew.
    fn wait<'a>(&'a self, order: MutexGuard<'a, Order>, time: Duration) -> MutexGuard<'a, Order> {
        let (percent, end) = (order.percent, Instant::now() + time);
        let mut order = order;
        while !order.ending && order.percent == percent {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            (order, _) =
                self.changed.wait_timeout(order, left).unwrap_or_else(PoisonError::into_inner);
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_ran_for_too_long_is_held_the_longer_within_a_bound() {
        let micros = Duration::from_micros;
        assert_eq!(hold_after(micros(100), 99), micros(9_900));
        assert_eq!(hold_after(micros(300), 99), micros(29_700));
        assert_eq!(hold_after(micros(5_000), 50), micros(5_000));
        assert_eq!(hold_after(micros(5_000), 0), Duration::ZERO);
        assert_eq!(hold_after(Duration::from_secs(1), 99), LONGEST_HOLD);
    }
}
