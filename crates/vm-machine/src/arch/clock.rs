//! Time in a guest that moves: kvm-clock and the TSCs go on as if the guest had only been paused.
//!
//! # What the guest sees
//! Neither clock jumps back, and both advance by the time that the guest did not run, as far as
//! the real-time clocks of the two hosts tell it. (A pause on one host does the same: there KVM's
//! clock simply goes on.) So timers fire late by the blackout and not by more, and the guest's
//! wall clock stays right.
//!
//! | real time of the destination, against that of the source at the save | the clocks go on from |
//! | --- | --- |
//! | 0 to 60 s later | where they were, plus the difference |
//! | earlier (hosts whose clocks disagree) | where they were |
//! | more than 60 s later (a guest loaded from a file, or clocks that disagree) | where they were |
//!
//! Of a guest that moves the destination knows more: how long ago it read that the guest is paused
//! (`Blackout` in the stream). A tunnel may have held that back, so the difference may be some more
//! ([`HELD_BACK_NS`]); what is beyond that, and what is negative, is how far the hosts' clocks
//! disagree, and the measured time is taken in place of the difference ([`ClockState::bound`]):
//!
//! | difference, of a pause that was measured as M | taken for the difference |
//! | --- | --- |
//! | 0 to M + 5 s | the difference |
//! | more, or negative | M |
//!
//! A guest computes its wall clock from the same source, so that it stays as right, or as wrong, as
//! it was: it is off by what the hosts' clocks differ from each other, and no NTP in the guest has to
//! catch up with the blackout. (A Linux guest that moved four times between two hosts, whose clocks were
//! kept together to some milliseconds, was as late after that as before, within 4 ms.)
//!
//! After more than a minute a guest is better off as one that was suspended: a monotonic clock
//! that leaps by a week fires every timeout there is, while a wall clock that is late is what NTP
//! in the guest is for.
//!
//! # How
//! A guest's TSC is that of the host, scaled, plus an offset for each vCPU
//! (KVM devices/vcpu.rst, KVM_VCPU_TSC_OFFSET). Call the part without the offset the *base*; it
//! is one and the same number for all vCPUs of a host at any instant. Saved are the base at a
//! known real time R, and each vCPU's offset. On the destination:
//!
//! ```text
//! new base, at real time R'        B' = TSC of vCPU 0 - its offset
//! where the old base would be      B + (R' - R) * kHz
//! difference, for all vCPUs        D  = B + (R' - R) * kHz - B'
//! offset of vCPU i                 offset_i + D
//!
//! example: 2,000,000 kHz, blackout 0.1 s, B = 9,000,000,000, B' = 500,000,000
//!   D = 9,000,000,000 + 200,000,000 - 500,000,000 = 8,700,000,000
//!   a vCPU at offset -8,000,000,000 (TSC 1,000,000,000 at the save) gets 700,000,000,
//!   which makes its TSC 1,200,000,000 at R': 0.1 s on.
//! ```
//!
//! One difference for all keeps the TSCs of a guest as far apart as they were, to the tick; to
//! read and write each TSC by itself would pull them apart by the time between the calls.
#![forbid(unsafe_code)]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kvm_bindings::{KVM_CLOCK_REALTIME, kvm_clock_data};
use kvm_ioctls::{VcpuFd, VmFd};
use serde::{Deserialize, Serialize};
use vm_state::Snapshot;

use super::ioctl::{self, IoctlError, Named};
use super::msr;

/// The longest time that a guest's clocks catch up with, in nanoseconds; see the module.
const MAX_ADVANCE_NS: u64 = 60_000_000_000;

/// How long a tunnel may have held back what says that the guest is paused, in nanoseconds: what a
/// filter holds back of a blackout is sent within its downtime, and that is seconds at most.
const HELD_BACK_NS: u64 = 5_000_000_000;

/// How often a clock is read to find one reading that nothing interrupted.
const SAMPLES: usize = 5;

/// How far a restored TSC may be from where it should be before the log says so, in milliseconds:
/// far more than the calls take, far less than hosts have been up.
const TSC_JUMP_MS: i64 = 1000;

/// The clocks of a machine at one instant: section `kvm-clock`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockState {
    /// kvm-clock in nanoseconds.
    pub clock_ns: u64,
    /// The real time at that instant, in nanoseconds since 1970 by the source's clock.
    pub realtime_ns: u64,
    /// The TSC of the guest at that instant without any vCPU's offset, in ticks; `None` where the
    /// host does not tell offsets.
    pub tsc_base: Option<u64>,
}

impl Snapshot for ClockState {
    const NAME: &'static str = "kvm-clock";
    const VERSION: u16 = 1;
}

/// By how much the real-time clocks of two hosts disagree, as far as the destination can tell: its
/// own against that of the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disagreement {
    /// At least so many nanoseconds.
    pub at_least_ns: u64,
    /// Whether the destination's clock is the later one.
    pub ahead: bool,
}

