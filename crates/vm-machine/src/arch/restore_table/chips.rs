//! What is in the interrupt controllers and in the PIT.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip,
};
use zerocopy::IntoBytes;

use super::row::{Row, row};
use crate::arch::tests::Machine;

/// Registers of the local APIC: offsets and values.
fn lapic_row(name: &str, registers: &'static [(usize, u32)]) -> Row {
    let set = move |machine: &Machine| {
        let mut lapic = machine.vcpus[0].get_lapic()?;
        for &(at, value) in registers {
            for (byte, part) in value.to_ne_bytes().into_iter().enumerate() {
                lapic.regs[at + byte] = part as std::ffi::c_char;
            }
        }
        machine.vcpus[0].set_lapic(&lapic)
    };
    let get = move |machine: &Machine| {
        let lapic = machine.vcpus[0].get_lapic().unwrap();
        let all = registers.iter().flat_map(|&(at, _)| lapic.regs[at..at + 4].to_vec());
        all.map(|byte| byte as u8).collect()
    };
    row(name, set, get)
}

/// Bytes of an interrupt controller, behind the number and padding of struct kvm_irqchip.
fn chip_row(name: &str, chip_id: u32, changes: &'static [(usize, u8)]) -> Row {
    const HEADER: usize = 8;
    let read = move |machine: &Machine| {
        let mut chip = kvm_irqchip { chip_id, ..Default::default() };
        machine.vm.get_irqchip(&mut chip).unwrap();
        chip.as_bytes().to_vec()
    };
    let set = move |machine: &Machine| {
        let mut bytes = read(machine);
        for &(at, value) in changes {
            bytes[HEADER + at] = value;
        }
        let chip = zerocopy::FromBytes::read_from_bytes(&bytes).unwrap();
        machine.vm.set_irqchip(&chip)
    };
    let get = move |machine: &Machine| {
        let bytes = read(machine);
        changes.iter().map(|&(at, _)| bytes[HEADER + at]).collect()
    };
    row(name, set, get)
}

pub(super) fn chip_rows() -> Vec<Row> {
    let speaker = |machine: &Machine| {
        let mut pit = machine.vm.get_pit2()?;
        (pit.channels[2].count, pit.channels[2].mode, pit.channels[2].gate) = (0x1234, 3, 1);
        machine.vm.set_pit2(&pit)
    };
    let timer = |machine: &Machine| {
        let mut pit = machine.vm.get_pit2()?;
        (pit.channels[0].count, pit.channels[0].mode, pit.channels[0].bcd) = (0x4321, 2, 0);
        machine.vm.set_pit2(&pit)
    };
    let legacy = |machine: &Machine| {
        let mut pit = machine.vm.get_pit2()?;
        pit.flags |= 1;
        machine.vm.set_pit2(&pit)
    };
    let channel = |machine: &Machine, number: usize| {
        let it = machine.vm.get_pit2().unwrap().channels[number];
        [&it.count.to_ne_bytes()[..], &[it.mode, it.gate, it.bcd]].concat()
    };
    vec![
        // Timer and LINT pins masked, so that nothing of it fires.
        lapic_row("task priority of the local APIC", &[(0x80, 0x30)]),
        lapic_row("logical destination", &[(0xd0, 0x0400_0000), (0xe0, 0x0fff_ffff)]),
        lapic_row("spurious vector", &[(0xf0, 0x1ef)]),
        lapic_row("interrupts in service", &[(0xf0, 0x1ff), (0x110, 0x20), (0x190, 0x20)]),
        lapic_row("interrupts requested", &[(0xf0, 0x1ff), (0x220, 0x4)]),
        lapic_row("interrupt command", &[(0x300, 0x4_0031), (0x310, 0x0200_0000)]),
        lapic_row("LVT", &[(0x350, 0x1_0700), (0x360, 0x1_0400), (0x370, 0x1_00fe)]),
        lapic_row("APIC timer", &[(0x320, 0x3_0040), (0x380, 0x7fff_0000), (0x3e0, 0xa)]),
        // struct kvm_pic_state: last_irr, irr, imr, isr, priority_add, irq_base, ...
        chip_row("first PIC", KVM_IRQCHIP_PIC_MASTER, &[(1, 0x20), (2, 0xde), (5, 0x30)]),
        chip_row("second PIC", KVM_IRQCHIP_PIC_SLAVE, &[(1, 0x10), (2, 0xbd), (5, 0x38)]),
        // struct kvm_ioapic_state: base_address, ioregsel, id, irr, pad, redirtbl; the entry of
        // pin 9: vector 0x41, masked, level.
        chip_row(
            "IOAPIC",
            KVM_IRQCHIP_IOAPIC,
            &[(8, 0x10), (12, 2), (96, 0x41), (97, 0xa0), (98, 1), (103, 3)],
        ),
        row("timer of the PIT", timer, move |machine| channel(machine, 0)),
        row("speaker of the PIT", speaker, move |machine| channel(machine, 2)),
        row("flags of the PIT", legacy, |machine| {
            machine.vm.get_pit2().unwrap().flags.to_ne_bytes().to_vec()
        }),
    ]
}
