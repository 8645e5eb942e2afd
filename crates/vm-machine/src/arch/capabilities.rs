//! What this host can do: for the check of a guest that wants to come here, and as the processor
//! of a guest that begins here.
#![forbid(unsafe_code)]

use std::thread;

use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use thiserror::Error;
use vm_cpu::{CpuError, Wanted};
use vm_state::compat::missing_msrs;
use vm_state::{CpuDescription, CpuidLeaf, HostCapabilities};

use super::ioctl::{self, IoctlError, Named};
use super::{clock, cpuid, msr};

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
    /// The guest is to have another processor than this host can give.
    #[error("cannot give the guest its processor")]
    Cpu(#[from] CpuError),
}

/// A machine that never runs, to ask what one can only ask a vCPU.
struct Scratch {
    vcpu: VcpuFd,
    /// Lives as long as its vCPU.
    vm: VmFd,
}

impl Scratch {
    fn new(kvm: &Kvm, cpuid: &[CpuidLeaf]) -> Result<Self, IoctlError> {
        let vm = kvm.create_vm().named("KVM_CREATE_VM")?;
        vm.create_irq_chip().named("KVM_CREATE_IRQCHIP")?;
        let vcpu = vm.create_vcpu(0).named("KVM_CREATE_VCPU")?;
        cpuid::set(&vcpu, cpuid, 0)?;
        Ok(Self { vcpu, vm })
    }

    /// Closes it in another thread: KVM waits for grace periods of RCU meanwhile, some 15 ms.
    /// Without a thread it is closed here.
    fn close(self) {
        let Self { vcpu, vm } = self;
        let close = move || drop((vcpu, vm));
        let _ = thread::Builder::new().name("kvm-close".into()).spawn(close);
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

/// What this host can give to a guest, for [`vm_state::compat::check`] and [`Wanted::on`].
///
/// # Errors
/// [`CapabilityError`] if KVM lacks what the machine needs, or a call fails.
pub fn host_capabilities(kvm: &Kvm) -> Result<HostCapabilities, CapabilityError> {
    check_kvm(kvm)?;
    // Before the first vCPU, and before KVM is asked, which offers what it may give this process.
    ioctl::permit_amx();
    let cpuid = cpuid::offered(kvm)?;
    let scratch = Scratch::new(kvm, &cpuid)?;
    let capabilities = HostCapabilities {
        xsave_components: cpuid::xsave_components(&cpuid),
        msrs: msr::usable(&scratch.vcpu, &msr::candidates(kvm)?)?,
        arch_capabilities: msr::arch_capabilities(&scratch.vcpu)?,
        tsc_khz: scratch.vcpu.get_tsc_khz().named("KVM_GET_TSC_KHZ")?,
        tsc_scaling: kvm.check_extension(Cap::TscControl),
        cpuid,
    };
    scratch.close();
    Ok(capabilities)
}

/// Adds to `host` what it has of the MSRs that the guest needs: KVM_GET_MSR_INDEX_LIST lacks some
/// that KVM reads and writes, and which these are changes from release to release.
///
/// # Errors
/// [`CapabilityError::Ioctl`] if a call fails.
pub fn find_msrs(
    kvm: &Kvm,
    guest: &CpuDescription,
    host: &mut HostCapabilities,
) -> Result<(), CapabilityError> {
    let missing = missing_msrs(guest, &host.msrs);
    if missing.is_empty() {
        return Ok(());
    }
    // With the guest's CPUID, as far as KVM takes it: it decides by that which MSRs there are.
    let scratch = match Scratch::new(kvm, &guest.cpuid) {
        Ok(scratch) => scratch,
        Err(_) => Scratch::new(kvm, &host.cpuid)?,
    };
    host.msrs.extend(msr::usable(&scratch.vcpu, &missing)?);
    scratch.close();
    Ok(())
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

/// The processor of a new guest with `vcpus` vCPUs on this host.
///
/// # Errors
/// [`CapabilityError`] if there cannot be so many vCPUs, the host lacks what is wanted, KVM lacks
/// what the machine needs, or a call fails.
pub fn cpu_of_guest(
    kvm: &Kvm,
    wanted: &Wanted,
    vcpus: u32,
) -> Result<CpuDescription, CapabilityError> {
    check_kvm(kvm)?;
    check_vcpus(kvm, vcpus)?;
    let processor = wanted.on(&host_capabilities(kvm)?)?;
    let mut cpu = processor.cpu;
    cpu.cpuid = cpuid::for_guest(cpu.cpuid, vcpus);
    let scratch = Scratch::new(kvm, &cpu.cpuid)?;
    msr::set_arch_capabilities(&scratch.vcpu, &cpu)?;
    let mut candidates = msr::candidates(kvm)?;
    candidates.retain(|&index| msr::is_guest_state(index));
    if let Some(most) = processor.msrs {
        candidates.retain(|index| most.contains(index));
    }
    cpu.msrs = msr::usable(&scratch.vcpu, &candidates)?;
    scratch.close();
    Ok(cpu)
}

/// Makes a new vCPU the processor of the description: CPUID, what it says of itself in MSRs, and
/// the frequency of its TSC.
///
/// # Errors
/// [`IoctlError`] if KVM refuses it.
pub fn set_cpu(vcpu: &VcpuFd, cpu: &CpuDescription, id: u32) -> Result<(), IoctlError> {
    cpuid::set_cpuid(vcpu, cpu, id)?;
    msr::set_arch_capabilities(vcpu, cpu)?;
    clock::set_tsc_khz(vcpu, cpu.tsc_khz)
}
