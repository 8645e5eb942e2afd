//! Why a kernel cannot be booted.

use std::path::PathBuf;

use migpipe_units::Bytes;
use thiserror::Error;

use crate::acpi::AcpiError;

/// Why a kernel cannot be booted.
#[derive(Debug, Error)]
pub enum BootError {
    /// The kernel or its initial RAM disk cannot be read.
    #[error("cannot read {what} {}", .path.display())]
    Read {
        /// What it is to the guest.
        what: &'static str,
        /// Where it is.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// It is no ELF file for this machine, or it does not fit.
    #[error("kernel {kernel} is no ELF file that fits a guest with {memory} of memory")]
    Load {
        /// The kernel.
        kernel: String,
        /// How much memory the guest has.
        memory: Bytes,
        /// What the loader says.
        #[source]
        source: linux_loader::loader::Error,
    },
    /// It has no entry that we know.
    #[error(
        "kernel {0} has no PVH note (XEN_ELFNOTE_PHYS32_ENTRY) and is not Linux; build it with CONFIG_PVH or choose another"
    )]
    NoPvhNote(String),
    /// A bzImage that the loader refuses.
    #[error("kernel {kernel} is no bzImage that can be loaded")]
    BzImage {
        /// The kernel.
        kernel: String,
        /// What the loader says.
        #[source]
        source: linux_loader::loader::Error,
    },
    /// A bzImage without a 64-bit entry.
    #[error(
        "kernel {0} has no 64-bit entry (boot protocol 2.12 or later with XLF_KERNEL_64); use an x86-64 kernel of Linux 3.8 or later"
    )]
    Not64Bit(String),
    /// The kernel needs more memory than there is.
    #[error(
        "kernel {kernel} needs memory up to {needed} while it starts, and the guest has {has} in one piece; give it more"
    )]
    LinuxMemory {
        /// The kernel.
        kernel: String,
        /// The end of what it needs.
        needed: Bytes,
        /// The end of what there is.
        has: Bytes,
    },
    /// The initial RAM disk does not fit beside the kernel.
    #[error("initrd {} has {bytes}, and beside the kernel there is room for {room}; give the guest more memory", .path.display())]
    InitrdTooLarge {
        /// Where it is.
        path: PathBuf,
        /// Its size.
        bytes: Bytes,
        /// How much fits.
        room: Bytes,
    },
    /// Only Linux is given an initial RAM disk.
    #[error("kernel {} is not Linux, and only Linux takes an initrd; leave --initrd out", .0.display())]
    InitrdWithoutLinux(PathBuf),
    /// The host's KVM cannot run a Linux kernel.
    #[error(
        "kernel {} is Linux, which cannot boot on this host: its KVM is PVM (module kvm_pvm), which emulates the guest's kernel mode and lacks instructions that Linux needs (cmpxchg16b, xrstor, int3); use a host with VT-x or AMD-V, or --kernel builtin:dirty here",
        .0.display()
    )]
    PvmHost(PathBuf),
    /// A Linux guest arrives where it cannot run.
    #[error(
        "guest {0} is Linux, which cannot run on this host: its KVM is PVM (module kvm_pvm), which emulates the guest's kernel mode and lacks instructions that Linux needs (cmpxchg16b, xrstor, int3); send it to a host with VT-x or AMD-V"
    )]
    ArrivesAtPvmHost(String),
    /// The command line is too long.
    #[error("the kernel command line has {bytes} bytes; at most {most} fit")]
    CommandLineTooLong {
        /// How many bytes it has.
        bytes: usize,
        /// How many this kernel takes.
        most: usize,
    },
    /// The command line has a zero in it.
    #[error("the kernel command line has a zero byte in it")]
    CommandLineZero,
    /// The guest's memory has no room for what the boot protocol puts there.
    #[error("the guest has too little memory to boot; give it 16M at least")]
    TooLittleMemory,
    /// The machine cannot be described to the kernel.
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    /// The built-in guest needs more memory than there is.
    #[error("the built-in guest needs {needed} of memory for its pages and fill-mb, and has {has}")]
    BuiltinMemory {
        /// What its options ask for.
        needed: Bytes,
        /// What there is.
        has: Bytes,
    },
    /// The built-in guest has no stacks for so many vCPUs.
    #[error("the built-in guest runs on {most} vCPUs at most, not {asked}")]
    BuiltinVcpus {
        /// How many were asked for.
        asked: u32,
        /// How many there can be.
        most: u32,
    },
    /// A vCPU cannot be set to the entry.
    #[error("cannot set vCPU {vcpu} to the kernel's entry")]
    Registers {
        /// Its id.
        vcpu: u32,
        /// What KVM says.
        #[source]
        source: kvm_ioctls::Error,
    },
}
