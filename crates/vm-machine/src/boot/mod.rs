//! From a kernel to vCPUs that stand at its entry.

mod command_line;
mod detect;
mod elf;
mod error;
mod kernel;
mod linux;
mod long_mode;
mod map;
mod pvh;
mod reset_vector;

use kvm_ioctls::VcpuFd;
use migpipe_units::Bytes;
use vm_devices::MmioWindow;

use crate::memory::{Memory, MemorySource};
use crate::{acpi, layout};

pub(crate) use self::detect::check_arriving;
pub use self::error::BootError;
pub use self::kernel::Kernel;

/// Where the vCPUs of a loaded kernel begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    /// In 32-bit protected mode, at this address: the first vCPU alone, or all of them.
    Pvh { address: u64, all: bool },
    /// In long mode, at this address.
    Linux(u64),
}

/// What a kernel is told of the machine that it runs on.
#[derive(Clone, Copy, Debug)]
struct BootParams<'a> {
    vcpus: u32,
    windows: &'a [MmioWindow],
    tsc_khz: u32,
}

impl Kernel {
    /// Loads the kernel as a guest with so much memory and so many vCPUs would get it, and throws
    /// the memory away. Returns the guest-physical address at which it would begin. Needs no KVM:
    /// it says whether a kernel and its command line are good, whatever bytes they are.
    ///
    /// # Errors
    /// [`MachineError`](crate::MachineError) as from [`Machine::boot`](crate::Machine::boot).
    pub fn try_load(
        &self,
        command_line: &str,
        memory: Bytes,
        vcpus: u32,
    ) -> Result<u64, crate::MachineError> {
        let memory = Memory::new(&layout::regions(memory), &MemorySource::default())?;
        let around = BootParams { vcpus, windows: &[], tsc_khz: 1_000_000 };
        match load(self, command_line, &memory, around)? {
            Entry::Pvh { address, .. } | Entry::Linux(address) => Ok(address),
        }
    }
}

/// Puts the kernel into memory and sets the vCPUs to its entry.
///
/// Of Linux and of a PVH kernel only vCPU 0 is set: the others wait for its start-up interrupts, and
/// are found by the ACPI tables, as are the virtio-mmio devices. All vCPUs of the built-in guest
/// stand at the entry; it looks for nothing.
pub(crate) fn boot(
    kernel: &Kernel,
    command_line: &str,
    memory: &Memory,
    vcpus: &[VcpuFd],
    windows: &[MmioWindow],
    tsc_khz: u32,
) -> Result<(), BootError> {
    let around = BootParams { vcpus: vcpus.len() as u32, windows, tsc_khz };
    let entry = load(kernel, command_line, memory, around)?;
    for (number, vcpu) in (0..).zip(vcpus) {
        match entry {
            Entry::Pvh { address, all } if all || number == 0 => {
                pvh::set_entry(vcpu, number, address)?;
            }
            Entry::Pvh { .. } => {}
            Entry::Linux(address) => {
                let set = long_mode::set_msrs(vcpu).and_then(|()| match number {
                    0 => long_mode::set_entry(vcpu, address),
                    _ => Ok(()),
                });
                set.map_err(|source| BootError::Registers { vcpu: number, source })?;
            }
        }
    }
    Ok(())
}

/// Puts the kernel and all that it is told into memory. KVM has no part in it.
fn load(
    kernel: &Kernel,
    command_line: &str,
    memory: &Memory,
    around: BootParams<'_>,
) -> Result<Entry, BootError> {
    let size = memory.regions().iter().map(|region| region.pages.bytes()).sum();
    match kernel {
        Kernel::Builtin(spec) => {
            let cpus = around.vcpus;
            if cpus > vm_guest::MAX_CPUS {
                return Err(BootError::BuiltinVcpus { asked: cpus, most: vm_guest::MAX_CPUS });
            }
            if spec.memory_needed() > size {
                return Err(BootError::BuiltinMemory { needed: spec.memory_needed(), has: size });
            }
            let mut line = spec.command_line(cpus, around.tsc_khz);
            if !command_line.is_empty() {
                line = format!("{line} {command_line}");
            }
            let image = &mut std::io::Cursor::new(vm_guest::IMAGE);
            let address = elf::load("builtin", image, memory.mapped(), size)?;
            pvh::write(memory, &line, 0)?;
            Ok(Entry::Pvh { address, all: true })
        }
        Kernel::Elf(path) => {
            let name = path.display().to_string();
            let mut file = std::fs::File::open(path).map_err(|source| BootError::Read {
                what: "kernel",
                path: path.clone(),
                source,
            })?;
            let address = elf::load(&name, &mut file, memory.mapped(), size)?;
            let rsdp = acpi::write(memory.mapped(), around.vcpus, around.windows)?;
            reset_vector::write(memory)?;
            pvh::write(memory, command_line, rsdp)?;
            Ok(Entry::Pvh { address, all: false })
        }
        Kernel::Linux { image, initrd } => {
            let rsdp = acpi::write(memory.mapped(), around.vcpus, around.windows)?;
            reset_vector::write(memory)?;
            linux::load(image, initrd.as_deref(), command_line, memory, rsdp).map(Entry::Linux)
        }
    }
}
