//! Something that is done at intervals, beside everything else.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Does something at intervals in a thread of its own, until this is dropped.
#[derive(Debug)]
pub struct Ticker {
    thread: Option<JoinHandle<()>>,
    ended: Arc<AtomicBool>,
}

impl Ticker {
    /// Calls `tick` now and each time that `interval` has passed since.
    pub fn start(interval: Duration, mut tick: impl FnMut() + Send + 'static) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let theirs = Arc::clone(&ended);
        let thread = thread::spawn(move || {
            while !theirs.load(Ordering::SeqCst) {
                tick();
                thread::park_timeout(interval);
            }
        });
        Self { thread: Some(thread), ended }
    }
}

impl Drop for Ticker {
    /// What is being done is done to its end, and `tick` is dropped.
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn it_ticks_until_it_is_dropped_and_is_over_then() {
        let (sender, receiver) = channel();
        let ticker = Ticker::start(Duration::from_millis(1), move || {
            let _ = sender.send(());
        });
        for _ in 0..3 {
            receiver.recv().unwrap();
        }
        drop(ticker);
        while receiver.try_recv().is_ok() {}
        assert!(receiver.recv().is_err(), "what ticked is gone");
    }
}
