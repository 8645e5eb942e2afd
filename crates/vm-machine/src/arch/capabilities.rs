//! What this host can do: for the check of a guest that wants to come here, and as the processor
//! of a guest that begins here.
#![forbid(unsafe_code)]

use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use thiserror::Error;
use vm_state::{CpuDescription, CpuidLeaf, HostCapabilities};

use super::cpuid;
use super::ioctl::{IoctlError, Named};
use super::msr;

/// Most vCPUs of a guest: an xAPIC id has 8 bits, 255 means all processors, and ids above it need
/// interrupt remapping, which the machine has not.
pub const MAX_VCPUS: u32 = 254;

/// What the machine needs of KVM, by its name in the KVM API.
const NEEDED: &[(Cap, &str)] = &[
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::MpState, "KVM_CAP_MP_STATE"),
    (Cap::PitState2, "KVM_CAP_PIT_STATE2"),
    (Cap::AdjustClock, "KVM_CAP_ADJUST_CLOCK"),
    (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS"),
    (Cap::Debugregs, "KVM_CAP_DEBUGREGS"),
    (Cap::Xsave, "KVM_CAP_XSAVE"),
    (Cap::Xsave2, "KVM_CAP_XSAVE2 (Linux 5.17)"),
    (Cap::Xcrs, "KVM_CAP_XCRS"),
    (Cap::GetTscKhz, "KVM_CAP_GET_TSC_KHZ"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];

/// Why a host cannot say what it can do, or cannot run a guest at all.
#[derive(Debug, Error)]
pub enum CapabilityError {
    /// This KVM lacks things that the machine is built on.
    #[error("this host's KVM lacks {}; use a newer kernel", .0.join(", "))]
    Lacks(Vec<&'static str>),
    /// There cannot be a guest with so many vCPUs.
    #[error("a guest has 1 to {most} vCPUs on this host, not {asked}")]
    Vcpus {
        /// How many were asked for.
        asked: u32,
        /// How many there can be.
        most: u32,
    },
    /// A call failed.
    #[error("cannot find out what this host's KVM can do")]
    Ioctl(#[from] IoctlError),
}

/// A machine that never runs, to ask what one can only ask a vCPU.
struct Scratch {
    vm: VmFd,
    vcpu: VcpuFd,
}

impl Scratch {
    fn new(kvm: &Kvm, cpuid: &[CpuidLeaf]) -> Result<Self, IoctlError> {
        let vm = kvm.create_vm().named("KVM_CREATE_VM")?;
        vm.create_irq_chip().named("KVM_CREATE_IRQCHIP")?;
        let vcpu = vm.create_vcpu(0).named("KVM_CREATE_VCPU")?;
        cpuid::set(&vcpu, cpuid, 0)?;
        Ok(Self { vm, vcpu })
    }
}

/// Whether this host's KVM has everything that the machine is built on.
///
/// # Errors
/// [`CapabilityError::Lacks`] with all that is missing.
pub fn check_kvm(kvm: &Kvm) -> Result<(), CapabilityError> {
    let lacks: Vec<_> = NEEDED
        .iter()
        .filter(|(cap, _)| !kvm.check_extension(*cap))
        .map(|(_, name)| *name)
        .collect();
    if lacks.is_empty() { Ok(()) } else { Err(CapabilityError::Lacks(lacks)) }
}

/// What this host can give to a guest, for [`vm_state::compat::check`].
///
/// # Errors
/// [`CapabilityError`] if KVM lacks what the machine needs, or a call fails.
pub fn host_capabilities(kvm: &Kvm) -> Result<HostCapabilities, CapabilityError> {
    check_kvm(kvm)?;
    let cpuid = cpuid::offered(kvm)?;
    let scratch = Scratch::new(kvm, &cpuid)?;
    Ok(HostCapabilities {
        xsave_components: cpuid::xsave_components(&cpuid),
        msrs: msr::usable(&scratch.vcpu, &msr::candidates(kvm)?)?,
        tsc_khz: scratch.vcpu.get_tsc_khz().named("KVM_GET_TSC_KHZ")?,
        tsc_scaling: kvm.check_extension(Cap::TscControl),
        cpuid,
    })
}

/// Whether a guest can have so many vCPUs on this host.
///
/// # Errors
/// [`CapabilityError::Vcpus`].
pub fn check_vcpus(kvm: &Kvm, vcpus: u32) -> Result<(), CapabilityError> {
    let most = MAX_VCPUS.min(kvm.get_max_vcpus() as u32);
    match (1..=most).contains(&vcpus) {
        true => Ok(()),
        false => Err(CapabilityError::Vcpus { asked: vcpus, most }),
    }
}

/// The processor of a new guest with `vcpus` vCPUs on this host: all that KVM offers and that can
/// migrate.
///
/// # Errors
/// [`CapabilityError`] if there cannot be so many vCPUs, KVM lacks what the machine needs, or a
/// call fails.
pub fn describe_cpu(kvm: &Kvm, vcpus: u32) -> Result<CpuDescription, CapabilityError> {
    check_kvm(kvm)?;
    check_vcpus(kvm, vcpus)?;
    let cpuid = cpuid::for_guest(&cpuid::offered(kvm)?, vcpus);
    let scratch = Scratch::new(kvm, &cpuid)?;
    let candidates: Vec<_> =
        msr::candidates(kvm)?.into_iter().filter(|&index| msr::is_guest_state(index)).collect();
    let xsave_bytes = scratch.vm.check_extension_int(Cap::Xsave2);
    Ok(CpuDescription {
        xsave_components: cpuid::xsave_components(&cpuid),
        xsave_bytes: u32::try_from(xsave_bytes).unwrap_or(0).max(4096),
        msrs: msr::usable(&scratch.vcpu, &candidates)?,
        tsc_khz: scratch.vcpu.get_tsc_khz().named("KVM_GET_TSC_KHZ")?,
        cpuid,
    })
}
