//! The names of model-specific registers, and which of them a guest cannot do without.
//!
//! The rule: an MSR is required when its saved value could matter, that is when a guest with these
//! CPUID bits can have put a value there whose loss it would notice. So
//! - an MSR that belongs to a feature is required when the guest was given the feature;
//! - an MSR that only describes the host, or that nothing in a vmrun machine can write, is never
//!   required;
//! - every other MSR is required, those that this table does not know too.
//!
//! The check sees the list of MSRs, not their values: it runs before any state is sent. A value
//! that the destination refuses (a bit of IA32_ARCH_CAPABILITIES that its processor lacks) is an
//! error when the state is loaded, still before the handover.

use super::features::{has, leaf};
use crate::description::CpuidLeaf;

/// When an MSR is required.
enum Need {
    /// Whatever the guest was given.
    Always,
    /// If the guest has one of these features.
    With(&'static [&'static str]),
    /// If the guest has performance counters (CPUID 0xa, or AMD's).
    Counters,
    /// If the guest sees Hyper-V (CPUID 0x40000001 eax "Hv#1").
    HyperV,
    /// Never: it describes the host, or nothing in this machine can write it.
    Never,
}

struct Row {
    first: u32,
    last: u32,
    name: &'static str,
    need: Need,
}

const fn row(first: u32, last: u32, name: &'static str, need: Need) -> Row {
    Row { first, last, name, need }
}

use Need::{Always, Counters, HyperV, Never, With};

const SPECULATION: Need = With(&[
    "spec_ctrl",
    "spec_ctrl_ssbd",
    "intel_stibp",
    "amd_ibrs",
    "amd_stibp",
    "amd_ssbd",
    "amd_psfd",
]);

