//! Features that are of no use without others, and XSAVE components that belong to features.

use vm_state::CpuidLeaf;
use vm_state::compat::{AVX10, Register, WORDS, has, leaf, xsave_component_numbers};

/// Features, and what they need (Intel SDM vol. 1, chapters 13 to 18; Linux `cpuid-deps.c`).
const NEEDS: &[(&str, &str)] = &[
    ("sse2", "sse"),
    ("pni", "sse2"),
    ("ssse3", "pni"),
    ("sse4_1", "ssse3"),
    ("sse4_2", "sse4_1"),
    ("aes pclmulqdq sha_ni", "sse2"),
    ("avx xsaveopt xsavec xgetbv1 mpx pku", "xsave"),
    ("xsaves", "xsavec"),
    ("xfd", "xsaves"),
    ("f16c fma avx2 vaes vpclmulqdq xop fma4 avx_vnni", "avx"),
    ("avx_ifma avx_ne_convert avx_vnni_int8 avx_vnni_int16 sha512 sm3 sm4 avx512f", "avx2"),
    (
        "avx512dq avx512ifma avx512pf avx512er avx512cd avx512bw avx512vl avx512vbmi avx512_vbmi2 \
         avx512_vnni avx512_bitalg avx512_vpopcntdq avx512_4vnniw avx512_4fmaps \
         avx512_vp2intersect avx512_bf16 avx10",
        "avx512f",
    ),
    ("avx512_fp16", "avx512bw"),
    ("avx10_128 avx10_256 avx10_512", "avx10"),
    ("amx_tile", "xfd"),
    ("amx_int8 amx_bf16 amx_fp16 amx_complex", "amx_tile"),
];

/// Features and their XSAVE components: the one is not without the other.
const COMPONENTS: &[(&str, u64)] = &[
    ("avx", 1 << 2),
    ("mpx", 1 << 3 | 1 << 4),
    ("avx512f", 1 << 5 | 1 << 6 | 1 << 7),
    ("pku", 1 << 9),
    ("amx_tile", 1 << 17 | 1 << 18),
    ("apx", 1 << 19),
];

/// x87 and SSE.
const LEGACY: u64 = 0b11;

/// The legacy area and the header of XSAVE, in bytes; components lie behind.
const HEADER_END: u32 = 576;

/// What a feature needs.
pub(crate) fn needed_by(feature: &str) -> impl Iterator<Item = &'static str> + '_ {
    let names =
        move |row: &&(&'static str, _)| row.0.split_ascii_whitespace().any(|it| it == feature);
    NEEDS.iter().filter(names).map(|(_, needed)| *needed)
}

/// Clears a feature wherever CPUID shows it.
pub(crate) fn clear(cpuid: &mut [CpuidLeaf], feature: &str) {
    for word in WORDS {
        let bit = word.bit(feature);
        for leaf in cpuid.iter_mut() {
            if bit != 0 && (leaf.function, leaf.index) == (word.function, word.index) {
                *word.register.of_mut(leaf) &= !bit;
            }
        }
    }
}

/// Takes away features that lack what they need, and components without their features; says which
/// components are left (XCR0 bits).
pub(crate) fn settle(cpuid: &mut Vec<CpuidLeaf>, components: u64) -> u64 {
    let there = |cpuid: &[CpuidLeaf], component: u32| leaf(cpuid, 0xd, component).eax != 0;
    loop {
        let present = xsave_component_numbers(components & !LEGACY)
            .filter(|&component| there(cpuid, component))
            .fold(LEGACY, |all, component| all | 1 << component);
        let stateless =
            COMPONENTS.iter().filter(|(_, needed)| present & needed != *needed).map(|row| row.0);
        let needy = NEEDS.iter().filter(|(_, needed)| !has(cpuid, needed));
        let needy = needy.flat_map(|(names, _)| names.split_ascii_whitespace());
        let lost: Vec<_> = stateless.chain(needy).filter(|name| has(cpuid, name)).collect();
        if lost.is_empty() {
            break;
        }
        lost.iter().for_each(|feature| clear(cpuid, feature));
    }
    let has_xsave = has(cpuid, "xsave");
    let kept = COMPONENTS
        .iter()
        .filter(|(feature, _)| has_xsave && has(cpuid, feature))
        .fold(LEGACY, |all, (_, components)| all | components);
    if !has(cpuid, "amx_tile") {
        cpuid.retain(|leaf| !matches!(leaf.function, 0x1d | 0x1e));
    }
    if !has(cpuid, "avx10") {
        cpuid.retain(|leaf| leaf.function != AVX10);
    }
    // Components of a kernel's own (XSS) are those of features that no guest is given.
    cpuid.retain(|leaf| {
        leaf.function != 0xd || leaf.index < 2 || leaf.index < 64 && kept & 1 << leaf.index != 0
    });
    if !has_xsave {
        cpuid.retain(|leaf| leaf.function != 0xd);
    }
    let bytes = area_bytes(cpuid);
    for leaf in cpuid.iter_mut().filter(|leaf| leaf.function == 0xd) {
        match leaf.index {
            0 => (leaf.eax, leaf.ecx, leaf.edx) = (kept as u32, bytes, (kept >> 32) as u32),
            1 => (leaf.ecx, leaf.edx) = (0, 0),
            _ => {}
        }
    }
    kept
}

/// How long the XSAVE area is that has every component in `cpuid` in it, in bytes.
pub(crate) fn area_bytes(cpuid: &[CpuidLeaf]) -> u32 {
    let components = cpuid.iter().filter(|leaf| leaf.function == 0xd && leaf.index >= 2);
    let ends = components.map(|leaf| Register::Eax.of(leaf).saturating_add(leaf.ebx));
    ends.fold(HEADER_END, u32::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_feature_that_needs_or_is_needed_exists() {
        let needs = NEEDS
            .iter()
            .flat_map(|(names, needed)| names.split_ascii_whitespace().chain([*needed]));
        for name in needs.chain(COMPONENTS.iter().map(|row| row.0)) {
            assert!(WORDS.iter().any(|word| word.bit(name) != 0), "{name}");
        }
    }
}
