//! The state of one vCPU: section `vcpu`, one instance per vCPU.
#![forbid(unsafe_code)]

use std::mem::size_of;

use kvm_bindings::{
    KVM_SREGS2_FLAGS_PDPTRS_VALID, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_regs,
    kvm_sregs, kvm_sregs2, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use vm_state::{CpuDescription, PayloadError, Snapshot};

use super::clock::{self, TimeBase, TscState};
use super::ioctl::{self, IoctlError, Named};
use super::msr::{self, MsrError, MsrValue};
use super::uapi;

/// Largest XSAVE area that is read from a stream, in bytes. AMX, the largest there is, makes it
/// 11 KiB.
const MAX_XSAVE: usize = 64 << 10;

/// Most MSRs that are read from a stream; KVM lists some hundred.
const MAX_MSRS: usize = 4096;

/// The state of one vCPU. Structs of the KVM API are kept as their bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuState {
    /// KVM_MP_STATE_*.
    pub mp_state: u32,
    /// struct kvm_vcpu_events.
    events: Vec<u8>,
    /// struct kvm_regs.
    regs: Vec<u8>,
    /// struct kvm_sregs.
    sregs: Vec<u8>,
    /// The page directory pointers of PAE paging, while they are in use and where the host tells
    /// them: the processor keeps the ones that it loaded, whatever memory says since.
    pdptrs: Option<[u64; 4]>,
    /// struct kvm_xsave with all the components that the guest may use.
    xsave: Vec<u8>,
    /// struct kvm_xcrs.
    xcrs: Vec<u8>,
    /// struct kvm_debugregs.
    debugregs: Vec<u8>,
    /// struct kvm_lapic_state.
    lapic: Vec<u8>,
    /// Every MSR but the TSC and its deadline.
    msrs: Vec<MsrValue>,
    /// The TSC.
    pub tsc: TscState,
    /// When the TSC raises the timer interrupt (IA32_TSC_DEADLINE), in ticks of the guest; 0 is
    /// never.
    tsc_deadline: u64,
}

impl Snapshot for VcpuState {
    const NAME: &'static str = "vcpu";
    const VERSION: u16 = 1;

    fn validate(&self) -> Result<(), PayloadError> {
        Parsed::of(self).map(drop)
    }
}

