//! What two hosts can give: the baseline of both.
//!
//! What [`vm_state::compat::check`] compares is what both have. The rest of CPUID describes one
//! processor (its caches, its name) and is taken whole from one of the two, the least in the order of
//! its numbers, so that it does not matter in which order hosts are named. What only one of them
//! says is left out.

use std::collections::{BTreeMap, BTreeSet};

use thiserror::Error;
use vm_state::CpuidLeaf;
use vm_state::compat::{AVX10, TAKEN_AWAY, WORDS, WORSE, vendor};

use crate::offer::Offer;

/// Why hosts have no processor in common.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("the processors of these hosts are by {0} and by {1}: no guest can move between them")]
pub struct NotTogether(pub String, pub String);

impl Offer {
    /// What both hosts can give. In whichever order hosts are taken together, and however often one
    /// is, the outcome is the same.
    ///
    /// # Errors
    /// [`NotTogether`] for processors by different manufacturers.
    pub fn common(&self, other: &Self) -> Result<Self, NotTogether> {
        let (ours, theirs) = (vendor(&self.cpuid), vendor(&other.cpuid));
        if ours != theirs {
            return Err(NotTogether(ours, theirs));
        }
        let (a, b) = (self.arch_capabilities, other.arch_capabilities);
        let msrs: BTreeSet<_> = self.msrs.iter().filter(|msr| other.msrs.contains(msr)).collect();
        Ok(Self {
            cpuid: common_cpuid(&self.cpuid, &other.cpuid),
            xsave_components: self.xsave_components & other.xsave_components,
            arch_capabilities: a & b & !WORSE | (a | b) & WORSE,
            msrs: msrs.into_iter().copied().collect(),
            tsc: self.tsc.common(other.tsc),
        })
    }
}

/// Leaves that say one thing together: the name of the processor is three.
fn group(function: u32) -> u32 {
    match function {
        0x8000_0002..=0x8000_0004 => 0x8000_0002,
        function => function,
    }
}

type Group = BTreeMap<(u32, u32), CpuidLeaf>;

fn groups(cpuid: &[CpuidLeaf]) -> BTreeMap<u32, Group> {
    let mut groups = BTreeMap::<u32, Group>::new();
    for leaf in cpuid {
        let group = groups.entry(group(leaf.function)).or_default();
        // CPUID is answered by the first that fits.
        group.entry((leaf.function, leaf.index)).or_insert(*leaf);
    }
    groups
}

fn registers(leaf: &CpuidLeaf) -> [u32; 4] {
    [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx]
}

fn common_cpuid(ours: &[CpuidLeaf], theirs: &[CpuidLeaf]) -> Vec<CpuidLeaf> {
    let (ours, mut theirs) = (groups(ours), groups(theirs));
    let mut common = Vec::new();
    for (function, a) in ours {
        let Some(b) = theirs.remove(&function) else { continue };
        if is_compared(function) {
            let both = a.iter().filter_map(|(at, leaf)| Some((leaf, b.get(at)?)));
            common.extend(both.filter_map(|(a, b)| common_leaf(a, b)));
        } else {
            let order = |group: &Group| -> Vec<_> {
                group.iter().map(|(at, leaf)| (*at, registers(leaf), leaf.flags)).collect()
            };
            common.extend(if order(&a) <= order(&b) { a } else { b }.into_values());
        }
    }
    common
}

/// Whether the leaves of a function are taken together register by register.
fn is_compared(function: u32) -> bool {
    /// Besides feature bits: how far leaves go, what the processor is called in numbers, thermal
    /// features, XSAVE, crystal and clock, widths of addresses.
    const OTHERS: [u32; 8] = [0, 6, 0xd, 0x15, 0x16, 0x4000_0000, 0x8000_0000, 0x8000_0008];
    OTHERS.contains(&function) || WORDS.iter().any(|word| word.function == function)
}

/// One leaf of both; `None` if it must be the same and is not.
fn common_leaf(a: &CpuidLeaf, b: &CpuidLeaf) -> Option<CpuidLeaf> {
    let mut leaf = CpuidLeaf {
        eax: a.eax.min(b.eax),
        ebx: a.ebx.min(b.ebx),
        ecx: a.ecx.min(b.ecx),
        edx: a.edx.min(b.edx),
        flags: a.flags & b.flags,
        ..*a
    };
    match (leaf.function, leaf.index) {
        // Family, model, stepping.
        (1 | 0x8000_0001, _) => leaf.eax = older(a.eax, b.eax),
        (6, _) => {
            (leaf.eax, leaf.ebx) = (a.eax & b.eax, a.ebx & b.ebx);
            (leaf.ecx, leaf.edx) = (a.ecx & b.ecx, a.edx & b.edx);
        }
        // XCR0.
        (0xd, 0) => (leaf.eax, leaf.edx) = (a.eax & b.eax, a.edx & b.edx),
        // XSS.
        (0xd, 1) => (leaf.ecx, leaf.edx) = (a.ecx & b.ecx, a.edx & b.edx),
        // Where the state of a component lies; what the TSC runs at.
        (0xd | 0x15 | 0x16, _) if registers(a) != registers(b) => return None,
        (0x8000_0008, _) => {
            let least = |at: usize| a.eax.to_le_bytes()[at].min(b.eax.to_le_bytes()[at]);
            leaf.eax = u32::from_le_bytes([0, 1, 2, 3].map(least));
        }
        _ => {}
    }
    for word in WORDS {
        if (word.function, word.index) != (leaf.function, leaf.index) {
            continue;
        }
        let (a, b) = (word.register.of(a), word.register.of(b));
        let value = word.register.of_mut(&mut leaf);
        *value = match (word.function, word.ignored) {
            // The version of AVX10 is a number.
            (AVX10, version) => (a & version).min(b & version) | a & b & !version,
            // These bits take something away.
            (7, TAKEN_AWAY) => a & b | (a | b) & TAKEN_AWAY,
            _ => a & b,
        };
    }
    Some(leaf)
}

/// The older of two processors, by what CPUID leaf 1 eax says of them.
fn older(a: u32, b: u32) -> u32 {
    let age = |eax: u32| {
        let family = (eax >> 8 & 0xf) + (eax >> 20 & 0xff);
        let model = (eax >> 4 & 0xf) | (eax >> 16 & 0xf) << 4;
        (family, model, eax & 0xf, eax)
    };
    if age(a) <= age(b) { a } else { b }
}
