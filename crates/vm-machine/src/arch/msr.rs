//! Model-specific registers: which ones are part of a guest's state, and how many of them are read
//! and written at once although KVM stops at the first that it refuses.
#![forbid(unsafe_code)]

use std::ops::RangeInclusive;

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use vm_state::CpuDescription;
use vm_state::compat::{has, msr_matters, msr_name};

use super::cpuid;
use super::ioctl::{IoctlError, Named};

pub(crate) const IA32_TSC: u32 = 0x10;
pub(crate) const IA32_TSC_DEADLINE: u32 = 0x6e0;
const IA32_ARCH_CAPABILITIES: u32 = 0x10a;

/// How many MSRs go into one call. KVM takes fewer than 256 (MAX_IO_MSRS; 256 itself is E2BIG).
const CHUNK: usize = 128;

/// MSRs that are state of a guest although kernels leave some or all of them out of
/// KVM_GET_MSR_INDEX_LIST.
const UNLISTED: &[RangeInclusive<u32>] = &[
    0x4b56_4d00..=0x4b56_4d08, // kvm-clock, async page faults, steal time, EOI, poll control
    0x0000_0011..=0x0000_0012, // kvm-clock at its old numbers
    0x0000_01d9..=0x0000_01d9, // IA32_DEBUGCTL
    0x0000_0200..=0x0000_020f, // variable MTRRs
    0x0000_0250..=0x0000_0250, // fixed MTRRs, from here on
    0x0000_0258..=0x0000_0259,
    0x0000_0268..=0x0000_026f,
    0x0000_0277..=0x0000_0277, // PAT
    0x0000_02ff..=0x0000_02ff, // MTRR default type
    0x0000_0400..=0x0000_047f, // machine check banks
    0x0000_0da0..=0x0000_0da0, // IA32_XSS
    0xc000_0103..=0xc000_0103, // TSC_AUX, which a KVM without RDTSCP holds and does not list
    0xc001_0015..=0xc001_0015, // HWCR
];

/// MSRs that hold no state of a guest of ours.
///
/// Those of nested virtualisation, which no guest is given, describe the host and would only tie
/// the guest to it. Those of Hyper-V, whose CPUID no guest is given either, hold nothing, except that
/// one of them is a clock that ticks in any guest. KVM_WALL_CLOCK is a command: KVM answers a write to it by writing the time
/// of boot to the address in it (KVM x86/msr.rst), and a guest that wants to know writes again. To
/// "restore" it would write into memory that the guest may long use for something else.
const NO_STATE: &[RangeInclusive<u32>] = &[
    0x0000_0011..=0x0000_0011, // KVM_WALL_CLOCK
    0x4b56_4d00..=0x4b56_4d00, // KVM_WALL_CLOCK_NEW
    0x0000_003a..=0x0000_003a, // IA32_FEATURE_CONTROL
    0x0000_0480..=0x0000_0493, // IA32_VMX_*
    0x4000_0000..=0x4000_01ff, // HV_X64_MSR_*
    0xc000_0104..=0xc000_0104, // AMD64_TSC_RATIO
    0xc001_0114..=0xc001_0114, // VM_CR
    0xc001_0117..=0xc001_0117, // VM_HSAVE_PA
];

/// One MSR and what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsrValue {
    /// Its number.
    pub index: u32,
    /// What it holds.
    pub value: u64,
}

/// Why the MSRs of a vCPU cannot be read or written.
#[derive(Debug, Error)]
pub enum MsrError {
    /// The call itself failed.
    #[error(transparent)]
    Ioctl(#[from] IoctlError),
    /// The host refuses the value of an MSR, which the guest would miss.
    #[error(
        "this host's KVM does not take the value {value:#x} of {}: \
         it lacks something that the guest was given",
        msr_name(*.index)
    )]
    Refused {
        /// The MSR.
        index: u32,
        /// The value that it had on the source.
        value: u64,
    },
}

/// Every MSR that may be part of a guest's state on some host, in ascending order, once each.
pub(crate) fn candidates(kvm: &Kvm) -> Result<Vec<u32>, IoctlError> {
    let listed = kvm.get_msr_index_list().named("KVM_GET_MSR_INDEX_LIST")?;
    let mut all: Vec<u32> = listed.as_slice().to_vec();
    all.extend(UNLISTED.iter().cloned().flatten());
    all.sort_unstable();
    all.dedup();
    Ok(all)
}

/// Whether an MSR is state that a guest of ours can have.
pub(crate) fn is_guest_state(index: u32) -> bool {
    !NO_STATE.iter().any(|range| range.contains(&index))
}

/// Those of `msrs` that this vCPU, fresh from its creation, both tells and takes back. There are
/// MSRs that read but do not write: their value cannot be restored even on the same host, so they
/// are no state. Changes nothing but the TSC of this vCPU, so use a vCPU that never runs.
pub(crate) fn usable(vcpu: &VcpuFd, msrs: &[u32]) -> Result<Vec<u32>, IoctlError> {
    let readable = get(vcpu, msrs)?;
    let mut usable = Vec::with_capacity(readable.len());
    for msr in readable {
        if set_chunk(vcpu, &[msr])? == 1 {
            usable.push(msr.index);
        } else {
            tracing::debug!(msr = msr_name(msr.index), "reads but does not write: not state");
        }
    }
    Ok(usable)
}