/// Why a vCPU cannot be given a state.
#[derive(Debug, Error)]
pub enum VcpuStateError {
    /// A field is not what the KVM API says.
    #[error(transparent)]
    State(#[from] PayloadError),
    /// A call failed.
    #[error(transparent)]
    Ioctl(#[from] IoctlError),
    /// An MSR was refused.
    #[error(transparent)]
    Msr(#[from] MsrError),
}

/// The kernel structs of a state, of the right lengths.
struct Parsed {
    events: kvm_vcpu_events,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xcrs: kvm_xcrs,
    debugregs: kvm_debugregs,
    lapic: kvm_lapic_state,
}

impl Parsed {
    fn of(state: &VcpuState) -> Result<Self, PayloadError> {
        let xsave = state.xsave.len();
        if !(size_of::<kvm_xsave>()..=MAX_XSAVE).contains(&xsave) {
            return Err(PayloadError::Field {
                field: "xsave",
                problem: format!("has {xsave} bytes instead of 4096 to {MAX_XSAVE}"),
            });
        }
        if state.msrs.len() > MAX_MSRS {
            return Err(PayloadError::Field {
                field: "msrs",
                problem: format!("has {} entries, more than {MAX_MSRS}", state.msrs.len()),
            });
        }
        Ok(Self {
            events: uapi::read("events", &state.events)?,
            regs: uapi::read("regs", &state.regs)?,
            sregs: uapi::read("sregs", &state.sregs)?,
            xcrs: uapi::read("xcrs", &state.xcrs)?,
            debugregs: uapi::read("debugregs", &state.debugregs)?,
            lapic: uapi::read("lapic", &state.lapic)?,
        })
    }
}

/// Reads the state of a vCPU that does not run and has no I/O pending: complete that before, by
/// one KVM_RUN with immediate_exit set, or the registers are those of the middle of an instruction
/// (KVM API, KVM_RUN).
///
/// The order, and why:
/// 1. MP state, because reading it makes KVM take INITs and SIPIs that have arrived, which change
///    everything else;
/// 2. events, before the registers that an injection in progress depends on are looked at. KVM
///    also lets a pending exception take effect here (its DR6 or CR2), so they come before sregs
///    and debugregs;
/// 3. regs and sregs, xsave, xcrs, debugregs: registers that nothing but the guest changes;
/// 4. local APIC, and 5. MSRs with the deadline of the TSC among them: KVM injects a timer that
///    expires now only when the vCPU runs again, and until then tells the deadline that has passed.
///    So a timer that expires between any of these calls is late at the destination, not lost;
/// 6. the TSC last, because it ticks: its saved value is never behind what else was saved.
///
/// # Errors
/// [`IoctlError`] names the call that failed.
pub fn save_vcpu(vcpu: &VcpuFd, cpu: &CpuDescription) -> Result<VcpuState, IoctlError> {
    let mp_state = vcpu.get_mp_state().named("KVM_GET_MP_STATE")?.mp_state;
    let events = vcpu.get_vcpu_events().named("KVM_GET_VCPU_EVENTS")?;
    let regs = vcpu.get_regs().named("KVM_GET_REGS")?;
    let sregs = vcpu.get_sregs().named("KVM_GET_SREGS")?;
    let pdptrs = ioctl::get_sregs2(vcpu)?
        .filter(|sregs| sregs.flags & u64::from(KVM_SREGS2_FLAGS_PDPTRS_VALID) != 0)
        .map(|sregs| sregs.pdptrs);
    let mut xsave = ioctl::get_xsave(vcpu)?;
    xsave.truncate(xsave_bytes_in_use(&xsave, cpu));
    let xcrs = vcpu.get_xcrs().named("KVM_GET_XCRS")?;
    let debugregs = vcpu.get_debug_regs().named("KVM_GET_DEBUGREGS")?;
    let lapic = vcpu.get_lapic().named("KVM_GET_LAPIC")?;
    let mut msrs = msr::get(vcpu, &cpu.msrs)?;
    let tsc_deadline = msrs.iter().find(|msr| msr.index == msr::IA32_TSC_DEADLINE);
    let tsc_deadline = tsc_deadline.map_or(0, |msr| msr.value);
    msrs.retain(|msr| ![msr::IA32_TSC, msr::IA32_TSC_DEADLINE].contains(&msr.index));
    Ok(VcpuState {
        mp_state,
        events: uapi::bytes_of(&events),
        regs: uapi::bytes_of(&regs),
        sregs: uapi::bytes_of(&sregs),
        pdptrs,
        xsave,
        xcrs: uapi::bytes_of(&xcrs),
        debugregs: uapi::bytes_of(&debugregs),
        lapic: uapi::bytes_of(&lapic),
        msrs,
        tsc: clock::save_tsc(vcpu)?,
        tsc_deadline,
    })
}

/// How much of an XSAVE area is saved: what the guest was given, and nothing that is not zero is
/// ever cut off.
fn xsave_bytes_in_use(area: &[u8], cpu: &CpuDescription) -> usize {
    let used = area.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
    used.max(cpu.xsave_bytes as usize).max(size_of::<kvm_xsave>())
}

/// Gives a new vCPU its state. It must have its CPUID (`cpuid::set_cpuid`) and must not have run.
///
/// The order, and why:
/// 1. (CPUID, by the caller: it decides which of the following KVM takes at all;)
/// 2. TSC frequency, because it is the unit of TSC, offset and deadline;
/// 3. sregs before regs and everything else: they hold the mode of the processor (CR0, CR4, EFER)
///    and the base and mode of the local APIC. The page directory pointers follow at once, since
///    KVM_SET_SREGS loads them from memory;
/// 4. regs;
/// 5. xsave, then xcrs: KVM_SET_XSAVE takes all components that the CPUID permits, whatever XCR0;
/// 6. debugregs;
/// 7. local APIC, after sregs, whose APIC base says in which format its registers are, and before
///    the MSRs, because KVM ignores a write to IA32_TSC_DEADLINE unless the timer of the local
///    APIC is in that mode;
/// 8. MSRs without the two that follow: kvm-clock, SYSENTER and the others, in any order;
/// 9. TSC, after the MSRs with IA32_TSC_ADJUST among them: a write to that moves the TSC of a
///    processor, and what a KVM makes of it must not count;
/// 10. IA32_TSC_DEADLINE, after the TSC that it is compared with: before it, the timer would be set
///     for a time that means nothing or fire at once;
/// 11. events, after all registers: KVM_SET_REGS drops a pending exception, and KVM_SET_SREGS queues
///     an interrupt of which it knows less than the events do;
/// 12. MP state last: it says whether the vCPU may run.
///
/// # Errors
/// [`VcpuStateError`] names the call, the field or the MSR.
pub fn restore_vcpu(
    vcpu: &VcpuFd,
    state: &VcpuState,
    time: &TimeBase,
) -> Result<(), VcpuStateError> {
    let parsed = Parsed::of(state)?;
    clock::restore_tsc_khz(vcpu, &state.tsc)?;
    vcpu.set_sregs(&parsed.sregs).named("KVM_SET_SREGS")?;
    if let Some(pdptrs) = state.pdptrs
        && !ioctl::set_sregs2(vcpu, &with_pdptrs(&parsed.sregs, pdptrs))?
    {
        tracing::debug!("no KVM_SET_SREGS2 here: page directory pointers are those in memory");
    }
    vcpu.set_regs(&parsed.regs).named("KVM_SET_REGS")?;
    ioctl::set_xsave(vcpu, &state.xsave)?;
    vcpu.set_xcrs(&parsed.xcrs).named("KVM_SET_XCRS")?;
    vcpu.set_debug_regs(&parsed.debugregs).named("KVM_SET_DEBUGREGS")?;
    vcpu.set_lapic(&parsed.lapic).named("KVM_SET_LAPIC")?;
    msr::set(vcpu, &state.msrs)?;
    clock::restore_tsc(vcpu, &state.tsc, time)?;
    msr::set(vcpu, &[MsrValue { index: msr::IA32_TSC_DEADLINE, value: state.tsc_deadline }])?;
    vcpu.set_vcpu_events(&parsed.events).named("KVM_SET_VCPU_EVENTS")?;
    vcpu.set_mp_state(kvm_mp_state { mp_state: state.mp_state }).named("KVM_SET_MP_STATE")?;
    Ok(())
}

fn with_pdptrs(sregs: &kvm_sregs, pdptrs: [u64; 4]) -> kvm_sregs2 {
    kvm_sregs2 {
        cs: sregs.cs,
        ds: sregs.ds,
        es: sregs.es,
        fs: sregs.fs,
        gs: sregs.gs,
        ss: sregs.ss,
        tr: sregs.tr,
        ldt: sregs.ldt,
        gdt: sregs.gdt,
        idt: sregs.idt,
        cr0: sregs.cr0,
        cr2: sregs.cr2,
        cr3: sregs.cr3,
        cr4: sregs.cr4,
        cr8: sregs.cr8,
        efer: sregs.efer,
        apic_base: sregs.apic_base,
        flags: u64::from(KVM_SREGS2_FLAGS_PDPTRS_VALID),
        pdptrs,
    }
}

#[cfg(test)]
impl VcpuState {
    /// A state in which every byte has a value of its own place.
    pub(crate) fn sample() -> Self {
        let bytes = |first: u8, len: usize| {
            (0..len).map(|at| (at as u8).wrapping_mul(7).wrapping_add(first)).collect()
        };
        Self {
            mp_state: kvm_bindings::KVM_MP_STATE_HALTED,
            events: bytes(1, 64),
            regs: bytes(2, 144),
            sregs: bytes(3, 312),
            pdptrs: Some([0x1001, 0x2001, 0x3001, 0x4001]),
            xsave: bytes(4, 4096),
            xcrs: bytes(5, 392),
            debugregs: bytes(6, 128),
            lapic: bytes(7, 1024),
            msrs: vec![
                MsrValue { index: 0x277, value: 0x0007_0406_0007_0406 },
                MsrValue { index: 0xc000_0082, value: 0xffff_ffff_8100_0000 },
            ],
            tsc: TscState { khz: 2_600_000, value: 123_456_789_012, offset: Some(!5) },
            tsc_deadline: 123_456_999_999,
        }
    }

    /// This state without what ticks while nothing runs.
    pub(crate) fn without_time(&self) -> Self {
        const TIMER_CURRENT_COUNT: usize = 0x390;
        let mut still = self.clone();
        still.tsc.value = 0;
        still.tsc.offset = None;
        still.lapic[TIMER_CURRENT_COUNT..TIMER_CURRENT_COUNT + 4].fill(0);
        still
    }

    /// Cuts a byte off one of the kernel structs.
    pub(crate) fn with_short_lapic(mut self) -> Self {
        self.lapic.pop();
        self
    }

    pub(crate) fn pdptrs(&self) -> Option<[u64; 4]> {
        self.pdptrs
    }

    pub(crate) fn msr(&self, index: u32) -> Option<u64> {
        self.msrs.iter().find(|msr| msr.index == index).map(|msr| msr.value)
    }

    pub(crate) fn set_msr(&mut self, index: u32, value: u64) {
        self.msrs.retain(|msr| msr.index != index);
        self.msrs.push(MsrValue { index, value });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_xsave_area_is_cut_where_the_guest_has_nothing() {
        let cpu = |xsave_bytes| CpuDescription { xsave_bytes, ..Default::default() };
        let mut area = vec![0; 11_008];
        assert_eq!(xsave_bytes_in_use(&area, &cpu(0)), 4096);
        assert_eq!(xsave_bytes_in_use(&area, &cpu(8192)), 8192);
        area[9000] = 1;
        assert_eq!(xsave_bytes_in_use(&area, &cpu(4096)), 9001);
    }
}
