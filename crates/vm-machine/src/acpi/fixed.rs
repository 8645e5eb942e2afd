//! The tables that are the same for every machine but for its number of vCPUs.

use acpi_tables::fadt::{FADT, FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use vm_devices::PowerPorts;

use super::{OEM, OEM_REVISION, OEM_TABLE};
use crate::layout::{IOAPIC, LOCAL_APIC};

/// IAPC_BOOT_ARCH (ACPI 6.5, table 5.11): there is no VGA to probe for, no ASPM, no CMOS clock; and
/// by bits that are not set no 8042 and no other legacy device.
const VGA_NOT_PRESENT: u16 = 1 << 2;
const ASPM_NOT_SUPPORTED: u16 = 1 << 4;
const CMOS_RTC_NOT_PRESENT: u16 = 1 << 5;

fn port(number: u16) -> GAS {
    GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, number.into())
}

pub(super) fn fadt(dsdt: u64) -> FADT {
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::Wbinvd)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless)
        // The two buttons are no fixed hardware.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.iapc_boot_arch = (VGA_NOT_PRESENT | ASPM_NOT_SUPPORTED | CMOS_RTC_NOT_PRESENT).into();
    fadt.reset_reg = port(PowerPorts::RESET);
    fadt.reset_value = PowerPorts::RESET_VALUE;
    fadt.sleep_control_reg = port(PowerPorts::SLEEP_CONTROL);
    fadt.sleep_status_reg = port(PowerPorts::SLEEP_STATUS);
    fadt.finalize()
}

/// The APIC id of a vCPU is its number, and so is its place here.
pub(super) fn madt(vcpus: u32) -> MADT {
    let local = LocalInterruptController::Address(LOCAL_APIC as u32);
    let mut madt = MADT::new(OEM, OEM_TABLE, OEM_REVISION, local);
    for id in 0..vcpus.min(super::MOST_VCPUS) as u8 {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    // No interrupt source overrides: KVM leads each GSI to the IOAPIC's pin of the same number, edge
    // triggered and active high, which is what an ISA interrupt is without one.
    madt.add_structure(IoApic::new(0, IOAPIC as u32, 0));
    madt
}
