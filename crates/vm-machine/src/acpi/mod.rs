//! The ACPI tables by which a kernel learns what its machine consists of (ACPI 6.5).
//!
//! The machine has no ACPI hardware (HW_REDUCED_ACPI): no PM timer, no SCI, no legacy devices. What
//! there is: local APICs and one IOAPIC (MADT), the serial port and the virtio-mmio devices (DSDT),
//! and the ports that switch it off and reset it (FADT and `_S5`).
//!
//! The tables lie one behind the other from [`crate::layout::ACPI`] on, RSDP first: a kernel is told
//! its address, and one that is not finds it there by its search through the firmware's memory.
#![forbid(unsafe_code)]

mod dsdt;
mod fixed;

#[cfg(test)]
mod tests;

use acpi_tables::Aml;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;
use page_bitmap::TrackedMemory;
use thiserror::Error;
use vm_devices::MmioWindow;
use vm_memory::{Bytes, GuestAddress};

use crate::layout::ACPI;

/// Who made the tables.
const OEM: [u8; 6] = *b"VMRUN ";
/// Which tables of theirs.
const OEM_TABLE: [u8; 8] = *b"MIGPIPE ";
/// In which revision.
const OEM_REVISION: u32 = 1;

/// Local APIC ids are 8 bits in the MADT's entries, and 255 means all of them.
pub(crate) const MOST_VCPUS: u32 = 255;

/// Why a machine cannot be described by ACPI.
#[derive(Debug, Error)]
pub enum AcpiError {
    /// More vCPUs than the tables can name.
    #[error(
        "a guest that finds its vCPUs by ACPI can have {MOST_VCPUS} of them, not {0}; use fewer"
    )]
    TooManyVcpus(u32),
    /// The tables do not fit the firmware's memory.
    #[error(
        "the ACPI tables of {devices} devices have {bytes} bytes and do not fit the 64 KiB set apart for them; use fewer devices"
    )]
    TooLarge {
        /// How many bytes they have.
        bytes: usize,
        /// How many virtio devices they describe.
        devices: usize,
    },
    /// There is no memory where they belong.
    #[error("the guest has no memory below 1 MiB for its ACPI tables; give it 16M at least")]
    NoMemory,
}

/// Writes the tables of a machine with `vcpus` vCPUs, whose APIC ids are 0 and up, and these
/// virtio-mmio devices. Returns the guest-physical address of the RSDP.
pub(crate) fn write(
    memory: &TrackedMemory,
    vcpus: u32,
    windows: &[MmioWindow],
) -> Result<u64, AcpiError> {
    if vcpus > MOST_VCPUS {
        return Err(AcpiError::TooManyVcpus(vcpus));
    }
    let image = image(ACPI.start, vcpus, windows);
    if image.len() as u64 > ACPI.end - ACPI.start {
        return Err(AcpiError::TooLarge { bytes: image.len(), devices: windows.len() });
    }
    memory.write_slice(&image, GuestAddress(ACPI.start)).map_err(|_| AcpiError::NoMemory)?;
    Ok(ACPI.start)
}

/// All tables as they are from `base` on.
fn image(base: u64, vcpus: u32, windows: &[MmioWindow]) -> Vec<u8> {
    let mut tables = Tables { base, bytes: vec![0; Rsdp::len()] };
    let dsdt = tables.add(&dsdt::table(windows));
    let fadt = tables.add(&fixed::fadt(dsdt));
    let madt = tables.add(&fixed::madt(vcpus));
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = tables.add(&xsdt);
    let rsdp = bytes_of(&Rsdp::new(OEM, xsdt));
    tables.bytes[..rsdp.len()].copy_from_slice(&rsdp);
    tables.bytes
}

struct Tables {
    base: u64,
    bytes: Vec<u8>,
}

impl Tables {
    /// How tables are aligned. The specification wants 16 of the RSDP alone; whole cache lines keep
    /// a dump of them readable.
    const ALIGN: usize = 64;

    /// Puts a table behind the others and says where it is.
    fn add(&mut self, table: &dyn Aml) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(Self::ALIGN), 0);
        let address = self.base + self.bytes.len() as u64;
        table.to_aml_bytes(&mut self.bytes);
        address
    }
}

fn bytes_of(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}
