//! What a guest is: everything a destination must know to build the same machine.

use std::collections::BTreeMap;
use std::fmt;

use migpipe_units::limits::MAX_DESCRIPTION;
use migpipe_units::{MemoryRegion, Pages, RegionId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The version that [`MachineDescription::encode`] writes. Versions 1 to 4 lacked
/// [`MachineDescription::boot`], 1 to 3 [`CpuDescription::arch_capabilities`], 1 and 2 had the memory
/// as well, and 1 did not say which kernel the guest booted.
const VERSION: u16 = 5;

/// Everything a destination must know to build the same machine. It travels in the header of a
/// stream, so that a host which cannot take the guest says so before the first page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineDescription {
    /// The name of the guest on its source.
    pub name: String,
    /// How many vCPUs the guest has; their ids are 0 to `vcpus` - 1.
    pub vcpus: u32,
    /// Guest memory, in address order.
    pub memory: Vec<MemoryRegion>,
    /// Whether the memory is backed by hugetlbfs.
    pub hugetlb: bool,
    /// The processor that the guest was given.
    pub cpu: CpuDescription,
    /// The devices in the order in which they are saved and loaded.
    pub devices: Vec<DeviceDescription>,
    /// What it booted.
    pub kernel: KernelKind,
    /// How it was booted; nothing if it was saved by a release that did not say.
    pub boot: Option<Box<BootDescription>>,
}

/// How a guest was booted, beside what its devices, its memory and its number of vCPUs say: what it
/// takes to boot it once more. The guest that arrives is not made of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootDescription {
    /// A built-in guest (`builtin:...`), or the absolute path of a kernel.
    pub kernel: String,
    /// The absolute path of its initial RAM disk.
    pub initrd: Option<String>,
    /// Its command line.
    pub cmdline: String,
    /// The processor that was asked for, as vmrun's command line has it; a file in it has an absolute
    /// path.
    pub cpu: String,
    /// Whether its memory was to be in pages of 4 KiB.
    pub small_pages: bool,
}

/// What a guest booted, as far as it decides which hosts can run it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum KernelKind {
    /// It was saved by a release that did not say.
    #[default]
    Unknown,
    /// The built-in guest.
    Builtin,
    /// A kernel with a PVH note: a test guest or a unikernel.
    Pvh,
    /// Linux, which needs all that a processor has.
    Linux,
}

impl fmt::Display for KernelKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "not said",
            Self::Builtin => "built-in guest",
            Self::Pvh => "ELF with a PVH note",
            Self::Linux => "Linux",
        })
    }
}

/// The description as version 1 had it.
#[derive(Deserialize)]
struct Version1 {
    name: String,
    vcpus: u32,
    memory: Vec<MemoryRegion>,
    hugetlb: bool,
    cpu: CpuVersion1,
    devices: Vec<DeviceDescription>,
}

impl From<Version1> for MachineDescription {
    fn from(old: Version1) -> Self {
        let Version1 { name, vcpus, memory, hugetlb, cpu, devices } = old;
        let kernel = KernelKind::Unknown;
        Self { name, vcpus, memory, hugetlb, cpu: cpu.into(), devices, kernel, boot: None }
    }
}

/// The description as version 2 had it.
#[derive(Deserialize)]
struct Version2 {
    name: String,
    vcpus: u32,
    memory: Vec<MemoryRegion>,
    hugetlb: bool,
    cpu: CpuVersion1,
    devices: Vec<DeviceDescription>,
    kernel: KernelKind,
}

impl From<Version2> for MachineDescription {
    fn from(old: Version2) -> Self {
        let Version2 { name, vcpus, memory, hugetlb, cpu, devices, kernel } = old;
        Self { name, vcpus, memory, hugetlb, cpu: cpu.into(), devices, kernel, boot: None }
    }
}

/// The processor as versions 1 to 3 had it.
#[derive(Deserialize)]
struct CpuVersion1 {
    cpuid: Vec<CpuidLeaf>,
    xsave_components: u64,
    xsave_bytes: u32,
    msrs: Vec<u32>,
    tsc_khz: u32,
}

impl From<CpuVersion1> for CpuDescription {
    fn from(old: CpuVersion1) -> Self {
        let CpuVersion1 { cpuid, xsave_components, xsave_bytes, msrs, tsc_khz } = old;
        let arch_capabilities = None;
        Self { cpuid, xsave_components, xsave_bytes, msrs, tsc_khz, arch_capabilities }
    }
}

