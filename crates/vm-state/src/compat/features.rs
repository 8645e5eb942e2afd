//! The names of CPUID feature bits, and which bits are compared at all.
//!
//! Names are those of Linux (`/proc/cpuinfo`, `arch/x86/include/asm/cpufeatures.h`), which is what
//! users compare hosts by; the few bits that Linux does not name have the name of the
//! manufacturer's manual (Intel SDM vol. 2A CPUID; AMD APM vol. 3 appendix E).

use crate::description::CpuidLeaf;

/// An output register of CPUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// EAX.
    Eax,
    /// EBX.
    Ebx,
    /// ECX.
    Ecx,
    /// EDX.
    Edx,
}

impl Register {
    /// Its value in a leaf.
    pub fn of(self, leaf: &CpuidLeaf) -> u32 {
        match self {
            Self::Eax => leaf.eax,
            Self::Ebx => leaf.ebx,
            Self::Ecx => leaf.ecx,
            Self::Edx => leaf.edx,
        }
    }

    /// Its place in a leaf.
    pub fn of_mut(self, leaf: &mut CpuidLeaf) -> &mut u32 {
        match self {
            Self::Eax => &mut leaf.eax,
            Self::Ebx => &mut leaf.ebx,
            Self::Ecx => &mut leaf.ecx,
            Self::Edx => &mut leaf.edx,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Eax => "eax",
            Self::Ebx => "ebx",
            Self::Ecx => "ecx",
            Self::Edx => "edx",
        }
    }
}

/// One register of CPUID that holds feature bits.
#[derive(Debug)]
pub struct FeatureWord {
    /// EAX on input.
    pub function: u32,
    /// ECX on input, where it counts.
    pub index: u32,
    /// The register.
    pub register: Register,
    /// The names of bits 0 to 31, `-` where a bit has none. A bit without a name is compared all
    /// the same: a feature that this table does not know yet is still a feature.
    names: &'static str,
    /// Bits that are not compared, see [`WORDS`].
    pub ignored: u32,
}

impl FeatureWord {
    /// What a processor says there.
    pub fn of(&self, cpuid: &[CpuidLeaf]) -> u32 {
        self.register.of(&leaf(cpuid, self.function, self.index))
    }

    /// The bit of this name; 0 if there is none.
    pub fn bit(&self, name: &str) -> u32 {
        self.bits().filter(|(_, known)| *known == Some(name)).fold(0, |all, (at, _)| all | bit(at))
    }

    /// All bits that have a name.
    pub fn named(&self) -> u32 {
        self.bits().filter(|(_, name)| name.is_some()).fold(0, |all, (at, _)| all | bit(at))
    }

    /// The names of the bits that are set in `value`; `CPUID 0x7.0 ebx bit 22` of one without a
    /// name.
    pub fn names_of(&self, value: u32) -> impl Iterator<Item = String> + '_ {
        self.bits().filter(move |(at, _)| value & bit(*at) != 0).map(|(at, name)| {
            let (function, index, register) = (self.function, self.index, self.register.name());
            name.map_or_else(
                || format!("CPUID {function:#x}.{index} {register} bit {at}"),
                ToOwned::to_owned,
            )
        })
    }

    /// Number and name of each bit; `None` for a bit without a name.
    pub fn bits(&self) -> impl Iterator<Item = (u32, Option<&'static str>)> {
        let names = self.names.split_ascii_whitespace();
        (0..32).zip(names.map(|name| (name != "-").then_some(name)))
    }
}

/// The CPUID leaf where KVM says what it offers (KVM API, x86/cpuid.rst).
pub(crate) const KVM_FEATURES: u32 = 0x4000_0001;

/// The leaf of AVX10, whose ebx has a version number and the lengths of vectors (Intel SDM vol. 2A).
pub const AVX10: u32 = 0x24;

/// The bits of CPUID leaf 7.0 ebx that take something away: x87 pointers are kept less often.
pub const TAKEN_AWAY: u32 = bit(6) | bit(13);

/// The version of AVX10 that a processor has; 0 for none.
pub(crate) fn avx10_version(cpuid: &[CpuidLeaf]) -> u32 {
    leaf(cpuid, AVX10, 0).ebx & 0xff
}

const fn bit(number: u32) -> u32 {
    1 << number
}

