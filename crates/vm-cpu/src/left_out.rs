//! What no guest is given, or only one that asks for it, although hosts have it.

use vm_state::CpuidLeaf;
use vm_state::compat::WORDS;

/// Features that no guest is given, and why.
const NEVER: &[(&str, &str)] = &[
    ("vmx svm", "the state of a nested guest is not saved"),
    (
        "pdcm dtes64 ds_cpl dts arch_lbr intel_pt ibs perfctr_core perfctr_nb perfctr_llc \
         arch_perfmon_ext cqm rdt_a",
        "performance counters and traces are those of one processor",
    ),
    ("sgx sgx_lc sgx_keys", "an enclave is sealed to its processor"),
    ("shstk ibt cet_sss", "the shadow-stack pointer is not saved"),
    ("enqcmd uintr key_locker", "its state is not saved"),
    ("osxsave ospke", "the guest switches it on"),
];

/// Features that only a guest which asks for them is given: AMX adds 8 KiB to the state of each
/// vCPU, and few hosts have it.
const ASKED_FOR: &str = "amx_tile amx_int8 amx_bf16 amx_fp16 amx_complex xfd";

/// Leaves about the features that are never given, and about encrypted memory (0x8000001f), which
/// no guest has; and the topology, which is that of the guest.
const LEAVES: &[u32] = &[
    0xb,
    0xf,
    0x10,
    0x12,
    0x14,
    0x1b,
    0x1c,
    0x1f,
    0x23,
    0x8000_001b,
    0x8000_001f,
    0x8000_0020,
    0x8000_0022,
];

/// Leaves that are there and say nothing: performance counters, and SVM.
const EMPTY: &[u32] = &[0xa, 0x8000_000a];

/// Why no guest is given a feature.
pub(crate) fn never(feature: &str) -> Option<&'static str> {
    let row =
        NEVER.iter().find(|(names, _)| names.split_ascii_whitespace().any(|it| it == feature));
    row.map(|(_, why)| *why)
}

/// The features that only a guest which asks for them is given.
pub(crate) fn asked_for() -> impl Iterator<Item = &'static str> {
    ASKED_FOR.split_ascii_whitespace()
}

/// Takes away what is never given, and what is not known by a name: nobody can say what state it
/// has.
pub(crate) fn leave_out(cpuid: &mut Vec<CpuidLeaf>) {
    cpuid.retain(|leaf| !LEAVES.contains(&leaf.function));
    for leaf in cpuid.iter_mut() {
        if EMPTY.contains(&leaf.function) {
            (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) = (0, 0, 0, 0);
        }
        let at = (leaf.function, leaf.index);
        for word in WORDS.iter().filter(|word| (word.function, word.index) == at) {
            let names = NEVER.iter().flat_map(|(names, _)| names.split_ascii_whitespace());
            let never = names.fold(0, |all, name| all | word.bit(name));
            *word.register.of_mut(leaf) &= (word.named() | word.ignored) & !never;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_feature_that_is_left_out_exists() {
        let names = NEVER.iter().map(|(names, _)| *names).chain([ASKED_FOR]);
        for name in names.flat_map(str::split_ascii_whitespace) {
            assert!(WORDS.iter().any(|word| word.bit(name) != 0), "{name}");
        }
    }

    #[test]
    fn a_reason_is_given_for_what_is_never_given() {
        assert_eq!(never("shstk"), Some("the shadow-stack pointer is not saved"));
        assert_eq!((never("amx_tile"), never("avx2")), (None, None));
        assert!(asked_for().any(|name| name == "amx_tile"));
    }

    #[test]
    fn what_has_no_name_is_not_given() {
        let leaf =
            |function, ecx| CpuidLeaf { function, index: 0, flags: 0, eax: 0, ebx: 0, ecx, edx: 0 };
        // TSA_SQ_NO and two bits that nobody has named.
        let mut cpuid = vec![leaf(0x8000_0021, 0x6002), leaf(0x8000_001f, 1), leaf(0xa, 7)];
        leave_out(&mut cpuid);
        assert_eq!(cpuid, [leaf(0x8000_0021, 2), leaf(0xa, 0)]);
    }
}
