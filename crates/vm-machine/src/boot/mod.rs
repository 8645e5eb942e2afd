//! From a kernel to vCPUs that stand at its entry.

mod command_line;
mod detect;
mod elf;
mod error;
mod linux;
mod long_mode;
mod map;
mod pvh;
mod reset_vector;

use std::path::PathBuf;

use kvm_ioctls::VcpuFd;
use vm_devices::MmioWindow;
use vm_guest::DirtySpec;

use crate::acpi;
use crate::memory::Memory;

pub use self::error::BootError;

/// What a machine boots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// The built-in guest.
    Builtin(DirtySpec),
    /// An ELF file with a PVH note.
    Elf(PathBuf),
    /// A Linux kernel: a bzImage or an uncompressed vmlinux.
    Linux {
        /// The kernel.
        image: PathBuf,
        /// Its initial RAM disk.
        initrd: Option<PathBuf>,
    },
}

/// Puts the kernel into memory and sets the vCPUs to its entry.
///
/// Of Linux and of a PVH kernel only vCPU 0 is set: the others wait for its start-up interrupts, and
/// are found by the ACPI tables, as are the virtio-mmio devices of `windows`. All vCPUs of the
/// built-in guest stand at the entry, with their number in ESI; it looks for nothing.
pub(crate) fn boot(
    kernel: &Kernel,
    command_line: &str,
    memory: &Memory,
    vcpus: &[VcpuFd],
    windows: &[MmioWindow],
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
            pvh::write(memory, &line, 0)?;
            for (number, vcpu) in (0..).zip(vcpus) {
                pvh::set_entry(vcpu, number, entry)?;
            }
        }
        Kernel::Elf(path) => {
            let name = path.display().to_string();
            let mut file = std::fs::File::open(path).map_err(|source| BootError::Read {
                what: "kernel",
                path: path.clone(),
                source,
            })?;
            let entry = elf::load(&name, &mut file, memory.mapped(), size)?;
            let rsdp = acpi::write(memory.mapped(), vcpus.len() as u32, windows)?;
            reset_vector::write(memory)?;
            pvh::write(memory, command_line, rsdp)?;
            if let Some(first) = vcpus.first() {
                pvh::set_entry(first, 0, entry)?;
            }
        }
        Kernel::Linux { image, initrd } => {
            let rsdp = acpi::write(memory.mapped(), vcpus.len() as u32, windows)?;
            reset_vector::write(memory)?;
            let entry = linux::load(image, initrd.as_deref(), command_line, memory, rsdp)?;
            for (number, vcpu) in (0..).zip(vcpus) {
                let set = long_mode::set_msrs(vcpu).and_then(|()| match number {
                    0 => long_mode::set_entry(vcpu, entry),
                    _ => Ok(()),
                });
                set.map_err(|source| BootError::Registers { vcpu: number, source })?;
            }
        }
    }
    Ok(())
}
