use proptest::prelude::*;

use super::*;

fn entry(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> CpuidLeaf {
    CpuidLeaf {
        function,
        index,
        flags: u32::from([7, 0xd].contains(&function)),
        eax,
        ebx,
        ecx,
        edx,
    }
}

fn vendor_leaf(vendor: [u8; 12]) -> CpuidLeaf {
    let word = |at| u32::from_le_bytes([0, 1, 2, 3].map(|i: usize| vendor[at + i]));
    entry(0, 0, [0x1c, word(0), word(8), word(4)])
}

fn cpuid() -> Vec<CpuidLeaf> {
    vec![
        vendor_leaf(*b"AuthenticAMD"),
        entry(1, 0, [0x00a1_0f11, 0, 1 << 26 | 1 << 28, 0x078b_fbff]),
        entry(7, 0, [0, 1 << 16 | 1 << 5, 0, 0]),
        entry(0xd, 0, [0xe7, 0x980, 0x980, 0]),
        entry(0xd, 2, [0x100, 0x240, 0, 0]),
        entry(0xd, 5, [0x40, 0x340, 0, 0]),
        entry(0xd, 6, [0x200, 0x380, 0, 0]),
        entry(0xd, 7, [0x400, 0x580, 0, 0]),
        entry(0x4000_0000, 0, [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d]),
        entry(0x4000_0001, 0, [1 << 3, 0, 0, 0]),
        entry(0x8000_0008, 0, [0x3030, 0, 0, 0]),
    ]
}

fn guest() -> CpuDescription {
    CpuDescription {
        cpuid: cpuid(),
        xsave_components: 0xe7,
        xsave_bytes: 4096,
        msrs: vec![0x10, 0x8b, 0x4b56_4d01, 0xc000_0082],
        tsc_khz: 2_600_000,
        arch_capabilities: Some(0),
    }
}

fn host() -> HostCapabilities {
    HostCapabilities {
        cpuid: cpuid(),
        xsave_components: 0xe7,
        msrs: vec![0xc000_0082, 0x10, 0x8b, 0x4b56_4d01],
        arch_capabilities: 0,
        tsc_khz: 2_600_000,
        tsc_scaling: false,
    }
}

#[test]
fn problems_are_told_one_after_the_other_and_what_would_have_fitted_last() {
    let problem = Problem::Vendor { guest: "A".to_owned(), host: "B".to_owned() };
    let one = problem.to_string();
    let text = |count, remedy| {
        let text = Incompatible { problems: vec![problem.clone(); count], remedy }.to_string();
        text.strip_prefix("this host cannot run the guest: ").unwrap().to_owned()
    };
    assert_eq!(text(1, None), one);
    assert_eq!(text(2, None), format!("{one}; {one}"));
    let baseline = "the baseline of both hosts (vmctl cpu baseline) it could have come";
    let remedy = Some(Remedy { level: None });
    assert_eq!(text(1, remedy), format!("{one}; started with {baseline}"));
    let remedy = Some(Remedy { level: Some(Level::V3) });
    assert_eq!(text(1, remedy), format!("{one}; started with --cpu x86-64-v3 or {baseline}"));
}

#[test]
fn a_leaf_in_which_the_index_does_not_count_answers_for_every_index() {
    let leaf = |flags, index| CpuidLeaf { flags, index, ..entry(0x1234, 0, [5, 0, 0, 0]) };
    let answer = |leaf: CpuidLeaf| features::leaf(&[leaf], 0x1234, 3).eax;
    assert_eq!([answer(leaf(0, 0)), answer(leaf(1, 0)), answer(leaf(1, 3))], [5, 0, 5]);
}

#[test]
fn what_is_no_feature_of_a_guest_is_not_asked_of_a_host() {
    // MONITOR, OSXSAVE and the hypervisor bit; APIC and HT; x87 quirks of leaf 7.
    for (function, with) in [
        (1, (|leaf| leaf.ecx |= 1 << 3 | 1 << 27 | 1 << 31) as fn(&mut CpuidLeaf)),
        (1, |leaf| leaf.edx |= 1 << 9 | 1 << 28),
        (7, |leaf| leaf.ebx |= 1 << 6 | 1 << 13),
    ] {
        let mut guest = guest();
        change(&mut guest.cpuid, function, 0, with);
        check(&guest, &host()).unwrap();
    }
}

fn change(cpuid: &mut [CpuidLeaf], function: u32, index: u32, with: impl FnOnce(&mut CpuidLeaf)) {
    with(cpuid.iter_mut().find(|leaf| (leaf.function, leaf.index) == (function, index)).unwrap());
}

fn only_problem(guest: &CpuDescription, host: &HostCapabilities) -> String {
    let problems = check(guest, host).unwrap_err().problems;
    assert_eq!(problems.len(), 1, "{problems:?}");
    problems[0].to_string()
}

#[test]
fn a_host_takes_the_guest_that_it_was_made_for() {
    assert_eq!(check(&guest(), &host()), Ok(()));
}

#[test]
fn a_missing_feature_is_named_as_linux_names_it() {
    let mut host = host();
    change(&mut host.cpuid, 7, 0, |leaf| leaf.ebx &= !(1 << 16));
    assert_eq!(only_problem(&guest(), &host), "it lacks the CPU features avx512f");
}

#[test]
fn a_feature_without_a_name_counts_too() {
    let mut guest = guest();
    change(&mut guest.cpuid, 7, 0, |leaf| leaf.ebx |= 1 << 22);
    assert_eq!(only_problem(&guest, &host()), "it lacks the CPU features CPUID 0x7.0 ebx bit 22");
}

#[test]
fn a_host_that_has_more_takes_the_guest() {
    let mut host = host();
    change(&mut host.cpuid, 7, 0, |leaf| leaf.ebx = u32::MAX);
    host.msrs.push(0x1234);
    host.xsave_components |= 1 << 9;
    assert_eq!(check(&guest(), &host), Ok(()));
}

#[test]
fn everything_that_is_missing_is_listed_at_once() {
    let mut host = host();
    change(&mut host.cpuid, 7, 0, |leaf| leaf.ebx = 0);
    host.xsave_components = 7;
    host.msrs.retain(|&msr| msr != 0xc000_0082);
    host.tsc_khz = 3_000_000;
    let text = check(&guest(), &host).unwrap_err().to_string();
    for part in [
        "it lacks the CPU features avx2, avx512f; ",
        "it lacks the XSAVE components avx512 opmask, avx512 zmm_hi256, avx512 hi16_zmm; ",
        "LSTAR (MSR 0xc0000082)",
        "2600000 kHz and this host's at 3000000 kHz",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
}

#[test]
fn bits_that_the_guest_itself_switches_do_not_count() {
    let mut guest = guest();
    change(&mut guest.cpuid, 1, 0, |leaf| {
        leaf.ecx |= 1 << 27 | 1 << 31;
        leaf.edx |= 1 << 28;
    });
    change(&mut guest.cpuid, 7, 0, |leaf| leaf.ecx |= 1 << 4);
    assert_eq!(check(&guest, &host()), Ok(()));
}

#[test]
fn another_vendor_is_refused() {
    let mut host = host();
    host.cpuid[0] = vendor_leaf(*b"GenuineIntel");
    assert_eq!(
        only_problem(&guest(), &host),
        "the guest was given a processor by AuthenticAMD, this host's is by GenuineIntel"
    );
}

#[test]
fn a_component_that_lies_elsewhere_is_refused() {
    let mut host = host();
    change(&mut host.cpuid, 0xd, 5, |leaf| leaf.ebx = 0x440);
    assert!(
        only_problem(&guest(), &host)
            .contains("elsewhere in its XSAVE area than in the guest's: avx512 opmask")
    );
}

#[test]
fn wider_physical_addresses_are_refused_and_narrower_ones_are_not() {
    let mut narrow = host();
    change(&mut narrow.cpuid, 0x8000_0008, 0, |leaf| leaf.eax = 0x302e);
    assert!(only_problem(&guest(), &narrow).contains("48-bit"));
    let mut wide = host();
    change(&mut wide.cpuid, 0x8000_0008, 0, |leaf| leaf.eax = 0x3034);
    assert_eq!(check(&guest(), &wide), Ok(()));
}

#[test]
fn an_msr_counts_only_if_its_value_could_matter() {
    let mut host = host();
    host.msrs.retain(|&msr| msr == 0x10 || msr == 0xc000_0082);
    // The microcode revision is not missed; the clock of a guest that was given kvm-clock is.
    assert!(only_problem(&guest(), &host).contains("KVM_SYSTEM_TIME_NEW (MSR 0x4b564d01)"));
    let mut guest = guest();
    change(&mut guest.cpuid, 0x4000_0001, 0, |leaf| leaf.eax = 0);
    assert_eq!(check(&guest, &host), Ok(()));
}

#[test]
fn kvm_features_count_only_for_a_guest_that_sees_kvm() {
    let mut host = host();
    change(&mut host.cpuid, 0x4000_0001, 0, |leaf| leaf.eax = 0);
    assert!(only_problem(&guest(), &host).contains("kvm_clocksource2"));
    let mut guest = guest();
    guest.msrs.clear();
    change(&mut guest.cpuid, 0x4000_0000, 0, |leaf| leaf.ebx = 0);
    assert_eq!(check(&guest, &host), Ok(()));
}

#[test]
fn the_tsc_may_differ_by_250_ppm_or_be_scaled() {
    let at = |tsc_khz, tsc_scaling| {
        let host = HostCapabilities { tsc_khz, tsc_scaling, ..host() };
        check(&guest(), &host).is_ok()
    };
    assert!(at(2_600_650, false), "250 ppm");
    assert!(!at(2_600_651, false));
    assert!(at(2_599_350, false));
    assert!(!at(2_599_349, false));
    assert!(at(1_000_000, true));
}

#[test]
fn a_long_list_is_cut() {
    let mut guest = guest();
    guest.msrs = (0x9000..0xa000).collect();
    let text = check(&guest, &host()).unwrap_err().to_string();
    let more = 0x1000 - problem::MAX_SHOWN;
    assert!(text.contains(&format!("MSR 0x9027 and {more} more; started with")), "{text}");
}

/// Leaf 7.0 with these bits in edx, and IA32_ARCH_CAPABILITIES of both sides.
fn arch_capabilities(given: Option<u64>, here: u64) -> (CpuDescription, HostCapabilities) {
    let (mut guest, mut host) = (guest(), host());
    change(&mut guest.cpuid, 7, 0, |leaf| leaf.edx = 1 << 29);
    change(&mut host.cpuid, 7, 0, |leaf| leaf.edx = 1 << 29);
    (guest.arch_capabilities, host.arch_capabilities) = (given, here);
    (guest, host)
}

#[test]
fn what_the_guest_was_told_of_its_processor_must_be_so_here() {
    let (guest, host) = arch_capabilities(Some(0b10_0011), 0b10_0001);
    assert_eq!(only_problem(&guest, &host), "its IA32_ARCH_CAPABILITIES lacks ibrs_all");
    let (guest, host) = arch_capabilities(Some(0b10_0001), 0b10_0011);
    check(&guest, &host).unwrap();
    // A release before said nothing of it.
    let (guest, host) = arch_capabilities(None, 0);
    check(&guest, &host).unwrap();
}

#[test]
fn a_guest_is_told_what_its_processor_does_worse() {
    let (guest, host) = arch_capabilities(Some(1), 1 | 1 << 19);
    let told = "its IA32_ARCH_CAPABILITIES has rrsba, of which the guest was not told";
    assert_eq!(only_problem(&guest, &host), told);
    let (guest, host) = arch_capabilities(Some(1 | 1 << 19), 1);
    check(&guest, &host).unwrap();
    // One that has no such MSR assumes the worst.
    let (mut guest, host) = arch_capabilities(Some(0), 1 << 19);
    change(&mut guest.cpuid, 7, 0, |leaf| leaf.edx = 0);
    check(&guest, &host).unwrap();
}

#[test]
fn a_host_without_the_msr_is_named_for_that_alone() {
    let (guest, mut host) = arch_capabilities(Some(0xff), 0);
    change(&mut host.cpuid, 7, 0, |leaf| leaf.edx = 0);
    assert_eq!(only_problem(&guest, &host), "it lacks the CPU features arch_capabilities");
}

#[test]
fn an_amd_host_that_says_ibrs_in_its_own_leaf_only_takes_a_guest_that_was_told_in_intels() {
    // spec_ctrl, intel_stibp, spec_ctrl_ssbd.
    let mut guest = guest();
    let (ibpb, ibrs, stibp, ssbd) = (1 << 12, 1 << 14, 1 << 15, 1 << 24);
    change(&mut guest.cpuid, 7, 0, |leaf| leaf.edx = 1 << 26 | 1 << 27 | 1 << 31);
    change(&mut guest.cpuid, 0x8000_0008, 0, |leaf| leaf.ebx = ibpb | ibrs | stibp | ssbd);
    let at = |ebx| {
        let mut host = host();
        change(&mut host.cpuid, 0x8000_0008, 0, |leaf| leaf.ebx = ebx);
        host
    };
    check(&guest, &at(ibpb | ibrs | stibp | ssbd)).unwrap();
    let without_ibrs = only_problem(&guest, &at(ibpb | stibp | ssbd));
    assert_eq!(without_ibrs, "it lacks the CPU features spec_ctrl, amd_ibrs");
    let mut intel = at(ibpb | ibrs | stibp | ssbd);
    intel.cpuid[0] = vendor_leaf(*b"GenuineIntel");
    guest.cpuid[0] = vendor_leaf(*b"GenuineIntel");
    assert!(only_problem(&guest, &intel).contains("spec_ctrl, intel_stibp, spec_ctrl_ssbd"));
}

#[test]
fn a_later_version_of_avx10_is_refused() {
    let avx10 = |version: u32| entry(0x24, 0, [0, 0x7_0000 | version, 0, 0]);
    let (mut guest, mut host) = (guest(), host());
    guest.cpuid.push(avx10(2));
    host.cpuid.push(avx10(1));
    let older = "the guest was given version 2 of avx10, this host has version 1";
    assert_eq!(only_problem(&guest, &host), older);
    *guest.cpuid.last_mut().unwrap() = avx10(1);
    *host.cpuid.last_mut().unwrap() = avx10(2);
    check(&guest, &host).unwrap();
}

#[test]
fn what_only_a_kernel_saves_is_a_component_too() {
    let (mut guest, host) = (guest(), host());
    guest.cpuid.push(entry(0xd, 1, [0, 0, 0x1800, 0]));
    let components = "it lacks the XSAVE components cet user, cet supervisor";
    assert_eq!(only_problem(&guest, &host), components);
}

#[test]
fn what_would_have_fitted_is_said() {
    let remedy = |guest: &CpuDescription, host: &HostCapabilities| {
        check(guest, host).unwrap_err().remedy.map(|remedy| remedy.level)
    };
    // Leaf 1 of v2 and all of leaf 0x80000001, and what v3 adds to leaf 1.
    let v2 = |cpuid: &mut Vec<CpuidLeaf>| {
        change(cpuid, 1, 0, |leaf| (leaf.ecx, leaf.edx) = (0x95b8_2201, 0x078b_fbff));
        change(cpuid, 7, 0, |leaf| leaf.ebx |= 1 << 1);
        cpuid.push(entry(0x8000_0001, 0, [0, 0, 1, 1 << 11 | 1 << 20 | 1 << 27 | 1 << 29]));
    };
    let (mut guest, mut host) = (guest(), host());
    change(&mut host.cpuid, 7, 0, |leaf| leaf.ebx &= !(1 << 16));
    assert_eq!(remedy(&guest, &host), Some(None));
    v2(&mut guest.cpuid);
    v2(&mut host.cpuid);
    assert_eq!(remedy(&guest, &host), Some(Some(Level::V2)));
    host.tsc_khz = 3_000_000;
    assert_eq!(remedy(&guest, &host), Some(None), "a guest of a level has its host's TSC");
    host.cpuid[0] = vendor_leaf(*b"GenuineIntel");
    assert_eq!(remedy(&guest, &host), None);
}

proptest! {
    #[test]
    fn no_description_makes_it_panic(
        leaves in prop::collection::vec((0..16u32, 0..4u32, any::<[u32; 4]>()), 0..32),
        high: bool,
        xsave_components: u64,
        msrs in prop::collection::vec(any::<u32>(), 0..64),
        tsc_khz: u32,
        arch_capabilities: Option<u64>,
    ) {
        let base = if high { 0x8000_0000 } else { 0 };
        let cpuid = leaves.into_iter().map(|(f, i, regs)| entry(base + f, i, regs)).collect();
        let guest = CpuDescription {
            cpuid,
            xsave_components,
            xsave_bytes: 0,
            msrs,
            tsc_khz,
            arch_capabilities,
        };
        let _ = check(&guest, &host()).map_err(|error| error.to_string());
    }

    #[test]
    fn a_host_takes_whatever_it_offers(
        leaves in prop::collection::btree_map((0..16u32, 0..4u32), any::<[u32; 4]>(), 0..32),
        xsave_components: u64,
        msrs in prop::collection::vec(any::<u32>(), 0..64),
        tsc_khz: u32,
        arch_capabilities: u64,
    ) {
        let cpuid: Vec<_> = leaves.into_iter().map(|((f, i), regs)| entry(f, i, regs)).collect();
        let guest = CpuDescription {
            cpuid: cpuid.clone(),
            xsave_components,
            xsave_bytes: 0,
            msrs: msrs.clone(),
            tsc_khz,
            arch_capabilities: Some(arch_capabilities),
        };
        let host = HostCapabilities {
            cpuid,
            xsave_components,
            msrs,
            arch_capabilities,
            tsc_khz,
            tsc_scaling: false,
        };
        prop_assert_eq!(check(&guest, &host), Ok(()));
    }
}
