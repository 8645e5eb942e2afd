//! A small fleet that was made up: it differs in what real fleets differ in.

use vm_state::compat::{WORDS, arch_capability};
use vm_state::{CpuidLeaf, HostCapabilities};

use super::Host;

/// What any of them has.
const ALL: &str = "fpu vme de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx \
    fxsr sse sse2 syscall nx lm rdtscp pni ssse3 cx16 sse4_1 sse4_2 popcnt lahf_lm x2apic \
    tsc_deadline_timer tsc_adjust hypervisor avx avx2 bmi1 bmi2 f16c fma abm movbe xsave xsaveopt \
    xsavec xgetbv1 xsaves rdrand fsgsbase smep smap adx rdseed clflushopt aes pclmulqdq invtsc \
    kvm_clocksource kvm_nop_io_delay kvm_clocksource2 kvm_clocksource_stable kvm_steal_time";

const AVX512: &str = "avx512f avx512bw avx512cd avx512dq avx512vl";

const AMX: &str = "amx_tile amx_int8 amx_bf16 xfd";

/// CPUID with these features; `more` says the rest.
pub fn cpuid(vendor: &str, features: &str, xsave: u64, address_bits: u32) -> Vec<CpuidLeaf> {
    let mut cpuid = Vec::new();
    let mut leaf = |function, index, [eax, ebx, ecx, edx]: [u32; 4]| {
        let flags = u32::from(matches!(function, 7 | 0xd));
        cpuid.push(CpuidLeaf { function, index, flags, eax, ebx, ecx, edx });
    };
    let word = |text: &str, at: usize| {
        u32::from_le_bytes(text.as_bytes()[at..at + 4].try_into().expect("four letters"))
    };
    leaf(0, 0, [0x24, word(vendor, 0), word(vendor, 8), word(vendor, 4)]);
    leaf(0x4000_0000, 0, [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d]);
    leaf(0x8000_0000, 0, [0x8000_0021, 0, 0, 0]);
    leaf(4, 0, [0x121, 1, 2, 0]);
    leaf(0xd, 0, [xsave as u32, 576, 2696, (xsave >> 32) as u32]);
    // Sizes and offsets of the components, as those of processors are.
    for (component, size, offset) in [
        (2, 256, 576),
        (3, 64, 960),
        (4, 64, 1024),
        (5, 64, 1088),
        (6, 512, 1152),
        (7, 1024, 1664),
        (9, 8, 2688),
        (17, 64, 2752),
        (18, 8192, 2816),
    ] {
        if xsave & 1 << component != 0 {
            leaf(0xd, component, [size, offset, 0, 0]);
        }
    }
    for feature_word in WORDS {
        let names = features.split_ascii_whitespace();
        let value = names.fold(0, |all, name| all | feature_word.bit(name));
        let at = (feature_word.function, feature_word.index);
        let place = cpuid.iter().position(|leaf| (leaf.function, leaf.index) == at);
        let place = place.unwrap_or_else(|| {
            let flags = u32::from(matches!(at.0, 7 | 0xd));
            let (function, index) = at;
            cpuid.push(CpuidLeaf { function, index, flags, eax: 0, ebx: 0, ecx: 0, edx: 0 });
            cpuid.len() - 1
        });
        *feature_word.register.of_mut(&mut cpuid[place]) |= value;
    }
    let widths = cpuid.iter_mut().find(|leaf| leaf.function == 0x8000_0008);
    widths.expect("it has feature bits").eax = 48 << 8 | address_bits;
    cpuid
}

struct Made {
    name: &'static str,
    vendor: &'static str,
    features: &'static [&'static str],
    xsave: u64,
    address_bits: u32,
    arch_capabilities: &'static [&'static str],
    msrs: &'static [u32],
    tsc: (u32, bool),
}

const INTEL: &str = "GenuineIntel";
const AMD: &str = "AuthenticAMD";

const FLEET: &[Made] = &[
    Made {
        name: "Intel without AVX-512, cannot scale its TSC",
        vendor: INTEL,
        features: &["spec_ctrl intel_stibp mpx hle rtm ds_cpl dts dtes64"],
        xsave: 0x1f,
        address_bits: 46,
        arch_capabilities: &[],
        msrs: &[0xd90, 0x122],
        tsc: (2_100_000, false),
    },
    Made {
        name: "Intel with AVX-512, old kernel",
        vendor: INTEL,
        features: &[AVX512, "spec_ctrl intel_stibp pku arch_capabilities dtes64"],
        xsave: 0x2e7,
        address_bits: 46,
        arch_capabilities: &["rdcl_no", "mds_no", "fb_clear"],
        msrs: &[0x10a],
        tsc: (2_900_000, true),
    },
    Made {
        name: "Intel with AMX and shadow stacks, new kernel",
        vendor: INTEL,
        features: &[
            AVX512,
            AMX,
            "spec_ctrl intel_stibp pku arch_capabilities shstk ibt rrsba_ctrl avx512_fp16",
        ],
        xsave: 0x6_02e7,
        address_bits: 52,
        arch_capabilities: &["rdcl_no", "mds_no", "rrsba", "its_no"],
        msrs: &[0x10a, 0x1c4, 0x1c5, 0x1d9, 0x6a0, 0x6a2],
        tsc: (2_000_000, true),
    },
    Made {
        name: "AMD, its kernel says spec_ctrl",
        vendor: AMD,
        features: &["spec_ctrl amd_ibrs amd_ibpb amd_stibp intel_stibp topoext svm"],
        xsave: 0x7,
        address_bits: 48,
        arch_capabilities: &[],
        msrs: &[0xc001_0015],
        tsc: (2_400_000, true),
    },
    Made {
        name: "AMD with AVX-512, its kernel does not",
        vendor: AMD,
        features: &[AVX512, "amd_ibrs amd_ibpb amd_stibp topoext srso_no pku"],
        xsave: 0x2e7,
        address_bits: 52,
        arch_capabilities: &[],
        msrs: &[0xc001_0015, 0x1d9],
        tsc: (2_600_000, true),
    },
];

/// All of them.
pub fn hosts() -> Vec<Host> {
    let host = |made: &Made| {
        let features = made.features.join(" ") + " " + ALL;
        let bits = made.arch_capabilities.iter();
        let arch_capabilities =
            bits.fold(0, |all, name| all | arch_capability(name).expect("a name"));
        Host {
            name: made.name.to_owned(),
            capabilities: HostCapabilities {
                cpuid: cpuid(made.vendor, &features, made.xsave, made.address_bits),
                xsave_components: made.xsave,
                msrs: [made.msrs, &[0x10, 0x277, 0xc000_0082, 0x4b56_4d01]].concat(),
                arch_capabilities,
                tsc_khz: made.tsc.0,
                tsc_scaling: made.tsc.1,
            },
        }
    };
    FLEET.iter().map(host).collect()
}
