//! The PVH boot ABI: what is in memory and in the registers at the entry
//! (Xen, docs/misc/pvh.pandoc and public/arch-x86/hvm/start_info.h).

use std::ops::Range;

use kvm_bindings::{KVM_MP_STATE_RUNNABLE, kvm_mp_state, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_start_info};
use vm_memory::GuestAddress;

use super::{BootError, command_line, map};
use crate::layout::{COMMAND_LINE, COMMAND_LINE_MAX, MEMORY_MAP, START_INFO};
use crate::memory::Memory;

/// The value of hvm_start_info.magic ("xEn3" with the highest bit of the E set).
const MAGIC: u32 = 0x336e_c578;
/// Version 1 of the structure has the memory map.
const VERSION: u32 = 1;
/// CR0.PE: protected mode, and nothing else.
const PROTECTED_MODE: u64 = 1;
/// The bit of RFLAGS that is always set.
const FLAGS: u64 = 2;

/// Writes hvm_start_info, the memory map and the command line. `rsdp` is the address of the ACPI
/// tables, or 0 if there are none.
pub(super) fn write(memory: &Memory, command_line: &str, rsdp: u64) -> Result<(), BootError> {
    command_line::write(memory, command_line, COMMAND_LINE_MAX)?;
    let map = memory_map(memory);
    let start_info = hvm_start_info {
        magic: MAGIC,
        version: VERSION,
        cmdline_paddr: COMMAND_LINE,
        rsdp_paddr: rsdp,
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
    let entry = |(range, kind): (Range<u64>, map::Kind)| hvm_memmap_table_entry {
        addr: range.start,
        size: range.end - range.start,
        type_: kind as u32,
        ..hvm_memmap_table_entry::default()
    };
    map::of(memory.regions()).into_iter().map(entry).collect()
}

/// Sets a vCPU to the entry: 32-bit protected mode, flat segments, paging off, EBX the address of
/// hvm_start_info.
pub(super) fn set_entry(vcpu: &VcpuFd, number: u32, entry: u64) -> Result<(), BootError> {
    set_registers(vcpu, entry).map_err(|source| BootError::Registers { vcpu: number, source })
}

fn set_registers(vcpu: &VcpuFd, entry: u64) -> Result<(), kvm_ioctls::Error> {
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
    vcpu.set_regs(&kvm_regs { rip: entry, rbx: START_INFO, rflags: FLAGS, ..kvm_regs::default() })?;
    vcpu.set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE })
}
