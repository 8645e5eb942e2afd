//! Why there are no vCPUs.

use thiserror::Error;

/// Why vCPUs cannot be started.
#[derive(Debug, Error)]
pub enum VcpuError {
    /// The system gives no thread.
    #[error("cannot start the thread of vCPU {vcpu}")]
    Thread {
        /// Its id.
        vcpu: u32,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// The signal that calls vCPUs out of guest mode cannot be set up.
    #[error("cannot install the handler of the signal that stops vCPUs")]
    Signal(#[source] vmm_sys_util::errno::Error),
}
