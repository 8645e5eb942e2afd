//! Every piece of the state of a machine, one at a time: it is given a value that it does not have
//! after reset, saved, sent through its sections, restored into a new machine, and read there by
//! the call that tells it, past all that saves.
//!
//! A host that refuses a value, or forgets it at once, cannot show whether it is restored: such a
//! row is printed as SKIPPED with its name.

mod chips;
mod events;
mod registers;
mod row;
mod time;

use kvm_ioctls::{Kvm, VcpuExit};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vm_state::{CpuDescription, Section, SectionSet};

use self::row::{Expected, HOUR_S, Row, SHARED, set_msr};
use super::tests::describe_cpu;
use super::tests::{Machine, kvm};
use super::{MachineState, restore_machine};

/// Two, since what the second holds after reset is not what the first does.
const VCPUS: u32 = 2;

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
    let mut rows = registers::register_rows();
    rows.extend(registers::msr_rows());
    rows.extend(events::event_rows());
    rows.extend(chips::chip_rows());
    rows.extend(time::time_rows());
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
