//! The state in which the 64-bit Linux boot protocol wants the first processor: long mode, the
//! first 4 GiB mapped to themselves, flat segments, interrupts off, RSI the address of the zero page
//! (Linux, Documentation/arch/x86/boot.rst, "64-bit Boot Protocol").
#![forbid(unsafe_code)]

use kvm_bindings::{
    KVM_MP_STATE_RUNNABLE, Msrs, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_segment,
};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress};

use super::BootError;
use crate::layout::{GDT, PAGE_TABLES, ZERO_PAGE};
use crate::memory::Memory;

/// CR0: protection, paging, and the bit that says x87 is there.
const CR0: u64 = 1 << 31 | 1 << 4 | 1;
/// CR4.PAE.
const CR4: u64 = 1 << 5;
/// EFER: long mode enabled and active.
const EFER: u64 = 1 << 8 | 1 << 10;
/// The bit of RFLAGS that is always set.
const FLAGS: u64 = 2;

/// Bits of a page table entry: present, writable; a page of 2 MiB.
const TABLE: u64 = 0b11;
const LARGE_PAGE: u64 = 0x83;
const TABLE_BYTES: u64 = 4096;
const LARGE_PAGE_BYTES: u64 = 2 << 20;
/// How many GiB are mapped, with a page directory each.
const MAPPED_GIB: u64 = 4;

/// Descriptors at the selectors that the protocol names: __BOOT_CS is 0x10, __BOOT_DS is 0x18; and
/// the task state that VT-x wants loaded, at 0x20.
const CODE: u16 = 0x10;
const DATA: u16 = 0x18;
const TASK: u16 = 0x20;

const IA32_MISC_ENABLE: u32 = 0x1a0;
/// Bit 0 of it: fast string operations, on after reset of a real processor, off in KVM.
const FAST_STRINGS: u64 = 1;
const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs are on, and memory that no other of them names is write-back: what firmware leaves behind.
/// Linux takes MTRRs that are off for a broken machine and gives up page attributes.
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;

fn segment(selector: u16, type_: u8, long: u8) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        db: 1 - long,
        l: long,
        s: 1,
        g: 1,
        ..kvm_segment::default()
    }
}

/// Code that can be read, accessed; data that can be written, accessed (Intel SDM 3.4.5.1).
fn code() -> kvm_segment {
    segment(CODE, 0b1011, 1)
}

fn data() -> kvm_segment {
    segment(DATA, 0b0011, 0)
}

/// A busy 64-bit task state.
fn task() -> kvm_segment {
    kvm_segment { limit: 0x67, selector: TASK, type_: 0b1011, present: 1, ..kvm_segment::default() }
}

/// A segment as an entry of the descriptor table (Intel SDM 3.4.5).
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = u64::from(if segment.g == 1 { segment.limit >> 12 } else { segment.limit });
    let access = u64::from(segment.type_)
        | u64::from(segment.s) << 4
        | u64::from(segment.dpl) << 5
        | u64::from(segment.present) << 7;
    let flags = u64::from(segment.l) << 1 | u64::from(segment.db) << 2 | u64::from(segment.g) << 3;
    limit & 0xffff
        | (segment.base & 0xff_ffff) << 16
        | access << 40
        | (limit >> 16 & 0xf) << 48
        | flags << 52
        | (segment.base >> 24 & 0xff) << 56
}

/// The descriptor table; that of the task takes two entries.
fn descriptors() -> [u64; 6] {
    [0, 0, descriptor(&code()), descriptor(&data()), descriptor(&task()), 0]
}

/// One page of the first level, one of the second, then a directory for each GiB.
fn page_tables() -> Vec<u64> {
    let entries = (TABLE_BYTES / 8) as usize;
    let table = |number: u64| (PAGE_TABLES + number * TABLE_BYTES) | TABLE;
    let mut tables = vec![0; 2 * entries];
    tables[0] = table(1);
    for gib in 0..MAPPED_GIB {
        tables[entries + gib as usize] = table(2 + gib);
    }
    let pages = MAPPED_GIB * entries as u64;
    tables.extend((0..pages).map(|page| (page * LARGE_PAGE_BYTES) | LARGE_PAGE));
    tables
}