/// The description as versions 3 to 5 have it: without the memory, which stands beside it. They
/// differ in the processor, and version 5 has [`MachineDescription::boot`] behind it.
#[derive(Serialize, Deserialize)]
struct WithoutMemory<Name, Cpu, Devices> {
    name: Name,
    vcpus: u32,
    hugetlb: bool,
    cpu: Cpu,
    devices: Devices,
    kernel: KernelKind,
}

impl<Cpu: Into<CpuDescription>> WithoutMemory<String, Cpu, Vec<DeviceDescription>> {
    fn with(self, memory: &[MemoryRegion]) -> MachineDescription {
        let Self { name, vcpus, hugetlb, cpu, devices, kernel } = self;
        let (memory, cpu) = (memory.to_vec(), cpu.into());
        MachineDescription { name, vcpus, memory, hugetlb, cpu, devices, kernel, boot: None }
    }
}

/// The processor that a guest sees, as far as a host must have it too.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuDescription {
    /// Every CPUID leaf that the guest was given (KVM API, KVM_SET_CPUID2); the APIC ids in it
    /// are those of vCPU 0.
    pub cpuid: Vec<CpuidLeaf>,
    /// The XSAVE components that the guest may enable (XCR0 bits).
    pub xsave_components: u64,
    /// Size of one vCPU's XSAVE area in bytes.
    pub xsave_bytes: u32,
    /// The MSRs whose values are part of the saved state.
    pub msrs: Vec<u32>,
    /// The frequency of the guest's TSC in kHz.
    pub tsc_khz: u32,
    /// IA32_ARCH_CAPABILITIES as the guest reads it: 0 where it has no such MSR, `None` where it
    /// was saved by a release that did not say.
    pub arch_capabilities: Option<u64>,
}

/// One CPUID leaf (KVM API, struct kvm_cpuid_entry2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuidLeaf {
    /// EAX on input.
    pub function: u32,
    /// ECX on input, where it counts.
    pub index: u32,
    /// KVM_CPUID_FLAG_*.
    pub flags: u32,
    /// EAX on output.
    pub eax: u32,
    /// EBX on output.
    pub ebx: u32,
    /// ECX on output.
    pub ecx: u32,
    /// EDX on output.
    pub edx: u32,
}

/// One device of the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceDescription {
    /// What it is: `serial`, `block`, `net`.
    pub kind: String,
    /// Which one of its kind, as the command line names it.
    pub id: String,
    /// The version of the section that it saves.
    pub section_version: u16,
    /// What else the command line said of it, such as `path` or `tap`; a destination may replace
    /// what belongs to the host.
    pub params: BTreeMap<String, String>,
}

impl DeviceDescription {
    /// What the balloon is called: the one kind that changes how the guest's memory is read.
    pub const BALLOON: &str = "balloon";
}

/// A parameter of a device that is another on this host than its description says, such as the path
/// of a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceParam {
    /// The kind of the device, as the description has it.
    pub kind: String,
    /// Its id.
    pub id: String,
    /// The parameter.
    pub name: String,
    /// Its value here.
    pub value: String,
}

/// What a host can give to a guest, held against a [`CpuDescription`] by [`crate::compat`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostCapabilities {
    /// KVM_GET_SUPPORTED_CPUID.
    pub cpuid: Vec<CpuidLeaf>,
    /// The XSAVE components that the host can save and restore (XCR0 bits).
    pub xsave_components: u64,
    /// Every MSR that the host can get and set.
    pub msrs: Vec<u32>,
    /// IA32_ARCH_CAPABILITIES as KVM gives it to a new guest; 0 where there is none.
    pub arch_capabilities: u64,
    /// The frequency of the host's TSC in kHz.
    pub tsc_khz: u32,
    /// Whether the host can run a guest with another TSC frequency than its own
    /// (KVM_CAP_TSC_CONTROL).
    pub tsc_scaling: bool,
}

