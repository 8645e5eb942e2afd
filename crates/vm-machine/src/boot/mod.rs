//! From a kernel to vCPUs that stand at its entry.

mod elf;
mod pvh;

use std::path::PathBuf;

use kvm_ioctls::VcpuFd;
use thiserror::Error;
use units::Bytes;
use vm_guest::DirtySpec;

use crate::layout::COMMAND_LINE_MAX;
use crate::memory::Memory;

/// What a machine boots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// The built-in guest.
    Builtin(DirtySpec),
    /// An ELF file with a PVH note.
    Elf(PathBuf),
}

/// Why a kernel cannot be booted.
#[derive(Debug, Error)]
pub enum BootError {
    /// The kernel cannot be read.
    #[error("cannot read kernel {}", .path.display())]
    Read {
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
        "kernel {0} has no PVH note (XEN_ELFNOTE_PHYS32_ENTRY); build it with CONFIG_PVH or choose another"
    )]
    NoPvhNote(String),
    /// The command line is too long.
    #[error("the kernel command line has {0} bytes; at most {most} fit", most = COMMAND_LINE_MAX - 1)]
    CommandLineTooLong(usize),
    /// The command line has a zero in it.
    #[error("the kernel command line has a zero byte in it")]
    CommandLineZero,
    /// The guest's memory has no room for what the boot protocol puts there.
    #[error("the guest has too little memory to boot; give it 16M at least")]
    TooLittleMemory,
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

/// Puts the kernel into memory and sets the vCPUs to its entry.
///
/// Of a PVH kernel only vCPU 0 is set: the others wait for its start-up interrupts. All vCPUs of
/// the built-in guest stand at the entry, with their number in ESI.
pub(crate) fn boot(
    kernel: &Kernel,
    command_line: &str,
    memory: &Memory,
    vcpus: &[VcpuFd],
    tsc_khz: u32,
) -> Result<(), BootError> {
    let size = memory.regions().iter().map(|region| region.pages.bytes()).sum();
    match kernel {
        Kernel::Builtin(spec) => {
            let cpus = vcpus.len() as u32;
            if cpus > vm_guest::MAX_CPUS {
                return Err(BootError::BuiltinVcpus { asked: cpus, most: vm_guest::MAX_CPUS });
            }
            if spec.memory_needed() > size {
                return Err(BootError::BuiltinMemory { needed: spec.memory_needed(), has: size });
            }
            let mut line = spec.command_line(cpus, tsc_khz);
            if !command_line.is_empty() {
                line = format!("{line} {command_line}");
            }
            let image = &mut std::io::Cursor::new(vm_guest::IMAGE);
            let entry = elf::load("builtin", image, memory.mapped(), size)?;
            pvh::write(memory, &line)?;
            for (number, vcpu) in (0..).zip(vcpus) {
                pvh::set_entry(vcpu, number, entry)?;
            }
        }
        Kernel::Elf(path) => {
            let name = path.display().to_string();
            let mut file = std::fs::File::open(path)
                .map_err(|source| BootError::Read { path: path.clone(), source })?;
            let entry = elf::load(&name, &mut file, memory.mapped(), size)?;
            pvh::write(memory, command_line)?;
            if let Some(first) = vcpus.first() {
                pvh::set_entry(first, 0, entry)?;
            }
        }
    }
    Ok(())
}
