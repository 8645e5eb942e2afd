//! What goes wrong is seen: damaged memory by the guest itself, a guest that cannot run on and a
//! kernel that cannot be booted by the machine.

mod common;

use std::path::Path;

use common::{Guest, HANG_TIMEOUT, has_kvm};
use migpipe_units::Bytes;
use vm_devices::ConsoleSpec;
use vm_machine::{
    Kernel, Machine, MachineConfig, MachineError, MachineEvent, MemorySource, Wanted,
};
use vm_memory::{Bytes as _, GuestAddress};

/// Pauses the guest, changes one byte of its memory, and returns the error that it prints.
fn damage(spec: &str, place: impl FnOnce(&Guest) -> u64) -> (u64, String) {
    let dir = tempfile::tempdir().unwrap();
    let mut guest = Guest::boot(dir.path(), spec, "64M", 2);
    guest.machine.resume().unwrap();
    guest.wait_until_ready();
    guest.wait_for_ticks(2);
    guest.machine.pause().unwrap();
    let place = place(&guest);
    let byte: u8 = guest.machine.memory().read_obj(GuestAddress(place)).unwrap();
    guest.machine.memory().write_obj(byte ^ 1, GuestAddress(place)).unwrap();
    guest.machine.resume().unwrap();
    let error = |guest: &Guest| {
        guest.text().lines().find(|line| line.starts_with("ERROR")).map(str::to_owned)
    };
    guest.wait_for("ERROR line", |guest| error(guest).is_some());
    (place, error(&guest).unwrap())
}

#[test]
fn a_single_wrong_bit_in_filled_memory_is_found_and_named() {
    if !has_kvm("a_single_wrong_bit_in_filled_memory_is_found_and_named") {
        return;
    }
    for fill in ["random", "zero", "pattern"] {
        let spec = format!("builtin:dirty,pages=10,fill={fill},fill-mb=8");
        let (place, error) =
            damage(&spec, |guest| (guest.ready("fill-gfn") + 1234) * 4096 + 8 * 77 + 3);
        assert!(error.contains(&format!("page {:#x}:", place / 4096)), "{error}");
        assert!(error.contains("filled page 1234, word 77"), "{error}");
    }
}

#[test]
fn a_hot_page_that_stayed_behind_is_found_and_named() {
    if !has_kvm("a_hot_page_that_stayed_behind_is_found_and_named") {
        return;
    }
    // A stamp could be written anew right after the damage, if the pause had fallen into its visit:
    // so the guest sleeps most of the time there. Of the other words each visit checks one.
    let (slow, fast) = ("rate=1000", "rate=max");
    for (word, rate) in [(0, slow), (1, slow), (511, slow), (300, fast)] {
        let spec = &format!("builtin:dirty,pages=100,{rate},fill-mb=1");
        let (place, error) = damage(spec, |guest| (guest.ready("hot-gfn") + 7) * 4096 + 8 * word);
        assert!(error.contains(&format!("page {:#x}:", place / 4096)), "{error}");
        assert!(error.contains(&format!("hot page 7, word {word}")), "{error}");
    }
}

#[test]
fn a_guest_that_cannot_run_on_is_told_of_with_the_place() {
    if !has_kvm("a_guest_that_cannot_run_on_is_told_of_with_the_place") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut guest = Guest::boot(dir.path(), "builtin:idle", "16M", 1);
    let entry = u64::from_le_bytes(vm_guest::IMAGE[24..32].try_into().unwrap());
    // UD2, without anybody to handle it.
    guest.machine.memory().write_slice(&[0x0f, 0x0b], GuestAddress(entry)).unwrap();
    let events = guest.machine.events();
    guest.machine.resume().unwrap();
    match events.recv_timeout(HANG_TIMEOUT).unwrap() {
        MachineEvent::Failed(text) => {
            assert!(text.starts_with("vCPU 0 ") && text.contains("rip 0x"), "{text}");
        }
        other => panic!("{other:?}"),
    }
    guest.wait_for("stop", |guest| !guest.machine.is_running());
    assert!(matches!(guest.machine.resume(), Err(MachineError::Ended(_))));
}

fn boot(kernel: Kernel, console: &Path, cmdline: &str, mem: Bytes) -> Result<Machine, String> {
    let config = MachineConfig {
        name: "test".to_owned(),
        kernel,
        cmdline: cmdline.to_owned(),
        mem,
        cpus: 1,
        cpu: Wanted::default(),
        console: ConsoleSpec::File(console.to_owned()),
        memory: MemorySource::default(),
        devices: Vec::new(),
    };
    Machine::boot(&config).map_err(|error| error.to_string())
}

