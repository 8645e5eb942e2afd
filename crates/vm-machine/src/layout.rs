//! Where things are in guest-physical memory.
//!
//! | address | what |
//! | --- | --- |
//! | 0x500 | the GDT of the Linux boot protocol |
//! | 0x6000 | hvm_start_info of the PVH boot ABI |
//! | 0x7000 | its memory map; or the zero page of the Linux boot protocol |
//! | 0x9000 - 0xefff | page tables that map the first 4 GiB to themselves, for Linux |
//! | 0x2_0000 | the command line, up to 64 KiB |
//! | 0xa_0000 - 0xf_ffff | reserved, as on any PC |
//! | 0xe_0000 | ACPI tables, RSDP first |
//! | 0xf_fff0 | code that resets the machine |
//! | 0x10_0000 | the kernel, where its ELF headers or its bzImage header say |
//! | below 3 GiB | the initial RAM disk, at the end of memory or of what the kernel reaches |
//! | 0xc000_0000 - 0xffff_ffff | no memory: devices, local APIC, IOAPIC, KVM's own pages |
//! | 0xd000_0000 | virtio-mmio devices |
//! | 0x1_0000_0000 | the memory that does not fit below 3 GiB |

use migpipe_units::{Bytes, Gfn, PAGE_SIZE, Pages, RegionId};
use vm_state::MemoryRegion;

/// Where hvm_start_info is.
pub const START_INFO: u64 = 0x6000;
/// Where the memory map is that hvm_start_info points to.
pub const MEMORY_MAP: u64 = 0x7000;
/// Where the GDT is that a Linux kernel starts with.
pub const GDT: u64 = 0x500;
/// Where the zero page (struct boot_params) is that a Linux kernel starts with.
pub const ZERO_PAGE: u64 = 0x7000;
/// Where the page tables are that a Linux kernel starts with.
pub const PAGE_TABLES: u64 = 0x9000;
/// Where the command line is.
pub const COMMAND_LINE: u64 = 0x2_0000;
/// How long it may be, with the zero at its end.
pub const COMMAND_LINE_MAX: usize = 0x1_0000;
/// The memory that PCs reserve for video and firmware.
pub const LEGACY_HOLE: std::ops::Range<u64> = 0xa_0000..0x10_0000;
/// Where the ACPI tables are: in what PCs reserve for firmware, and where kernels look for it.
pub const ACPI: std::ops::Range<u64> = 0xe_0000..0xf_0000;
/// Where real mode finds the firmware: FFFF:0000.
pub const RESET_VECTOR: u64 = 0xf_fff0;
/// Where KVM has the IOAPIC.
pub const IOAPIC: u64 = 0xfec0_0000;
/// Where every vCPU has its local APIC.
pub const LOCAL_APIC: u64 = 0xfee0_0000;
/// Where the memory below 4 GiB ends at the latest.
pub const HOLE_START: u64 = 0xc000_0000;
/// Where memory goes on.
pub const HOLE_END: u64 = 0x1_0000_0000;
/// Three pages for KVM's task state on hosts without unrestricted guests (KVM API,
/// KVM_SET_TSS_ADDR), in the hole.
pub const KVM_TSS: u64 = 0xfffb_d000;
/// The page before them for its identity map (KVM_SET_IDENTITY_MAP_ADDR).
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;

/// Guests with more are not built (4 TiB): the reach of 42-bit physical addresses, which every
/// host has.
pub const MOST_MEMORY: Bytes = Bytes(1 << 42);

/// The regions of a guest with that much memory, in whole pages: all of it below 3 GiB, or the rest
/// of it from 4 GiB.
pub fn regions(memory: Bytes) -> Vec<MemoryRegion> {
    let region = |id, base: u64, bytes: u64| MemoryRegion {
        id: RegionId(id),
        base: Gfn(base / PAGE_SIZE),
        pages: Pages(bytes / PAGE_SIZE),
    };
    if memory.0 <= HOLE_START {
        return vec![region(0, 0, memory.0)];
    }
    vec![region(0, 0, HOLE_START), region(1, HOLE_END, memory.0 - HOLE_START)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_over_3_gib_goes_on_above_the_hole() {
        let small = regions(Bytes(3 << 30));
        assert_eq!(small.len(), 1);
        assert_eq!(small[0].pages, Pages(0xc_0000));
        let large = regions(Bytes(6 << 30));
        assert_eq!(large.len(), 2);
        assert_eq!(large[1].base, Gfn(0x10_0000));
        let pages: Pages = large.iter().map(|region| region.pages).sum();
        assert_eq!(pages.bytes(), Bytes(6 << 30));
    }
}
