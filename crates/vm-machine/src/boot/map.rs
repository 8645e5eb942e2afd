//! The memory map that a kernel is told: e820 to Linux, the same numbers to PVH kernels.
#![forbid(unsafe_code)]

use std::ops::Range;

use vm_state::MemoryRegion;

use crate::layout::{ACPI, KVM_IDENTITY_MAP, KVM_TSS, LEGACY_HOLE};

/// What a range is to the kernel; the numbers are those of e820 and of XEN_HVM_MEMMAP_TYPE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Kind {
    Ram = 1,
    Reserved = 2,
}

/// The map of a guest with these regions, in address order and without overlaps.
pub(super) fn of(regions: &[MemoryRegion]) -> Vec<(Range<u64>, Kind)> {
    let mut map = Vec::new();
    for region in regions {
        let (start, end) = (region.base.address(), region.base.address() + region.pages.bytes().0);
        if start == 0 {
            map.push((0..LEGACY_HOLE.start.min(end), Kind::Ram));
            map.push((ACPI.start..LEGACY_HOLE.end, Kind::Reserved));
            map.push((LEGACY_HOLE.end..end, Kind::Ram));
        } else {
            map.push((start..end, Kind::Ram));
        }
    }
    /// KVM_SET_TSS_ADDR takes three pages.
    const TSS_BYTES: u64 = 3 << 12;
    map.push((KVM_IDENTITY_MAP..KVM_TSS + TSS_BYTES, Kind::Reserved));
    map.retain(|(range, _)| !range.is_empty());
    map.sort_unstable_by_key(|(range, _)| range.start);
    map
}

#[cfg(test)]
mod tests {
    use migpipe_units::Bytes;

    use super::*;
    use crate::layout;

    #[test]
    fn all_memory_but_the_legacy_hole_is_usable_and_what_others_use_is_reserved() {
        let map = of(&layout::regions(Bytes(4 << 30)));
        let expected = [
            (0..0xa_0000, Kind::Ram),
            (0xe_0000..0x10_0000, Kind::Reserved),
            (0x10_0000..0xc000_0000, Kind::Ram),
            (0xfffb_c000..0xfffc_0000, Kind::Reserved),
            (0x1_0000_0000..0x1_4000_0000, Kind::Ram),
        ];
        assert_eq!(map, expected);
    }

    #[test]
    fn a_guest_that_ends_in_the_legacy_hole_has_no_range_turned_round() {
        let map = of(&layout::regions(Bytes(0xc_0000)));
        assert_eq!(map[0], (0..0xa_0000, Kind::Ram));
        assert_eq!(map.iter().filter(|(_, kind)| *kind == Kind::Ram).count(), 1);
    }
}
