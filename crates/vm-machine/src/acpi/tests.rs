use std::path::Path;
use std::process::Command;

use migpipe_units::Bytes as Size;

use super::*;
use crate::layout;
use crate::memory::{Memory, MemorySource};

const BASE: u64 = 0xe_0000;

fn windows(count: u32) -> Vec<MmioWindow> {
    (0..count)
        .map(|number| MmioWindow {
            base: 0xd000_0000 + 0x1000 * u64::from(number),
            len: 0x1000,
            gsi: 5 + number,
        })
        .collect()
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// The table at a guest-physical address, after a look at its signature and its sum.
fn table<'a>(image: &'a [u8], address: u64, signature: &[u8; 4]) -> &'a [u8] {
    let table = &image[(address - BASE) as usize..];
    let length = u32::from_le_bytes(table[4..8].try_into().unwrap()) as usize;
    assert_eq!(&table[..4], signature);
    assert_eq!(sum(&table[..length]), 0, "{signature:?}");
    &table[..length]
}

/// DSDT, FADT, MADT as a kernel finds them.
fn found(image: &[u8]) -> [&[u8]; 3] {
    assert_eq!(&image[..8], b"RSD PTR ");
    assert_eq!(image[15], 2, "revision");
    assert_eq!(sum(&image[..20]), 0, "the checksum of ACPI 1.0");
    assert_eq!(sum(&image[..36]), 0, "the extended checksum");
    let xsdt = table(image, u64_at(image, 24), b"XSDT");
    let fadt = table(image, u64_at(xsdt, 36), b"FACP");
    let madt = table(image, u64_at(xsdt, 44), b"APIC");
    assert_eq!(xsdt.len(), 52);
    [table(image, u64_at(fadt, 140), b"DSDT"), fadt, madt]
}

#[test]
fn a_kernel_finds_every_table_from_the_rsdp_on_and_every_sum_is_right() {
    for (vcpus, devices) in [(1, 0), (2, 3), (64, 19), (255, 19)] {
        found(&image(BASE, vcpus, &windows(devices)));
    }
}

#[test]
fn the_fadt_says_hardware_reduced_and_names_the_power_ports() {
    let image = image(BASE, 1, &[]);
    let [_, fadt, _] = found(&image);
    assert_eq!(fadt.len(), 276);
    let flags = u32::from_le_bytes(fadt[112..116].try_into().unwrap());
    assert_eq!(flags & (1 << 20 | 1 << 10), 1 << 20 | 1 << 10, "HW_REDUCED, RESET_REG_SUP");
    let boot_arch = u16::from_le_bytes(fadt[109..111].try_into().unwrap());
    assert_eq!(boot_arch & 0b11, 0, "no legacy devices, no 8042");
    assert_ne!(boot_arch & 1 << 5, 0, "no CMOS clock");
    let register = |at: usize| (fadt[at], fadt[at + 1], u64_at(fadt, at + 4));
    assert_eq!(register(116), (1, 8, 0x602), "RESET_REG");
    assert_eq!(fadt[128], 1, "RESET_VALUE");
    assert_eq!(register(244), (1, 8, 0x600), "SLEEP_CONTROL_REG");
    assert_eq!(register(256), (1, 8, 0x601), "SLEEP_STATUS_REG");
}

#[test]
fn the_madt_has_one_enabled_local_apic_per_vcpu_and_the_ioapic() {
    let image = image(BASE, 3, &[]);
    let [_, _, madt] = found(&image);
    assert_eq!(madt[36..40], 0xfee0_0000_u32.to_le_bytes());
    let entries = &madt[44..];
    for id in 0..3 {
        assert_eq!(entries[id * 8..][..8], [0, 8, id as u8, id as u8, 1, 0, 0, 0]);
    }
    assert_eq!(entries[24..], [1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]);
}

#[test]
fn more_vcpus_than_apic_ids_are_refused_and_the_most_of_all_fit() {
    let memory = Memory::new(&layout::regions(Size(16 << 20)), &MemorySource::default()).unwrap();
    let write = |vcpus, devices| write(memory.mapped(), vcpus, &windows(devices));
    assert_eq!(write(255, 19).unwrap(), ACPI.start);
    assert!(matches!(write(256, 0), Err(AcpiError::TooManyVcpus(256))));
    assert!(matches!(write(1, 4000), Err(AcpiError::TooLarge { devices: 4000, .. })));
    let small = Memory::new(&layout::regions(Size(512 << 10)), &MemorySource::default()).unwrap();
    assert!(matches!(super::write(small.mapped(), 1, &[]), Err(AcpiError::NoMemory)));
}

/// Runs iasl in `dir` and returns what it printed.
fn iasl(dir: &Path, arguments: &[&str]) -> String {
    let run = Command::new("iasl").args(arguments).current_dir(dir).output().unwrap();
    let text = [run.stdout, run.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(run.status.success(), "{text}");
    text
}

#[test]
fn intels_compiler_reads_all_tables_and_finds_nothing_wrong() {
    let name = "intels_compiler_reads_all_tables_and_finds_nothing_wrong";
    if Command::new("iasl").arg("-v").output().is_err() {
        eprintln!("SKIPPED {name}: no iasl here; apt-get install acpica-tools");
        return;
    }
    let image = image(BASE, 2, &windows(3));
    let dir = tempfile::tempdir().unwrap();
    for (name, table) in ["dsdt", "facp", "apic"].into_iter().zip(found(&image)) {
        std::fs::write(dir.path().join(format!("{name}.aml")), table).unwrap();
        iasl(dir.path(), &["-d", &format!("{name}.aml")]);
    }
    let source = std::fs::read_to_string(dir.path().join("dsdt.dsl")).unwrap();
    for wanted in [
        "Name (_S5, Package (0x04)",
        "EisaId (\"PNP0501\")",
        "Device (V002)",
        "\"LNRO0005\"",
        "0x00000000D0002FFF, // Range Maximum",
        "Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive",
    ] {
        assert!(source.contains(wanted), "{wanted} is not in:\n{source}");
    }
    let text = iasl(dir.path(), &["-p", "again", "dsdt.dsl"]);
    assert!(text.contains("0 Errors, 0 Warnings"), "{text}");
}