/// IA32_ARCH_CAPABILITIES of a vCPU; 0 where KVM has no such MSR.
pub(crate) fn arch_capabilities(vcpu: &VcpuFd) -> Result<u64, IoctlError> {
    let value = get_chunk(vcpu, &[IA32_ARCH_CAPABILITIES])?;
    Ok(value.first().map_or(0, |msr| msr.value))
}

/// Gives a vCPU the IA32_ARCH_CAPABILITIES of the description: KVM gives it the host's. Without the
/// feature there is no such MSR in the guest, and nothing to be done.
pub(crate) fn set_arch_capabilities(vcpu: &VcpuFd, cpu: &CpuDescription) -> Result<(), IoctlError> {
    let Some(value) = cpu.arch_capabilities.filter(|_| has(&cpu.cpuid, "arch_capabilities")) else {
        return Ok(());
    };
    match set_chunk(vcpu, &[MsrValue { index: IA32_ARCH_CAPABILITIES, value }])? {
        1 => Ok(()),
        _ => Err(IoctlError {
            call: "KVM_SET_MSRS of IA32_ARCH_CAPABILITIES",
            source: kvm_ioctls::Error::new(libc::EINVAL),
        }),
    }
}

/// Reads MSRs. Those that the host refuses to tell are left out of the answer.
pub(crate) fn get(vcpu: &VcpuFd, msrs: &[u32]) -> Result<Vec<MsrValue>, IoctlError> {
    let mut values = Vec::with_capacity(msrs.len());
    let mut rest = msrs;
    while !rest.is_empty() {
        let chunk = &rest[..rest.len().min(CHUNK)];
        let read = get_chunk(vcpu, chunk)?;
        let done = read.len();
        values.extend(read);
        // Where KVM stopped early, the next one is the one that it refuses.
        if let Some(refused) = chunk.get(done) {
            tracing::debug!(msr = msr_name(*refused), "cannot be read");
        }
        rest = &rest[chunk.len().min(done + 1)..];
    }
    Ok(values)
}

/// The values of the first of `chunk` up to the first that the host refuses.
fn get_chunk(vcpu: &VcpuFd, chunk: &[u32]) -> Result<Vec<MsrValue>, IoctlError> {
    let values: Vec<_> = chunk.iter().map(|&index| MsrValue { index, value: 0 }).collect();
    let mut msrs = entries(&values)?;
    let done = vcpu.get_msrs(&mut msrs).named("KVM_GET_MSRS")?;
    Ok(msrs
        .as_slice()
        .iter()
        .take(done)
        .map(|entry| MsrValue { index: entry.index, value: entry.data })
        .collect())
}

/// Writes MSRs in this order.
///
/// An MSR that the host refuses is let pass where nothing is lost by it: the vCPU holds that value
/// already, the value is zero and the MSR does not exist here, or the guest cannot have put anything
/// there that it would miss ([`msr_matters`], with the CPUID that the vCPU was given).
///
/// # Errors
/// [`MsrError::Refused`] for any other, by name.
pub(crate) fn set(vcpu: &VcpuFd, msrs: &[MsrValue]) -> Result<(), MsrError> {
    let mut rest = msrs;
    while !rest.is_empty() {
        let chunk = &rest[..rest.len().min(CHUNK)];
        let done = set_chunk(vcpu, chunk)?;
        if let Some(&refused) = chunk.get(done) {
            forgive(vcpu, refused)?;
        }
        rest = &rest[chunk.len().min(done + 1)..];
    }
    Ok(())
}

fn forgive(vcpu: &VcpuFd, refused: MsrValue) -> Result<(), MsrError> {
    let MsrValue { index, value } = refused;
    let held = get_chunk(vcpu, &[index])?.first().map(|held| held.value);
    if held == Some(value)
        || (held.is_none() && value == 0)
        || !msr_matters(&cpuid::of_vcpu(vcpu)?, index)
    {
        tracing::debug!(msr = msr_name(index), value, ?held, "not taken, and not missed");
        return Ok(());
    }
    Err(MsrError::Refused { index, value })
}

/// How many of `chunk` the host took: the one after them it refuses.
fn set_chunk(vcpu: &VcpuFd, chunk: &[MsrValue]) -> Result<usize, IoctlError> {
    vcpu.set_msrs(&entries(chunk)?).named("KVM_SET_MSRS")
}

fn entries(values: &[MsrValue]) -> Result<Msrs, IoctlError> {
    let entries: Vec<_> = values
        .iter()
        .map(|msr| kvm_msr_entry { index: msr.index, data: msr.value, ..Default::default() })
        .collect();
    Msrs::from_entries(&entries).map_err(|_| IoctlError {
        call: "allocating a list of MSRs",
        source: kvm_ioctls::Error::new(libc::ENOMEM),
    })
}
