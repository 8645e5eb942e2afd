//! The microarchitecture levels of the x86-64 psABI: processors that many hosts can give.
//!
//! A level is a fixed list, so that a guest of it is the same on each host. The psABI says what
//! programs may use; a kernel needs more, which is listed with the level whose processors all have
//! it.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use super::features::has;
use crate::description::CpuidLeaf;

/// A microarchitecture level of the x86-64 psABI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// x86-64-v2: up to SSE 4.2.
    V2,
    /// x86-64-v3: AVX2 and its companions.
    V3,
    /// x86-64-v4: AVX-512.
    V4,
}

/// A word that is no level.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("no level of x86-64: x86-64-v2, x86-64-v3 and x86-64-v4 are")]
pub struct NoLevel;

const V2: &str = "fpu pse tsc msr pae cx8 apic pge cmov mmx fxsr sse sse2 syscall nx lm \
    pni ssse3 cx16 sse4_1 sse4_2 popcnt lahf_lm x2apic hypervisor";
const V3: &str = "avx avx2 bmi1 bmi2 f16c fma abm movbe xsave \
    xsaveopt rdrand fsgsbase smep";
const V4: &str = "avx512f avx512bw avx512cd avx512dq avx512vl \
    smap adx rdseed clflushopt";

impl Level {
    /// All levels, ascending.
    pub const ALL: [Self; 3] = [Self::V2, Self::V3, Self::V4];

    /// As many bits of physical address as a guest of a level is given, where its host has as many.
    pub const PHYSICAL_ADDRESS_BITS: u32 = 46;

    /// The features of the level, by the names of Linux.
    pub fn features(self) -> impl Iterator<Item = &'static str> {
        let levels = [(Self::V2, V2), (Self::V3, V3), (Self::V4, V4)];
        levels
            .into_iter()
            .filter(move |(level, _)| *level <= self)
            .flat_map(|(_, names)| names.split_ascii_whitespace())
    }

    /// The highest level that a processor has.
    pub fn of(cpuid: &[CpuidLeaf]) -> Option<Self> {
        Self::ALL.into_iter().rfind(|level| level.features().all(|feature| has(cpuid, feature)))
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V2 => "x86-64-v2",
            Self::V3 => "x86-64-v3",
            Self::V4 => "x86-64-v4",
        })
    }
}

impl FromStr for Level {
    type Err = NoLevel;

    fn from_str(text: &str) -> Result<Self, NoLevel> {
        Self::ALL.into_iter().find(|level| level.to_string() == text).ok_or(NoLevel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compat::features::WORDS;

    #[test]
    fn every_feature_of_a_level_exists_and_is_named_once() {
        let mut features: Vec<_> = Level::V4.features().collect();
        for feature in &features {
            let mut names = WORDS.iter().flat_map(|word| word.bits());
            assert!(names.any(|(_, name)| name == Some(*feature)), "{feature}");
        }
        let all = features.len();
        features.sort_unstable();
        features.dedup();
        assert_eq!(features.len(), all);
    }

    #[test]
    fn a_level_has_what_the_lower_ones_have() {
        let of = |level: Level| level.features().collect::<Vec<_>>();
        assert!(of(Level::V3).starts_with(&of(Level::V2)));
        assert!(of(Level::V4).starts_with(&of(Level::V3)));
        assert!(of(Level::V4).len() > of(Level::V3).len());
    }

    #[test]
    fn a_level_is_called_what_compilers_call_it() {
        for level in Level::ALL {
            assert_eq!(level.to_string().parse(), Ok(level));
        }
        assert_eq!("x86-64-v5".parse::<Level>(), Err(NoLevel));
    }
}
