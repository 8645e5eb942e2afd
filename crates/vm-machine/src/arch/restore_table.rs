//! Every piece of the state of a machine, one at a time: it is given a value that it does not have
//! after reset, saved, sent through its sections, restored into a new machine, and read there by
//! the call that tells it, past all that saves.
//!
//! A host that refuses a value, or forgets it at once, cannot show whether it is restored: such a
//! row is printed as SKIPPED with its name.

use std::arch::x86_64::__cpuid_count;

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_MP_STATE_HALTED,
    KVM_MP_STATE_RUNNABLE, KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_SHADOW,
    KVM_VCPUEVENT_VALID_SIPI_VECTOR, KVM_VCPUEVENT_VALID_SMM, kvm_clock_data, kvm_irqchip,
    kvm_mp_state, kvm_segment, kvm_sregs, kvm_vcpu_events,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vm_state::{CpuDescription, Section, SectionSet};
use zerocopy::IntoBytes;

use super::tests::{Machine, kvm};
use super::{MachineState, describe_cpu, ioctl, msr, restore_machine};

/// Two, since what the second holds after reset is not what the first does.
const VCPUS: u32 = 2;

/// Where in guest memory what the guest shares with KVM is.
const SHARED: u64 = 0x8000;

const HOUR_S: u64 = 3600;

/// What cannot be had on a host.
type Refused = kvm_ioctls::Error;

/// How what was restored relates to what was saved.
#[derive(Clone, Copy)]
enum Expected {
    /// It is the same.
    Same,
    /// It counts on, or stands for something that does: it is less than an hour away.
    Near { per_second: fn(&Machine) -> u64 },
}

type Set = dyn Fn(&Machine) -> Result<(), Refused>;
type Get = dyn Fn(&Machine) -> Vec<u8>;

/// One piece of state.
struct Row {
    name: String,
    set: Box<Set>,
    get: Box<Get>,
    expected: Expected,
}

fn row(
    name: &str,
    set: impl Fn(&Machine) -> Result<(), Refused> + 'static,
    get: impl Fn(&Machine) -> Vec<u8> + 'static,
) -> Row {
    Row { name: name.to_owned(), set: Box::new(set), get: Box::new(get), expected: Expected::Same }
}

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

/// A part of struct kvm_vcpu_events.
fn events_row(
    name: &str,
    set: fn(&mut kvm_vcpu_events),
    get: fn(&kvm_vcpu_events) -> Vec<u8>,
) -> Row {
    let write = move |machine: &Machine| {
        let mut events = machine.vcpus[0].get_vcpu_events()?;
        set(&mut events);
        machine.vcpus[0].set_vcpu_events(&events)
    };
    row(name, write, move |machine| get(&machine.vcpus[0].get_vcpu_events().unwrap()))
}

fn get_msr(vcpu: &VcpuFd, index: u32) -> Option<u64> {
    msr::get(vcpu, &[index]).unwrap().first().map(|msr| msr.value)
}