/// Names from Intel SDM vol. 4, AMD APM vol. 2 appendix A and Linux (KVM x86/msr.rst); ranges do
/// not overlap, a lookup takes the first that fits.
const ROWS: &[Row] = &[
    row(0x10, 0x10, "IA32_TSC", Always),
    row(0x11, 0x11, "KVM_WALL_CLOCK", With(&["kvm_clocksource"])),
    row(0x12, 0x12, "KVM_SYSTEM_TIME", With(&["kvm_clocksource"])),
    row(0x1b, 0x1b, "IA32_APIC_BASE", Always),
    // Counts system management interrupts; the machine raises none.
    row(0x34, 0x34, "SMI_COUNT", Never),
    row(0x3a, 0x3a, "IA32_FEATURE_CONTROL", With(&["vmx", "sgx"])),
    row(0x3b, 0x3b, "IA32_TSC_ADJUST", With(&["tsc_adjust"])),
    row(0x48, 0x48, "IA32_SPEC_CTRL", SPECULATION),
    // The revision of the host's microcode; a guest only reads it.
    row(0x8b, 0x8b, "IA32_BIOS_SIGN_ID", Never),
    // Where system management mode keeps its state; the machine never enters it.
    row(0x9e, 0x9e, "IA32_SMBASE", Never),
    row(0xc1, 0xc8, "IA32_PMC", Counters),
    // Ratios of the host's clock; a guest only reads it.
    row(0xce, 0xce, "MSR_PLATFORM_INFO", Never),
    row(0xe1, 0xe1, "IA32_UMWAIT_CONTROL", With(&["waitpkg"])),
    row(0x10a, 0x10a, "IA32_ARCH_CAPABILITIES", With(&["arch_capabilities"])),
    row(0x122, 0x122, "IA32_TSX_CTRL", With(&["hle", "rtm"])),
    row(0x140, 0x140, "MSR_MISC_FEATURES_ENABLES", Always),
    row(0x174, 0x174, "IA32_SYSENTER_CS", Always),
    row(0x175, 0x175, "IA32_SYSENTER_ESP", Always),
    row(0x176, 0x176, "IA32_SYSENTER_EIP", Always),
    row(0x17a, 0x17a, "IA32_MCG_STATUS", With(&["mca"])),
    row(0x17b, 0x17b, "IA32_MCG_CTL", With(&["mca"])),
    row(0x186, 0x18d, "IA32_PERFEVTSEL", Counters),
    row(0x1a0, 0x1a0, "IA32_MISC_ENABLE", Always),
    row(0x1c4, 0x1c4, "IA32_XFD", With(&["xfd"])),
    row(0x1c5, 0x1c5, "IA32_XFD_ERR", With(&["xfd"])),
    row(0x1d9, 0x1d9, "IA32_DEBUGCTL", Always),
    // What the last branch was: no program can rely on it across an interrupt.
    row(0x1db, 0x1db, "MSR_LASTBRANCHFROMIP", Never),
    row(0x1dc, 0x1dc, "MSR_LASTBRANCHTOIP", Never),
    row(0x1dd, 0x1dd, "MSR_LASTINTFROMIP", Never),
    row(0x1de, 0x1de, "MSR_LASTINTTOIP", Never),
    row(0x1fc, 0x1fc, "MSR_POWER_CTL", Never),
    row(0x200, 0x21f, "IA32_MTRR_PHYS", With(&["mtrr"])),
    row(0x250, 0x26f, "IA32_MTRR_FIX", With(&["mtrr"])),
    row(0x277, 0x277, "IA32_PAT", With(&["pat"])),
    row(0x2ff, 0x2ff, "IA32_MTRR_DEF_TYPE", With(&["mtrr"])),
    row(0x309, 0x30c, "IA32_FIXED_CTR", Counters),
    row(0x345, 0x345, "IA32_PERF_CAPABILITIES", With(&["pdcm"])),
    row(0x38d, 0x390, "IA32_PERF_GLOBAL_CTRL", Counters),
    row(0x3f1, 0x3f2, "IA32_PEBS_ENABLE", Counters),
    row(0x400, 0x47f, "IA32_MC_BANK", With(&["mca"])),
    row(0x480, 0x493, "IA32_VMX", With(&["vmx"])),
    row(0x4c1, 0x4c8, "IA32_A_PMC", Counters),
    row(0x4d0, 0x4d0, "IA32_MCG_EXT_CTL", Never),
    row(0x560, 0x58f, "IA32_RTIT", With(&["intel_pt"])),
    row(0x600, 0x600, "IA32_DS_AREA", Counters),
    row(0x6a0, 0x6a0, "IA32_U_CET", With(&["shstk", "ibt"])),
    row(0x6a2, 0x6a2, "IA32_S_CET", With(&["shstk", "ibt"])),
    row(0x6a4, 0x6a8, "IA32_PL_SSP", With(&["shstk"])),
    row(0x6e0, 0x6e0, "IA32_TSC_DEADLINE", With(&["tsc_deadline_timer"])),
    row(0xd90, 0xd90, "IA32_BNDCFGS", With(&["mpx"])),
    row(0xda0, 0xda0, "IA32_XSS", With(&["xsaves"])),
    row(0x4000_0000, 0x4000_01ff, "HV_X64_MSR", HyperV),
    row(0x4b56_4d00, 0x4b56_4d00, "KVM_WALL_CLOCK_NEW", With(&["kvm_clocksource2"])),
    row(0x4b56_4d01, 0x4b56_4d01, "KVM_SYSTEM_TIME_NEW", With(&["kvm_clocksource2"])),
    row(0x4b56_4d02, 0x4b56_4d02, "KVM_ASYNC_PF_EN", With(&["kvm_async_pf"])),
    row(0x4b56_4d03, 0x4b56_4d03, "KVM_STEAL_TIME", With(&["kvm_steal_time"])),
    row(0x4b56_4d04, 0x4b56_4d04, "KVM_PV_EOI_EN", With(&["kvm_pv_eoi"])),
    row(0x4b56_4d05, 0x4b56_4d05, "KVM_POLL_CONTROL", With(&["kvm_poll_control"])),
    row(0x4b56_4d06, 0x4b56_4d07, "KVM_ASYNC_PF_INT", With(&["kvm_async_pf_int"])),
    row(0x4b56_4d08, 0x4b56_4d08, "KVM_MIGRATION_CONTROL", With(&["kvm_migration_control"])),
    row(0xc000_0080, 0xc000_0080, "EFER", Always),
    row(0xc000_0081, 0xc000_0081, "STAR", Always),
    row(0xc000_0082, 0xc000_0082, "LSTAR", Always),
    row(0xc000_0083, 0xc000_0083, "CSTAR", Always),
    row(0xc000_0084, 0xc000_0084, "SYSCALL_MASK", Always),
    row(0xc000_0100, 0xc000_0100, "FS_BASE", Always),
    row(0xc000_0101, 0xc000_0101, "GS_BASE", Always),
    row(0xc000_0102, 0xc000_0102, "KERNEL_GS_BASE", Always),
    row(0xc000_0103, 0xc000_0103, "TSC_AUX", With(&["rdtscp", "rdpid"])),
    row(0xc000_0104, 0xc000_0104, "AMD64_TSC_RATIO", With(&["svm"])),
    row(0xc000_0300, 0xc000_0303, "AMD64_PERF_GLOBAL", Counters),
    row(0xc001_0000, 0xc001_0007, "K7_PERF", Counters),
    row(0xc001_0015, 0xc001_0015, "K7_HWCR", Always),
    row(0xc001_0114, 0xc001_0114, "VM_CR", With(&["svm"])),
    row(0xc001_0117, 0xc001_0117, "VM_HSAVE_PA", With(&["svm"])),
    row(0xc001_011f, 0xc001_011f, "AMD64_VIRT_SPEC_CTRL", With(&["virt_ssbd"])),
    row(0xc001_0140, 0xc001_0141, "AMD64_OSVW", With(&["osvw"])),
    row(0xc001_0200, 0xc001_020b, "F15H_PERF", Counters),
    // Which instructions wait for which; it describes the processor.
    row(0xc001_1029, 0xc001_1029, "AMD64_DE_CFG", Never),
];

