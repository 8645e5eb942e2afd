//! What tells the time, and counts on while a guest is on its way.

use kvm_bindings::kvm_clock_data;

use super::row::{Expected, HOUR_S, Refused, Row, get_msr, row, set_msr};
use crate::arch::tests::Machine;
use crate::arch::{ioctl, msr};

pub(super) fn time_rows() -> Vec<Row> {
    let tsc_per_second =
        |machine: &Machine| u64::from(machine.vcpus[0].get_tsc_khz().unwrap()) * 1000;
    let first_tsc = |machine: &Machine| {
        get_msr(&machine.vcpus[0], msr::IA32_TSC).unwrap().to_ne_bytes().to_vec()
    };
    // A host that runs guests on the TSC as it is still keeps what it is told.
    let offset = |machine: &Machine| match ioctl::set_tsc_offset(&machine.vcpus[0], 1 << 60) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Refused::new(libc::ENXIO)),
        Err(error) => Err(error.source),
    };
    let clock = |machine: &Machine| {
        let clock = 1_000_000 * HOUR_S * 1_000_000_000;
        machine.vm.set_clock(&kvm_clock_data { clock, ..Default::default() })
    };
    // The deadline is taken only while the timer of the local APIC is in that mode.
    let deadline = |machine: &Machine| {
        let vcpu = &machine.vcpus[0];
        let mut lapic = vcpu.get_lapic()?;
        (lapic.regs[0xf0], lapic.regs[0xf1]) = (-1, 1);
        (lapic.regs[0x320], lapic.regs[0x322]) = (0x40, 4);
        vcpu.set_lapic(&lapic)?;
        let per_second = u64::from(vcpu.get_tsc_khz()?) * 1000;
        let now = get_msr(vcpu, msr::IA32_TSC).unwrap_or_default();
        set_msr(vcpu, msr::IA32_TSC_DEADLINE, now + 10 * HOUR_S * per_second)
    };
    let frequency = |machine: &Machine| {
        let khz = machine.vcpus[0].get_tsc_khz()?;
        machine.vcpus.iter().try_for_each(|vcpu| vcpu.set_tsc_khz(khz / 2))
    };
    vec![
        Row {
            expected: Expected::Near { per_second: tsc_per_second },
            ..row("offset of the TSC", offset, |machine| {
                let offset = ioctl::get_tsc_offset(&machine.vcpus[0]).unwrap();
                offset.unwrap_or_default().to_ne_bytes().to_vec()
            })
        },
        Row {
            expected: Expected::Near { per_second: tsc_per_second },
            ..row("TSC", |machine| set_msr(&machine.vcpus[0], msr::IA32_TSC, 1 << 60), first_tsc)
        },
        Row {
            expected: Expected::Near { per_second: |_| 1_000_000_000 },
            ..row("time of kvm-clock", clock, |machine| {
                machine.vm.get_clock().unwrap().clock.to_ne_bytes().to_vec()
            })
        },
        row("TSC deadline", deadline, |machine| {
            let deadline = get_msr(&machine.vcpus[0], msr::IA32_TSC_DEADLINE);
            deadline.map_or_else(Vec::new, |it| it.to_ne_bytes().to_vec())
        }),
        row("frequency of the TSC", frequency, |machine| {
            machine.vcpus[0].get_tsc_khz().unwrap().to_ne_bytes().to_vec()
        }),
    ]
}
