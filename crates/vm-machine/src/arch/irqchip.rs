//! The interrupt controllers and the timer that KVM emulates: two 8259 PICs, an IOAPIC, an 8254.
//! (The local APICs are part of their vCPUs.)
#![forbid(unsafe_code)]

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_ioapic_state,
    kvm_irqchip, kvm_pic_state, kvm_pit_state2,
};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use vm_state::{LoadError, PayloadError, SaveError, Section, SectionSet, Snapshot};
use zerocopy::{FromBytes, IntoBytes};

use super::ioctl::{IoctlError, Named};
use super::uapi;

/// Where the chip begins in struct kvm_irqchip: behind its number and padding.
const CHIP_OFFSET: usize = 8;

/// Why the chips cannot be set.
#[derive(Debug, Error)]
pub enum ChipError {
    /// A call failed.
    #[error("cannot restore {chip}")]
    Ioctl {
        /// Which chip.
        chip: &'static str,
        /// The call.
        #[source]
        source: IoctlError,
    },
    /// The state is not that of such a chip.
    #[error("cannot restore {chip}")]
    State {
        /// Which chip.
        chip: &'static str,
        /// What is wrong.
        #[source]
        source: PayloadError,
    },
}

macro_rules! chip_state {
    ($(#[$doc:meta])* $name:ident, $section:literal, $kernel:ty) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
        pub struct $name {
            state: Vec<u8>,
        }

        impl Snapshot for $name {
            const NAME: &'static str = $section;
            const VERSION: u16 = 1;

            fn validate(&self) -> Result<(), PayloadError> {
                uapi::read::<$kernel>(stringify!($kernel), &self.state).map(drop)
            }
        }
    };
}

chip_state!(
    /// The first PIC, as struct kvm_pic_state: section `pic-master`.
    PicMasterState, "pic-master", kvm_pic_state
);
chip_state!(
    /// The second PIC, as struct kvm_pic_state: section `pic-slave`.
    PicSlaveState, "pic-slave", kvm_pic_state
);
chip_state!(
    /// The IOAPIC, as struct kvm_ioapic_state: section `ioapic`.
    IoapicState, "ioapic", kvm_ioapic_state
);
chip_state!(
    /// The timer, as struct kvm_pit_state2: section `pit`.
    PitState, "pit", kvm_pit_state2
);

/// Every chip of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChipState {
    /// The first PIC.
    pub pic_master: PicMasterState,
    /// The second PIC.
    pub pic_slave: PicSlaveState,
    /// The IOAPIC.
    pub ioapic: IoapicState,
    /// The timer.
    pub pit: PitState,
}

fn get_chip(vm: &VmFd, chip_id: u32, bytes: usize) -> Result<Vec<u8>, IoctlError> {
    let mut chip = kvm_irqchip { chip_id, ..Default::default() };
    vm.get_irqchip(&mut chip).named("KVM_GET_IRQCHIP")?;
    Ok(chip.as_bytes()[CHIP_OFFSET..CHIP_OFFSET + bytes].to_vec())
}

fn set_chip<S: Snapshot>(
    vm: &VmFd,
    chip_id: u32,
    saved: &S,
    state: &[u8],
) -> Result<(), ChipError> {
    let chip = S::NAME;
    saved.validate().map_err(|source| ChipError::State { chip, source })?;
    let mut bytes = kvm_irqchip { chip_id, ..Default::default() }.as_bytes().to_vec();
    bytes[CHIP_OFFSET..CHIP_OFFSET + state.len()].copy_from_slice(state);
    let set = kvm_irqchip::read_from_bytes(&bytes).expect("the bytes of a kvm_irqchip");
    let done = vm.set_irqchip(&set).named("KVM_SET_IRQCHIP");
    done.map_err(|source| ChipError::Ioctl { chip, source })
}

