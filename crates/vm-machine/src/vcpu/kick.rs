//! Calling a vCPU out of guest mode.
//!
//! Two things together, for either alone has a gap (KVM API, kvm_run.immediate_exit): the flag
//! catches a thread that is about to call KVM_RUN, the signal one that is in it. The thread clears
//! the flag and only then looks at what is wanted of it, so that no call is lost.

use std::os::raw::{c_int, c_void};
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

use vmm_sys_util::errno;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use super::shared::{SharedVcpu, lock};

/// The number of the signal, counted from SIGRTMIN.
const SIGNAL: c_int = 0;

/// Makes the signal interrupt system calls and do nothing else.
pub(super) fn install_handler() -> errno::Result<()> {
    extern "C" fn nothing(_: c_int, _: *mut libc::siginfo_t, _: *mut c_void) {}
    register_signal_handler(SIGRTMIN() + SIGNAL, nothing)
}

/// How to call one vCPU.
pub(super) struct Kick {
    /// Keeps the mapping alive that `immediate_exit` points into.
    _vcpu: SharedVcpu,
    immediate_exit: NonNull<u8>,
    thread: OnceLock<libc::pthread_t>,
}

// SAFETY: the pointer is only used for atomic accesses to one byte of a mapping that is shared with
// the kernel and lives as long as `_vcpu`.
unsafe impl Send for Kick {}
// SAFETY: as above.
unsafe impl Sync for Kick {}

impl Kick {
    pub(super) fn new(vcpu: &SharedVcpu) -> Self {
        let immediate_exit = NonNull::from(&mut lock(vcpu).get_kvm_run().immediate_exit);
        Self { _vcpu: SharedVcpu::clone(vcpu), immediate_exit, thread: OnceLock::new() }
    }

    /// Says that the calling thread is the one that runs this vCPU. It must not end before the last
    /// call of [`Self::call`].
    pub(super) fn is_mine(&self) {
        // SAFETY: has no preconditions.
        let me = unsafe { libc::pthread_self() };
        let _ = self.thread.set(me);
    }

    fn flag(&self) -> &AtomicU8 {
        // SAFETY: the byte is alive (see `_vcpu`) and aligned; all of this process' accesses to it
        // while threads run are atomic, and the kernel only reads it.
        unsafe { AtomicU8::from_ptr(self.immediate_exit.as_ptr()) }
    }

    /// The next KVM_RUN returns at once.
    pub(super) fn raise(&self) {
        self.flag().store(1, Ordering::SeqCst);
    }

    pub(super) fn lower(&self) {
        self.flag().store(0, Ordering::SeqCst);
    }

    /// Calls the vCPU.
    pub(super) fn call(&self) {
        self.raise();
        if let Some(&thread) = self.thread.get() {
            // SAFETY: the thread has not been joined: `Vcpus` ends the throttle and sets the gate
            // for the last time before it joins its threads, and nobody else calls.
            unsafe { libc::pthread_kill(thread, SIGRTMIN() + SIGNAL) };
        }
    }
}
