//! Can this host take that guest? Decided on descriptions alone, before any state or page is sent.
//!
//! [`check`] compares what the guest was *given* with what the host *has*, feature by feature: a
//! guest may use a feature at any time, so that a feature which it has not used yet counts as much,
//! and what it was not given does not count at all. The answer names everything that is missing, not
//! only the first thing, and which processor would have fitted: a user who must start guests with
//! less wants the whole list.

mod arch_capabilities;
mod features;
mod level;
mod msrs;
mod problem;
mod xsave;

pub use arch_capabilities::{WORSE, arch_capability, arch_capability_names};
pub use features::{AVX10, FeatureWord, Register, TAKEN_AWAY, WORDS, feature_names, has, leaf};
pub use level::{Level, NoLevel};
pub use msrs::{msr_matters, msr_name};
pub use problem::{Incompatible, Problem, Remedy, TSC_TOLERANCE_PPM};
pub use xsave::{components as xsave_component_numbers, name as xsave_component_name};

use crate::description::{CpuDescription, CpuidLeaf, HostCapabilities};
use features::KVM_FEATURES;

/// Whether `host` can take a guest that was given `guest`.
///
/// # Errors
/// [`Incompatible`] with everything that is missing.
pub fn check(guest: &CpuDescription, host: &HostCapabilities) -> Result<(), Incompatible> {
    let mut problems = Vec::new();
    check_vendor(guest, host, &mut problems);
    check_features(guest, host, &mut problems);
    check_arch_capabilities(guest, host, &mut problems);
    check_addresses(guest, host, &mut problems);
    check_xsave(guest, host, &mut problems);
    check_msrs(guest, host, &mut problems);
    if !host.tsc_scaling && !tsc_is_close(guest.tsc_khz, host.tsc_khz) {
        problems.push(Problem::Tsc { guest: guest.tsc_khz, host: host.tsc_khz });
    }
    if problems.is_empty() {
        return Ok(());
    }
    let remedy = remedy(guest, host, &problems);
    Err(Incompatible { problems, remedy })
}

/// What a guest could have been started with on its source to be taken here. The baseline of the two
/// hosts is what both have, so it fits unless they are by different manufacturers.
fn remedy(guest: &CpuDescription, host: &HostCapabilities, problems: &[Problem]) -> Option<Remedy> {
    if problems.iter().any(|problem| matches!(problem, Problem::Vendor { .. })) {
        return None;
    }
    // A guest of a level has the TSC of its host.
    let same_tsc = !problems.iter().any(|problem| matches!(problem, Problem::Tsc { .. }));
    let (given, here) = (address_bits(&guest.cpuid), address_bits(&host.cpuid));
    let same_addresses = here >= given.min(Level::PHYSICAL_ADDRESS_BITS);
    let level = Level::of(&guest.cpuid).min(Level::of(&host.cpuid));
    Some(Remedy { level: level.filter(|_| same_tsc && same_addresses) })
}

/// Whether a guest whose TSC ran at `guest` kHz can go on at `host` kHz without scaling: at most
/// [`TSC_TOLERANCE_PPM`] apart.
pub fn tsc_is_close(guest: u32, host: u32) -> bool {
    u64::from(guest.abs_diff(host)) * 1_000_000 <= u64::from(guest) * TSC_TOLERANCE_PPM
}

/// The vendor string of a processor (CPUID leaf 0): `AuthenticAMD`, `GenuineIntel`.
pub fn vendor(cpuid: &[CpuidLeaf]) -> String {
    let leaf = leaf(cpuid, 0, 0);
    let bytes: Vec<u8> =
        [leaf.ebx, leaf.edx, leaf.ecx].iter().flat_map(|register| register.to_le_bytes()).collect();
    String::from_utf8_lossy(&bytes).escape_debug().to_string()
}

fn check_vendor(guest: &CpuDescription, host: &HostCapabilities, problems: &mut Vec<Problem>) {
    let (guest, host) = (vendor(&guest.cpuid), vendor(&host.cpuid));
    if guest != host {
        problems.push(Problem::Vendor { guest, host });
    }
}

fn check_features(guest: &CpuDescription, host: &HostCapabilities, problems: &mut Vec<Problem>) {
    let mut missing = Vec::new();
    for word in WORDS {
        // Bits of the KVM leaf mean something else to a guest that was given another hypervisor's.
        if word.function == KVM_FEATURES && !sees_kvm(&guest.cpuid) {
            continue;
        }
        let given = word.of(&guest.cpuid) & !word.ignored;
        let lacking = given & !(word.of(&host.cpuid) | implied(word, &guest.cpuid, &host.cpuid));
        // AMD repeats bits of leaf 1 in leaf 0x80000001.
        let new: Vec<_> = word.names_of(lacking).filter(|name| !missing.contains(name)).collect();
        missing.extend(new);
    }
    if !missing.is_empty() {
        problems.push(Problem::Features(missing));
    }
    let (guest, host) =
        (features::avx10_version(&guest.cpuid), features::avx10_version(&host.cpuid));
    if guest > host {
        problems.push(Problem::Avx10 { guest, host });
    }
}

