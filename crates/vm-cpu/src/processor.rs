//! The processor of a guest that begins on one host.

use thiserror::Error;
use vm_state::compat::{
    AVX10, Incompatible, Level, WORDS, WORSE, arch_capability, check, has, leaf, tsc_is_close,
};
use vm_state::{CpuDescription, CpuidLeaf, HostCapabilities};

use crate::left_out::{asked_for, leave_out};
use crate::needs::{area_bytes, clear, needed_by, settle};
use crate::offer::{Offer, TscRange};
use crate::spec::{Change, Model, Wanted};

/// What processors have had since before there were levels, and KVM since Linux 5.10: a guest of a
/// level is given these as far as its host has them. All real hosts do; emulated ones may not.
const COMMON: &str = "vme de mce sep mtrr mca pat pse36 clflush rdtscp tsc_adjust \
    tsc_deadline_timer kvm_clocksource kvm_nop_io_delay kvm_mmu_op kvm_clocksource2 kvm_async_pf \
    kvm_steal_time kvm_pv_eoi kvm_pv_unhalt kvm_pv_tlb_flush kvm_async_pf_vmexit kvm_pv_send_ipi \
    kvm_poll_control kvm_pv_sched_yield kvm_async_pf_int kvm_clocksource_stable";

/// How many bytes of XSAVE area KVM knows at least (struct kvm_xsave).
const MIN_XSAVE_BYTES: u32 = 4096;

/// The processor of a guest, without the topology, which follows from the number of its vCPUs, and
/// without the MSRs, of which KVM has to be asked with this CPUID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Processor {
    /// All but the MSRs.
    pub cpu: CpuDescription,
    /// The MSRs that its state may have; `None` for all that KVM has.
    pub msrs: Option<Vec<u32>>,
}

/// Why a host cannot give a guest the processor that it is to have.
#[derive(Debug, Error)]
pub enum CpuError {
    /// The host is below the level.
    #[error("this host has not all of {level}: it lacks {}", lacking.join(", "))]
    BelowLevel {
        /// The level.
        level: Level,
        /// What the host lacks.
        lacking: Vec<String>,
    },
    /// The host lacks what was asked for, or what that needs.
    #[error("this host cannot give a guest {0}: vmctl cpu lists what it can")]
    NotHere(String),
    /// A bit of IA32_ARCH_CAPABILITIES was asked for, and the guest has no such MSR.
    #[error(
        "{0} is a bit of IA32_ARCH_CAPABILITIES, which the guest is not given: add \
             +arch_capabilities"
    )]
    NoArchCapabilities(String),
    /// The baseline has more than this host.
    #[error("the baseline is not of this host too; make it again with vmctl cpu baseline")]
    NotInBaseline(#[source] Incompatible),
    /// The hosts of the baseline have different TSCs and do not scale them.
    #[error(
        "the TSCs of the baseline's hosts run at {min_khz} to {max_khz} kHz and these hosts cannot \
         scale them: no guest can move between all of them"
    )]
    Tsc {
        /// The slowest, in kHz.
        min_khz: u32,
        /// The fastest, in kHz.
        max_khz: u32,
    },
}

impl Wanted {
    /// The processor of a guest that begins on this host.
    ///
    /// # Errors
    /// [`CpuError`] names what the host lacks, or what does not go together.
    pub fn on(&self, host: &HostCapabilities) -> Result<Processor, CpuError> {
        let Offer { mut cpuid, mut xsave_components, mut arch_capabilities, msrs, tsc } =
            match &self.model {
                Model::Baseline(offer) => Offer::clone(offer),
                Model::Host | Model::Level(_) => Offer::from(host),
            };
        leave_out(&mut cpuid);
        asked_for().for_each(|feature| clear(&mut cpuid, feature));
        if let Model::Level(level) = self.model {
            keep_level(&mut cpuid, level)?;
            arch_capabilities = 0;
        }
        for change in &self.changes {
            match change {
                Change::Add(name) => match arch_capability(name) {
                    Some(bit) if host.arch_capabilities & bit != 0 => arch_capabilities |= bit,
                    Some(_) => return Err(CpuError::NotHere(name.clone())),
                    None => add(&mut cpuid, name, &host.cpuid).map_err(|lacking| {
                        CpuError::NotHere(match lacking == name {
                            true => lacking.to_owned(),
                            false => format!("{name}, which needs {lacking}"),
                        })
                    })?,
                },
                Change::Remove(name) => {
                    clear(&mut cpuid, name);
                    arch_capabilities &= !arch_capability(name).unwrap_or_default();
                }
            }
        }
        if self.changes.iter().any(|change| matches!(change, Change::Add(_))) {
            // What belongs to no feature in the end goes again.
            xsave_components = host.xsave_components;
            add_state_leaves(&mut cpuid, &host.cpuid);
        }
        let xsave_components = settle(&mut cpuid, xsave_components);
        self.check_added(&cpuid)?;
        arch_capabilities = match has(&cpuid, "arch_capabilities") {
            true => arch_capabilities | host.arch_capabilities & WORSE,
            false => 0,
        };
        let cpu = CpuDescription {
            xsave_components,
            xsave_bytes: area_bytes(&cpuid).max(MIN_XSAVE_BYTES),
            msrs: Vec::new(),
            tsc_khz: tsc_khz(&self.model, tsc, host)?,
            arch_capabilities: Some(arch_capabilities),
            cpuid,
        };
        check(&cpu, host).map_err(CpuError::NotInBaseline)?;
        let msrs = matches!(self.model, Model::Baseline(_)).then_some(msrs);
        Ok(Processor { cpu, msrs })
    }

