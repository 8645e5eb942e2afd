//! The saved state of a machine: its description, and the sections of everything that it has.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use units::{Gfn, Pages, RegionId};
use vm_devices::{
    Console, ConsoleSpec, Device, DeviceDirtyLog, GuestRam, Serial, VirtioDevice, VirtioKind,
    VirtioSpec,
};
use vm_machine::arch::MachineState;
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vm_state::{HostCapabilities, MachineDescription, MemoryRegion, Section, SectionSet, compat};
use vmm_sys_util::eventfd::EventFd;

use crate::memory::within;
use crate::parts::parts;
use crate::sums::repair_section;

/// As for a stream: a description of many small devices is the worst, with its copy beside it.
const PER_BYTE: usize = 80;
const FIXED: usize = 1 << 20;

/// Devices that live as long as the program: what was loaded into one before is overwritten.
struct Devices {
    all: Vec<Box<dyn Device>>,
    /// The image behind the disk.
    _image: tempfile::NamedTempFile,
}

/// A machine description, then sections, each a part of its own. The checksums of the sections are
/// put right.
pub fn state(bytes: &[u8]) {
    let devices = devices();
    within(FIXED + PER_BYTE * bytes.len(), || {
        let mut parts = parts(bytes);
        let description = parts.next().unwrap_or_default();
        let vcpus = describe(description).map_or(1, |description| description.vcpus);
        load(parts, vcpus, devices);
    });
}

/// Reads a description and holds it against a host that can do nothing, and one that can do the
/// same.
fn describe(bytes: &[u8]) -> Option<MachineDescription> {
    let description = MachineDescription::decode(bytes).ok()?;
    let again = description.encode().expect("what was decoded can be encoded");
    assert_eq!(MachineDescription::decode(&again).as_ref().ok(), Some(&description));
    let cpu = &description.cpu;
    if let Err(incompatible) = compat::check(cpu, &HostCapabilities::default()) {
        let text = incompatible.to_string();
        assert!(!text.contains(['\n', '\x1b']), "{text:?}");
    }
    let same = HostCapabilities {
        cpuid: cpu.cpuid.clone(),
        xsave_components: cpu.xsave_components,
        msrs: cpu.msrs.clone(),
        tsc_khz: cpu.tsc_khz,
        tsc_scaling: false,
    };
    let _ = compat::check(cpu, &same);
    let _ = description.pages();
    for device in &description.devices {
        let _ = VirtioSpec::of(device).map(|spec| spec.to_string());
        let console = device.params.get("console").map(|console| console.parse::<ConsoleSpec>());
        if let Some(Ok(console)) = console {
            let again = console.to_string().parse::<ConsoleSpec>();
            assert_eq!(again.ok(), Some(console));
        }
    }
    Some(description)
}

fn load<'a>(parts: impl Iterator<Item = &'a [u8]>, vcpus: u32, devices: &Devices) {
    let mut sections = SectionSet::default();
    for part in parts {
        let _ = Section::decode(part);
        let Ok(section) = Section::decode(&repair_section(part)) else { continue };
        let encoded = section.encode().expect("what was decoded can be encoded");
        assert!(encoded == repair_section(part), "a section has one encoding");
        if sections.add(section).is_err() {
            break;
        }
    }
    for device in &devices.all {
        if device.load(&mut sections).is_ok() {
            settled(device.as_ref());
        }
    }
    if let Ok(state) = MachineState::from_sections(&mut sections, vcpus) {
        let written = state.to_sections().expect("what was loaded can be saved");
        let mut again = SectionSet::new(written.clone()).expect("no section twice");
        let state = MachineState::from_sections(&mut again, vcpus).expect("it can be loaded");
        assert_eq!(state.to_sections().expect("it can be saved"), written);
    }
    if let Err(error) = sections.finish() {
        assert!(!error.to_string().is_empty());
    }
}

/// A device that took a state saves one that it takes again, and that stays the same.
fn settled(device: &dyn Device) {
    let saved = device.save().expect("a device that was loaded can be saved");
    let mut sections = SectionSet::new([saved.clone()]).expect("one section");
    device.load(&mut sections).expect("a device takes what it saved");
    assert_eq!(device.save().expect("it can be saved again"), saved);
}

fn devices() -> &'static Devices {
    static DEVICES: OnceLock<Devices> = OnceLock::new();
    DEVICES.get_or_init(|| {
        let image = tempfile::NamedTempFile::new().expect("a file");
        image.as_file().set_len(1 << 20).expect("a disk that takes a hole");
        let disk = VirtioSpec {
            kind: VirtioKind::Block,
            id: "disk0".to_owned(),
            params: BTreeMap::from([("path".to_owned(), image.path().display().to_string())]),
        };
        let event = || EventFd::new(0).expect("an eventfd");
        let console = Arc::new(Console::open(&ConsoleSpec::Null).expect("no console"));
        let serial = Serial::new(event(), console);
        let mut all: Vec<Box<dyn Device>> = vec![Box::new(Shared(serial))];
        let console = VirtioSpec::console(&ConsoleSpec::Null);
        let specs = [disk, VirtioSpec::rng(), console, VirtioSpec::balloon()];
        for (slot, spec) in (0..).zip(specs) {
            let device = VirtioDevice::open(&spec, slot, ram(), event()).expect("a device");
            all.push(Box::new(device));
        }
        Devices { all, _image: image }
    })
}

/// Memory that nobody looks at: the devices are never resumed.
fn ram() -> GuestRam {
    let regions = [MemoryRegion { id: RegionId(0), base: Gfn(0), pages: Pages(16) }];
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 16 * 4096)]).expect("memory");
    GuestRam::new(memory, &regions, Arc::new(DeviceDirtyLog::new(&regions)))
}

/// The serial port has another owner too: its console.
struct Shared(Arc<Serial>);

impl Device for Shared {
    fn describe(&self) -> vm_state::DeviceDescription {
        self.0.describe()
    }

    fn quiesce(&self) -> Result<(), vm_devices::DeviceError> {
        self.0.quiesce()
    }

    fn save(&self) -> Result<Section, vm_state::SaveError> {
        self.0.save()
    }

    fn load(&self, sections: &mut SectionSet) -> Result<(), vm_state::LoadError> {
        self.0.load(sections)
    }

    fn resume(&self) {
        self.0.resume();
    }

    fn announce(&self) {
        self.0.announce();
    }
}
