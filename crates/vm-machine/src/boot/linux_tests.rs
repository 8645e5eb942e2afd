use std::path::PathBuf;

use tempfile::TempDir;

use super::*;
use crate::layout;
use crate::memory::MemorySource;

const PREFERRED: u64 = 16 << 20;
const INIT_SIZE: u32 = 8 << 20;
const RSDP: u64 = 0xe_0000;
const MEMORY: u64 = 64 << 20;

/// A bzImage as far as a boot loader sees it: one setup sector behind the boot sector, then a
/// payload.
fn bzimage(change: impl FnOnce(&mut setup_header)) -> Vec<u8> {
    let mut header = setup_header {
        setup_sects: 1,
        boot_flag: BOOT_FLAG,
        jump: 0x6aeb,
        header: HEADER_MAGIC,
        version: 0x20f,
        loadflags: LOADED_HIGH,
        code32_start: 0x10_0000,
        initrd_addr_max: INITRD_MAX,
        kernel_alignment: 2 << 20,
        relocatable_kernel: 1,
        xloadflags: XLF_KERNEL_64,
        cmdline_size: 2047,
        pref_address: PREFERRED,
        init_size: INIT_SIZE,
        ..setup_header::default()
    };
    change(&mut header);
    let mut image = vec![0; 1024];
    let at = SETUP_HEADER as usize;
    image[at..at + size_of::<setup_header>()].copy_from_slice(header.as_slice());
    image.extend(PAYLOAD);
    image
}

const PAYLOAD: &[u8] = b"the compressed kernel";

struct Booted {
    memory: Memory,
    result: Result<u64, BootError>,
    _dir: TempDir,
}