/// Bits that an AMD host has under another name. Its processors say IBRS and IBPB, STIBP and SSBD in
/// leaf 0x80000008; some releases of KVM repeat them where Intel's say so, in leaf 7, and others do
/// not. The MSRs behind them are the same, and the guest may use them if it was given AMD's bits too.
fn implied(word: &FeatureWord, guest: &[CpuidLeaf], host: &[CpuidLeaf]) -> u32 {
    if (word.function, word.index, word.register) != (7, 0, Register::Edx) || !is_amd(host) {
        return 0;
    }
    let repeated: [(&[&str], &str); 3] = [
        (&["amd_ibrs", "amd_ibpb"], "spec_ctrl"),
        (&["amd_stibp"], "intel_stibp"),
        (&["amd_ssbd"], "spec_ctrl_ssbd"),
    ];
    let has_all = |names: &[&str]| names.iter().all(|name| has(guest, name) && has(host, name));
    let bits = repeated.into_iter().filter(|(own, _)| has_all(own)).map(|(_, name)| word.bit(name));
    bits.fold(0, |all, bit| all | bit)
}

/// Whether a processor is by AMD, or by Hygon, which builds AMD's.
pub fn is_amd(cpuid: &[CpuidLeaf]) -> bool {
    ["AuthenticAMD", "HygonGenuine"].contains(&vendor(cpuid).as_str())
}

fn check_arch_capabilities(
    guest: &CpuDescription,
    host: &HostCapabilities,
    problems: &mut Vec<Problem>,
) {
    // A guest without the MSR assumes nothing, and a host without it is named for that.
    let both = [&guest.cpuid, &host.cpuid].iter().all(|cpuid| has(cpuid, "arch_capabilities"));
    let Some(given) = guest.arch_capabilities.filter(|_| both) else { return };
    let here = host.arch_capabilities;
    let lacking = given & !here & !WORSE;
    if lacking != 0 {
        problems.push(Problem::ArchCapabilities(arch_capability_names(lacking)));
    }
    let not_told = here & !given & WORSE;
    if not_told != 0 {
        problems.push(Problem::NotTold(arch_capability_names(not_told)));
    }
}

fn sees_kvm(cpuid: &[CpuidLeaf]) -> bool {
    let leaf = leaf(cpuid, 0x4000_0000, 0);
    [leaf.ebx, leaf.ecx, leaf.edx].map(u32::to_le_bytes) == [*b"KVMK", *b"VMKV", *b"M\0\0\0"]
}

/// How many bits of physical address a processor has; 0 where it does not say.
pub fn address_bits(cpuid: &[CpuidLeaf]) -> u32 {
    leaf(cpuid, 0x8000_0008, 0).eax & 0xff
}

fn check_addresses(guest: &CpuDescription, host: &HostCapabilities, problems: &mut Vec<Problem>) {
    let (guest, host) = (address_bits(&guest.cpuid), address_bits(&host.cpuid));
    if guest > host {
        problems.push(Problem::PhysicalAddresses { guest, host });
    }
}

fn check_xsave(guest: &CpuDescription, host: &HostCapabilities, problems: &mut Vec<Problem>) {
    let shared = guest.xsave_components & host.xsave_components;
    // Those that only a kernel saves (XSS) are not in XCR0.
    let supervisor = xsave::supervisor(&guest.cpuid) & !xsave::supervisor(&host.cpuid);
    let missing = guest.xsave_components & !shared | supervisor;
    let missing: Vec<_> = xsave::components(missing).map(xsave::name).collect();
    if !missing.is_empty() {
        problems.push(Problem::XsaveComponents(missing));
    }
    let layout = xsave::layout;
    let elsewhere: Vec<_> = xsave::components(shared)
        .filter(|&component| layout(&guest.cpuid, component) != layout(&host.cpuid, component))
        .map(xsave::name)
        .collect();
    if !elsewhere.is_empty() {
        problems.push(Problem::XsaveLayout(elsewhere));
    }
}

fn check_msrs(guest: &CpuDescription, host: &HostCapabilities, problems: &mut Vec<Problem>) {
    let missing = missing_msrs(guest, &host.msrs);
    if !missing.is_empty() {
        problems.push(Problem::Msrs(missing));
    }
}

/// The MSRs that the guest cannot do without and that are not among `known`. KVM's list of MSRs
/// lacks some that it has, so a host asks KVM for these before it says that it lacks them.
pub fn missing_msrs(guest: &CpuDescription, known: &[u32]) -> Vec<u32> {
    let mut known = known.to_vec();
    known.sort_unstable();
    let is_missing =
        |&msr: &u32| known.binary_search(&msr).is_err() && msr_matters(&guest.cpuid, msr);
    guest.msrs.iter().copied().filter(is_missing).collect()
}

#[cfg(test)]
mod tests;
