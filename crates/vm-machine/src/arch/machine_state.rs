//! The whole machine without its memory and devices: clock, vCPUs, interrupt chips.
#![forbid(unsafe_code)]

use std::borrow::Borrow;

use kvm_ioctls::{VcpuFd, VmFd};
use thiserror::Error;
use vm_state::{CpuDescription, LoadError, SaveError, Section, SectionSet, Snapshot};

use super::clock::{self, ClockState, TimeBase};
use super::ioctl::IoctlError;
use super::irqchip::{self, ChipError, ChipState};
use super::parallel;
use super::vcpu_state::{self, VcpuState, VcpuStateError};

/// The state of a machine at one instant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineState {
    /// Its clocks.
    pub clock: ClockState,
    /// Its vCPUs, in the order of their ids.
    pub vcpus: Vec<VcpuState>,
    /// Its interrupt chips and timer.
    pub chips: ChipState,
}

/// Why a machine's state cannot be read or set.
#[derive(Debug, Error)]
pub enum MachineStateError {
    /// The machine has another number of vCPUs than the state.
    #[error("the saved machine has {saved} vCPUs and this one has {here}")]
    Vcpus {
        /// vCPUs in the state.
        saved: usize,
        /// vCPUs of the machine.
        here: usize,
    },
    /// A vCPU cannot be read.
    #[error("cannot save vCPU {vcpu}")]
    SaveVcpu {
        /// Its id.
        vcpu: usize,
        /// Why.
        #[source]
        source: IoctlError,
    },
    /// A vCPU cannot be set.
    #[error("cannot restore vCPU {vcpu}")]
    RestoreVcpu {
        /// Its id.
        vcpu: usize,
        /// Why.
        #[source]
        source: VcpuStateError,
    },
    /// The chips cannot be read.
    #[error("cannot save the interrupt chips")]
    SaveChips(#[source] IoctlError),
    /// The chips cannot be set.
    #[error(transparent)]
    RestoreChips(#[from] ChipError),
    /// The clocks cannot be read or set.
    #[error("cannot save or restore the clocks")]
    Clock(#[source] IoctlError),
}

/// Reads the state of a machine whose vCPUs do not run.
///
/// The order, and why:
/// 1. the clock, so that no vCPU's state is older than the instant that it stands for;
/// 2. the vCPUs, each in the order of [`save_vcpu`](super::save_vcpu), and several at a time: what
///    KVM tells of one says nothing of another;
/// 3. PICs, IOAPIC, and the PIT that drives them last. Devices are quiet by now; only the PIT
///    ticks on, and a tick that falls between these calls is one that a paused guest misses anyway.
///
/// The caller harvests the dirty log after all of them: KVM may write to guest memory while it is
/// asked for state.
///
/// # Errors
/// [`MachineStateError`] names the part and the call.
pub fn save_machine(
    vm: &VmFd,
    vcpus: &[impl Borrow<VcpuFd> + Sync],
    cpu: &CpuDescription,
) -> Result<MachineState, MachineStateError> {
    let Some(first) = vcpus.first() else {
        return Err(MachineStateError::Vcpus { saved: 0, here: 0 });
    };
    let clock = clock::save_clock(vm, first.borrow()).map_err(MachineStateError::Clock)?;
    let vcpus = parallel::map(vcpus, |vcpu, fd| {
        vcpu_state::save_vcpu(fd.borrow(), cpu)
            .map_err(|source| MachineStateError::SaveVcpu { vcpu, source })
    });
    Ok(MachineState {
        clock,
        vcpus: vcpus.into_iter().collect::<Result<_, _>>()?,
        chips: irqchip::save_chips(vm).map_err(MachineStateError::SaveChips)?,
    })
}

/// Gives a new machine its state. Its memory must be complete (KVM reads page tables and the
/// kvm-clock page from it), its vCPUs must have their CPUID and must not have run.
///
/// The order, and why:
/// 1. how time goes on, found once, so that all clocks agree;
/// 2. the vCPUs, with their local APICs, several at a time;
/// 3. PIT, PICs, IOAPIC, which deliver to those local APICs;
/// 4. kvm-clock, after the MSRs that say where the guest wants it and after the TSCs that it is
///    computed from, before any vCPU runs and shows it to the guest;
/// 5. the note to each vCPU that it was paused, which goes out with the kvm-clock that follows it.
///
/// # Errors
/// [`MachineStateError`] names the part, and the call, field or MSR.
pub fn restore_machine(
    vm: &VmFd,
    vcpus: &[impl Borrow<VcpuFd> + Sync],
    state: &MachineState,
) -> Result<(), MachineStateError> {
    let (Some(first), Some(saved), true) =
        (vcpus.first(), state.vcpus.first(), vcpus.len() == state.vcpus.len())
    else {
        let (saved, here) = (state.vcpus.len(), vcpus.len());
        return Err(MachineStateError::Vcpus { saved, here });
    };
    let time = TimeBase::new(&state.clock, saved.tsc.khz, first.borrow())
        .map_err(MachineStateError::Clock)?;
    let restored = parallel::map(vcpus, |vcpu, fd| {
        vcpu_state::restore_vcpu(fd.borrow(), &state.vcpus[vcpu], &time)
            .map_err(|source| MachineStateError::RestoreVcpu { vcpu, source })
    });
    restored.into_iter().collect::<Result<(), _>>()?;
    irqchip::restore_chips(vm, &state.chips)?;
    clock::restore_clock(vm, &time).map_err(MachineStateError::Clock)?;
    for fd in vcpus {
        clock::tell_paused(fd.borrow()).map_err(MachineStateError::Clock)?;
    }
    Ok(())
}

impl MachineState {
    /// The sections `kvm-clock`, `vcpu` (an instance for each), `pic-master`, `pic-slave`, `ioapic`
    /// and `pit`.
    ///
    /// # Errors
    /// [`SaveError`] if one cannot be encoded.
    pub fn to_sections(&self) -> Result<Vec<Section>, SaveError> {
        let mut sections = vec![self.clock.to_section(0)?];
        for (instance, vcpu) in (0..).zip(&self.vcpus) {
            sections.push(vcpu.to_section(instance)?);
        }
        sections.extend(self.chips.to_sections()?);
        Ok(sections)
    }

    /// Takes the sections of a machine with `vcpus` vCPUs out of a set.
    ///
    /// # Errors
    /// [`LoadError`] with the section's name.
    pub fn from_sections(sections: &mut SectionSet, vcpus: u32) -> Result<Self, LoadError> {
        Ok(Self {
            clock: sections.take(0)?,
            vcpus: (0..vcpus).map(|vcpu| sections.take(vcpu)).collect::<Result<_, _>>()?,
            chips: ChipState::from_sections(sections)?,
        })
    }
}
