//! CPU and machine state on KVM: what a host can give, what a guest was given, and its state as
//! sections.
//!
//! The order of a whole save is in [`save_machine`], that of a whole restore in
//! [`restore_machine`], and that within a vCPU in [`save_vcpu`] and [`restore_vcpu`]; each says
//! why. All of it is for vCPUs that do not run.

mod capabilities;
mod clock;
mod cpuid;
mod ioctl;
mod irqchip;
mod machine_state;
mod msr;
mod parallel;
mod uapi;
mod vcpu_state;

#[cfg(test)]
mod restore_table;
#[cfg(test)]
mod tests;

pub use capabilities::{
    CapabilityError, MAX_VCPUS, check_kvm, check_vcpus, cpu_of_guest, find_msrs, host_capabilities,
    set_cpu,
};
pub use clock::{
    ClockState, Disagreement, TimeBase, TscState, restore_clock, save_clock, tell_paused,
};
pub use ioctl::IoctlError;
pub(crate) use ioctl::REQ_XCOMP_GUEST_PERM;
pub use irqchip::{
    ChipError, ChipState, IoapicState, PicMasterState, PicSlaveState, PitState, restore_chips,
    save_chips,
};
pub use machine_state::{MachineState, MachineStateError, restore_machine, save_machine};
pub use msr::{MsrError, MsrValue};
pub use vcpu_state::{VcpuState, VcpuStateError, restore_vcpu, save_vcpu};
