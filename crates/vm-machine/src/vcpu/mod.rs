//! The vCPUs: one thread each, all held by one gate.

pub(crate) mod error;
mod gate;
mod kick;
mod shared;
mod thread;
mod throttle;

use std::cell::Cell;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

use kvm_ioctls::VcpuFd;

use crate::events::Events;
use crate::monotonic_time::MonotonicTime;
use crate::ports::Ports;

pub use self::error::VcpuError;
use self::gate::{Gate, RunRequest};
use self::kick::Kick;
pub(crate) use self::shared::{SharedVcpu, lock};
use self::throttle::Throttle;

/// All vCPUs of a machine.
pub(crate) struct Vcpus {
    gate: Arc<Gate>,
    vcpus: Vec<SharedVcpu>,
    threads: Vec<JoinHandle<()>>,
    throttle: Throttle,
}

impl Vcpus {
    /// Starts a thread for each vCPU. None runs before [`Self::resume`].
    pub(crate) fn start(
        fds: Vec<VcpuFd>,
        ports: &Ports,
        events: &Arc<Events>,
    ) -> Result<Self, VcpuError> {
        kick::install_handler().map_err(VcpuError::Signal)?;
        let mut vcpus = Vec::new();
        let mut kicks = Vec::new();
        for fd in fds {
            let vcpu = Arc::new(Mutex::new(fd));
            kicks.push(Kick::new(&vcpu));
            vcpus.push(vcpu);
        }
        let gate = Arc::new(Gate::new(kicks));
        let throttle =
            Throttle::start(&gate).map_err(|source| VcpuError::Thread { vcpu: 0, source })?;
        let mut started = Self { gate, vcpus, threads: Vec::new(), throttle };
        for (number, vcpu) in (0_u32..).zip(&started.vcpus) {
            let thread = thread::Thread {
                number,
                vcpu: Arc::clone(vcpu),
                gate: Arc::clone(&started.gate),
                ports: ports.clone(),
                events: Arc::clone(events),
                left_guest: Cell::new(None),
            };
            let spawned = std::thread::Builder::new()
                .name(format!("vcpu{number}"))
                .spawn(move || thread.run());
            // On failure `started` is dropped here, which ends the threads that there are.
            started
                .threads
                .push(spawned.map_err(|source| VcpuError::Thread { vcpu: number, source })?);
        }
        started.gate.wait_until_parked(started.threads.len());
        Ok(started)
    }

    /// Lets them run. The caller has made sure that they may.
    pub(crate) fn resume(&self) {
        self.gate.set(RunRequest::Run);
    }

    /// Stops them; returns when all are out of guest mode with no I/O half done, with the moment
    /// at which the last one left it.
    pub(crate) fn pause(&self) -> MonotonicTime {
        self.gate.set(RunRequest::Pause);
        self.gate.wait_until_parked(self.threads.len());
        self.gate.last_exit()
    }

    pub(crate) fn is_running(&self) -> bool {
        self.gate.request() == RunRequest::Run
    }

    /// When the first vCPU entered guest mode after the last resume; nothing if none has yet.
    pub(crate) fn first_entry(&self) -> Option<MonotonicTime> {
        self.gate.first_entry()
    }

    /// Takes so many percent of their time from them.
    pub(crate) fn throttle(&self, percent: u8) {
        self.throttle.set(percent);
    }

    /// The stopped vCPUs, in the order of their ids; call it only while they are paused.
    pub(crate) fn stopped(&self) -> Vec<MutexGuard<'_, VcpuFd>> {
        self.vcpus.iter().map(|vcpu| lock(vcpu)).collect()
    }
}

impl Drop for Vcpus {
    fn drop(&mut self) {
        self.throttle.end();
        self.gate.set(RunRequest::Quit);
        for (number, thread) in self.threads.drain(..).enumerate() {
            if thread.join().is_err() {
                tracing::error!("the thread of vCPU {number} panicked");
            }
        }
    }
}