#[test]
fn an_elf_file_with_a_pvh_note_boots_with_its_command_line() {
    if !has_kvm("an_elf_file_with_a_pvh_note_boots_with_its_command_line") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (kernel, console) = (dir.path().join("kernel"), dir.path().join("console"));
    std::fs::write(&kernel, vm_guest::IMAGE).unwrap();
    let line = "pages=3 rate=10 fill-mb=1 tsc-khz=1000000 run-ticks=2 tick-ms=5";
    let mut machine = boot(Kernel::Elf(kernel), &console, line, Bytes(16 << 20)).unwrap();
    let events = machine.events();
    machine.resume().unwrap();
    assert_eq!(events.recv_timeout(HANG_TIMEOUT).unwrap(), MachineEvent::PowerOff);
    machine.quit();
    let text = std::fs::read_to_string(&console).unwrap();
    assert!(text.starts_with("ready pages 3 fill-pages 256 cpus 1 "), "{text}");
    assert!(text.trim_end().lines().last().unwrap().starts_with("done ticks 2 "), "{text}");
}

#[test]
fn a_kernel_that_cannot_be_booted_is_refused_by_name() {
    if !has_kvm("a_kernel_that_cannot_be_booted_is_refused_by_name") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (kernel, console) = (dir.path().join("vmlinux"), dir.path().join("console"));
    let refusal = |mem, cmdline: &str| {
        boot(Kernel::Elf(kernel.clone()), &console, cmdline, mem).err().expect("it is refused")
    };
    let mem = Bytes(16 << 20);
    let text = refusal(mem, "");
    assert!(text.contains("cannot read kernel") && text.contains("vmlinux"), "{text}");

    std::fs::write(&kernel, "#!/bin/sh\n".repeat(100)).unwrap();
    let text = refusal(mem, "");
    assert!(text.contains("no ELF file"), "{text}");

    let note = vm_guest::IMAGE.windows(4).position(|bytes| bytes == b"Xen\0").unwrap();
    let mut image = vm_guest::IMAGE.to_vec();
    image[note..note + 3].copy_from_slice(b"GNU");
    std::fs::write(&kernel, &image).unwrap();
    let text = refusal(mem, "");
    assert!(text.contains("no PVH note"), "{text}");

    std::fs::write(&kernel, vm_guest::IMAGE).unwrap();
    let text = refusal(Bytes(1 << 20), "");
    assert!(text.contains("1.0 MiB"), "{text}");
    let text = refusal(Bytes((16 << 20) + 1), "");
    assert!(text.contains("16777217"), "{text}");
    let text = refusal(mem, &"x".repeat(70_000));
    assert!(text.contains("70000 bytes"), "{text}");
    let text = refusal(mem, "a\0b");
    assert!(text.contains("zero byte"), "{text}");

    let spec = "builtin:dirty,fill-mb=64".parse().unwrap();
    let text = boot(Kernel::Builtin(spec), &console, "", Bytes(64 << 20)).err().unwrap();
    assert!(text.contains("fill-mb") && text.contains("64.0 MiB"), "{text}");
}

#[test]
fn huge_pages_are_used_or_their_lack_is_named() {
    if !has_kvm("huge_pages_are_used_or_their_lack_is_named") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let console = dir.path().join("console");
    let config = |mem| MachineConfig {
        name: "test".to_owned(),
        kernel: Kernel::Builtin("builtin:dirty,pages=64,rate=max,fill-mb=8".parse().unwrap()),
        cmdline: String::new(),
        mem,
        cpus: 1,
        cpu: Wanted::default(),
        console: common::console(&console),
        memory: MemorySource::HugeTlb,
        devices: Vec::new(),
    };
    let text = Machine::boot(&config(Bytes((32 << 20) + 4096))).err().unwrap().to_string();
    assert!(text.contains("2097152 bytes"), "{text}");
    match Machine::boot(&config(Bytes(32 << 20))) {
        Ok(machine) => {
            assert!(machine.describe().hugetlb);
            let mut guest = Guest { machine, console: console.clone() };
            guest.machine.resume().unwrap();
            guest.wait_until_ready();
            guest.wait_for_ticks(2);
        }
        Err(error) => {
            let text = error.to_string();
            assert!(text.contains("huge pages"), "{text}");
        }
    }
}