fn little_endian(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Writes the descriptor table and the page tables.
pub(super) fn write(memory: &Memory) -> Result<(), BootError> {
    let parts =
        [(GDT, little_endian(&descriptors())), (PAGE_TABLES, little_endian(&page_tables()))];
    for (address, bytes) in parts {
        memory
            .mapped()
            .write_slice(&bytes, GuestAddress(address))
            .map_err(|_| BootError::TooLittleMemory)?;
    }
    Ok(())
}

/// Sets the first vCPU to the 64-bit entry. The others stay as KVM has made them, which is waiting
/// for the start-up interrupts that Linux sends.
pub(super) fn set_entry(vcpu: &VcpuFd, entry: u64) -> Result<(), kvm_ioctls::Error> {
    let mut sregs = vcpu.get_sregs()?;
    (sregs.cr0, sregs.cr4, sregs.efer, sregs.cr3) = (CR0, CR4, EFER, PAGE_TABLES);
    sregs.cs = code();
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data(), data(), data(), data(), data());
    sregs.tr = task();
    sregs.gdt.base = GDT;
    sregs.gdt.limit = (8 * descriptors().len() - 1) as u16;
    (sregs.idt.base, sregs.idt.limit) = (0, 0);
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&kvm_regs { rip: entry, rsi: ZERO_PAGE, rflags: FLAGS, ..kvm_regs::default() })?;
    vcpu.set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE })
}

/// What firmware leaves in the MSRs of every processor. An MSR that a host does not take is done
/// without: Linux says in its log what it makes of that.
pub(super) fn set_msrs(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let msr = |index, data| kvm_msr_entry { index, data, ..kvm_msr_entry::default() };
    let list =
        |entry| Msrs::from_entries(&[entry]).map_err(|_| kvm_ioctls::Error::new(libc::ENOMEM));
    let mut misc = list(msr(IA32_MISC_ENABLE, 0))?;
    vcpu.get_msrs(&mut misc)?;
    let misc = misc.as_slice().first().map_or(0, |entry| entry.data);
    for entry in
        [msr(IA32_MTRR_DEF_TYPE, MTRR_WRITE_BACK), msr(IA32_MISC_ENABLE, misc | FAST_STRINGS)]
    {
        if vcpu.set_msrs(&list(entry)?)? == 0 {
            tracing::debug!("MSR {:#x} does not take {:#x}", entry.index, entry.data);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use migpipe_units::Bytes as Size;

    use super::*;
    use crate::layout;
    use crate::memory::MemorySource;

    #[test]
    fn the_descriptors_are_flat_and_at_the_selectors_of_the_protocol() {
        let table = descriptors();
        assert_eq!(table[usize::from(CODE) / 8], 0x00af_9b00_0000_ffff);
        assert_eq!(table[usize::from(DATA) / 8], 0x00cf_9300_0000_ffff);
        assert_eq!(table[usize::from(TASK) / 8], 0x0000_8b00_0000_0067);
    }

    /// Walks the tables as the processor does.
    fn translate(memory: &Memory, address: u64) -> u64 {
        let entry = |table: u64, level: u64| -> u64 {
            let index = address >> (12 + 9 * level) & 0x1ff;
            memory.mapped().read_obj(GuestAddress(table + 8 * index)).unwrap()
        };
        let second = entry(PAGE_TABLES, 3);
        let third = entry(second & !0xfff, 2);
        let page = entry(third & !0xfff, 1);
        assert_eq!((second & 0xfff, third & 0xfff, page & 0xfff), (TABLE, TABLE, LARGE_PAGE));
        (page & !0x1f_ffff) + (address & 0x1f_ffff)
    }

    #[test]
    fn every_address_below_4_gib_is_mapped_to_itself() {
        let memory =
            Memory::new(&layout::regions(Size(16 << 20)), &MemorySource::default()).unwrap();
        write(&memory).unwrap();
        for address in (0..4 << 30).step_by(123_456_789).chain([0, 0xffff_ffff, ZERO_PAGE]) {
            assert_eq!(translate(&memory, address), address);
        }
        let past: u64 = memory.mapped().read_obj(GuestAddress(PAGE_TABLES + 8)).unwrap();
        assert_eq!(past, 0, "nothing above 512 GiB");
        let end = PAGE_TABLES + 8 * page_tables().len() as u64;
        assert!(end <= layout::COMMAND_LINE && ZERO_PAGE + 4096 <= PAGE_TABLES);
    }
}
