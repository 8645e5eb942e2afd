//! What kind of kernel a file is.
#![forbid(unsafe_code)]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use vm_state::{KernelKind, MachineDescription};

use super::error::BootError;
use super::kernel::Kernel;

/// Is there where KVM is PVM.
const PVM: &str = "/sys/module/kvm_pvm";

/// Where a bzImage has "HdrS" (Linux, Documentation/arch/x86/boot.rst).
const BZIMAGE_MAGIC_AT: u64 = 0x202;
const BZIMAGE_MAGIC: &[u8] = b"HdrS";

const ELF_MAGIC: &[u8] = b"\x7fELF\x02\x01";
/// Bytes of an ELF header and of a program header, with 64 bits.
const ELF_HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
/// e_type of a relocatable file, which kernel modules are.
const ET_REL: u16 = 1;
/// p_type of notes.
const PT_NOTE: u32 = 4;
/// Who owns the notes that every Linux kernel has since 4.18 (LINUX_ELFNOTE_BUILD_SALT).
const LINUX_OWNER: &[u8] = b"Linux\0";

/// No kernel has more program headers or notes than this; of one that has, the rest is not looked
/// at.
const MOST_HEADERS: u16 = 64;
const MOST_NOTES: u64 = 64 << 10;

impl Kernel {
    /// The kernel that the file `image` is: Linux if it is a bzImage, or an ELF file with notes of
    /// Linux in it; otherwise it is taken for an ELF file with a PVH note, and booting it says if it
    /// is none.
    ///
    /// # Errors
    /// [`BootError`] if the file cannot be read, or `initrd` is given to what is not Linux.
    pub fn from_file(image: PathBuf, initrd: Option<PathBuf>) -> Result<Self, BootError> {
        let read = File::open(&image).and_then(|file| is_linux(&file));
        match read {
            Ok(true) => Ok(Self::Linux { image, initrd }),
            Ok(false) if initrd.is_some() => Err(BootError::InitrdWithoutLinux(image)),
            Ok(false) => Ok(Self::Elf(image)),
            Err(source) => Err(BootError::Read { what: "kernel", path: image, source }),
        }
    }

    /// Says why this kernel cannot run on this host, if that is known beforehand.
    ///
    /// # Errors
    /// [`BootError::PvmHost`] for Linux on a host whose KVM is PVM.
    pub fn check_host(&self) -> Result<(), BootError> {
        self.check_host_with(Path::new(PVM))
    }

    /// What a machine description says of it.
    pub(crate) const fn kind(&self) -> KernelKind {
        match self {
            Self::Builtin(_) => KernelKind::Builtin,
            Self::Elf(_) => KernelKind::Pvh,
            Self::Linux { .. } => KernelKind::Linux,
        }
    }

    fn check_host_with(&self, pvm: &Path) -> Result<(), BootError> {
        match self {
            Self::Linux { image, .. } if pvm.exists() => Err(BootError::PvmHost(image.clone())),
            _ => Ok(()),
        }
    }
}

/// Says why an arriving guest cannot run on this host, if its description shows it. Otherwise it
/// would be seen only once it runs, on neither host any more.
pub(crate) fn check_arriving(description: &MachineDescription) -> Result<(), BootError> {
    check_arriving_with(description, Path::new(PVM))
}

fn check_arriving_with(description: &MachineDescription, pvm: &Path) -> Result<(), BootError> {
    match description.kernel {
        KernelKind::Linux if pvm.exists() => {
            Err(BootError::ArrivesAtPvmHost(description.name.clone()))
        }
        _ => Ok(()),
    }
}

/// Reads as much of `len` bytes as there are.
fn read_some(file: &File, at: u64, len: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    let mut done = 0;
    while done < len {
        match file.read_at(&mut bytes[done..], at.saturating_add(done as u64))? {
            0 => break,
            more => done += more,
        }
    }
    bytes.truncate(done);
    Ok(bytes)
}

pub(super) fn is_bzimage(file: &File) -> std::io::Result<bool> {
    Ok(read_some(file, BZIMAGE_MAGIC_AT, BZIMAGE_MAGIC.len())? == BZIMAGE_MAGIC)
}

fn is_linux(file: &File) -> std::io::Result<bool> {
    Ok(is_bzimage(file)? || is_vmlinux(file)?)
}

