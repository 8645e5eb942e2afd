//! What a machine is to be: for a guest that begins here, and for one that arrives.

use migpipe_units::Bytes;
use vm_cpu::Wanted;
use vm_devices::{ConsoleSpec, VirtioSpec};
use vm_state::DeviceParam;

use crate::allowed_paths::AllowedPaths;
use crate::boot::Kernel;
use crate::memory::MemorySource;

/// A machine that begins here.
#[derive(Clone, Debug)]
pub struct MachineConfig {
    /// The name of the guest.
    pub name: String,
    /// What it boots.
    pub kernel: Kernel,
    /// The kernel command line; the built-in guest gets it behind its own.
    pub cmdline: String,
    /// Its memory: whole pages.
    pub mem: Bytes,
    /// How many vCPUs it has.
    pub cpus: u32,
    /// What each of them is.
    pub cpu: Wanted,
    /// Where its serial console goes.
    pub console: ConsoleSpec,
    /// Where its memory comes from.
    pub memory: MemorySource,
    /// Its virtio devices, in the order in which it finds them.
    pub devices: Vec<VirtioSpec>,
}

/// What a host makes of a guest that arrives.
#[derive(Clone, Debug, Default)]
pub struct IncomingConfig {
    /// The name that it has here.
    pub name: Option<String>,
    /// What is another here than its description says.
    pub overrides: Vec<DeviceParam>,
    /// Where the files may be that it has then.
    pub allowed_paths: AllowedPaths,
    /// Where its memory comes from, unless it had hugetlbfs at its source.
    pub memory: MemorySource,
}
