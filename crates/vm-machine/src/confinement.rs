//! What is left to the threads of the vCPUs, and which KVM calls the others need.
//!
//! A KVM call is known by the type and the number in its request (linux/kvm.h); what size and
//! direction it claims to have is KVM's to check.
#![forbid(unsafe_code)]

use kvm_bindings::KVMIO;
use migpipe_confine::sets::{NARROWING, OPEN_FILES, OPENING, POLL, RUNTIME, THREADS};
use migpipe_confine::{Call, Check, Filter, calls};
use vm_devices::confinement::{CLIENT, FAR_ENDS, RINGS};
pub use vm_devices::confinement::{CONSOLE, DISKS, REGISTERS, WORKER};

use crate::arch::REQ_XCOMP_GUEST_PERM;

/// The request of KVM with this number.
const fn kvm(number: u8) -> Check {
    Check::Bits { arg: 1, mask: 0xffff, set: (KVMIO as u64) << 8 | number as u64 }
}

/// What a vCPU's thread asks of KVM. KVM_RUN is the first line: it is called at every exit.
const RUN: &[Call] = calls![
    SYS_ioctl(kvm(0x80)) => "KVM_RUN";
    SYS_ioctl(kvm(0x81)) => "KVM_GET_REGS: where a guest stood that KVM can run no further";
];

/// The thread of one vCPU, which serves what the guest does at ports and registers: interrupts and
/// wakes are writes.
pub const VCPU: Filter = Filter { thread: "vcpu", tables: &[RUN, REGISTERS, RUNTIME] };

/// The thread that holds the vCPUs up: locks and signals within the process.
pub const THROTTLE: Filter = Filter { thread: "throttle", tables: &[RUNTIME] };

/// What whoever owns a machine asks of it while it lives: the log of dirty pages, pause and
/// resume, its state.
pub const OWNER: &[Call] = calls![
    SYS_ioctl(kvm(0x42)) => "KVM_GET_DIRTY_LOG";
    SYS_ioctl(kvm(0xc0)) => "KVM_CLEAR_DIRTY_LOG";
    SYS_ioctl(kvm(0x46)) => "KVM_SET_USER_MEMORY_REGION: the log goes on and off";
    SYS_ioctl(kvm(0x62)) => "KVM_GET_IRQCHIP";
    SYS_ioctl(kvm(0x63)) => "KVM_SET_IRQCHIP";
    SYS_ioctl(kvm(0x7b)) => "KVM_SET_CLOCK";
    SYS_ioctl(kvm(0x7c)) => "KVM_GET_CLOCK";
    SYS_ioctl(kvm(0x81)) => "KVM_GET_REGS";
    SYS_ioctl(kvm(0x82)) => "KVM_SET_REGS";
    SYS_ioctl(kvm(0x83)) => "KVM_GET_SREGS";
    SYS_ioctl(kvm(0x84)) => "KVM_SET_SREGS";
    SYS_ioctl(kvm(0x88)) => "KVM_GET_MSRS";
    SYS_ioctl(kvm(0x89)) => "KVM_SET_MSRS";
    SYS_ioctl(kvm(0x8e)) => "KVM_GET_LAPIC";
    SYS_ioctl(kvm(0x8f)) => "KVM_SET_LAPIC";
    SYS_ioctl(kvm(0x98)) => "KVM_GET_MP_STATE";
    SYS_ioctl(kvm(0x99)) => "KVM_SET_MP_STATE";
    SYS_ioctl(kvm(0x9f)) => "KVM_GET_VCPU_EVENTS and KVM_GET_PIT2";
    SYS_ioctl(kvm(0xa0)) => "KVM_SET_VCPU_EVENTS and KVM_SET_PIT2";
    SYS_ioctl(kvm(0xa1)) => "KVM_GET_DEBUGREGS";
    SYS_ioctl(kvm(0xa2)) => "KVM_SET_DEBUGREGS and KVM_SET_TSC_KHZ";
    SYS_ioctl(Check::Is(1, 0xaea3)) => "KVM_GET_TSC_KHZ";
    SYS_ioctl(kvm(0xa5)) => "KVM_SET_XSAVE";
    SYS_ioctl(kvm(0xa6)) => "KVM_GET_XCRS";
    SYS_ioctl(kvm(0xa7)) => "KVM_SET_XCRS";
    SYS_ioctl(kvm(0xad)) => "KVM_KVMCLOCK_CTRL";
    SYS_ioctl(kvm(0xcc)) => "KVM_GET_SREGS2";
    SYS_ioctl(kvm(0xcd)) => "KVM_SET_SREGS2";
    SYS_ioctl(kvm(0xcf)) => "KVM_GET_XSAVE2";
    SYS_ioctl(kvm(0xe1)) => "KVM_SET_DEVICE_ATTR: the offset of a TSC";
    SYS_ioctl(kvm(0xe2)) => "KVM_GET_DEVICE_ATTR";
];

/// What makes a machine, beside [`OWNER`].
const BUILD: &[Call] = calls![
    SYS_ioctl(kvm(0x00)) => "KVM_GET_API_VERSION";
    SYS_ioctl(kvm(0x01)) => "KVM_CREATE_VM";
    SYS_ioctl(kvm(0x02)) => "KVM_GET_MSR_INDEX_LIST";
    SYS_ioctl(kvm(0x03)) => "KVM_CHECK_EXTENSION";
    SYS_ioctl(kvm(0x04)) => "KVM_GET_VCPU_MMAP_SIZE";
    SYS_ioctl(kvm(0x05)) => "KVM_GET_SUPPORTED_CPUID";
    SYS_ioctl(kvm(0x41)) => "KVM_CREATE_VCPU";
    SYS_ioctl(kvm(0x47)) => "KVM_SET_TSS_ADDR";
    SYS_ioctl(kvm(0x48)) => "KVM_SET_IDENTITY_MAP_ADDR";
    SYS_ioctl(kvm(0x60)) => "KVM_CREATE_IRQCHIP";
    SYS_ioctl(kvm(0x76)) => "KVM_IRQFD";
    SYS_ioctl(kvm(0x77)) => "KVM_CREATE_PIT2";
    SYS_ioctl(kvm(0x79)) => "KVM_IOEVENTFD";
    SYS_ioctl(kvm(0x90)) => "KVM_SET_CPUID2";
    SYS_ioctl(kvm(0x91)) => "KVM_GET_CPUID2";
    SYS_ioctl(kvm(0xa3)) => "KVM_ENABLE_CAP: clearing the log of dirty pages is left to us";
    SYS_arch_prctl(Check::Is(0, REQ_XCOMP_GUEST_PERM)) => "AMX for the guest";
    SYS_readlink => "where a path leads";
    SYS_readlinkat;
    SYS_getcwd;
    SYS_memfd_create => "the memory";
    SYS_ftruncate;
    SYS_fchmod => "nobody opens it for writing";
    SYS_rt_sigaction(Check::Is(0, KICK)) => "the signal that calls a vCPU out of the guest";
];

/// SIGRTMIN of glibc, which keeps two signals for itself (signal(7)).
const KICK: u32 = 34;

/// The thread that builds the machine of a guest that arrives ([`crate::Machine::incoming`]). Those
/// of the machine begin in it, so that it has what they have; each narrows itself down.
pub const BUILDER: Filter = Filter {
    thread: "builder",
    tables: &[
        // First, for KVM_RUN.
        RUN, RUNTIME, THREADS, NARROWING, OPEN_FILES, OPENING, BUILD, OWNER, FAR_ENDS, REGISTERS,
        RINGS, CLIENT, POLL,
    ],
};