impl ClockState {
    /// Takes the pause that this host has measured for that which the hosts' clocks tell, if these
    /// cannot both be right. Says then how far they disagree.
    pub fn bound(&mut self, measured: Duration) -> Option<Disagreement> {
        self.bound_at(realtime_ns(), measured)
    }

    fn bound_at(&mut self, now_ns: u64, measured: Duration) -> Option<Disagreement> {
        let measured_ns = u64::try_from(measured.as_nanos()).unwrap_or(u64::MAX);
        let most_ns = measured_ns.saturating_add(HELD_BACK_NS);
        let disagreement = match now_ns.checked_sub(self.realtime_ns) {
            Some(elapsed_ns) if elapsed_ns <= most_ns => return None,
            Some(elapsed_ns) => Disagreement { at_least_ns: elapsed_ns - most_ns, ahead: true },
            None => Disagreement { at_least_ns: self.realtime_ns - now_ns, ahead: false },
        };
        self.realtime_ns = now_ns.saturating_sub(measured_ns);
        Some(disagreement)
    }
}

fn realtime_ns() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_1970.as_nanos()).unwrap_or(u64::MAX)
}

/// How many ticks of `khz` there are in `ns`.
fn ticks(ns: u64, khz: u32) -> u64 {
    (u128::from(ns) * u128::from(khz) / 1_000_000) as u64
}

/// How far the clocks advance, when the guest was saved at `saved_ns` and it is `now_ns` now.
fn advance_ns(saved_ns: u64, now_ns: u64) -> u64 {
    match now_ns.checked_sub(saved_ns) {
        Some(elapsed) if elapsed <= MAX_ADVANCE_NS => elapsed,
        _ => 0,
    }
}

/// The base of a host's TSC at one real time.
struct Sample {
    realtime_ns: u64,
    base: u64,
}

/// Reads something at a known real time: the one of [`SAMPLES`] readings that took the
/// least time, which nothing has interrupted. `read` may know the real time itself.
fn narrowest<T>(
    mut read: impl FnMut() -> Result<(Option<u64>, T), IoctlError>,
) -> Result<(u64, T), IoctlError> {
    let mut once = || {
        let before = realtime_ns();
        let (exact, value) = read()?;
        let window = realtime_ns().saturating_sub(before);
        Ok(match exact {
            Some(at) => (0, at, value),
            None => (window, before + window / 2, value),
        })
    };
    let mut best = once()?;
    for _ in 1..SAMPLES {
        let next = once()?;
        if next.0 < best.0 {
            best = next;
        }
    }
    Ok((best.1, best.2))
}

/// `None` where the host does not tell offsets.
fn sample(vcpu: &VcpuFd) -> Result<Option<Sample>, IoctlError> {
    let Some(offset) = ioctl::get_tsc_offset(vcpu)? else {
        return Ok(None);
    };
    let (realtime_ns, tsc) = narrowest(|| Ok((None, read_tsc(vcpu)?)))?;
    Ok(Some(Sample { realtime_ns, base: tsc.wrapping_sub(offset) }))
}

/// The guest's TSC; every KVM has this MSR.
fn read_tsc(vcpu: &VcpuFd) -> Result<u64, IoctlError> {
    Ok(msr::get(vcpu, &[msr::IA32_TSC])?.first().map_or(0, |tsc| tsc.value))
}

/// Reads the clocks; `vcpu` is any vCPU of the machine. No vCPU may be running.
///
/// # Errors
/// [`IoctlError`] if a call fails.
pub fn save_clock(vm: &VmFd, vcpu: &VcpuFd) -> Result<ClockState, IoctlError> {
    let (realtime_ns, clock_ns) = narrowest(|| {
        let clock = vm.get_clock().named("KVM_GET_CLOCK")?;
        // The kernel reads both clocks at once where it can.
        let both = clock.flags & KVM_CLOCK_REALTIME != 0;
        Ok((both.then_some(clock.realtime), clock.clock))
    })?;
    let khz = vcpu.get_tsc_khz().named("KVM_GET_TSC_KHZ")?;
    // The sample comes after the clock; brought back to its instant.
    let tsc_base = sample(vcpu)?.map(|sample| {
        sample.base.wrapping_sub(ticks(sample.realtime_ns.saturating_sub(realtime_ns), khz))
    });
    Ok(ClockState { clock_ns, realtime_ns, tsc_base })
}

/// How the clocks of a saved machine go on at this host: found once, used for every vCPU and for
/// kvm-clock, so that they agree.
#[derive(Clone, Debug)]
pub struct TimeBase {
    saved: ClockState,
    /// When the clocks that do not advance go on, by this host's real time.
    begun_ns: u64,
    advances: bool,
    /// What is added to each vCPU's offset; `None` where one of the hosts does not tell offsets.
    offset_delta: Option<u64>,
}