fn find(msr: u32) -> Option<&'static Row> {
    ROWS.iter().find(|row| (row.first..=row.last).contains(&msr))
}

/// The name and number of an MSR, as in "IA32_TSC (MSR 0x10)".
///
/// ```
/// assert_eq!(vm_state::compat::msr_name(0x10), "IA32_TSC (MSR 0x10)");
/// assert_eq!(vm_state::compat::msr_name(0x999), "MSR 0x999");
/// ```
pub fn msr_name(msr: u32) -> String {
    find(msr).map_or_else(|| format!("MSR {msr:#x}"), |row| format!("{} (MSR {msr:#x})", row.name))
}

/// Whether a guest with this CPUID cannot do without the value of this MSR; see the module for the
/// rule.
pub fn msr_matters(cpuid: &[CpuidLeaf], msr: u32) -> bool {
    match find(msr).map(|row| &row.need) {
        None | Some(Always) => true,
        Some(Never) => false,
        Some(With(features)) => features.iter().any(|feature| has(cpuid, feature)),
        Some(Counters) => {
            leaf(cpuid, 0xa, 0).eax & 0xff != 0
                || has(cpuid, "perfctr_core")
                || leaf(cpuid, 0x8000_0022, 0).eax & 1 != 0
        }
        Some(HyperV) => leaf(cpuid, 0x4000_0001, 0).eax == u32::from_le_bytes(*b"Hv#1"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compat::features::WORDS;

    #[test]
    fn ranges_are_in_order_and_do_not_overlap() {
        for pair in ROWS.windows(2) {
            assert!(pair[0].first <= pair[0].last, "{}", pair[0].name);
            assert!(pair[0].last < pair[1].first, "{}", pair[1].name);
        }
    }

    #[test]
    fn every_feature_that_the_table_names_exists() {
        for row in ROWS {
            if let With(features) = row.need {
                for feature in features {
                    let known = WORDS
                        .iter()
                        .flat_map(|word| word.bits())
                        .any(|(_, name)| name == Some(*feature));
                    assert!(known, "{}: {feature}", row.name);
                }
            }
        }
    }

    #[test]
    fn counters_matter_to_a_guest_that_was_given_counters() {
        let eax =
            |function, eax| CpuidLeaf { function, index: 0, flags: 0, eax, ebx: 0, ecx: 0, edx: 0 };
        let matters = |leaf: CpuidLeaf| msr_matters(&[leaf], 0x186);
        // Leaf 0xa: the version of the counters, and beside it their number and width.
        assert!(matters(eax(0xa, 2)) && !matters(eax(0xa, 0x0730_0800)));
        assert!(matters(eax(0x8000_0022, 1)) && !matters(eax(0x8000_0022, 2)));
        let perfctr_core = CpuidLeaf { ecx: 1 << 23, ..eax(0x8000_0001, 0) };
        assert!(matters(perfctr_core) && !matters(eax(0x8000_0001, 0)));
    }

    #[test]
    fn what_hyper_v_has_matters_to_a_guest_that_sees_hyper_v() {
        let sees = |eax| CpuidLeaf {
            function: 0x4000_0001,
            index: 0,
            flags: 0,
            eax,
            ebx: 0,
            ecx: 0,
            edx: 0,
        };
        let matters = |leaf: CpuidLeaf| msr_matters(&[leaf], 0x4000_0000);
        assert!(matters(sees(u32::from_le_bytes(*b"Hv#1"))));
        assert!(!matters(sees(u32::from_le_bytes(*b"Hv#2"))));
    }

    #[test]
    fn an_msr_that_the_table_does_not_know_matters() {
        assert!(msr_matters(&[], 0x0bad_cafe));
    }

    #[test]
    fn an_msr_that_describes_the_host_does_not_matter() {
        assert!(!msr_matters(&[], 0x8b));
    }
}
