//! What is in the registers of a vCPU: general ones, segments, control and debug registers, the XSAVE
//! area, model-specific registers.

use std::arch::x86_64::__cpuid_count;

use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_RUNNABLE, kvm_mp_state, kvm_segment, kvm_sregs,
};
use zerocopy::IntoBytes;

use super::row::{Refused, Row, SHARED, get_msr, row, set_msr};
use crate::arch::ioctl;
use crate::arch::tests::Machine;

/// A part of struct kvm_sregs.
fn sregs_row(name: &str, set: fn(&mut kvm_sregs), get: fn(&kvm_sregs) -> Vec<u8>) -> Row {
    let write = move |machine: &Machine| {
        let mut sregs = machine.vcpus[0].get_sregs()?;
        set(&mut sregs);
        machine.vcpus[0].set_sregs(&sregs)
    };
    row(name, write, move |machine| get(&machine.vcpus[0].get_sregs().unwrap()))
}

fn segment(number: u64) -> kvm_segment {
    kvm_segment {
        base: 0x1_0000 * number,
        limit: 0xfff0 - number as u32,
        selector: 8 * number as u16,
        type_: 3,
        present: 1,
        s: 1,
        ..Default::default()
    }
}

fn bytes_of<const N: usize>(segments: [kvm_segment; N]) -> Vec<u8> {
    let words = |it: kvm_segment| [it.base, it.limit.into(), it.selector.into(), it.type_.into()];
    segments.into_iter().flat_map(words).flat_map(u64::to_ne_bytes).collect()
}

fn msr_row(&(name, index, value): &(&str, u32, u64)) -> Row {
    let get = move |machine: &Machine| {
        get_msr(&machine.vcpus[0], index).map_or_else(Vec::new, |it| it.to_ne_bytes().to_vec())
    };
    row(name, move |machine| set_msr(&machine.vcpus[0], index, value), get)
}

/// A component of the XSAVE area: its bit, where it is, and what is put there.
fn xsave_row(name: &str, component: u32, offset: usize, bytes: &'static [u8]) -> Row {
    const XSTATE_BV: usize = 512;
    let at = match component {
        0 | 1 => offset,
        _ => __cpuid_count(0xd, component).ebx as usize + offset,
    };
    let set = move |machine: &Machine| {
        let mut area = ioctl::get_xsave(&machine.vcpus[0]).unwrap();
        if at + bytes.len() > area.len() || at == offset && component > 1 {
            return Err(Refused::new(libc::ENXIO));
        }
        area[at..at + bytes.len()].copy_from_slice(bytes);
        area[XSTATE_BV + component as usize / 8] |= 1 << (component % 8);
        ioctl::set_xsave(&machine.vcpus[0], &area).map_err(|error| error.source)
    };
    let get = move |machine: &Machine| {
        let area = ioctl::get_xsave(&machine.vcpus[0]).unwrap();
        area.get(at..at + bytes.len()).map(<[u8]>::to_vec).unwrap_or_default()
    };
    row(name, set, get)
}

/// MSRs with a value of each that no reset gives.
const MSRS: &[(&str, u32, u64)] = &[
    ("SYSENTER_CS", 0x174, 0x10),
    ("SYSENTER_ESP", 0x175, 0xffff_8000_0000_1000),
    ("SYSENTER_EIP", 0x176, 0xffff_8000_0000_2000),
    ("STAR", 0xc000_0081, 0x0023_0010_0000_0000),
    ("LSTAR", 0xc000_0082, 0xffff_8000_0000_3000),
    ("CSTAR", 0xc000_0083, 0xffff_8000_0000_4000),
    ("SFMASK", 0xc000_0084, 0x4_7700),
    ("KERNEL_GS_BASE", 0xc000_0102, 0xffff_8000_0000_5000),
    ("TSC_AUX", 0xc000_0103, 0x5),
    ("TSC_ADJUST", 0x3b, 0x1234_5000),
    ("PAT", 0x277, 0x0007_0406_0007_0401),
    ("MTRR default type", 0x2ff, 0xc06),
    ("MTRR fixed 64K", 0x250, 0x0606_0606_0606_0606),
    ("MTRR fixed 16K", 0x258, 0x0505_0505_0505_0505),
    ("MTRR fixed 4K", 0x268, 0x0404_0404_0404_0404),
    ("MTRR variable base", 0x200, 0x8000_0006),
    ("MTRR variable mask", 0x201, 0x8000_0800),
    ("MISC_ENABLE", 0x1a0, 0),
    ("SPEC_CTRL", 0x48, 1),
    ("DEBUGCTL", 0x1d9, 1),
    ("microcode revision", 0x8b, 0x77_0000_0000),
    ("SMBASE", 0x9e, 0x5_0000),
    ("UMWAIT_CONTROL", 0xe1, 0x100),
    ("MCG_STATUS", 0x17a, 5),
    ("machine check status", 0x401, 0xbd00_0000_0000_0134),
    ("machine check address", 0x402, 0x1000),
    ("HWCR", 0xc001_0015, 1 << 18),
    ("performance event, Intel", 0x186, 0x0041_00c0),
    ("performance event, AMD", 0xc001_0000, 0x0041_00c0),
    ("kvm-clock, old number", 0x12, SHARED | 1),
    ("kvm-clock", 0x4b56_4d01, SHARED | 1),
    // Enabled, delivered as an interrupt.
    ("async page faults", 0x4b56_4d02, SHARED | 0x100 | 9),
    ("async page fault interrupt", 0x4b56_4d06, 0xf3),
    ("steal time", 0x4b56_4d03, SHARED | 0x200 | 1),
    ("PV EOI", 0x4b56_4d04, SHARED | 0x300 | 1),
    ("poll control", 0x4b56_4d05, 0),
    ("migration control", 0x4b56_4d08, 1),
];

