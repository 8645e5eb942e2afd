//! Can this host take that guest? Decided on descriptions alone, before any state or page is sent.
//!
//! [`check`] compares what the guest was *given* with what the host *has*: a guest may use a
//! feature at any time, so that a feature which it has not used yet counts as much. The answer
//! names everything that is missing, not only the first thing: a user who must hide features on
//! the source wants the whole list.

mod features;
mod msrs;
mod xsave;

use std::fmt;

use thiserror::Error;

pub use msrs::{msr_matters, msr_name};

use crate::description::{CpuDescription, CpuidLeaf, HostCapabilities};
use features::{KVM_FEATURES, WORDS, leaf};

/// How far the host's TSC may be from the guest's, in parts per million, where the host cannot
/// scale it. KVM uses the same figure (`tsc_tolerance_ppm`): two hosts of one model measure their
/// clocks some 10 ppm apart, and NTP in the guest corrects up to 500 ppm.
pub const TSC_TOLERANCE_PPM: u64 = 250;

/// How many problems an error text spells out; a damaged description can have thousands.
const MAX_SHOWN: usize = 40;

/// Why a host cannot take a guest: everything that is missing.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub struct Incompatible {
    /// What is missing; never empty.
    pub problems: Vec<Problem>,
}

impl fmt::Display for Incompatible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("this host cannot run the guest: ")?;
        for (number, problem) in self.problems.iter().take(MAX_SHOWN).enumerate() {
            if number > 0 {
                f.write_str("; ")?;
            }
            problem.fmt(f)?;
        }
        match self.problems.len().saturating_sub(MAX_SHOWN) {
            0 => Ok(()),
            more => write!(f, "; and {more} more"),
        }
    }
}

/// One thing that the guest has and the host has not.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Problem {
    /// Another manufacturer's processor: the MSRs, the fast system calls and the errata that a
    /// kernel chose at boot differ.
    #[error("the guest was given a processor by {guest}, this host's is by {host}")]
    Vendor {
        /// The vendor string that the guest sees.
        guest: String,
        /// The vendor string of the host.
        host: String,
    },
    /// A CPUID feature bit, by its Linux name; `CPUID 0x7.0 ebx bit 22` where it has none.
    #[error("the guest uses {0}, this host has no {0}")]
    Feature(String),
    /// The guest's physical addresses are wider: a mapping that is good there faults here.
    #[error("the guest was given {guest}-bit physical addresses, this host has {host}-bit ones")]
    PhysicalAddresses {
        /// Bits that the guest sees.
        guest: u32,
        /// Bits of the host.
        host: u32,
    },
    /// An XSAVE component that the host cannot save and restore.
    #[error("the guest uses XSAVE component {0}, this host has no such component")]
    XsaveComponent(String),
    /// A component lies elsewhere in the host's XSAVE area: its state would be taken for that of
    /// another, and the guest has already been told the old place.
    #[error("XSAVE component {0} lies elsewhere in this host's XSAVE area than in the guest's")]
    XsaveLayout(String),
    /// An MSR whose value would be lost.
    #[error("the guest has {}, this host's KVM does not", msr_name(*.0))]
    Msr(u32),
    /// The TSC runs at another frequency and the host cannot scale it.
    #[error(
        "the guest's TSC runs at {guest} kHz and this host's at {host} kHz, more than \
         {TSC_TOLERANCE_PPM} ppm apart, and this host cannot scale it"
    )]
    Tsc {
        /// Frequency of the guest's TSC in kHz.
        guest: u32,
        /// Frequency of the host's TSC in kHz.
        host: u32,
    },
}

/// Whether `host` can take a guest that was given `guest`.
///
/// # Errors
/// [`Incompatible`] with everything that is missing.
pub fn check(guest: &CpuDescription, host: &HostCapabilities) -> Result<(), Incompatible> {
    let mut problems = Vec::new();
    check_vendor(guest, host, &mut problems);
    check_features(guest, host, &mut problems);
    check_addresses(guest, host, &mut problems);
    check_xsave(guest, host, &mut problems);
    check_msrs(guest, host, &mut problems);
    if !host.tsc_scaling && !tsc_is_close(guest.tsc_khz, host.tsc_khz) {
        problems.push(Problem::Tsc { guest: guest.tsc_khz, host: host.tsc_khz });
    }
    if problems.is_empty() {
        return Ok(());
    }
    Err(Incompatible { problems })
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
    for word in WORDS {
        // Bits of the KVM leaf mean something else to a guest that was given another hypervisor's.
        if word.function == KVM_FEATURES && !sees_kvm(&guest.cpuid) {
            continue;
        }
        let value = |cpuid| word.register.of(&leaf(cpuid, word.function, word.index));
        let missing = value(&guest.cpuid) & !value(&host.cpuid) & !word.ignored;
        for (number, name) in word.bits().filter(|(number, _)| missing & (1 << number) != 0) {
            let name = name.map_or_else(
                || {
                    let register = word.register.name();
                    let (function, index) = (word.function, word.index);
                    format!("CPUID {function:#x}.{index} {register} bit {number}")
                },
                ToOwned::to_owned,
            );
            let problem = Problem::Feature(name);
            // AMD repeats bits of leaf 1 in leaf 0x80000001.
            if !problems.contains(&problem) {
                problems.push(problem);
            }
        }
    }
}

fn sees_kvm(cpuid: &[CpuidLeaf]) -> bool {
    let leaf = leaf(cpuid, 0x4000_0000, 0);
    [leaf.ebx, leaf.ecx, leaf.edx].map(u32::to_le_bytes) == [*b"KVMK", *b"VMKV", *b"M\0\0\0"]
}

fn check_addresses(guest: &CpuDescription, host: &HostCapabilities, problems: &mut Vec<Problem>) {
    let bits = |cpuid| leaf(cpuid, 0x8000_0008, 0).eax & 0xff;
    let (guest, host) = (bits(&guest.cpuid), bits(&host.cpuid));
    if guest > host {
        problems.push(Problem::PhysicalAddresses { guest, host });
    }
}

fn check_xsave(guest: &CpuDescription, host: &HostCapabilities, problems: &mut Vec<Problem>) {
    let shared = guest.xsave_components & host.xsave_components;
    for component in xsave::components(guest.xsave_components & !shared) {
        problems.push(Problem::XsaveComponent(xsave::name(component)));
    }
    for component in xsave::components(shared) {
        if xsave::layout(&guest.cpuid, component) != xsave::layout(&host.cpuid, component) {
            problems.push(Problem::XsaveLayout(xsave::name(component)));
        }
    }
}

fn check_msrs(guest: &CpuDescription, host: &HostCapabilities, problems: &mut Vec<Problem>) {
    let mut known = host.msrs.clone();
    known.sort_unstable();
    for &msr in &guest.msrs {
        if known.binary_search(&msr).is_err() && msr_matters(&guest.cpuid, msr) {
            problems.push(Problem::Msr(msr));
        }
    }
}

#[cfg(test)]
mod tests;
