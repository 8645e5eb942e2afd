//! Linux by its 64-bit boot protocol (Linux, Documentation/arch/x86/boot.rst): a bzImage or an
//! uncompressed vmlinux, its initial RAM disk, and the zero page that tells it of both.
#![forbid(unsafe_code)]

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::bootparam::{
    LOADED_HIGH, XLF_KERNEL_64, boot_e820_entry, boot_params, setup_header,
};
use linux_loader::loader::elf::Elf;
use linux_loader::loader::{BzImage, KernelLoader};
use migpipe_units::{Bytes, PAGE_SIZE};
use vm_memory::{ByteValued, Bytes as _, GuestAddress};

use super::{BootError, command_line, detect, long_mode, map};
use crate::layout::{COMMAND_LINE, LEGACY_HOLE, ZERO_PAGE};
use crate::memory::Memory;

/// Where a bzImage has its setup header, and the zero page its copy.
const SETUP_HEADER: u64 = 0x1f1;
/// "HdrS" and the flag of a boot sector.
const HEADER_MAGIC: u32 = 0x5372_6448;
const BOOT_FLAG: u16 = 0xaa55;
/// The protocol's version that brought the 64-bit entry.
const VERSION_64_BIT: u16 = 0x20c;
/// The entry is so far behind the beginning of what is loaded.
const ENTRY_64_BIT: u64 = 0x200;
/// type_of_loader of a boot loader without a number of its own.
const LOADER_UNKNOWN: u8 = 0xff;
/// How high an initial RAM disk may reach for a kernel that does not say.
const INITRD_MAX: u32 = 0x7fff_ffff;
/// The longest command line (COMMAND_LINE_SIZE less the zero) of a kernel that does not say.
const COMMAND_LINE_SIZE: u32 = 2047;

/// A kernel in memory.
struct Loaded {
    entry: u64,
    /// What the kernel writes to before it looks at the memory map.
    taken: Range<u64>,
    header: setup_header,
}

/// Puts the kernel, its initial RAM disk, its command line and everything that it starts with into
/// memory. Returns the address of its 64-bit entry.
pub(super) fn load(
    image: &Path,
    initrd: Option<&Path>,
    line: &str,
    memory: &Memory,
    rsdp: u64,
) -> Result<u64, BootError> {
    let file = File::open(image).map_err(|source| unreadable("kernel", image, source))?;
    let name = image.display().to_string();
    let bzimage = detect::is_bzimage(&file).map_err(|e| unreadable("kernel", image, e))?;
    let mut kernel = if bzimage {
        load_bzimage(&name, file, memory)?
    } else {
        load_vmlinux(&name, file, memory)?
    };
    let most = kernel.header.cmdline_size as usize;
    command_line::write(memory, line, most)?;
    if let Some(path) = initrd {
        let (start, bytes) = load_initrd(path, memory, &kernel)?;
        kernel.header.ramdisk_image = start;
        kernel.header.ramdisk_size = bytes;
    }
    kernel.header.type_of_loader = LOADER_UNKNOWN;
    kernel.header.cmd_line_ptr = COMMAND_LINE as u32;
    write_zero_page(memory, kernel.header, rsdp)?;
    long_mode::write(memory)?;
    Ok(kernel.entry)
}

fn unreadable(what: &'static str, path: &Path, source: std::io::Error) -> BootError {
    BootError::Read { what, path: path.to_owned(), source }
}

/// The end of the memory that begins at 0.
fn low_memory(memory: &Memory) -> u64 {
    memory.regions().first().map_or(0, |region| region.base.address() + region.pages.bytes().0)
}

/// Says whether memory is there for what the kernel takes, before anything is written to it.
fn check_room(kernel: &str, taken: &Range<u64>, memory: &Memory) -> Result<(), BootError> {
    let has = low_memory(memory);
    if taken.end > has || taken.start < LEGACY_HOLE.end {
        let (needed, has) = (Bytes(taken.end), Bytes(has));
        return Err(BootError::LinuxMemory { kernel: kernel.to_owned(), needed, has });
    }
    Ok(())
}