fn boot(image: &[u8], initrd: Option<&[u8]>, line: &str, memory: u64) -> Booted {
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, bytes: &[u8]| -> PathBuf {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let image = put("vmlinuz", image);
    let initrd = initrd.map(|bytes| put("initrd.img", bytes));
    let memory = Memory::new(&layout::regions(Bytes(memory)), &MemorySource::default()).unwrap();
    let result = load(&image, initrd.as_deref(), line, &memory, RSDP);
    Booted { memory, result, _dir: dir }
}

fn zero_page(booted: &Booted) -> boot_params {
    let mut params = boot_params::default();
    let page = GuestAddress(ZERO_PAGE);
    booted.memory.mapped().read_slice(params.as_mut_slice(), page).unwrap();
    params
}

fn bytes_at(booted: &Booted, address: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    booted.memory.mapped().read_slice(&mut bytes, GuestAddress(address)).unwrap();
    bytes
}

fn refusal(booted: &Booted) -> String {
    booted.result.as_ref().unwrap_err().to_string()
}

#[test]
fn a_bzimage_is_loaded_where_it_prefers_and_entered_at_its_64_bit_entry() {
    let booted = boot(&bzimage(|_| {}), None, "console=ttyS0", MEMORY);
    assert_eq!(*booted.result.as_ref().unwrap(), PREFERRED + 0x200);
    assert_eq!(bytes_at(&booted, PREFERRED, PAYLOAD.len()), PAYLOAD);
}

#[test]
fn the_zero_page_tells_of_everything_that_the_kernel_needs() {
    let initrd = vec![0x5a; 10_000];
    let booted = boot(&bzimage(|_| {}), Some(&initrd), "console=ttyS0 quiet", MEMORY);
    let params = zero_page(&booted);
    let header = params.hdr;
    assert_eq!({ params.acpi_rsdp_addr }, RSDP);
    assert_eq!(params.sentinel, 0, "what is not set here is zero");
    assert_eq!(({ header.header }, { header.version }), (HEADER_MAGIC, 0x20f));
    assert_eq!((header.type_of_loader, { header.init_size }), (0xff, INIT_SIZE));
    let line = bytes_at(&booted, u64::from(header.cmd_line_ptr), 20);
    assert_eq!(line, b"console=ttyS0 quiet\0");

    let (place, size) = (u64::from(header.ramdisk_image), { header.ramdisk_size });
    assert_eq!((place % PAGE_SIZE, size), (0, 10_000));
    assert_eq!(place, MEMORY - 3 * PAGE_SIZE, "at the end of memory");
    assert_eq!(bytes_at(&booted, place, initrd.len()), initrd);

    let entries = params.e820_table;
    let entry = |at: usize| ({ entries[at].addr }, { entries[at].size }, { entries[at].r#type });
    assert_eq!(params.e820_entries, 4);
    assert_eq!(entry(0), (0, 0xa_0000, 1));
    assert_eq!(entry(1), (0xe_0000, 0x2_0000, 2));
    assert_eq!(entry(2), (0x10_0000, MEMORY - 0x10_0000, 1));
    assert_eq!(entry(3), (0xfffb_c000, 0x4000, 2));
}

#[test]
fn an_initrd_lies_below_what_the_kernel_reaches_and_beside_what_it_unpacks_to() {
    let to = PREFERRED + 12 * (1 << 20);
    let low = bzimage(|header| header.initrd_addr_max = to as u32 - 1);
    let booted = boot(&low, Some(&[1; 4 << 20]), "", MEMORY);
    let place = u64::from(zero_page(&booted).hdr.ramdisk_image);
    assert_eq!(place, PREFERRED + u64::from(INIT_SIZE));
    let text = refusal(&boot(&low, Some(&[1; (4 << 20) + 1]), "", MEMORY));
    assert!(text.contains("initrd.img") && text.contains("room for 4.0 MiB"), "{text}");
    assert_eq!(place_initrd(u64::MAX, 0, 1 << 30), Err(1 << 30));
    assert_eq!(place_initrd(1, 1 << 30, 1 << 20), Err(0));
    assert_eq!(place_initrd(1, 4097, 8192), Err(0));
    assert_eq!(place_initrd(0, 4096, 8192), Ok(8192));
}

#[test]
fn a_vmlinux_is_loaded_by_its_elf_headers_and_gets_a_header_of_its_own() {
    let booted = boot(vm_guest::IMAGE, Some(&[7; 5000]), "quiet", MEMORY);
    let entry = u64::from_le_bytes(vm_guest::IMAGE[24..32].try_into().unwrap());
    assert_eq!(*booted.result.as_ref().unwrap(), entry);
    let header = zero_page(&booted).hdr;
    assert_eq!(({ header.header }, { header.boot_flag }), (HEADER_MAGIC, BOOT_FLAG));
    assert_eq!(u64::from(header.ramdisk_image), MEMORY - 2 * PAGE_SIZE);
}

#[test]
fn a_kernel_that_cannot_start_here_is_refused_by_what_it_lacks() {
    let text = refusal(&boot(&bzimage(|_| {}), None, "", 20 << 20));
    assert!(text.contains("vmlinuz") && text.contains("24.0 MiB"), "{text}");
    for old in [
        bzimage(|header| header.version = 0x20b),
        bzimage(|header| header.xloadflags = 0),
        bzimage(|header| header.loadflags = 0),
        bzimage(|_| {})[..0x210].to_vec(),
    ] {
        let text = refusal(&boot(&old, None, "", MEMORY));
        assert!(text.contains("64-bit entry"), "{text}");
    }
    let low = bzimage(|header| header.pref_address = 0x1000);
    assert!(boot(&low, None, "", MEMORY).result.is_err(), "over our own tables");
    let wide = bzimage(|header| header.pref_address = u64::MAX - 1);
    assert!(boot(&wide, None, "", MEMORY).result.is_err());
    let long = "x".repeat(2048);
    let text = refusal(&boot(&bzimage(|_| {}), None, &long, MEMORY));
    assert!(text.contains("2048 bytes") && text.contains("2047"), "{text}");
}

#[test]
fn a_missing_initrd_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("vmlinuz");
    std::fs::write(&image, bzimage(|_| {})).unwrap();
    let memory = Memory::new(&layout::regions(Bytes(MEMORY)), &MemorySource::default()).unwrap();
    let missing = dir.path().join("no-such-initrd");
    let error = load(&image, Some(&missing), "", &memory, RSDP).unwrap_err().to_string();
    assert!(error.contains("initrd") && error.contains("no-such-initrd"), "{error}");
}
