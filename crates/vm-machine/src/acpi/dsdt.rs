//! The DSDT: devices that no bus can tell of, and how the machine is switched off.

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Name, Package, Path,
    ResourceTemplate, Scope,
};
use acpi_tables::sdt::Sdt;
use vm_devices::{MmioWindow, PowerPorts, SERIAL_IRQ, SERIAL_PORTS};

use super::{OEM, OEM_REVISION, OEM_TABLE, bytes_of};

/// Bytes of the header that all tables have.
const HEADER: u32 = 36;
/// From revision 2 on, integers have 64 bits.
const REVISION: u8 = 2;

pub(super) fn table(windows: &[MmioWindow]) -> Sdt {
    let mut body = sleep();
    body.extend(serial());
    for (number, window) in windows.iter().enumerate() {
        body.extend(virtio(number, window));
    }
    let mut dsdt = Sdt::new(*b"DSDT", HEADER, REVISION, OEM, OEM_TABLE, OEM_REVISION);
    dsdt.append_slice(&body);
    dsdt
}

/// `_S5` names the sleep type that means off; it is the only sleep there is.
fn sleep() -> Vec<u8> {
    let zero = 0_u8;
    let package = Package::new(vec![&PowerPorts::S5, &zero, &zero, &zero]);
    bytes_of(&Name::new(Path::new("_S5_"), &package))
}

fn interrupt(gsi: u32) -> Interrupt {
    let (consumer, edge, active_low, shared) = (true, true, false, false);
    Interrupt::new(consumer, edge, active_low, shared, gsi)
}

/// A device below `\\_SB`, with what it is, which one of them, and what it needs.
fn device(name: &str, hid: &dyn Aml, uid: usize, resources: Vec<&dyn Aml>) -> Vec<u8> {
    let hid = Name::new(Path::new("_HID"), hid);
    let uid = Name::new(Path::new("_UID"), &uid);
    let crs = Name::new(Path::new("_CRS"), &ResourceTemplate::new(resources));
    let device = Device::new(Path::new(name), vec![&hid, &uid, &crs]);
    bytes_of(&Scope::new(Path::new("\\_SB_"), vec![&device]))
}

/// Linux asks for the interrupt here: without legacy devices it does not take COM1's for granted.
fn serial() -> Vec<u8> {
    let first = SERIAL_PORTS.start;
    let ports = IO::new(first, first, 1, (SERIAL_PORTS.end - first) as u8);
    device("COM1", &EISAName::new("PNP0501"), 0, vec![&ports, &interrupt(SERIAL_IRQ)])
}

/// LNRO0005 is what Linux's virtio_mmio answers to.
fn virtio(number: usize, window: &MmioWindow) -> Vec<u8> {
    let last = window.base.saturating_add(window.len.saturating_sub(1));
    let cacheable = AddressSpaceCacheable::NotCacheable;
    let registers = AddressSpace::<u64>::new_memory(cacheable, true, window.base, last, None);
    let name = format!("V{number:03X}");
    device(&name, &"LNRO0005", number, vec![&registers, &interrupt(window.gsi)])
}