/// Loads it where it would unpack itself if it did not choose at random: there it has `init_size`
/// bytes to work in. The kernel moves itself on if it wants to.
fn load_bzimage(name: &str, mut file: File, memory: &Memory) -> Result<Loaded, BootError> {
    let not_64_bit = || BootError::Not64Bit(name.to_owned());
    let mut header = setup_header::default();
    file.read_exact_at(header.as_mut_slice(), SETUP_HEADER).map_err(|_| not_64_bit())?;
    let loaded_high = header.loadflags & LOADED_HIGH != 0;
    if header.version < VERSION_64_BIT || header.xloadflags & XLF_KERNEL_64 == 0 || !loaded_high {
        return Err(not_64_bit());
    }
    let start = header.pref_address;
    let taken = start..start.saturating_add(header.init_size.into());
    check_room(name, &taken, memory)?;
    let loaded = BzImage::load(memory.mapped(), Some(GuestAddress(start)), &mut file, None)
        .map_err(|source| BootError::BzImage { kernel: name.to_owned(), source })?;
    let header = loaded.setup_header.unwrap_or(header);
    let taken = start..taken.end.max(loaded.kernel_end);
    Ok(Loaded { entry: start + ENTRY_64_BIT, taken, header })
}

/// An ELF file has no setup header, so that it gets one; its entry is the 64-bit one.
fn load_vmlinux(name: &str, mut file: File, memory: &Memory) -> Result<Loaded, BootError> {
    let size = memory.regions().iter().map(|region| region.pages.bytes()).sum();
    let loaded = Elf::load(memory.mapped(), None, &mut file, None)
        .map_err(|source| BootError::Load { kernel: name.to_owned(), memory: size, source })?;
    let taken = LEGACY_HOLE.end..loaded.kernel_end;
    check_room(name, &taken, memory)?;
    let header = setup_header {
        boot_flag: BOOT_FLAG,
        header: HEADER_MAGIC,
        version: VERSION_64_BIT,
        loadflags: LOADED_HIGH,
        initrd_addr_max: INITRD_MAX,
        cmdline_size: COMMAND_LINE_SIZE,
        kernel_alignment: 2 << 20,
        xloadflags: XLF_KERNEL_64,
        ..setup_header::default()
    };
    Ok(Loaded { entry: loaded.kernel_load.0, taken, header })
}

/// Loads it as high as the kernel reaches, so that nothing lies behind it that the kernel would have
/// to unpack around. Returns its address and its length.
fn load_initrd(path: &Path, memory: &Memory, kernel: &Loaded) -> Result<(u32, u32), BootError> {
    let file = File::open(path).map_err(|source| unreadable("initrd", path, source))?;
    let bytes = file.metadata().map_err(|source| unreadable("initrd", path, source))?.len();
    let reach = u64::from(kernel.header.initrd_addr_max) + 1;
    let place =
        place_initrd(bytes, kernel.taken.end, low_memory(memory).min(reach)).map_err(|room| {
            BootError::InitrdTooLarge {
                path: path.to_owned(),
                bytes: Bytes(bytes),
                room: Bytes(room),
            }
        })?;
    memory
        .mapped()
        .read_exact_volatile_from(GuestAddress(place.into()), &mut &file, bytes as usize)
        .map_err(|source| unreadable("initrd", path, std::io::Error::other(source)))?;
    Ok((place, bytes as u32))
}

/// The highest page in `from..to` from which `bytes` fit; if there is none, how many would.
fn place_initrd(bytes: u64, from: u64, to: u64) -> Result<u32, u64> {
    let room = to.saturating_sub(from.next_multiple_of(PAGE_SIZE));
    let start = to.saturating_sub(bytes) / PAGE_SIZE * PAGE_SIZE;
    match u32::try_from(start) {
        Ok(start) if bytes <= room && u64::from(start) >= from => Ok(start),
        _ => Err(room),
    }
}

fn write_zero_page(memory: &Memory, header: setup_header, rsdp: u64) -> Result<(), BootError> {
    let mut params = boot_params { hdr: header, acpi_rsdp_addr: rsdp, ..boot_params::default() };
    let map = map::of(memory.regions());
    // A map has an entry or two per region, of which there are two: 128 are not reached.
    for (entry, (range, kind)) in params.e820_table.iter_mut().zip(&map) {
        let (addr, size) = (range.start, range.end - range.start);
        *entry = boot_e820_entry { addr, size, r#type: *kind as u32 };
    }
    params.e820_entries = map.len().min(params.e820_table.len()) as u8;
    let params = BootParams::new(&params, GuestAddress(ZERO_PAGE));
    LinuxBootConfigurator::write_bootparams(&params, memory.mapped())
        .map_err(|_| BootError::TooLittleMemory)
}

#[cfg(test)]
#[path = "linux_tests.rs"]
mod tests;
