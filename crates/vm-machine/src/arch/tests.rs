//! The sections byte for byte, and whole machines on this host's KVM.

use std::error::Error as _;
use std::time::{Duration, Instant};

use kvm_bindings::{kvm_pit_config, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use proptest::prelude::*;
use vm_cpu::Wanted;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vm_state::{CpuDescription, CpuidLeaf, LoadError, Section, SectionSet, Snapshot, compat};

use super::*;

fn golden<S: Snapshot + PartialEq + std::fmt::Debug>(state: &S) {
    let version = S::VERSION;
    let path =
        format!("{}/src/arch/golden/{}-{version}.section", env!("CARGO_MANIFEST_DIR"), S::NAME);
    let bytes = state.to_section(0).unwrap().encode().unwrap();
    if std::env::var_os("WRITE_GOLDEN").is_some() {
        std::fs::write(&path, &bytes).unwrap();
    }
    let golden = std::fs::read(&path).unwrap();
    assert!(bytes == golden, "{} version {version} has changed: raise its version", S::NAME);
    let section = Section::decode(&golden).unwrap();
    assert_eq!(&S::from_section(&section).unwrap(), state);
}

#[test]
fn sections_of_version_1_are_byte_for_byte_what_they_were() {
    let chips = ChipState::sample();
    golden(&VcpuState::sample());
    golden(&chips.pic_master);
    golden(&chips.pic_slave);
    golden(&chips.ioapic);
    golden(&chips.pit);
    golden(&ClockState {
        clock_ns: 5_000_000_001,
        realtime_ns: 1_796_000_000_123_456_789,
        tsc_base: Some(!9),
    });
}

#[test]
fn a_machine_is_read_back_from_its_sections() {
    let machine = MachineState {
        clock: ClockState { clock_ns: 1, realtime_ns: 2, tsc_base: None },
        vcpus: vec![VcpuState::sample(), VcpuState::sample()],
        chips: ChipState::sample(),
    };
    let mut sections = SectionSet::new(machine.to_sections().unwrap()).unwrap();
    assert_eq!(MachineState::from_sections(&mut sections, 2).unwrap(), machine);
    sections.finish().unwrap();
}

#[test]
fn a_machine_with_a_vcpu_too_few_names_the_section() {
    let machine = MachineState {
        clock: ClockState { clock_ns: 1, realtime_ns: 2, tsc_base: None },
        vcpus: vec![VcpuState::sample()],
        chips: ChipState::sample(),
    };
    let mut sections = SectionSet::new(machine.to_sections().unwrap()).unwrap();
    let error = MachineState::from_sections(&mut sections, 2).unwrap_err();
    assert_eq!(error.to_string(), "section vcpu 1 is missing");
}

#[test]
fn a_kernel_struct_of_the_wrong_length_is_refused_by_name() {
    let section = VcpuState::sample().with_short_lapic().to_section(3).unwrap();
    let error = VcpuState::from_section(&section).unwrap_err();
    assert!(error.to_string().contains("section vcpu 3"), "{error}");
    let cause = error.source().unwrap().to_string();
    assert_eq!(cause, "the field lapic has 1023 bytes instead of 1024");
    let short = Section { version: 1, payload: vec![2, 0, 0], ..section };
    for name in ["pic-master", "pic-slave", "ioapic", "pit"] {
        let mut set = SectionSet::new(ChipState::sample().to_sections().unwrap()).unwrap();
        set.take_section(name, 0).unwrap();
        set.add(Section { name: name.to_owned(), instance: 0, ..short.clone() }).unwrap();
        let error = ChipState::from_sections(&mut set).unwrap_err();
        assert!(matches!(&error, LoadError::Payload { id, .. } if id.name == name), "{error}");
    }
}

proptest! {
    #[test]
    fn no_payload_makes_loading_panic(
        name in prop::sample::select(vec!["vcpu", "kvm-clock", "pit", "ioapic"]),
        payload in prop::collection::vec(any::<u8>(), 0..400),
    ) {
        let section = Section { name: name.to_owned(), instance: 0, version: 1, payload };
        let _ = VcpuState::from_section(&section);
        let _ = ClockState::from_section(&section);
        let _ = PitState::from_section(&section);
        let _ = IoapicState::from_section(&section);
    }
}

/// This host's KVM; says loudly that a test is skipped where there is none.
pub(super) fn kvm() -> Option<Kvm> {
    match Kvm::new() {
        Ok(kvm) => Some(kvm),
        Err(error) => {
            let test = std::thread::current().name().unwrap_or_default().to_owned();
            eprintln!("SKIPPED {test}: /dev/kvm cannot be opened: {error}");
            None
        }
    }
}

/// A guest with `vcpus` vCPUs that is given all that migrates.
pub(super) fn describe_cpu(kvm: &Kvm, vcpus: u32) -> Result<CpuDescription, CapabilityError> {
    cpu_of_guest(kvm, &Wanted::default(), vcpus)
}

pub(super) struct Machine {
    pub(super) vm: VmFd,
    pub(super) vcpus: Vec<VcpuFd>,
}

impl Machine {
    pub(super) fn new(kvm: &Kvm, cpu: &CpuDescription, vcpus: u32) -> Self {
        let vm = kvm.create_vm().unwrap();
        vm.set_tss_address(0xfffb_d000).unwrap();
        vm.create_irq_chip().unwrap();
        vm.create_pit2(kvm_pit_config::default()).unwrap();
        let vcpus = (0..vcpus)
            .map(|id| {
                let vcpu = vm.create_vcpu(id.into()).unwrap();
                set_cpu(&vcpu, cpu, id).unwrap();
                vcpu
            })
            .collect();
        Self { vm, vcpus }
    }

    pub(super) fn save(&self, cpu: &CpuDescription) -> MachineState {
        save_machine(&self.vm, &self.vcpus, cpu).unwrap()
    }

    pub(super) fn map(&self, memory: &GuestMemoryMmap) {
        let region = kvm_userspace_memory_region {
            memory_size: 0x10000,
            userspace_addr: memory.get_host_address(GuestAddress(0)).unwrap() as u64,
            ..Default::default()
        };
        // SAFETY: `memory` is 64 KiB long and outlives the machine in every test.
        unsafe { self.vm.set_user_memory_region(region) }.unwrap();
    }
}

/// Puts something into every kind of state that a test can reach from outside.
fn stir(machine: &Machine) {
    for (id, vcpu) in (1..).zip(&machine.vcpus) {
        let mut regs = vcpu.get_regs().unwrap();
        (regs.rax, regs.r15, regs.rip) = (0x1111 * id, 0x2222 * id, 0x3333 * id);
        vcpu.set_regs(&regs).unwrap();
        let mut sregs = vcpu.get_sregs().unwrap();
        (sregs.cr2, sregs.gs.base) = (0x4444 * id, 0x5550 * id);
        vcpu.set_sregs(&sregs).unwrap();
        let mut debugregs = vcpu.get_debug_regs().unwrap();
        debugregs.db = [id, id + 1, id + 2, id + 3];
        vcpu.set_debug_regs(&debugregs).unwrap();
        let mut lapic = vcpu.get_lapic().unwrap();
        // Spurious vector 0xff, enabled; timer masked, vector 0x40.
        (lapic.regs[0xf0], lapic.regs[0xf1]) = (-1, 1);
        (lapic.regs[0x320], lapic.regs[0x322]) = (0x40, 1);
        vcpu.set_lapic(&lapic).unwrap();
        let msrs = [(0xc000_0082, 0x8100_0000 * id), (0x277, 0x0007_0406_0007_0401)];
        let msrs = msrs.map(|(index, value)| MsrValue { index, value });
        msr::set(vcpu, &msrs).unwrap();
        // xmm3, and the bit that says SSE is in use.
        let mut xsave = ioctl::get_xsave(vcpu).unwrap();
        xsave[160 + 3 * 16] = id as u8;
        xsave[512] |= 2;
        ioctl::set_xsave(vcpu, &xsave).unwrap();
    }
    machine.vm.set_irq_line(5, true).unwrap();
    let mut pit = machine.vm.get_pit2().unwrap();
    (pit.channels[2].count, pit.channels[2].mode) = (0x1234, 3);
    machine.vm.set_pit2(&pit).unwrap();
}

#[test]
fn a_host_takes_the_guests_that_it_makes() {
    let Some(kvm) = kvm() else { return };
    let host = host_capabilities(&kvm).unwrap();
    for vcpus in [1, 2, 7] {
        let cpu = describe_cpu(&kvm, vcpus).unwrap();
        compat::check(&cpu, &host).unwrap();
        assert!(cpu.tsc_khz > 0 && cpu.xsave_bytes >= 4096);
        for msr in [0x10, 0xc000_0082, 0x4b56_4d01, 0x4b56_4d02, 0x4b56_4d03] {
            assert!(cpu.msrs.contains(&msr), "{}", compat::msr_name(msr));
        }
        // A write to it writes into guest memory.
        assert!(!cpu.msrs.contains(&0x4b56_4d00));
    }
}

#[test]
fn an_msr_that_the_list_lacks_is_asked_for() {
    let Some(kvm) = kvm() else { return };
    let mut host = host_capabilities(&kvm).unwrap();
    let mut cpu = describe_cpu(&kvm, 1).unwrap();
    // LSTAR, which every KVM has.
    host.msrs.retain(|&msr| msr != 0xc000_0082);
    assert!(compat::check(&cpu, &host).is_err());
    find_msrs(&kvm, &cpu, &mut host).unwrap();
    compat::check(&cpu, &host).unwrap();
    cpu.msrs.push(0x0bad_cafe);
    find_msrs(&kvm, &cpu, &mut host).unwrap();
    let error = compat::check(&cpu, &host).unwrap_err();
    assert_eq!(error.problems, [compat::Problem::Msrs(vec![0x0bad_cafe])]);
}

#[test]
fn a_vcpu_is_not_given_what_was_taken_away() {
    let Some(kvm) = kvm() else { return };
    if std::path::Path::new("/sys/module/kvm_pvm").exists() {
        eprintln!("SKIPPED a vCPU without AVX: on PVM guests see the processor's own CPUID");
        return;
    }
    let wanted = "host,-avx".parse::<vm_cpu::CpuSpec>().unwrap().read().unwrap();
    let cpu = cpu_of_guest(&kvm, &wanted, 2).unwrap();
    let machine = Machine::new(&kvm, &cpu, 2);
    for vcpu in &machine.vcpus {
        let given = cpuid::of_vcpu(vcpu).unwrap();
        assert!(compat::has(&given, "sse2"));
        assert!(!compat::has(&given, "avx") && !compat::has(&given, "avx2"));
        assert_eq!(cpuid::xsave_components(&given) & 4, 0);
    }
}

#[test]
fn a_guest_with_no_vcpu_or_too_many_is_refused() {
    let Some(kvm) = kvm() else { return };
    for vcpus in [0, MAX_VCPUS + 1, u32::MAX] {
        assert!(matches!(
            describe_cpu(&kvm, vcpus),
            Err(CapabilityError::Vcpus { asked, .. }) if asked == vcpus
        ));
    }
}

#[test]
fn every_vcpu_is_given_the_cpuid_of_the_description_and_its_own_id() {
    let Some(kvm) = kvm() else { return };
    let cpu = describe_cpu(&kvm, 2).unwrap();
    let machine = Machine::new(&kvm, &cpu, 2);
    for (id, vcpu) in (0..).zip(&machine.vcpus) {
        let given = cpuid::of_vcpu(vcpu).unwrap();
        let one = given.iter().find(|leaf| leaf.function == 1).unwrap();
        assert_eq!((one.ebx >> 24, one.ebx >> 16 & 0xff), (id, 2));
        // PVM shows leaves of the processor beside.
        let has = |leaf: &CpuidLeaf| {
            given.iter().any(|it| (it.function, it.index) == (leaf.function, leaf.index))
        };
        assert!(cpu.cpuid.iter().all(has));
    }
}

#[test]
fn a_machine_restored_from_its_sections_is_the_same_machine() {
    let Some(kvm) = kvm() else { return };
    let cpu = describe_cpu(&kvm, 2).unwrap();
    let source = Machine::new(&kvm, &cpu, 2);
    stir(&source);
    let saved = source.save(&cpu);
    assert_eq!(saved.vcpus[1].msr(0xc000_0082), Some(0x1_0200_0000));

    let wire: Vec<_> =
        saved.to_sections().unwrap().iter().map(|section| section.encode().unwrap()).collect();
    let read = wire.iter().map(|bytes| Section::decode(bytes).unwrap());
    let mut sections = SectionSet::new(read).unwrap();
    let loaded = MachineState::from_sections(&mut sections, 2).unwrap();
    sections.finish().unwrap();

    let destination = Machine::new(&kvm, &cpu, 2);
    restore_machine(&destination.vm, &destination.vcpus, &loaded).unwrap();
    let again = destination.save(&cpu);
    for (vcpu, (was, is)) in saved.vcpus.iter().zip(&again.vcpus).enumerate() {
        assert_eq!(was.without_time(), is.without_time(), "vCPU {vcpu}");
    }
    assert_eq!(saved.chips.without_time(), again.chips.without_time());
}

/// By how much clocks of one machine may differ over a second, each of another frequency.
const CLOCKS_DIFFER: Duration = Duration::from_millis(10);

#[test]
fn the_clocks_go_on_together_and_never_back() {
    let Some(kvm) = kvm() else { return };
    let cpu = describe_cpu(&kvm, 2).unwrap();
    let source = Machine::new(&kvm, &cpu, 2);
    let begun = Instant::now();
    let saved = source.save(&cpu);
    let paused = Instant::now();
    std::thread::sleep(Duration::from_millis(300));
    let destination = Machine::new(&kvm, &cpu, 2);
    let blackout = paused.elapsed();
    restore_machine(&destination.vm, &destination.vcpus, &saved).unwrap();
    let again = destination.save(&cpu);
    let all = begun.elapsed();

    let real = again.clock.realtime_ns - saved.clock.realtime_ns;
    let clock = again.clock.clock_ns - saved.clock.clock_ns;
    let ticks = again.vcpus[0].tsc.value - saved.vcpus[0].tsc.value;
    let tsc = ticks * 1_000_000 / u64::from(cpu.tsc_khz);
    // What is between the two instants for certain, and what may be: a busy machine takes long over
    // the calls.
    let gone = |ns| {
        let gone = Duration::from_nanos(ns);
        (blackout - CLOCKS_DIFFER..=all + CLOCKS_DIFFER).contains(&gone)
    };
    assert!(gone(real), "real time {real} ns, not {blackout:?} to {all:?}");
    assert!(gone(clock), "kvm-clock {clock} ns, not {blackout:?} to {all:?}");
    assert!(gone(tsc), "TSC {tsc} ns, not {blackout:?} to {all:?}");

    let apart = |state: &MachineState| {
        let offset = |vcpu: usize| state.vcpus[vcpu].tsc.offset;
        Some(offset(0)?.wrapping_sub(offset(1)?))
    };
    assert_eq!(apart(&again), apart(&saved), "the TSCs are as far apart as they were");
}

#[test]
fn a_machine_loaded_from_an_old_file_goes_on_where_it_was() {
    let Some(kvm) = kvm() else { return };
    let cpu = describe_cpu(&kvm, 1).unwrap();
    let mut saved = Machine::new(&kvm, &cpu, 1).save(&cpu);
    saved.clock.realtime_ns -= 7 * 86_400 * 1_000_000_000;
    let destination = Machine::new(&kvm, &cpu, 1);
    restore_machine(&destination.vm, &destination.vcpus, &saved).unwrap();
    let again = destination.save(&cpu);
    let clock = again.clock.clock_ns - saved.clock.clock_ns;
    let tsc = again.vcpus[0].tsc.value - saved.vcpus[0].tsc.value;
    // They went on from the restore, and not over the week.
    const HOUR_S: u64 = 3600;
    assert!(clock < HOUR_S * 1_000_000_000, "{clock} ns");
    assert!(tsc < HOUR_S * u64::from(cpu.tsc_khz) * 1_000, "{tsc} ticks");
}

#[test]
fn an_msr_value_that_this_host_refuses_is_named() {
    let Some(kvm) = kvm() else { return };
    let cpu = describe_cpu(&kvm, 1).unwrap();
    let mut saved = Machine::new(&kvm, &cpu, 1).save(&cpu);
    // No canonical address.
    saved.vcpus[0].set_msr(0xc000_0082, 1 << 63);
    let destination = Machine::new(&kvm, &cpu, 1);
    let error = restore_machine(&destination.vm, &destination.vcpus, &saved).unwrap_err();
    assert_eq!(error.to_string(), "cannot restore vCPU 0");
    let cause = error.source().unwrap().to_string();
    assert!(cause.contains("the value 0x8000000000000000 of LSTAR (MSR 0xc0000082)"), "{cause}");
}

#[test]
fn an_msr_that_does_not_exist_here_is_let_pass_only_if_it_held_nothing() {
    const NOWHERE: u32 = 0x0bad_cafe;
    let Some(kvm) = kvm() else { return };
    let cpu = describe_cpu(&kvm, 1).unwrap();
    let machine = Machine::new(&kvm, &cpu, 1);
    let value = |value| [MsrValue { index: NOWHERE, value }, MsrValue { index: 0x277, value: 6 }];
    msr::set(&machine.vcpus[0], &value(0)).unwrap();
    let pat = msr::get(&machine.vcpus[0], &[NOWHERE, 0x277]).unwrap();
    assert_eq!(pat, [MsrValue { index: 0x277, value: 6 }], "the next one is set all the same");
    let error = msr::set(&machine.vcpus[0], &value(1)).unwrap_err();
    assert!(matches!(error, MsrError::Refused { index: NOWHERE, value: 1 }), "{error}");
}

#[test]
fn a_machine_with_other_vcpus_is_refused() {
    let Some(kvm) = kvm() else { return };
    let cpu = describe_cpu(&kvm, 2).unwrap();
    let saved = Machine::new(&kvm, &cpu, 2).save(&cpu);
    let destination = Machine::new(&kvm, &cpu, 1);
    let error = restore_machine(&destination.vm, &destination.vcpus, &saved).unwrap_err();
    assert_eq!(error.to_string(), "the saved machine has 2 vCPUs and this one has 1");
}

/// Runs to the next port write and gives what was written.
fn next_out(vcpu: &mut VcpuFd) -> u8 {
    match vcpu.run().unwrap() {
        VcpuExit::IoOut(0x10, &[byte]) => byte,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_guest_that_moves_in_the_middle_of_its_program_goes_on_with_the_next_instruction() {
    let Some(kvm) = kvm() else { return };
    let cpu = describe_cpu(&kvm, 1).unwrap();
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
    // In real mode: 1: out 0x10, al; inc al; jmp 1b
    memory.write_slice(b"\xe6\x10\xfe\xc0\xeb\xfa", GuestAddress(0x1000)).unwrap();

    let mut source = Machine::new(&kvm, &cpu, 1);
    source.map(&memory);
    let mut sregs = source.vcpus[0].get_sregs().unwrap();
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    source.vcpus[0].set_sregs(&sregs).unwrap();
    let mut regs = source.vcpus[0].get_regs().unwrap();
    (regs.rip, regs.rax, regs.rflags) = (0x1000, 40, 2);
    source.vcpus[0].set_regs(&regs).unwrap();
    assert_eq!([next_out(&mut source.vcpus[0]), next_out(&mut source.vcpus[0])], [40, 41]);

    // The port write is complete only after another entry.
    source.vcpus[0].set_kvm_immediate_exit(1);
    assert_eq!(source.vcpus[0].run().unwrap_err().errno(), libc::EINTR);
    let saved = source.save(&cpu);
    drop(source);

    let mut destination = Machine::new(&kvm, &cpu, 1);
    destination.map(&memory);
    restore_machine(&destination.vm, &destination.vcpus, &saved).unwrap();
    assert_eq!(
        [next_out(&mut destination.vcpus[0]), next_out(&mut destination.vcpus[0])],
        [42, 43]
    );
}

#[test]
fn more_msrs_than_one_call_takes_are_read_and_written_around_those_that_are_refused() {
    const NOWHERE: u32 = 0x0bad_cafe;
    let Some(kvm) = kvm() else { return };
    let cpu = describe_cpu(&kvm, 1).unwrap();
    let machine = Machine::new(&kvm, &cpu, 1);
    let vcpu = &machine.vcpus[0];
    let (star, cstar) = (0xc000_0081, 0xc000_0083);
    let mut many = vec![star; 600];
    for at in [0, 127, 128, 255, 599] {
        many[at] = NOWHERE;
    }
    let values: Vec<_> =
        many.iter().map(|&index| MsrValue { index, value: u64::from(index == star) }).collect();
    msr::set(vcpu, &values).unwrap();
    msr::set(vcpu, &[values[0], MsrValue { index: cstar, value: 2 }]).unwrap();
    let read = msr::get(vcpu, &many).unwrap();
    assert_eq!(read, vec![MsrValue { index: star, value: 1 }; 595]);
    assert_eq!(msr::get(vcpu, &[cstar]).unwrap()[0].value, 2);
}

#[test]
fn page_directory_pointers_that_memory_no_longer_holds_move_with_the_guest() {
    let Some(kvm) = kvm() else { return };
    let cpu = describe_cpu(&kvm, 1).unwrap();
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
    let loaded = [0x3001_u64, 0x4001, 0x5001, 0x6001];
    memory.write_obj(loaded, GuestAddress(0x2000)).unwrap();
    let source = Machine::new(&kvm, &cpu, 1);
    source.map(&memory);
    let mut sregs = source.vcpus[0].get_sregs().unwrap();
    // Protected mode, paging, PAE; not long mode.
    (sregs.cr0, sregs.cr3, sregs.cr4) = (0x8000_0011, 0x2000, 0x20);
    source.vcpus[0].set_sregs(&sregs).unwrap();
    let saved = source.save(&cpu);
    let Some(pdptrs) = saved.vcpus[0].pdptrs() else {
        eprintln!("SKIPPED: this host's KVM does not tell page directory pointers");
        return;
    };
    assert_eq!(pdptrs, loaded);

    memory.write_obj([0x7001_u64; 4], GuestAddress(0x2000)).unwrap();
    let destination = Machine::new(&kvm, &cpu, 1);
    destination.map(&memory);
    restore_machine(&destination.vm, &destination.vcpus, &saved).unwrap();
    assert_eq!(destination.save(&cpu).vcpus[0].pdptrs(), Some(loaded));
}