/// Reads the chips: PICs, IOAPIC, PIT. No vCPU may be running, no device may raise a line.
///
/// # Errors
/// [`IoctlError`] if a call fails.
pub fn save_chips(vm: &VmFd) -> Result<ChipState, IoctlError> {
    let pic = size_of::<kvm_pic_state>();
    let ioapic = size_of::<kvm_ioapic_state>();
    Ok(ChipState {
        pic_master: PicMasterState { state: get_chip(vm, KVM_IRQCHIP_PIC_MASTER, pic)? },
        pic_slave: PicSlaveState { state: get_chip(vm, KVM_IRQCHIP_PIC_SLAVE, pic)? },
        ioapic: IoapicState { state: get_chip(vm, KVM_IRQCHIP_IOAPIC, ioapic)? },
        pit: PitState { state: uapi::bytes_of(&vm.get_pit2().named("KVM_GET_PIT2")?) },
    })
}

/// Sets the chips, after the local APICs of all vCPUs:
/// - the PIT first: KVM starts it anew, which may raise its line, and the states of the PICs and
///   the IOAPIC that follow then say what that line really was;
/// - then the PICs;
/// - the IOAPIC last: KVM delivers what is pending in it at once, to local APICs that must hold
///   their state by then.
///
/// # Errors
/// [`ChipError`] names the chip.
pub fn restore_chips(vm: &VmFd, saved: &ChipState) -> Result<(), ChipError> {
    let chip = PitState::NAME;
    let pit = uapi::read("kvm_pit_state2", &saved.pit.state)
        .map_err(|source| ChipError::State { chip, source })?;
    let done = vm.set_pit2(&pit).named("KVM_SET_PIT2");
    done.map_err(|source| ChipError::Ioctl { chip, source })?;
    let (master, slave, ioapic) = (&saved.pic_master, &saved.pic_slave, &saved.ioapic);
    set_chip(vm, KVM_IRQCHIP_PIC_MASTER, master, &master.state)?;
    set_chip(vm, KVM_IRQCHIP_PIC_SLAVE, slave, &slave.state)?;
    set_chip(vm, KVM_IRQCHIP_IOAPIC, ioapic, &ioapic.state)
}

impl ChipState {
    /// The sections `pic-master`, `pic-slave`, `ioapic` and `pit`, instance 0.
    ///
    /// # Errors
    /// [`SaveError`] if one cannot be encoded.
    pub fn to_sections(&self) -> Result<Vec<Section>, SaveError> {
        Ok(vec![
            self.pic_master.to_section(0)?,
            self.pic_slave.to_section(0)?,
            self.ioapic.to_section(0)?,
            self.pit.to_section(0)?,
        ])
    }

    /// Takes the sections that [`Self::to_sections`] made.
    ///
    /// # Errors
    /// [`LoadError`] with the section's name.
    pub fn from_sections(sections: &mut SectionSet) -> Result<Self, LoadError> {
        Ok(Self {
            pic_master: sections.take(0)?,
            pic_slave: sections.take(0)?,
            ioapic: sections.take(0)?,
            pit: sections.take(0)?,
        })
    }
}

#[cfg(test)]
impl ChipState {
    /// Chips in which every byte has a value of its own place.
    pub(crate) fn sample() -> Self {
        let state = |first: u8, len: usize| (0..len).map(|at| at as u8 ^ first).collect();
        Self {
            pic_master: PicMasterState { state: state(0x10, 16) },
            pic_slave: PicSlaveState { state: state(0x20, 16) },
            ioapic: IoapicState { state: state(0x30, 216) },
            pit: PitState { state: state(0x40, 112) },
        }
    }

    /// The chips without the times at which the channels of the PIT were last loaded, which KVM
    /// sets anew.
    pub(crate) fn without_time(&self) -> Self {
        /// struct kvm_pit_channel_state: its length, and where count_load_time is.
        const CHANNEL: usize = 24;
        const LOAD_TIME: std::ops::Range<usize> = 16..24;
        let mut still = self.clone();
        for channel in still.pit.state.chunks_exact_mut(CHANNEL).take(3) {
            channel[LOAD_TIME].fill(0);
        }
        still
    }
}
