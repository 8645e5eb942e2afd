//! What a host says beforehand of a guest that might come is what it would say when it comes.

mod common;

use std::fs;

use common::{Guest, has_kvm, serial_console};
use migpipe_units::{Finding, Pages};
use vm_machine::{Host, IncomingConfig, Machine, examine};
use vm_state::MachineDescription;

/// Host, description, and what is said of it; that is as an attempt to take it ends.
fn said(description: &MachineDescription, here: &IncomingConfig) -> Vec<Finding> {
    let host = Host::probe().unwrap();
    let findings = examine(description, here, &host);
    let bad: Vec<_> = findings.iter().filter(|finding| finding.in_the_way).collect();
    match Machine::incoming(description, here, &host) {
        Ok(_) => assert!(bad.is_empty(), "{bad:?}"),
        Err(error) => assert!(!bad.is_empty(), "nothing is in the way, and yet: {error}"),
    }
    findings
}

fn bad(findings: &[Finding]) -> Vec<&str> {
    let bad = findings.iter().filter(|finding| finding.in_the_way);
    bad.map(|finding| finding.subject.as_str()).collect()
}

#[test]
fn everything_that_is_in_the_way_is_found_at_once_and_nothing_is_made() {
    if !has_kvm("everything_that_is_in_the_way_is_found_at_once_and_nothing_is_made") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let guest = Guest::boot(dir.path(), "builtin:idle", "16M", 1);
    let good = guest.machine.describe();
    let console = dir.path().join("there");
    let here =
        IncomingConfig { overrides: vec![serial_console(&console)], ..IncomingConfig::default() };
    let host = Host::probe().unwrap();
    assert_eq!(bad(&examine(&good, &here, &host)), [""; 0]);
    assert!(!console.exists(), "the console of a guest that does not come");
    assert_eq!(bad(&said(&good, &here)), [""; 0]);

    let mut worse = good.clone();
    worse.vcpus = 100_000;
    worse.memory[0].pages = Pages(1 << 34);
    for leaf in worse.cpu.cpuid.iter_mut().filter(|leaf| leaf.function == 7 && leaf.index == 0) {
        (leaf.ebx, leaf.ecx) = (u32::MAX, u32::MAX);
    }
    let nowhere =
        IncomingConfig { overrides: vec![serial_console(&console.join("x"))], ..here.clone() };
    let findings = said(&worse, &nowhere);
    let subjects = bad(&findings);
    for subject in ["processor", "vCPUs", "memory", "serial serial0"] {
        assert!(subjects.contains(&subject), "{subject}: {findings:?}");
    }
    let processor = findings.iter().find(|finding| finding.subject == "processor").unwrap();
    assert!(processor.text.contains("CPU features"), "{processor:?}");
    // Each alone.
    let vcpus = MachineDescription { vcpus: 100_000, ..good.clone() };
    assert_eq!(bad(&said(&vcpus, &here)), ["vCPUs"]);
    assert_eq!(bad(&said(&good, &nowhere)), ["serial serial0"]);
    let mut unknown = good.clone();
    unknown.devices[0].kind = "tape".to_owned();
    assert_eq!(bad(&said(&unknown, &here)), ["devices"]);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "the two consoles");
}
