//! How much memory some work holds at most.

use std::sync::{Mutex, PoisonError};

use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// The allocator counts for all threads, so that one measures at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Does `work` and panics if it held more than `bound` bytes beyond what was held before.
pub(crate) fn within<T>(bound: usize, work: impl FnOnce() -> T) -> T {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    let result = work();
    let held = ALLOCATOR.peak_usage().saturating_sub(before);
    assert!(held <= bound, "{held} bytes held at once; the bound is {bound}");
    result
}