    /// Whether the guest is given what was added last of all.
    fn check_added(&self, cpuid: &[CpuidLeaf]) -> Result<(), CpuError> {
        for (at, change) in self.changes.iter().enumerate() {
            let Change::Add(name) = change else { continue };
            let is_removed = |later: &Change| matches!(later, Change::Remove(it) if it == name);
            if self.changes[at..].iter().any(is_removed) {
                continue;
            }
            match arch_capability(name) {
                Some(_) if !has(cpuid, "arch_capabilities") => {
                    return Err(CpuError::NoArchCapabilities(name.clone()));
                }
                None if !has(cpuid, name) => return Err(CpuError::NotHere(name.clone())),
                _ => {}
            }
        }
        Ok(())
    }
}

/// The TSC of a guest, in kHz: its host's own, where that will do.
fn tsc_khz(model: &Model, range: TscRange, host: &HostCapabilities) -> Result<u32, CpuError> {
    if !matches!(model, Model::Baseline(_)) {
        return Ok(host.tsc_khz);
    }
    let TscRange { min_khz, max_khz, .. } = range;
    let khz = range.guest_khz().ok_or(CpuError::Tsc { min_khz, max_khz })?;
    Ok(if tsc_is_close(khz, host.tsc_khz) { host.tsc_khz } else { khz })
}

/// Takes away all that is not of the level.
fn keep_level(cpuid: &mut [CpuidLeaf], level: Level) -> Result<(), CpuError> {
    let lacking: Vec<_> =
        level.features().filter(|feature| !has(cpuid, feature)).map(str::to_owned).collect();
    if !lacking.is_empty() {
        return Err(CpuError::BelowLevel { level, lacking });
    }
    let features: Vec<_> = level.features().chain(COMMON.split_ascii_whitespace()).collect();
    for leaf in cpuid {
        for word in WORDS {
            if (word.function, word.index) == (leaf.function, leaf.index) {
                let kept = features.iter().fold(word.ignored, |all, name| all | word.bit(name));
                *word.register.of_mut(leaf) &= kept;
            }
        }
        if leaf.function == 0x8000_0008 {
            // Physical and linear bits, and those that a guest of the guest would have.
            let physical = (leaf.eax & 0xff).min(Level::PHYSICAL_ADDRESS_BITS);
            leaf.eax = physical | leaf.eax & 0xff00;
        }
    }
    Ok(())
}

/// Adds a feature of the host, with what it needs; or says what of these the host lacks.
fn add<'a>(
    cpuid: &mut Vec<CpuidLeaf>,
    feature: &'a str,
    host: &[CpuidLeaf],
) -> Result<(), &'a str> {
    for needed in needed_by(feature) {
        if !has(cpuid, needed) {
            add(cpuid, needed, host)?;
        }
    }
    for word in WORDS {
        let bit = word.bit(feature) & word.of(host);
        if bit == 0 {
            continue;
        }
        let leaf = leaf_mut(cpuid, &leaf(host, word.function, word.index));
        *word.register.of_mut(leaf) |= bit;
        if word.function == AVX10 {
            // A number; the host's is the one that its bits are of.
            leaf.ebx = leaf.ebx & !word.ignored | word.of(host) & word.ignored;
        }
    }
    match has(cpuid, feature) {
        true => Ok(()),
        false => Err(feature),
    }
}

/// The leaf of the guest that is where this one of the host is; without any feature if it is new.
fn leaf_mut<'a>(cpuid: &'a mut Vec<CpuidLeaf>, host: &CpuidLeaf) -> &'a mut CpuidLeaf {
    let (function, index) = (host.function, host.index);
    let is_it = |leaf: &CpuidLeaf| (leaf.function, leaf.index) == (function, index);
    if let Some(at) = cpuid.iter().position(is_it) {
        return &mut cpuid[at];
    }
    // How far leaves go, and those of function 7.
    let last = |leaf: &CpuidLeaf| (leaf.function, leaf.index) == (function & 0x8000_0000, 0);
    cpuid.iter_mut().filter(|leaf| last(leaf)).for_each(|leaf| leaf.eax = leaf.eax.max(function));
    if function == 7 {
        let first = |leaf: &CpuidLeaf| (leaf.function, leaf.index) == (7, 0);
        cpuid.iter_mut().filter(|leaf| first(leaf)).for_each(|leaf| leaf.eax = leaf.eax.max(index));
    }
    cpuid.push(CpuidLeaf { eax: 0, ebx: 0, ecx: 0, edx: 0, ..*host });
    let end = cpuid.len() - 1;
    &mut cpuid[end]
}

/// Adds the leaves of the host about XSAVE components and AMX tiles that the guest has not.
fn add_state_leaves(cpuid: &mut Vec<CpuidLeaf>, host: &[CpuidLeaf]) {
    for leaf in host.iter().filter(|leaf| matches!(leaf.function, 0xd | 0x1d | 0x1e)) {
        let at = (leaf.function, leaf.index);
        if !cpuid.iter().any(|leaf| (leaf.function, leaf.index) == at) {
            cpuid.push(*leaf);
        }
    }
}
