//! What a guest has and a host has not, as data and as words.

use std::fmt;

use thiserror::Error;

use super::level::Level;
use super::msrs::msr_name;

/// How far the host's TSC may be from the guest's, in parts per million, where the host cannot
/// scale it. KVM uses the same figure (`tsc_tolerance_ppm`): two hosts of one model measure their
/// clocks some 10 ppm apart, and NTP in the guest corrects up to 500 ppm.
pub const TSC_TOLERANCE_PPM: u64 = 250;

/// How many names an error text spells out of one kind; a damaged description can have thousands.
pub(super) const MAX_SHOWN: usize = 40;

/// Why a host cannot take a guest: everything that is missing, and what would have fitted.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub struct Incompatible {
    /// What is missing, one entry per kind; never empty.
    pub problems: Vec<Problem>,
    /// What the guest could have been started with; `None` if nothing fits both hosts.
    pub remedy: Option<Remedy>,
}

/// The processor of a guest that this host could take, from the source of the one that it cannot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remedy {
    /// The highest level that both have, beside the baseline of the two.
    pub level: Option<Level>,
}

impl fmt::Display for Incompatible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("this host cannot run the guest: ")?;
        for (number, problem) in self.problems.iter().enumerate() {
            if number > 0 {
                f.write_str("; ")?;
            }
            problem.fmt(f)?;
        }
        match self.remedy {
            None => Ok(()),
            Some(Remedy { level }) => {
                f.write_str("; started with ")?;
                if let Some(level) = level {
                    write!(f, "--cpu {level} or ")?;
                }
                f.write_str("the baseline of both hosts (vmctl cpu baseline) it could have come")
            }
        }
    }
}

/// One kind of thing that the guest has and the host has not.
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
    /// CPUID feature bits, by their Linux names; `CPUID 0x7.0 ebx bit 22` where one has none.
    #[error("it lacks the CPU features {}", list(.0))]
    Features(Vec<String>),
    /// An older version of AVX10.
    #[error("the guest was given version {guest} of avx10, this host has version {host}")]
    Avx10 {
        /// The version that the guest sees.
        guest: u32,
        /// The version of the host.
        host: u32,
    },
    /// What IA32_ARCH_CAPABILITIES told the guest of its processor and is not so here.
    #[error("its IA32_ARCH_CAPABILITIES lacks {}", list(.0))]
    ArchCapabilities(Vec<String>),
    /// What this processor does worse, and the guest's IA32_ARCH_CAPABILITIES did not tell it.
    #[error("its IA32_ARCH_CAPABILITIES has {}, of which the guest was not told", list(.0))]
    NotTold(Vec<String>),
    /// The guest's physical addresses are wider: a mapping that is good there faults here.
    #[error("the guest was given {guest}-bit physical addresses, this host has {host}-bit ones")]
    PhysicalAddresses {
        /// Bits that the guest sees.
        guest: u32,
        /// Bits of the host.
        host: u32,
    },
    /// XSAVE components that the host cannot save and restore.
    #[error("it lacks the XSAVE components {}", list(.0))]
    XsaveComponents(Vec<String>),
    /// Components that lie elsewhere in the host's XSAVE area: their state would be taken for that
    /// of another, and the guest has already been told the old place.
    #[error("XSAVE components lie elsewhere in its XSAVE area than in the guest's: {}", list(.0))]
    XsaveLayout(Vec<String>),
    /// MSRs whose values would be lost.
    #[error("its KVM lacks the MSRs {}", list(&names(.0)))]
    Msrs(Vec<u32>),
    /// The TSC runs at another frequency and the host cannot scale it.
    #[error(
        "the guest's TSC runs at {guest} kHz and this host's at {host} kHz, more than \
         {} ppm apart, and this host cannot scale it",
        TSC_TOLERANCE_PPM
    )]
    Tsc {
        /// Frequency of the guest's TSC in kHz.
        guest: u32,
        /// Frequency of the host's TSC in kHz.
        host: u32,
    },
}

fn list(names: &[String]) -> String {
    let shown = names[..names.len().min(MAX_SHOWN)].join(", ");
    match names.len().saturating_sub(MAX_SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

fn names(msrs: &[u32]) -> Vec<String> {
    msrs.iter().map(|&msr| msr_name(msr)).collect()
}