/// Why bytes are not a machine description.
#[derive(Debug, Error)]
pub enum DescriptionError {
    /// It was written by a newer release.
    #[error("machine description has version {found}; this program reads up to {VERSION}")]
    Newer {
        /// The version that the bytes carry.
        found: u16,
    },
    /// Versions begin with 1.
    #[error("machine description has version 0, which there never was")]
    NoVersion,
    /// It is longer than any real one.
    #[error("machine description of {0} bytes; at most {MAX_DESCRIPTION} are read")]
    TooLong(usize),
    /// It does not decode, or bytes are left over.
    #[error("machine description is damaged")]
    Damaged(#[source] postcard::Error),
    /// It decodes, with something behind it.
    #[error("machine description has {0} bytes too many")]
    LeftOver(usize),
    /// It has memory in it, and another than stands beside it.
    #[error("the memory in the machine description is not the guest's")]
    OtherMemory,
}

/// What these bytes are, all of them.
fn whole<T: DeserializeOwned>(body: &[u8]) -> Result<T, DescriptionError> {
    match postcard::take_from_bytes(body).map_err(DescriptionError::Damaged)? {
        (value, []) => Ok(value),
        (_, rest) => Err(DescriptionError::LeftOver(rest.len())),
    }
}

impl MachineDescription {
    /// All of the description but the memory as bytes: version (u16, little-endian), then postcard.
    ///
    /// # Errors
    /// [`DescriptionError::Damaged`] if a field cannot be encoded.
    pub fn encode(&self) -> Result<Vec<u8>, DescriptionError> {
        let Self { name, vcpus, memory: _, hugetlb, cpu, devices, kernel, boot } = self;
        let (vcpus, hugetlb, kernel) = (*vcpus, *hugetlb, *kernel);
        let body = WithoutMemory { name, vcpus, hugetlb, cpu, devices, kernel };
        postcard::to_extend(&(body, boot), VERSION.to_le_bytes().to_vec())
            .map_err(DescriptionError::Damaged)
    }

    /// Reads what [`Self::encode`] wrote, of a guest that has this memory.
    ///
    /// # Errors
    /// One of [`DescriptionError`] for any other bytes; never panics.
    pub fn decode(bytes: &[u8], memory: &[MemoryRegion]) -> Result<Self, DescriptionError> {
        if bytes.len() > MAX_DESCRIPTION {
            return Err(DescriptionError::TooLong(bytes.len()));
        }
        let Some((version, body)) = bytes.split_first_chunk() else {
            return Err(DescriptionError::Damaged(postcard::Error::DeserializeUnexpectedEnd));
        };
        let description = match u16::from_le_bytes(*version) {
            0 => return Err(DescriptionError::NoVersion),
            1 => whole::<Version1>(body)?.into(),
            2 => whole::<Version2>(body)?.into(),
            3 => whole::<WithoutMemory<_, CpuVersion1, _>>(body)?.with(memory),
            4 => whole::<WithoutMemory<_, CpuDescription, _>>(body)?.with(memory),
            VERSION => {
                let (body, boot) = whole::<(WithoutMemory<_, CpuDescription, _>, _)>(body)?;
                MachineDescription { boot, ..body.with(memory) }
            }
            found => return Err(DescriptionError::Newer { found }),
        };
        if description.memory != memory {
            return Err(DescriptionError::OtherMemory);
        }
        Ok(description)
    }

    /// Whether a page that the guest has written may be given back to the host while the guest
    /// runs: it is zeros then and need not exist.
    pub fn gives_memory_back(&self) -> bool {
        self.devices.iter().any(|device| device.kind == DeviceDescription::BALLOON)
    }

    /// The regions of its memory and their lengths, in the order of their numbers.
    pub fn region_pages(&self) -> impl Iterator<Item = (RegionId, Pages)> + Clone + '_ {
        self.memory.iter().map(|region| (region.id, region.pages))
    }

    /// How many pages of memory the guest has.
    pub fn pages(&self) -> Pages {
        self.memory.iter().map(|region| region.pages).sum()
    }
}

#[cfg(test)]
mod tests {
    use migpipe_units::Gfn;

    use super::*;

    fn golden(kernel: KernelKind) -> MachineDescription {
        let leaf = CpuidLeaf { function: 7, index: 1, flags: 1, eax: 2, ebx: 3, ecx: 4, edx: 5 };
        MachineDescription {
            name: "web".to_owned(),
            vcpus: 2,
            memory: vec![MemoryRegion { id: RegionId(0), base: Gfn(0), pages: Pages(4096) }],
            hugetlb: false,
            cpu: CpuDescription {
                cpuid: vec![leaf],
                xsave_components: 7,
                xsave_bytes: 832,
                msrs: vec![0x10, 0x174],
                tsc_khz: 2_400_000,
                arch_capabilities: None,
            },
            devices: vec![DeviceDescription {
                kind: "block".to_owned(),
                id: "root".to_owned(),
                section_version: 1,
                params: BTreeMap::from([("path".to_owned(), "web.raw".to_owned())]),
            }],
            kernel,
            boot: None,
        }
    }