impl TimeBase {
    /// Finds out how the clocks go on. `vcpu` is any vCPU of the new machine, and is given the
    /// guest's TSC frequency, which decides what its TSC counts.
    ///
    /// # Errors
    /// [`IoctlError`] if a call fails, also if this host cannot run the TSC at `tsc_khz`.
    pub fn new(saved: &ClockState, tsc_khz: u32, vcpu: &VcpuFd) -> Result<Self, IoctlError> {
        set_tsc_khz(vcpu, tsc_khz)?;
        let sample = sample(vcpu)?;
        let begun_ns = sample.as_ref().map_or_else(realtime_ns, |sample| sample.realtime_ns);
        let advance = advance_ns(saved.realtime_ns, begun_ns);
        let offset_delta = saved
            .tsc_base
            .zip(sample)
            .map(|(base, here)| base.wrapping_add(ticks(advance, tsc_khz)).wrapping_sub(here.base));
        Ok(Self {
            saved: saved.clone(),
            begun_ns,
            advances: begun_ns.checked_sub(saved.realtime_ns) == Some(advance),
            offset_delta,
        })
    }

    /// How far the clocks have advanced since the save when it is `now_ns` here.
    fn advance_ns(&self, now_ns: u64) -> u64 {
        let from = if self.advances { self.saved.realtime_ns } else { self.begun_ns };
        now_ns.saturating_sub(from)
    }
}

/// Gives a vCPU its TSC frequency (KVM_SET_TSC_KHZ), unless it has it already. A host that cannot
/// scale takes a frequency close to its own, and also a higher one that it only imitates at each
/// entry; [`vm_state::compat::check`] refuses that before.
pub(crate) fn set_tsc_khz(vcpu: &VcpuFd, khz: u32) -> Result<(), IoctlError> {
    if vcpu.get_tsc_khz().named("KVM_GET_TSC_KHZ")? == khz {
        return Ok(());
    }
    vcpu.set_tsc_khz(khz).named("KVM_SET_TSC_KHZ")
}

/// The TSC of one vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TscState {
    /// Its frequency in kHz.
    pub khz: u32,
    /// What it held when it was read, in ticks.
    pub value: u64,
    /// Its offset (KVM_VCPU_TSC_OFFSET); `None` where the host does not tell it.
    pub offset: Option<u64>,
}

pub(crate) fn save_tsc(vcpu: &VcpuFd) -> Result<TscState, IoctlError> {
    Ok(TscState {
        khz: vcpu.get_tsc_khz().named("KVM_GET_TSC_KHZ")?,
        value: read_tsc(vcpu)?,
        offset: ioctl::get_tsc_offset(vcpu)?,
    })
}

pub(crate) fn restore_tsc_khz(vcpu: &VcpuFd, tsc: &TscState) -> Result<(), IoctlError> {
    set_tsc_khz(vcpu, tsc.khz)
}

/// Sets the TSC by its offset where both hosts have offsets, else by its value. KVM keeps TSCs
/// together that are written by value within a second.
///
/// There are hosts (KVM without hardware virtualisation) where a guest reads the TSC of the
/// processor itself: they take an offset, and ignore it. kvm-clock, which is computed from whatever
/// TSC there is, stays right; a program that reads the TSC itself sees it jump, which is said in
/// the log.
pub(crate) fn restore_tsc(
    vcpu: &VcpuFd,
    tsc: &TscState,
    time: &TimeBase,
) -> Result<(), msr::MsrError> {
    let offset = tsc.offset.zip(time.offset_delta).map(|(old, delta)| old.wrapping_add(delta));
    let by_offset = offset.map_or(Ok(false), |offset| ioctl::set_tsc_offset(vcpu, offset))?;
    let expected = |now_ns| {
        let from = match (time.saved.tsc_base, tsc.offset) {
            (Some(base), Some(offset)) => base.wrapping_add(offset),
            _ => tsc.value,
        };
        from.wrapping_add(ticks(time.advance_ns(now_ns), tsc.khz))
    };
    if !by_offset {
        let value = expected(realtime_ns());
        msr::set(vcpu, &[msr::MsrValue { index: msr::IA32_TSC, value }])?;
    }
    let jump = read_tsc(vcpu)?.wrapping_sub(expected(realtime_ns())) as i64;
    let jump_ms = jump / i64::from(tsc.khz.max(1));
    if jump_ms.abs() > TSC_JUMP_MS {
        tracing::warn!(jump_ms, "this host's KVM does not let the TSC of a guest be set");
    }
    Ok(())
}