/// Every register that is compared.
///
/// What is *not* compared, and why:
/// - leaf 1 ecx 27 (osxsave), 7.0 ecx 4 (ospke): they mirror CR4, which the guest writes;
/// - leaf 1 ecx 31 (hypervisor): vmrun sets it on every host;
/// - leaf 1 ecx 3 (monitor): KVM clears and sets it with MISC_ENABLE;
/// - leaf 1 edx 9 (apic): KVM clears and sets it with the APIC base;
/// - leaf 1 edx 28 (ht), 0x80000001 ecx 1 (cmp_legacy): they follow from the number of vCPUs;
/// - 7.0 ebx 6 and 13 (x87 pointers are kept less often): a set bit takes something away;
/// - 0x80000008 ebx 23 (amd_ppin): a serial number, which no guest is given;
/// - APIC ids, cache and topology leaves, brand string, family, model and stepping: KVM gives the
///   guest what it was created with, whatever the host is.
pub const WORDS: &[FeatureWord] = &[
    FeatureWord {
        function: 1,
        index: 0,
        register: Register::Ecx,
        names: "pni pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr \
            pdcm - pcid dca sse4_1 sse4_2 x2apic movbe popcnt tsc_deadline_timer aes xsave \
            osxsave avx f16c rdrand hypervisor",
        ignored: bit(3) | bit(27) | bit(31),
    },
    FeatureWord {
        function: 1,
        index: 0,
        register: Register::Edx,
        names: "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn \
            clflush - dts acpi mmx fxsr sse sse2 ss ht tm ia64 pbe",
        ignored: bit(9) | bit(28),
    },
    FeatureWord {
        function: 7,
        index: 0,
        register: Register::Ebx,
        names: "fsgsbase tsc_adjust sgx bmi1 hle avx2 fdp_excptn_only smep bmi2 erms invpcid rtm \
            cqm zero_fcs_fds mpx rdt_a avx512f avx512dq rdseed adx smap avx512ifma - \
            clflushopt clwb intel_pt avx512pf avx512er avx512cd sha_ni avx512bw avx512vl",
        ignored: TAKEN_AWAY,
    },
    FeatureWord {
        function: 7,
        index: 0,
        register: Register::Ecx,
        names: "prefetchwt1 avx512vbmi umip pku ospke waitpkg avx512_vbmi2 shstk gfni vaes \
            vpclmulqdq avx512_vnni avx512_bitalg tme avx512_vpopcntdq - la57 - - - - - rdpid \
            key_locker bus_lock_detect cldemote - movdiri movdir64b enqcmd sgx_lc pks",
        ignored: bit(4),
    },
    FeatureWord {
        function: 7,
        index: 0,
        register: Register::Edx,
        names: "- sgx_keys avx512_4vnniw avx512_4fmaps fsrm uintr - - avx512_vp2intersect \
            srbds_ctrl md_clear rtm_always_abort - tsx_force_abort serialize hybrid_cpu \
            tsxldtrk - pconfig arch_lbr ibt - amx_bf16 avx512_fp16 amx_tile amx_int8 \
            spec_ctrl intel_stibp flush_l1d arch_capabilities core_capabilities \
            spec_ctrl_ssbd",
        ignored: 0,
    },
    FeatureWord {
        function: 7,
        index: 1,
        register: Register::Eax,
        names: "sha512 sm3 sm4 rao_int avx_vnni avx512_bf16 lass cmpccxadd arch_perfmon_ext - \
            fzrm fsrs fsrc - - - - fred lkgs wrmsrns nmi_src amx_fp16 hreset avx_ifma - - \
            lam msrlist - invd_disable prntrh movrs",
        ignored: 0,
    },
    FeatureWord {
        function: 7,
        index: 1,
        register: Register::Edx,
        names: "- - - - avx_vnni_int8 avx_ne_convert - - amx_complex - avx_vnni_int16 - - utmr \
            prefetchi user_msr - uiret_uif cet_sss avx10 - apx - mwait - - - - - - - -",
        ignored: 0,
    },
    FeatureWord {
        function: 7,
        index: 2,
        register: Register::Edx,
        names: "intel_psfd ipred_ctrl rrsba_ctrl ddpd_u bhi_ctrl mcdt_no uc_lock_disable \
            monitor_mitg_no - - - - - - - - - - - - - - - - - - - - - - - -",
        ignored: 0,
    },
    FeatureWord {
        function: 0xd,
        index: 1,
        register: Register::Eax,
        names: "xsaveopt xsavec xgetbv1 xsaves xfd - - - - - - - - - - - - - - - - - - - - - - - \
            - - - -",
        ignored: 0,
    },
    FeatureWord {
        function: 0x8000_0001,
        index: 0,
        register: Register::Ecx,
        names: "lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch \
            osvw ibs xop skinit wdt - lwp fma4 tce - nodeid_msr - tbm topoext perfctr_core \
            perfctr_nb - bpext ptsc perfctr_llc mwaitx addr_mask_ext -",
        ignored: bit(1),
    },
    FeatureWord {
        function: 0x8000_0001,
        index: 0,
        register: Register::Edx,
        names: "fpu vme de pse tsc msr pae mce cx8 apic - syscall mtrr pge mca cmov pat pse36 - \
            mp nx - mmxext mmx fxsr fxsr_opt pdpe1gb rdtscp - lm 3dnowext 3dnow",
        ignored: bit(9),
    },
    FeatureWord {
        function: 0x8000_0007,
        index: 0,
        register: Register::Edx,
        names: "ts fid vid ttp htc stc 100mhzsteps hw_pstate invtsc cpb aperfmperf_ro \
            proc_feedback acc_power - - - - - - - - - - - - - - - - - - -",
        ignored: 0,
    },
    FeatureWord {
        function: 0x8000_0008,
        index: 0,
        register: Register::Ebx,
        names: "clzero irperf xsaveerptr invlpgb rdpru - mbe - mcommit wbnoinvd - - amd_ibpb \
            wbinvd_int amd_ibrs amd_stibp ibrs_always_on amd_stibp_always_on ibrs_preferred \
            ibrs_same_mode lmsle_unsupported tlb_flush_nested - amd_ppin amd_ssbd virt_ssbd \
            amd_ssb_no cppc amd_psfd btc_no ibpb_ret brs",
        ignored: bit(23),
    },
    FeatureWord {
        function: 0x8000_0021,
        index: 0,
        register: Register::Eax,
        names: "no_nested_data_bp fsgs_base_non_serializing lfence_rdtsc smm_page_cfg_lock - \
            verw_clear null_sel_clr_base upper_address_ignore autoibrs no_smm_ctl_msr fsrs \
            fsrc - prefetch_ctl_msr - - - cpuid_user_dis epsf - prefetchi fp512_downgrade - \
            - erapsu - - sbpb ibpb_brtype srso_no srso_user_kernel_no srso_msr_fix",
        ignored: 0,
    },
    FeatureWord {
        function: 0x8000_0021,
        index: 0,
        register: Register::Ecx,
        names: "- tsa_sq_no tsa_l1_no - - - - - - - - - - - - - - - - - - - - - - - - - - - - -",
        ignored: 0,
    },
    FeatureWord {
        function: AVX10,
        index: 0,
        register: Register::Ebx,
        names: "- - - - - - - - - - - - - - - - avx10_128 avx10_256 avx10_512 - - - - - - - - - - \
            - - -",
        // The version, which is compared as a number.
        ignored: 0xff,
    },
    FeatureWord {
        function: KVM_FEATURES,
        index: 0,
        register: Register::Eax,
        names: "kvm_clocksource kvm_nop_io_delay kvm_mmu_op kvm_clocksource2 kvm_async_pf \
            kvm_steal_time kvm_pv_eoi kvm_pv_unhalt - kvm_pv_tlb_flush kvm_async_pf_vmexit \
            kvm_pv_send_ipi kvm_poll_control kvm_pv_sched_yield kvm_async_pf_int \
            kvm_msi_ext_dest_id kvm_hc_map_gpa_range kvm_migration_control - - - - - - \
            kvm_clocksource_stable - - - - - - -",
        ignored: 0,
    },
];

