//! What a host, or each of several hosts, can give to a guest.

use vm_state::compat::tsc_is_close;
use vm_state::{CpuidLeaf, HostCapabilities};

/// What a host, or each of several hosts, can give to a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// CPUID, as KVM supports it.
    pub cpuid: Vec<CpuidLeaf>,
    /// XSAVE components (XCR0 bits).
    pub xsave_components: u64,
    /// IA32_ARCH_CAPABILITIES; 0 where there is none.
    pub arch_capabilities: u64,
    /// The MSRs that can be read and written, ascending.
    pub msrs: Vec<u32>,
    /// The frequencies of the TSC.
    pub tsc: TscRange,
}

/// The TSC frequencies of hosts: of those that cannot scale it, and if all can, of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TscRange {
    /// The lowest, in kHz.
    pub min_khz: u32,
    /// The highest, in kHz.
    pub max_khz: u32,
    /// Whether each host can give a guest another frequency than its own.
    pub scaling: bool,
}

impl TscRange {
    /// What these hosts and those have.
    pub fn common(self, other: Self) -> Self {
        if self.scaling != other.scaling {
            // Those that scale can follow those that cannot.
            return if self.scaling { other } else { self };
        }
        Self {
            min_khz: self.min_khz.min(other.min_khz),
            max_khz: self.max_khz.max(other.max_khz),
            scaling: self.scaling,
        }
    }

    /// The frequency of a guest that can run on all of these hosts, in kHz; `None` if they are too
    /// far apart and cannot scale it.
    pub fn guest_khz(self) -> Option<u32> {
        (self.scaling || tsc_is_close(self.min_khz, self.max_khz)).then_some(self.min_khz)
    }
}

impl From<&HostCapabilities> for Offer {
    fn from(host: &HostCapabilities) -> Self {
        let mut msrs = host.msrs.clone();
        msrs.sort_unstable();
        msrs.dedup();
        let (min_khz, max_khz, scaling) = (host.tsc_khz, host.tsc_khz, host.tsc_scaling);
        Self {
            cpuid: host.cpuid.clone(),
            xsave_components: host.xsave_components,
            arch_capabilities: host.arch_capabilities,
            msrs,
            tsc: TscRange { min_khz, max_khz, scaling },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(min_khz: u32, max_khz: u32, scaling: bool) -> TscRange {
        TscRange { min_khz, max_khz, scaling }
    }

    #[test]
    fn hosts_that_scale_follow_those_that_cannot() {
        let (fixed, scaled) = (at(2_000_000, 2_000_000, false), at(3_000_000, 3_000_000, true));
        for common in [fixed.common(scaled), scaled.common(fixed)] {
            assert_eq!(common, fixed);
            assert_eq!(common.guest_khz(), Some(2_000_000));
        }
        let both = scaled.common(at(2_500_000, 2_500_000, true));
        assert_eq!(both.guest_khz(), Some(2_500_000));
    }

    #[test]
    fn hosts_that_cannot_scale_must_be_close() {
        let fixed = at(2_000_000, 2_000_000, false);
        assert_eq!(fixed.common(at(2_000_500, 2_000_500, false)).guest_khz(), Some(2_000_000));
        assert_eq!(fixed.common(at(2_000_501, 2_000_501, false)).guest_khz(), None);
    }
}