/// Sets kvm-clock. To be called when every vCPU has its state and before any of them runs: a vCPU
/// publishes the clock to the guest on its first entry.
///
/// KVM could add the elapsed real time itself (KVM_CLOCK_REALTIME), without the bounds that the
/// module gives; so it is told the sum.
///
/// # Errors
/// [`IoctlError`] if a call fails.
pub fn restore_clock(vm: &VmFd, time: &TimeBase) -> Result<(), IoctlError> {
    let clock = time.saved.clock_ns.saturating_add(time.advance_ns(realtime_ns()));
    vm.set_clock(&kvm_clock_data { clock, ..Default::default() }).named("KVM_SET_CLOCK")
}

/// Tells the guest that this vCPU was paused, so that its watchdogs do not take the blackout for a
/// lockup (KVM_KVMCLOCK_CTRL). A guest that has not switched kvm-clock on has nothing to be told.
///
/// # Errors
/// [`IoctlError`] if the call fails for any other reason.
pub fn tell_paused(vcpu: &VcpuFd) -> Result<(), IoctlError> {
    match vcpu.kvmclock_ctrl() {
        Err(error) if error.errno() == libc::EINVAL => Ok(()),
        other => other.named("KVM_KVMCLOCK_CTRL"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    #[test]
    fn clocks_advance_by_the_blackout_never_back_and_not_by_a_week() {
        for (saved, now, advance) in [
            (100 * S, 100 * S + 50, 50),
            (100 * S, 160 * S, 60 * S),
            (100 * S, 160 * S + 1, 0),
            (100 * S, 99 * S, 0),
            (100 * S, 100 * S, 0),
            (0, u64::MAX, 0),
        ] {
            assert_eq!(advance_ns(saved, now), advance, "{saved} {now}");
        }
    }

    #[test]
    fn a_pause_is_what_the_clocks_tell_as_far_as_that_can_be() {
        const MS: u64 = 1_000_000;
        let ahead = |at_least_ns| Some(Disagreement { at_least_ns, ahead: true });
        let behind = |at_least_ns| Some(Disagreement { at_least_ns, ahead: false });
        for (what, saved, now, measured_ms, advance, disagreement) in [
            ("clocks that agree", 100 * S, 100 * S + 30 * MS, 29, 30 * MS, None),
            ("the record overtook nothing", 100 * S, 100 * S + 30 * MS, 31, 30 * MS, None),
            ("held back by a tunnel", 100 * S, 104 * S, 20, 4 * S, None),
            ("as far as it may be", 100 * S, 105 * S + 20 * MS, 20, 5 * S + 20 * MS, None),
            ("a nanosecond more", 100 * S, 105 * S + 20 * MS + 1, 20, 20 * MS, ahead(1)),
            ("half a minute ahead", 100 * S, 130 * S, 20, 20 * MS, ahead(25 * S - 20 * MS)),
            ("an hour ahead", 100 * S, 3700 * S, 20, 20 * MS, ahead(3595 * S - 20 * MS)),
            ("a little behind", 100 * S, 100 * S - 1, 20, 20 * MS, behind(1)),
            ("an hour behind", 3700 * S, 100 * S, 20, 20 * MS, behind(3600 * S)),
            ("a long blackout", 100 * S, 140 * S, 39_000, 40 * S, None),
            (
                "no clock was set",
                0,
                1_700_000_000 * S,
                20,
                20 * MS,
                ahead(1_699_999_995 * S - 20 * MS),
            ),
        ] {
            let mut clock = ClockState { clock_ns: 7, realtime_ns: saved, tsc_base: Some(9) };
            let said = clock.bound_at(now, Duration::from_millis(measured_ms));
            assert_eq!(said, disagreement, "{what}");
            assert_eq!(advance_ns(clock.realtime_ns, now), advance, "{what}");
            assert_eq!((clock.clock_ns, clock.tsc_base), (7, Some(9)), "{what}");
        }
    }

    #[test]
    fn ticks_are_exact_over_a_minute_and_do_not_overflow() {
        assert_eq!(ticks(S, 2_600_000), 2_600_000_000);
        assert_eq!(ticks(60 * S, 5_000_001), 300_000_060_000);
        assert_eq!(ticks(u64::MAX, 1_000_000), u64::MAX);
    }

    fn time_base(saved_ns: u64, begun_ns: u64, advances: bool) -> TimeBase {
        let saved = ClockState { clock_ns: 7, realtime_ns: saved_ns, tsc_base: None };
        TimeBase { saved, begun_ns, advances, offset_delta: None }
    }

    #[test]
    fn a_clock_that_does_not_catch_up_still_goes_on_from_where_it_begins() {
        let frozen = time_base(100 * S, 9000 * S, false);
        assert_eq!(frozen.advance_ns(9001 * S), S);
        let live = time_base(100 * S, 101 * S, true);
        assert_eq!(live.advance_ns(102 * S), 2 * S);
        assert_eq!(live.advance_ns(99 * S), 0, "a clock that was set back");
    }
}