/// The leaf that a processor answers with: nothing but zeros where it is not listed.
pub fn leaf(cpuid: &[CpuidLeaf], function: u32, index: u32) -> CpuidLeaf {
    /// KVM_CPUID_FLAG_SIGNIFCANT_INDEX: ECX counts.
    const INDEX_COUNTS: u32 = 1;
    cpuid
        .iter()
        .find(|leaf| {
            leaf.function == function && (leaf.index == index || leaf.flags & INDEX_COUNTS == 0)
        })
        .copied()
        .unwrap_or(CpuidLeaf { function, index, flags: 0, eax: 0, ebx: 0, ecx: 0, edx: 0 })
}

/// Whether a processor has the feature of this name; never for a name that [`WORDS`] lacks.
pub fn has(cpuid: &[CpuidLeaf], feature: &str) -> bool {
    WORDS.iter().any(|word| word.of(cpuid) & word.bit(feature) != 0)
}

/// The names of all features of a processor that are compared, once each.
pub fn feature_names(cpuid: &[CpuidLeaf]) -> Vec<String> {
    let mut names = Vec::new();
    for word in WORDS {
        let new = word.names_of(word.of(cpuid) & !word.ignored);
        names.extend(new.filter(|name| !names.contains(name)).collect::<Vec<_>>());
    }
    names
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The bits that AMD repeats from leaf 1 in leaf 0x80000001.
    const REPEATED: u32 = 0x0183_f3ff;

    #[test]
    fn every_word_names_32_bits() {
        for word in WORDS {
            assert_eq!(word.names.split_ascii_whitespace().count(), 32, "{:#x}", word.function);
        }
    }

    #[test]
    fn every_name_stands_for_one_bit() {
        let mut seen = BTreeSet::new();
        for word in WORDS {
            for (number, name) in word.bits() {
                let Some(name) = name else { continue };
                let repeated = word.function == 0x8000_0001
                    && word.register == Register::Edx
                    && REPEATED & bit(number) != 0;
                // Intel and AMD gave each of these a bit of their own.
                let twice =
                    word.function == 0x8000_0021 && ["fsrs", "fsrc", "prefetchi"].contains(&name);
                assert!(repeated || twice || seen.insert(name), "{name}");
            }
        }
    }

    #[test]
    fn well_known_features_are_at_their_bits() {
        for (function, index, register, number, name) in [
            (1, 0, Register::Ecx, 24, "tsc_deadline_timer"),
            (1, 0, Register::Ecx, 28, "avx"),
            (1, 0, Register::Edx, 19, "clflush"),
            (1, 0, Register::Edx, 26, "sse2"),
            (7, 0, Register::Ebx, 16, "avx512f"),
            (7, 0, Register::Ebx, 31, "avx512vl"),
            (7, 0, Register::Ecx, 22, "rdpid"),
            (7, 0, Register::Ecx, 16, "la57"),
            (7, 0, Register::Edx, 29, "arch_capabilities"),
            (7, 0, Register::Edx, 24, "amx_tile"),
            (7, 0, Register::Edx, 31, "spec_ctrl_ssbd"),
            (7, 1, Register::Eax, 5, "avx512_bf16"),
            (7, 1, Register::Eax, 26, "lam"),
            (7, 1, Register::Edx, 14, "prefetchi"),
            (0xd, 1, Register::Eax, 3, "xsaves"),
            (0x8000_0001, 0, Register::Ecx, 22, "topoext"),
            (0x8000_0001, 0, Register::Ecx, 29, "mwaitx"),
            (0x8000_0001, 0, Register::Edx, 11, "syscall"),
            (0x8000_0001, 0, Register::Edx, 29, "lm"),
            (0x8000_0007, 0, Register::Edx, 8, "invtsc"),
            (0x8000_0008, 0, Register::Ebx, 25, "virt_ssbd"),
            (0x8000_0021, 0, Register::Eax, 8, "autoibrs"),
            (0x8000_0021, 0, Register::Eax, 29, "srso_no"),
            (KVM_FEATURES, 0, Register::Eax, 14, "kvm_async_pf_int"),
            (KVM_FEATURES, 0, Register::Eax, 24, "kvm_clocksource_stable"),
        ] {
            let word = WORDS
                .iter()
                .find(|word| {
                    (word.function, word.index, word.register) == (function, index, register)
                })
                .unwrap();
            assert!(word.bits().any(|bit| bit == (number, Some(name))), "{name}");
        }
    }
}
