//! What the vCPUs tell one another. vCPU 0 alone prints.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::boot::MAX_CPUS;
use crate::memory::Layout;

/// The counters of one vCPU, on a cache line of their own.
#[repr(align(64))]
pub struct Counters {
    pub writes: AtomicU64,
    pub checked: AtomicU64,
    pub walks: AtomicU64,
    /// The longest gap between two loop steps since vCPU 0 last asked, in TSC cycles.
    pub gap: AtomicU64,
}

/// The first wrong word that was found.
#[derive(Clone, Copy)]
pub struct Fault {
    pub gfn: u64,
    pub word: u64,
    pub expected: u64,
    pub found: u64,
    pub what: &'static str,
    pub index: u64,
}

const NONE: u32 = 0;
const CLAIMED: u32 = 1;
const WRITTEN: u32 = 2;

pub struct Shared {
    pub filled: AtomicU32,
    pub counters: [Counters; MAX_CPUS],
    layout_state: AtomicU32,
    layout: UnsafeCell<Option<Layout>>,
    fault_state: AtomicU32,
    fault: UnsafeCell<Option<Fault>>,
}

// SAFETY: each cell is written once, by whoever moves its state word away from NONE, and read only
// after the state word says WRITTEN.
unsafe impl Sync for Shared {}

pub static SHARED: Shared = Shared {
    filled: AtomicU32::new(0),
    counters: [const {
        Counters {
            writes: AtomicU64::new(0),
            checked: AtomicU64::new(0),
            walks: AtomicU64::new(0),
            gap: AtomicU64::new(0),
        }
    }; MAX_CPUS],
    layout_state: AtomicU32::new(NONE),
    layout: UnsafeCell::new(None),
    fault_state: AtomicU32::new(NONE),
    fault: UnsafeCell::new(None),
};

impl Shared {
    /// Tells all vCPUs where everything is; vCPU 0 calls it once.
    pub fn publish(&self, layout: Layout) {
        // SAFETY: only vCPU 0 comes here, and nobody reads before the state word is set.
        unsafe { *self.layout.get() = Some(layout) };
        self.layout_state.store(WRITTEN, Ordering::Release);
    }

    /// Waits until vCPU 0 has said where everything is.
    pub fn layout(&self) -> &Layout {
        loop {
            if self.layout_state.load(Ordering::Acquire) == WRITTEN {
                // SAFETY: written, and never again.
                if let Some(layout) = unsafe { &*self.layout.get() } {
                    return layout;
                }
            }
            core::hint::spin_loop();
        }
    }

    /// Records what was found wrong; the first fault stays.
    pub fn fail(&self, fault: Fault) {
        if self
            .fault_state
            .compare_exchange(NONE, CLAIMED, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
        {
            // SAFETY: this vCPU alone claimed the cell.
            unsafe { *self.fault.get() = Some(fault) };
            self.fault_state.store(WRITTEN, Ordering::Release);
        }
    }

    /// Whether anything was found wrong.
    pub fn failed(&self) -> bool {
        self.fault_state.load(Ordering::Acquire) != NONE
    }

    /// What was found wrong, once it is written down.
    pub fn fault(&self) -> Option<Fault> {
        if self.fault_state.load(Ordering::Acquire) != WRITTEN {
            return None;
        }
        // SAFETY: written, and never again.
        unsafe { *self.fault.get() }
    }
}
