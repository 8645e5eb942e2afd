//! The interrupt of a device: what it is for, and the line.

use std::sync::atomic::{AtomicU32, Ordering};

use vmm_sys_util::eventfd::EventFd;

/// Why a device interrupts its driver; the bits of InterruptStatus (VIRTIO 1.2, 4.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// A buffer was used.
    Ring = 1,
    /// The configuration changed.
    Config = 2,
}

pub(super) struct Interrupt {
    status: AtomicU32,
    line: EventFd,
}

impl Interrupt {
    pub(super) const fn new(line: EventFd) -> Self {
        Self { status: AtomicU32::new(0), line }
    }

    pub(super) fn raise(&self, why: Why) {
        self.status.fetch_or(why as u32, Ordering::SeqCst);
        self.pulse();
    }

    /// Pulls the line once more for what the driver has not acknowledged: whether the last pull
    /// reached a chip whose state was saved is not known.
    pub(super) fn raise_again(&self) {
        if self.status() != 0 {
            self.pulse();
        }
    }

    fn pulse(&self) {
        // An eventfd fails only when its counter is full, and then the line is pulled already.
        let _ = self.line.write(1);
    }

    pub(super) fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    pub(super) fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::SeqCst);
    }

    pub(super) fn set(&self, status: u32) {
        self.status.store(status, Ordering::SeqCst);
    }
}
