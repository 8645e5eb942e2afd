//! Disks of a machine on real KVM: who holds their images, and that they move with the guest.

mod common;

use std::path::Path;

use common::{Guest, console, has_kvm, serial_console};
use vm_machine::{
    Host, IncomingConfig, Kernel, Machine, MachineConfig, MachineError, MemorySource, VirtioSpec,
    Wanted,
};
use vm_state::DeviceParam;

const SPEC: &str = "builtin:dirty,pages=64,rate=1000,fill=random,fill-mb=1";

fn image(path: &Path) -> VirtioSpec {
    std::fs::write(path, vec![0x5a; 1 << 20]).unwrap();
    VirtioSpec::disk(path.to_str().unwrap(), 0).unwrap()
}

fn config(dir: &Path, devices: Vec<VirtioSpec>) -> MachineConfig {
    MachineConfig {
        name: "test".to_owned(),
        kernel: Kernel::Builtin(SPEC.parse().unwrap()),
        cmdline: String::new(),
        mem: "32M".parse().unwrap(),
        cpus: 1,
        cpu: Wanted::default(),
        console: console(&dir.join("console")),
        memory: MemorySource::default(),
        devices,
    }
}

fn boot(dir: &Path, devices: Vec<VirtioSpec>) -> Result<Machine, MachineError> {
    Machine::boot(&config(dir, devices))
}

/// The error of something that must fail, as one line with its causes.
fn refusal<T>(result: Result<T, MachineError>) -> String {
    match result {
        Ok(_) => panic!("it was not refused"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn an_image_that_a_guest_runs_on_is_refused_to_a_second_by_name() {
    if !has_kvm("an_image_that_a_guest_runs_on_is_refused_to_a_second_by_name") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let disk = image(&dir.path().join("web.raw"));
    let first = boot(dir.path(), vec![disk.clone()]).unwrap();
    let text = refusal(boot(dir.path(), vec![disk.clone()]));
    assert!(text.contains("web.raw") && text.contains("locked"), "{text}");
    first.quit();
    boot(dir.path(), vec![disk]).unwrap();
}

#[test]
fn two_disks_of_one_name_are_refused() {
    if !has_kvm("two_disks_of_one_name_are_refused") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let disks = vec![image(&dir.path().join("a")), image(&dir.path().join("b"))];
    let text = refusal(boot(dir.path(), disks));
    assert!(text.contains("block disk0"), "{text}");
}

#[test]
fn a_disk_moves_with_its_guest_and_its_lock_goes_over_at_the_handover() {
    if !has_kvm("a_disk_moves_with_its_guest_and_its_lock_goes_over_at_the_handover") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let disk = image(&dir.path().join("web.raw"));
    let machine = boot(dir.path(), vec![disk]).unwrap();
    let mut source = Guest { machine, console: dir.path().join("console") };
    source.machine.resume().unwrap();
    source.wait_until_ready();
    assert!(source.machine.release_disks().is_err(), "not while it runs");
    let mut destination = source.destination(dir.path());
    source.machine.pause().unwrap();
    let sections = source.machine.save().unwrap();
    assert!(sections.iter().any(|section| section.name == "virtio-block"));
    source.copy_memory_to(&destination);
    destination.machine.load(sections).unwrap();

    let text = refusal(destination.machine.resume());
    assert!(text.contains("web.raw"), "{text}");
    assert!(!destination.machine.is_running(), "two guests never run on one image");
    source.machine.release_disks().unwrap();
    destination.machine.resume().unwrap();
    assert!(refusal(source.machine.resume()).contains("web.raw"), "the other way round too");
    let ticks = destination.ticks().len();
    destination.wait_for("tick", |guest| guest.ticks().len() > ticks);
}

#[test]
fn a_destination_names_its_own_path_for_a_disk_and_one_that_is_not_there_is_refused() {
    let test = "a_destination_names_its_own_path_for_a_disk_and_one_that_is_not_there_is_refused";
    if !has_kvm(test) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let description = boot(dir.path(), vec![image(&dir.path().join("here"))]).unwrap().describe();
    image(&dir.path().join("there"));
    let incoming = |id: &str, path: &str| {
        let disk = DeviceParam {
            kind: "block".to_owned(),
            id: id.to_owned(),
            name: "path".to_owned(),
            value: dir.path().join(path).to_str().unwrap().to_owned(),
        };
        let console = serial_console(&dir.path().join("console-there"));
        let overrides = vec![console, disk];
        let here = IncomingConfig { overrides, ..IncomingConfig::default() };
        Machine::incoming(&description, &here, &Host::probe().unwrap())
    };
    let machine = incoming("disk0", "there").unwrap();
    assert!(machine.describe().devices[1].params["path"].ends_with("there"));
    let text = refusal(incoming("disk0", "nowhere"));
    assert!(text.contains("nowhere"), "{text}");
    assert!(refusal(incoming("disk7", "there")).contains("'disk7'"));
}
