//! What is about to happen to a vCPU: exceptions, interrupts, NMIs, SIPIs, SMIs.

use kvm_bindings::{
    KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_SHADOW, KVM_VCPUEVENT_VALID_SIPI_VECTOR,
    KVM_VCPUEVENT_VALID_SMM, kvm_vcpu_events,
};
use zerocopy::IntoBytes;

use super::row::{Row, row};
use crate::arch::tests::Machine;

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

pub(super) fn event_rows() -> Vec<Row> {
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
