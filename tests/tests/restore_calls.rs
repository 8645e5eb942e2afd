//! The calls by which an arriving guest gets its state, in their order. What of it a value cannot
//! show on every host (a TSC that the host does not let be set, a note that no guest asked for) is
//! seen here: the call is made.

use std::fs;
use std::process::{Command, Stdio};

use migpipe_tests::{Console, Guest, Host, needs_kvm, run, spec, wait};

/// What is called on one vCPU, and in which order; the reasons stand above `restore_vcpu`. A host
/// without offsets of TSCs takes the value of one by another KVM_SET_MSRS.
const VCPU: &[&str] = &[
    "KVM_SET_CPUID2",
    "KVM_GET_TSC_KHZ",
    "KVM_SET_SREGS",
    "KVM_SET_REGS",
    "KVM_SET_XSAVE",
    "KVM_SET_XCRS",
    "KVM_SET_DEBUGREGS",
    "KVM_SET_LAPIC",
    "KVM_SET_MSRS",
    OFFSET,
    "KVM_SET_MSRS",
    "KVM_SET_VCPU_EVENTS",
    "KVM_SET_MP_STATE",
    "KVM_KVMCLOCK_CTRL",
    "KVM_RUN",
];

const OFFSET: &str = "KVM_SET_DEVICE_ATTR";

/// What is called on the machine; the reasons stand above `restore_machine`.
const MACHINE: &[&str] =
    &["KVM_SET_PIT2", "KVM_SET_IRQCHIP", "KVM_SET_IRQCHIP", "KVM_SET_IRQCHIP", "KVM_SET_CLOCK"];

/// One ioctl: its file descriptor and its name.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Called {
    fd: u32,
    name: String,
}

/// From lines like `PID ioctl(16, KVM_RUN, 0) = 0`, up to the first entry into the guest.
fn calls_of(trace: &str) -> Vec<Called> {
    let mut calls = Vec::new();
    for line in trace.lines() {
        let Some((_, call)) = line.split_once("ioctl(") else { continue };
        let mut words = call.split([',', ')', ' ']).filter(|word| !word.is_empty());
        let Some(fd) = words.next().and_then(|fd| fd.parse().ok()) else { continue };
        let name = words.next().unwrap_or_default().to_owned();
        let is_last = name == "KVM_RUN";
        calls.push(Called { fd, name });
        if is_last {
            break;
        }
    }
    calls
}

/// Panics unless `wanted` are called on one descriptor in this order; others may come between.
/// Returns where in all calls the first and the last of them are.
fn in_order(calls: &[(usize, &Called)], wanted: &[&str]) -> (usize, usize) {
    let mut rest = calls.iter();
    let mut found = Vec::new();
    for name in wanted {
        match rest.find(|(_, call)| call.name == *name) {
            Some((at, _)) => found.push(*at),
            None => panic!("{name} is not called after the others: {calls:#?}"),
        }
    }
    (found[0], found[found.len() - 1])
}

#[test]
fn an_arriving_guest_gets_its_state_by_all_calls_in_their_order() {
    needs_kvm!();
    if Command::new("strace").arg("-V").stdout(Stdio::null()).status().is_err() {
        println!("SKIPPED the calls of a restore: there is no strace");
        return;
    }
    let host = Host::new();
    let mut a = Guest::boot(&host, "a", &spec(16, "100", 1), &["--mem", "32M", "--cpus", "2"]);
    let (trace, b) = (host.path("trace"), Console::at(&host.path("b.console")));
    let incoming = format!(
        "exec strace -f -e trace=ioctl -o {} vmrun --log=error --name b --incoming --console file:{}",
        trace.display(),
        b.path().display()
    );
    let mut waiting = host.shell(&incoming).spawn().unwrap();
    wait("a vmrun that waits", || host.state("b").as_deref() == Some("incoming"));
    run(host.command("mig-send").args(["-q", "a", "exec:mig-recv -q --vm b"])).expect(0);
    assert_eq!(a.ended(), Some(0));
    b.wait_ticks(2);
    host.run("vmctl", &["quit", "b"]).expect(0);
    assert!(migpipe_tests::wait_within(&mut waiting, migpipe_tests::HANG_TIMEOUT).success());

    let trace = fs::read_to_string(&trace).unwrap();
    let has_offsets = trace
        .lines()
        .any(|line| line.contains("KVM_GET_DEVICE_ATTR") && line.trim_end().ends_with("= 0"));
    let wanted: Vec<_> = match has_offsets {
        true => VCPU.to_vec(),
        false => {
            VCPU.iter().map(|call| if *call == OFFSET { "KVM_SET_MSRS" } else { call }).collect()
        }
    };
    let calls = calls_of(&trace);
    let on = |fd: u32| -> Vec<_> {
        calls.iter().enumerate().filter(|(_, call)| call.fd == fd).collect()
    };
    let first = calls.last().expect("the guest was entered").fd;
    // The one that is entered first has all its calls; the other lacks the entry at most.
    let clock = calls.iter().find(|call| call.name == "KVM_SET_CLOCK").expect("the clock is set");
    let (chips, clock) = in_order(&on(clock.fd), MACHINE);
    let mut vcpus: Vec<_> =
        calls.iter().filter(|call| call.name == "KVM_KVMCLOCK_CTRL").map(|call| call.fd).collect();
    vcpus.sort_unstable();
    assert_eq!(vcpus.len(), 2, "each vCPU is told once: {vcpus:?}");
    for fd in vcpus {
        let entry = wanted.len() - usize::from(fd != first);
        in_order(&on(fd), &wanted[..entry]);
        let (_, state) = in_order(&on(fd), &wanted[..wanted.len() - 2]);
        let (told, _) = in_order(&on(fd), &["KVM_KVMCLOCK_CTRL"]);
        assert!(state < chips, "the chips deliver to local APICs that have their state");
        assert!(clock < told, "the note goes out with the clock");
    }
}