    const V1: &[u8] = include_bytes!("../tests/golden/description-1.bin");
    const V2: &[u8] = include_bytes!("../tests/golden/description-2.bin");

    #[test]
    fn memory_that_an_old_description_has_must_be_the_guests() {
        for bytes in [V1, V2] {
            let other = MachineDescription::decode(bytes, &[]).unwrap_err();
            assert!(matches!(other, DescriptionError::OtherMemory), "{other}");
        }
    }

    #[test]
    fn every_version_of_a_description_that_was_released_is_read() {
        let linux = golden(KernelKind::Linux);
        let v3 = include_bytes!("../tests/golden/description-3.bin");
        let v4 = include_bytes!("../tests/golden/description-4.bin");
        let decode = |bytes| MachineDescription::decode(bytes, &linux.memory).unwrap();
        assert_eq!(decode(V1), golden(KernelKind::Unknown));
        assert_eq!(decode(V2), linux);
        assert_eq!(decode(v3), linux);
        let mut now = linux.clone();
        now.cpu.arch_capabilities = Some(0x0c08_e0eb);
        assert_eq!(decode(v4), now);
        now.boot = Some(Box::new(BootDescription {
            kernel: "/boot/vmlinuz".to_owned(),
            initrd: Some("/boot/initrd.img".to_owned()),
            cmdline: "console=ttyS0 root=/dev/vda1".to_owned(),
            cpu: "x86-64-v3,-rdrand".to_owned(),
            small_pages: true,
        }));
        let v5 = include_bytes!("../tests/golden/description-5.bin");
        assert_eq!(decode(v5), now);
        assert_eq!(now.encode().unwrap(), v5);
    }

    #[test]
    fn the_longest_description_is_read_and_one_byte_more_is_not() {
        let of = |bytes| MachineDescription::decode(&vec![0; bytes], &[]).unwrap_err();
        assert!(matches!(of(MAX_DESCRIPTION), DescriptionError::NoVersion));
        assert!(
            matches!(of(MAX_DESCRIPTION + 1), DescriptionError::TooLong(it) if it == MAX_DESCRIPTION + 1)
        );
    }

    #[test]
    fn a_guest_gives_memory_back_if_it_has_a_balloon() {
        let mut machine = golden(KernelKind::Linux);
        assert!(!machine.gives_memory_back());
        machine.devices[0].kind = DeviceDescription::BALLOON.to_owned();
        assert!(machine.gives_memory_back());
    }

    #[test]
    fn the_memory_of_a_guest_is_all_its_regions() {
        let mut machine = golden(KernelKind::Linux);
        let more = MemoryRegion { id: RegionId(1), base: Gfn(1 << 20), pages: Pages(4) };
        machine.memory.push(more);
        assert_eq!(machine.pages(), Pages(4100));
    }

    #[test]
    fn a_kernel_is_called_what_users_call_it() {
        let names = [KernelKind::Unknown, KernelKind::Builtin, KernelKind::Pvh, KernelKind::Linux];
        let names = names.map(|kernel| kernel.to_string());
        assert_eq!(names, ["not said", "built-in guest", "ELF with a PVH note", "Linux"]);
    }

    #[test]
    fn a_version_that_is_not_known_is_named_and_nothing_may_be_left_over() {
        let bytes = golden(KernelKind::Pvh).encode().unwrap();
        let versioned = |version: u16| {
            let bytes = [&version.to_le_bytes(), &bytes[2..]].concat();
            MachineDescription::decode(&bytes, &[]).unwrap_err()
        };
        assert!(matches!(versioned(0), DescriptionError::NoVersion));
        assert!(matches!(versioned(6), DescriptionError::Newer { found: 6 }));
        let long = [bytes, vec![0]].concat();
        let error = MachineDescription::decode(&long, &[]).unwrap_err();
        assert!(matches!(error, DescriptionError::LeftOver(1)), "{error}");
    }
}
