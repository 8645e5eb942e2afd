//! The names of XSAVE components, and where their state lies.

use super::features::leaf;
use crate::description::CpuidLeaf;

/// The names of XCR0 bits 0 to 19 (Intel SDM vol. 1, 13.1; Linux `enum xfeature`).
const NAMES: [&str; 20] = [
    "x87",
    "sse",
    "avx",
    "mpx bounds",
    "mpx csr",
    "avx512 opmask",
    "avx512 zmm_hi256",
    "avx512 hi16_zmm",
    "processor trace",
    "pkru",
    "pasid",
    "cet user",
    "cet supervisor",
    "hdc",
    "uintr",
    "lbr",
    "hwp",
    "amx tile config",
    "amx tile data",
    "apx",
];

/// The name of an XSAVE component.
pub fn name(component: u32) -> String {
    NAMES.get(component as usize).map_or_else(|| format!("number {component}"), ToString::to_string)
}

/// The components in a set of XCR0 bits.
pub fn components(bits: u64) -> impl Iterator<Item = u32> {
    (0..64).filter(move |component| bits & (1 << component) != 0)
}

/// The components that a processor saves for a kernel alone (IA32_XSS bits; CPUID leaf 0xd.1).
pub(crate) fn supervisor(cpuid: &[CpuidLeaf]) -> u64 {
    let leaf = leaf(cpuid, 0xd, 1);
    u64::from(leaf.edx) << 32 | u64::from(leaf.ecx)
}

/// Offset and size in bytes of a component in the standard format of the XSAVE area (CPUID leaf
/// 0xd). x87 and SSE lie in the legacy area, at the same place everywhere.
pub(crate) fn layout(cpuid: &[CpuidLeaf], component: u32) -> Option<(u32, u32)> {
    (component >= 2).then(|| {
        let leaf = leaf(cpuid, 0xd, component);
        (leaf.ebx, leaf.eax)
    })
}
