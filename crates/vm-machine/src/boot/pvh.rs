//! The PVH boot ABI: what is in memory and in the registers at the entry
//! (Xen, docs/misc/pvh.pandoc and public/arch-x86/hvm/start_info.h).

use kvm_bindings::{KVM_MP_STATE_RUNNABLE, kvm_mp_state, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_start_info};
use vm_memory::{Bytes, GuestAddress};

use super::BootError;
use crate::layout::{COMMAND_LINE, COMMAND_LINE_MAX, LEGACY_HOLE, MEMORY_MAP, START_INFO};
use crate::memory::Memory;

/// The value of hvm_start_info.magic ("xEn3" with the highest bit of the E set).
const MAGIC: u32 = 0x336e_c578;
/// Version 1 of the structure has the memory map.
const VERSION: u32 = 1;
/// XEN_HVM_MEMMAP_TYPE_RAM.
const RAM: u32 = 1;
/// CR0.PE: protected mode, and nothing else.
const PROTECTED_MODE: u64 = 1;
/// The bit of RFLAGS that is always set.
const FLAGS: u64 = 2;

/// Writes hvm_start_info, the memory map and the command line.
pub(super) fn write(memory: &Memory, command_line: &str) -> Result<(), BootError> {
    if command_line.len() >= COMMAND_LINE_MAX {
        return Err(BootError::CommandLineTooLong(command_line.len()));
    }
    if command_line.contains('\0') {
        return Err(BootError::CommandLineZero);
    }
    let line = [command_line.as_bytes(), b"\0"].concat();
    memory
        .mapped()
        .write_slice(&line, GuestAddress(COMMAND_LINE))
        .map_err(|_| BootError::TooLittleMemory)?;
    let map = memory_map(memory);
    let start_info = hvm_start_info {
        magic: MAGIC,
        version: VERSION,
        cmdline_paddr: COMMAND_LINE,
        memmap_paddr: MEMORY_MAP,
        memmap_entries: map.len() as u32,
        ..hvm_start_info::default()
    };
    let mut params = BootParams::new(&start_info, GuestAddress(START_INFO));
    params.set_sections(&map, GuestAddress(MEMORY_MAP));
    PvhBootConfigurator::write_bootparams(&params, memory.mapped())
        .map_err(|_| BootError::TooLittleMemory)
}

fn memory_map(memory: &Memory) -> Vec<hvm_memmap_table_entry> {
    let ram = |start: u64, end: u64| hvm_memmap_table_entry {
        addr: start,
        size: end.saturating_sub(start),
        type_: RAM,
        ..hvm_memmap_table_entry::default()
    };
    let mut map = Vec::new();
    for region in memory.regions() {
        let (start, end) = (region.base.address(), region.base.address() + region.pages.bytes().0);
        if start == 0 {
            map.push(ram(0, LEGACY_HOLE.start.min(end)));
            map.push(ram(LEGACY_HOLE.end, end));
        } else {
            map.push(ram(start, end));
        }
    }
    map.retain(|entry| entry.size > 0);
    map
}

/// Sets a vCPU to the entry: 32-bit protected mode, flat segments, paging off, EBX the address of
/// hvm_start_info. ESI is the number of the vCPU, which the ABI leaves open and the built-in guest
/// reads.
pub(super) fn set_entry(vcpu: &VcpuFd, number: u32, entry: u64) -> Result<(), BootError> {
    set_registers(vcpu, number, entry)
        .map_err(|source| BootError::Registers { vcpu: number, source })
}

fn set_registers(vcpu: &VcpuFd, number: u32, entry: u64) -> Result<(), kvm_ioctls::Error> {
    let flat = |selector, type_| kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..kvm_segment::default()
    };
    let mut sregs = vcpu.get_sregs()?;
    sregs.cr0 = PROTECTED_MODE;
    sregs.cr4 = 0;
    sregs.efer = 0;
    // Types of the descriptors (Intel SDM 3.4.5.1): code, execute and read, accessed; data, read
    // and write, accessed; and a busy 32-bit TSS.
    sregs.cs = flat(0x08, 0b1011);
    let data = flat(0x10, 0b0011);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment { limit: 0x67, type_: 0b1011, present: 1, ..kvm_segment::default() };
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&kvm_regs {
        rip: entry,
        rbx: START_INFO,
        rsi: number.into(),
        rflags: FLAGS,
        ..kvm_regs::default()
    })?;
    vcpu.set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE })
}