fn set_msr(vcpu: &VcpuFd, index: u32, value: u64) -> Result<(), Refused> {
    let entry = kvm_bindings::kvm_msr_entry { index, data: value, ..Default::default() };
    match vcpu.set_msrs(&kvm_bindings::Msrs::from_entries(&[entry]).unwrap())? {
        1 => Ok(()),
        _ => Err(Refused::new(libc::EINVAL)),
    }
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

fn register_rows() -> Vec<Row> {
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

fn event_rows() -> Vec<Row> {
    vec![
        events_row(
            "an exception that is being injected",
            |events| {
                (events.exception.injected, events.exception.nr) = (1, 14);
                (events.exception.has_error_code, events.exception.error_code) = (1, 2);
            },
            |it| it.exception.as_bytes().to_vec(),
        ),
        events_row(
            "an interrupt that is being injected",
            |events| (events.interrupt.injected, events.interrupt.nr) = (1, 0x31),
            |it| vec![it.interrupt.injected, it.interrupt.nr, it.interrupt.soft],
        ),
        events_row(
            "the shadow of STI",
            |events| {
                events.flags |= KVM_VCPUEVENT_VALID_SHADOW;
                events.interrupt.shadow = 2;
            },
            |it| vec![it.interrupt.shadow],
        ),
        events_row(
            "an NMI that is pending",
            |events| {
                events.flags |= KVM_VCPUEVENT_VALID_NMI_PENDING;
                events.nmi.pending = 1;
            },
            |it| vec![it.nmi.pending],
        ),
        events_row(
            "an NMI that is being injected",
            |events| events.nmi.injected = 1,
            |it| vec![it.nmi.injected],
        ),
        events_row("masked NMIs", |events| events.nmi.masked = 1, |it| vec![it.nmi.masked]),
        events_row(
            "the vector of a SIPI",
            |events| {
                events.flags |= KVM_VCPUEVENT_VALID_SIPI_VECTOR;
                events.sipi_vector = 0x9a;
            },
            |it| it.sipi_vector.to_ne_bytes().to_vec(),
        ),
        events_row(
            "an SMI that is pending",
            |events| {
                events.flags |= KVM_VCPUEVENT_VALID_SMM;
                events.smi.pending = 1;
            },
            |it| vec![it.smi.pending],
        ),
    ]
}

fn chip_rows() -> Vec<Row> {
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

fn time_rows() -> Vec<Row> {
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

/// A machine with memory, which KVM wants to be where a guest shares something with it.
struct Home {
    machine: Machine,
    memory: GuestMemoryMmap,
}

impl Home {
    fn new(kvm: &Kvm, cpu: &CpuDescription) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
        let machine = Machine::new(kvm, cpu, VCPUS);
        machine.map(&memory);
        Self { machine, memory }
    }
}

/// Takes the state through its sections, as a stream does.
fn carried(state: &MachineState) -> MachineState {
    let wire: Vec<_> =
        state.to_sections().unwrap().iter().map(|section| section.encode().unwrap()).collect();
    let read = wire.iter().map(|bytes| Section::decode(bytes).unwrap());
    MachineState::from_sections(&mut SectionSet::new(read).unwrap(), VCPUS).unwrap()
}

/// What is wrong at the destination, if anything.
fn mismatch(row: &Row, machine: &Machine, saved: &[u8]) -> Option<String> {
    let restored = (row.get)(machine);
    let is_right = match row.expected {
        Expected::Same => restored == saved,
        Expected::Near { per_second } => {
            let number = |bytes: &[u8]| i64::from_ne_bytes(bytes[..8].try_into().unwrap());
            let away = number(&restored).wrapping_sub(number(saved)).unsigned_abs();
            away < HOUR_S * per_second(machine)
        }
    };
    (!is_right).then(|| format!("{}: {saved:x?} was saved, {restored:x?} is there", row.name))
}

#[test]
fn every_piece_of_state_that_a_host_holds_is_restored_into_a_new_machine() {
    let Some(kvm) = kvm() else { return };
    let cpu = describe_cpu(&kvm, VCPUS).unwrap();
    let mut rows = register_rows();
    rows.extend(event_rows());
    rows.extend(MSRS.iter().map(msr_row));
    rows.extend(chip_rows());
    rows.extend(time_rows());
    let (mut live, mut wrong) = (0, Vec::new());
    for row in &rows {
        let (source, fresh) = (Home::new(&kvm, &cpu), Home::new(&kvm, &cpu));
        let after_reset = (row.get)(&fresh.machine);
        if let Err(error) = (row.set)(&source.machine) {
            println!("SKIPPED {}: this host does not take it ({error})", row.name);
            continue;
        }
        let held = (row.get)(&source.machine);
        let is_new = match row.expected {
            Expected::Same => held != after_reset,
            // It must be far from where that of a new machine will be.
            Expected::Near { .. } => mismatch(row, &fresh.machine, &held).is_some(),
        };
        if !is_new {
            println!("SKIPPED {}: this host does not hold it", row.name);
            continue;
        }
        let state = carried(&source.machine.save(&cpu));
        restore_machine(&fresh.machine.vm, &fresh.machine.vcpus, &state)
            .unwrap_or_else(|error| panic!("{}: {error:?}", row.name));
        live += 1;
        println!("restored {}", row.name);
        wrong.extend(mismatch(row, &fresh.machine, &held));
    }
    println!("{live} of {} rows are live on this host", rows.len());
    assert!(wrong.is_empty(), "not restored:\n{}", wrong.join("\n"));
    assert!(live > rows.len() / 2, "a host that holds so little shows nothing");
}

/// KVM_KVMCLOCK_CTRL shows in what KVM writes to the guest at its next entry.
#[test]
fn a_guest_with_kvm_clock_is_told_that_it_was_paused() {
    /// struct pvclock_vcpu_time_info: where its flags are, and the one for a guest that was stopped.
    const FLAGS: u64 = 29;
    const GUEST_STOPPED: u8 = 2;
    /// out 0x10, al in real mode.
    const PROGRAM: &[u8] = b"\xe6\x10";
    let Some(kvm) = kvm() else { return };
    let cpu = describe_cpu(&kvm, VCPUS).unwrap();
    let run = |home: &mut Home| {
        home.memory.write_slice(PROGRAM, GuestAddress(0x1000)).unwrap();
        let vcpu = &mut home.machine.vcpus[0];
        let mut sregs = vcpu.get_sregs().unwrap();
        (sregs.cs.base, sregs.cs.selector) = (0, 0);
        vcpu.set_sregs(&sregs).unwrap();
        let mut regs = vcpu.get_regs().unwrap();
        (regs.rip, regs.rflags) = (0x1000, 2);
        vcpu.set_regs(&regs).unwrap();
        assert!(matches!(vcpu.run().unwrap(), VcpuExit::IoOut(0x10, _)));
        // The port write is complete only after another entry.
        vcpu.set_kvm_immediate_exit(1);
        assert_eq!(vcpu.run().unwrap_err().errno(), libc::EINTR);
        vcpu.set_kvm_immediate_exit(0);
        home.memory.read_obj::<u8>(GuestAddress(SHARED + FLAGS)).unwrap()
    };
    let mut source = Home::new(&kvm, &cpu);
    set_msr(&source.machine.vcpus[0], 0x4b56_4d01, SHARED | 1).unwrap();
    assert_eq!(run(&mut source) & GUEST_STOPPED, 0, "it was not stopped yet");
    let state = carried(&source.machine.save(&cpu));
    let mut destination = Home::new(&kvm, &cpu);
    restore_machine(&destination.machine.vm, &destination.machine.vcpus, &state).unwrap();
    assert_ne!(run(&mut destination) & GUEST_STOPPED, 0, "nobody tells it");
}
