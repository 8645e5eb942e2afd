//! Time, which is the TSC.

use core::arch::x86_64::_rdtsc;

/// The TSC now.
pub fn now() -> u64 {
    // SAFETY: RDTSC touches nothing; CR4.TSD is clear.
    unsafe { _rdtsc() }
}

/// Converts between TSC cycles and time.
#[derive(Clone, Copy)]
pub struct Clock {
    khz: u64,
}

impl Clock {
    pub const fn new(khz: u64) -> Self {
        Self { khz }
    }

    pub const fn cycles(self, micros: u64) -> u64 {
        micros * self.khz / 1000
    }

    pub const fn micros(self, cycles: u64) -> u64 {
        ((cycles as u128 * 1000) / self.khz as u128) as u64
    }
}