fn is_vmlinux(file: &File) -> std::io::Result<bool> {
    let header = read_some(file, 0, ELF_HEADER)?;
    if header.len() < ELF_HEADER || !header.starts_with(ELF_MAGIC) || u16_at(&header, 16) == ET_REL
    {
        return Ok(false);
    }
    let table = u64_at(&header, 32);
    for number in 0..u16_at(&header, 56).min(MOST_HEADERS) {
        let at = table.saturating_add(u64::from(number) * PROGRAM_HEADER as u64);
        let program = read_some(file, at, PROGRAM_HEADER)?;
        if program.len() < PROGRAM_HEADER || u32_at(&program, 0) != PT_NOTE {
            continue;
        }
        let (offset, bytes) = (u64_at(&program, 8), u64_at(&program, 32).min(MOST_NOTES));
        if has_note_of_linux(&read_some(file, offset, bytes as usize)?) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Notes: sizes of name and descriptor, type, name, descriptor; the last two padded to 4 bytes.
fn has_note_of_linux(mut notes: &[u8]) -> bool {
    const NOTE_HEADER: usize = 12;
    while notes.len() >= NOTE_HEADER {
        let padded = |at| (u32_at(notes, at) as usize).saturating_add(3) & !3;
        let next = NOTE_HEADER.saturating_add(padded(0)).saturating_add(padded(4));
        let name = &notes[NOTE_HEADER..];
        if u32_at(notes, 0) as usize == LINUX_OWNER.len() && name.starts_with(LINUX_OWNER) {
            return true;
        }
        notes = notes.get(next..).unwrap_or_default();
    }
    false
}

// The callers have looked at the length.
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vm_state::CpuDescription;

    use super::*;

    fn detected(bytes: &[u8], initrd: Option<&str>) -> Result<Kernel, BootError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kernel");
        std::fs::write(&path, bytes).unwrap();
        Kernel::from_file(path, initrd.map(PathBuf::from))
    }

    /// The built-in guest with the owner of its note changed.
    fn image_of(owner: &[u8; 8]) -> Vec<u8> {
        let mut image = vm_guest::IMAGE.to_vec();
        let note = image.windows(4).position(|bytes| bytes == b"Xen\0").unwrap();
        let length = owner.iter().position(|&byte| byte == 0).unwrap() as u32 + 1;
        image[note - 12..note - 8].copy_from_slice(&length.to_le_bytes());
        image[note..note + 8].copy_from_slice(owner);
        image
    }

    #[test]
    fn a_bzimage_and_a_vmlinux_are_linux_and_what_has_a_pvh_note_is_not() {
        let mut bzimage = vec![0; 0x1000];
        bzimage[0x202..0x206].copy_from_slice(b"HdrS");
        assert!(matches!(detected(&bzimage, Some("i")), Ok(Kernel::Linux { initrd: Some(_), .. })));
        let vmlinux = image_of(b"Linux\0\0\0");
        assert!(matches!(detected(&vmlinux, None), Ok(Kernel::Linux { initrd: None, .. })));
        assert!(matches!(detected(vm_guest::IMAGE, None), Ok(Kernel::Elf(_))));
        let mut module = vmlinux;
        module[16] = 1;
        assert!(matches!(detected(&module, None), Ok(Kernel::Elf(_))));
    }

    #[test]
    fn an_initrd_for_what_is_not_linux_is_refused() {
        let refused = detected(vm_guest::IMAGE, Some("initrd"));
        assert!(matches!(refused, Err(BootError::InitrdWithoutLinux(_))));
    }

    #[test]
    fn linux_is_refused_on_pvm_before_anything_else_and_the_builtin_guest_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let linux = Kernel::Linux { image: "vmlinuz".into(), initrd: None };
        let text = linux.check_host_with(dir.path()).unwrap_err().to_string();
        assert!(text.contains("vmlinuz") && text.contains("PVM") && !text.contains('\n'), "{text}");
        linux.check_host_with(&dir.path().join("absent")).unwrap();
        Kernel::Elf("guest.elf".into()).check_host_with(dir.path()).unwrap();
    }

    #[test]
    fn a_linux_guest_is_refused_where_it_arrives_on_pvm_and_no_other_is() {
        let dir = tempfile::tempdir().unwrap();
        let arriving = |kernel| MachineDescription {
            name: "web".to_owned(),
            vcpus: 1,
            memory: Vec::new(),
            hugetlb: false,
            cpu: CpuDescription::default(),
            devices: Vec::new(),
            kernel,
            boot: None,
        };
        let text = check_arriving_with(&arriving(KernelKind::Linux), dir.path()).unwrap_err();
        let text = text.to_string();
        assert!(text.contains("guest web") && text.contains("PVM"), "{text}");
        let elsewhere = dir.path().join("absent");
        check_arriving_with(&arriving(KernelKind::Linux), &elsewhere).unwrap();
        for kernel in [KernelKind::Unknown, KernelKind::Builtin, KernelKind::Pvh] {
            check_arriving_with(&arriving(kernel), dir.path()).unwrap();
        }
    }

    proptest! {
        #[test]
        fn no_file_makes_detection_panic(
            tail in proptest::collection::vec(any::<u8>(), 0..300),
            at in 0_usize..200,
            change in any::<u64>(),
        ) {
            let mut image = image_of(b"Linux\0\0\0");
            image[at..at + 8].copy_from_slice(&change.to_le_bytes());
            let _ = detected(&image, None);
            let _ = detected(&[ELF_MAGIC, &tail].concat(), None);
            has_note_of_linux(&tail);
        }
    }
}
