//! Looks at two consoles all the time: a guest that speaks at its source after it spoke at its
//! destination runs twice, whatever it says.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::console::Console;

/// How often it looks.
const LOOK: Duration = Duration::from_millis(5);

/// When each console grew.
#[derive(Debug, Default)]
struct Growth {
    first_there: Option<Instant>,
    last_here: Option<Instant>,
}

/// A thread that looks.
#[derive(Debug)]
pub struct Watch {
    done: Arc<AtomicBool>,
    thread: Option<JoinHandle<Growth>>,
}

impl Watch {
    /// Looks at the source's console and at the destination's.
    pub fn new(here: &Console, there: &Console) -> Self {
        let done = Arc::new(AtomicBool::new(false));
        let (stop, here, there) = (Arc::clone(&done), here.clone(), there.clone());
        let thread = thread::spawn(move || {
            let mut growth = Growth::default();
            let mut length = size(here.path());
            while !stop.load(Ordering::SeqCst) {
                let now = Instant::now();
                // The destination first: what the source says between the two looks is earlier.
                if growth.first_there.is_none() && size(there.path()) > 0 {
                    growth.first_there = Some(now);
                }
                let grown = size(here.path());
                if grown > length {
                    length = grown;
                    growth.last_here = Some(now);
                }
                thread::sleep(LOOK);
            }
            growth
        });
        Self { done, thread: Some(thread) }
    }

    /// Panics if the source spoke after the destination did. Two looks lie between them: what was
    /// seen first at both in the same look is no proof.
    pub fn assert_never_two(mut self) {
        self.done.store(true, Ordering::SeqCst);
        let growth = self.thread.take().expect("once").join().expect("it does not panic");
        if let (Some(there), Some(here)) = (growth.first_there, growth.last_here) {
            assert!(here <= there, "the guest spoke at its source after it spoke elsewhere");
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.done.store(true, Ordering::SeqCst);
    }
}

fn size(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |file| file.len())
}
