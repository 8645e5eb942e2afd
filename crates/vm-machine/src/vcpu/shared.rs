//! A vCPU between its thread and whoever saves or restores it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_ioctls::VcpuFd;

/// A vCPU that may run on a thread of its own; whoever holds the lock has it stopped.
pub(crate) type SharedVcpu = Arc<Mutex<VcpuFd>>;

pub(crate) fn lock(vcpu: &Mutex<VcpuFd>) -> MutexGuard<'_, VcpuFd> {
    // A descriptor and a mapping of the kernel: a panic elsewhere does not spoil them.
    vcpu.lock().unwrap_or_else(PoisonError::into_inner)
}