pub(super) fn msr_rows() -> impl Iterator<Item = Row> {
    MSRS.iter().map(msr_row)
}

pub(super) fn register_rows() -> Vec<Row> {
    let general = |machine: &Machine| {
        let mut regs = machine.vcpus[0].get_regs()?;
        for (number, byte) in (1..).zip(regs.as_mut_bytes()) {
            *byte = number;
        }
        regs.rflags = 0x246;
        machine.vcpus[0].set_regs(&regs)
    };
    let debug = |machine: &Machine| {
        let mut debug = machine.vcpus[0].get_debug_regs()?;
        (debug.db, debug.dr6, debug.dr7) = ([0x10, 0x21, 0x32, 0x43], 0xffff_0ff1, 0x455);
        machine.vcpus[0].set_debug_regs(&debug)
    };
    let xcr0 = |machine: &Machine| {
        let mut xcrs = machine.vcpus[0].get_xcrs()?;
        (xcrs.nr_xcrs, xcrs.xcrs[0].xcr, xcrs.xcrs[0].value) = (1, 0, 7);
        machine.vcpus[0].set_xcrs(&xcrs)
    };
    let runnable = |machine: &Machine| {
        machine.vcpus[1].set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE })
    };
    let halted = |machine: &Machine| {
        machine.vcpus[0].set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_HALTED })
    };
    let mp_state = |machine: &Machine| {
        let states = machine.vcpus.iter().map(|vcpu| vcpu.get_mp_state().unwrap().mp_state as u8);
        states.collect::<Vec<_>>()
    };
    vec![
        row("general registers", general, |machine| {
            machine.vcpus[0].get_regs().unwrap().as_bytes().to_vec()
        }),
        row("debug registers", debug, |machine| {
            machine.vcpus[0].get_debug_regs().unwrap().as_bytes().to_vec()
        }),
        row("XCR0", xcr0, |machine| {
            machine.vcpus[0].get_xcrs().unwrap().xcrs[0].value.to_ne_bytes().to_vec()
        }),
        row("MP state of the first vCPU", halted, mp_state),
        row("MP state of the second vCPU", runnable, mp_state),
        sregs_row(
            "segments",
            |sregs| {
                (sregs.ds, sregs.es, sregs.fs) = (segment(2), segment(3), segment(4));
                (sregs.gs, sregs.ss) = (segment(5), segment(6));
                sregs.cs = kvm_segment { type_: 11, ..segment(1) };
            },
            |it| bytes_of([it.cs, it.ds, it.es, it.fs, it.gs, it.ss]),
        ),
        sregs_row(
            "task register and LDT",
            |sregs| {
                sregs.tr = kvm_segment { type_: 11, s: 0, ..segment(7) };
                sregs.ldt = kvm_segment { type_: 2, s: 0, ..segment(8) };
            },
            |it| bytes_of([it.tr, it.ldt]),
        ),
        sregs_row(
            "GDT and IDT",
            |sregs| {
                (sregs.gdt.base, sregs.gdt.limit) = (0x5000, 0x7f);
                (sregs.idt.base, sregs.idt.limit) = (0x6000, 0xfff);
            },
            |it| [it.gdt.as_bytes(), it.idt.as_bytes()].concat(),
        ),
        sregs_row("CR0", |sregs| sregs.cr0 |= 0x1_0033, |it| it.cr0.to_ne_bytes().to_vec()),
        sregs_row("CR2", |sregs| sregs.cr2 = 0x1234_5678, |it| it.cr2.to_ne_bytes().to_vec()),
        sregs_row("CR3", |sregs| sregs.cr3 = 0x7000, |it| it.cr3.to_ne_bytes().to_vec()),
        sregs_row("CR4", |sregs| sregs.cr4 |= 0x620, |it| it.cr4.to_ne_bytes().to_vec()),
        sregs_row("CR8", |sregs| sregs.cr8 = 5, |it| it.cr8.to_ne_bytes().to_vec()),
        sregs_row("EFER", |sregs| sregs.efer |= 0x801, |it| it.efer.to_ne_bytes().to_vec()),
        sregs_row(
            "base of the local APIC",
            |sregs| sregs.apic_base = 0xfee0_0000 | 0x100,
            |it| it.apic_base.to_ne_bytes().to_vec(),
        ),
        xsave_row("x87 control word", 0, 0, &[0x7a, 0x02]),
        xsave_row("x87 register", 0, 32, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 0x40]),
        xsave_row("MXCSR", 1, 24, &[0xa0, 0x1f]),
        xsave_row("SSE register", 1, 160 + 3 * 16, &[11; 16]),
        xsave_row("AVX register", 2, 5 * 16, &[12; 16]),
        xsave_row("AVX-512 mask", 5, 8, &[13; 8]),
        xsave_row("AVX-512 upper halves", 6, 32, &[14; 32]),
        xsave_row("AVX-512 upper registers", 7, 64, &[15; 64]),
        xsave_row("PKRU", 9, 0, &[4, 0, 0, 0]),
    ]
}
