//! The saved state of a machine: its description, and the sections of everything that it has.

use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};

use migpipe_units::{Gfn, MemoryRegion, Pages, RegionId};
use page_bitmap::TrackedMemory;
use vm_devices::{Console, ConsoleSpec, Device, GuestRam, OpenedDevice, Serial, VirtioSpec};
use vm_machine::arch::MachineState;
use vm_memory::GuestAddress;
use vm_state::{HostCapabilities, LoadError, MachineDescription, Section, SectionSet, compat};
use vmm_sys_util::eventfd::EventFd;

use crate::memory::within;
use crate::parts::parts;
use crate::sums::repair_section;

/// As for a stream: a description of many small devices is the worst, with its copy beside it.
const PER_BYTE: usize = 80;
const FIXED: usize = 1 << 20;

/// What the machine of the seeds has, and old descriptions must agree with.
const MEMORY: MemoryRegion = MemoryRegion { id: RegionId(0), base: Gfn(0), pages: Pages(4096) };

/// The virtio devices of the machine, one of each kind that needs no network.
struct Devices {
    specs: Vec<VirtioSpec>,
    /// The image behind the disk.
    _image: tempfile::NamedTempFile,
}

impl Devices {
    /// The device whose section is called `name`, restored from it; nothing if none is.
    fn restore(
        &self,
        name: &str,
        sections: &mut SectionSet,
    ) -> Option<Result<Arc<dyn Device>, LoadError>> {
        let event = || EventFd::new(0).expect("an eventfd");
        if name == "serial" {
            let console = Arc::new(Console::open(&ConsoleSpec::Null).expect("no console"));
            let restored = Serial::restore(event(), console, sections);
            return Some(restored.map(|serial| -> Arc<dyn Device> { serial }));
        }
        let kind = name.strip_prefix("virtio-")?;
        let (slot, spec) = (0..).zip(&self.specs).find(|(_, spec)| spec.kind.name() == kind)?;
        let opened = OpenedDevice::open(spec, slot, ram(), event()).expect("a device");
        Some(opened.restore(sections).map(|device| -> Arc<dyn Device> { Arc::new(device) }))
    }
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
    let description = MachineDescription::decode(bytes, &[MEMORY]).ok()?;
    let again = description.encode().expect("what was decoded can be encoded");
    assert_eq!(MachineDescription::decode(&again, &[MEMORY]).as_ref().ok(), Some(&description));
    let cpu = &description.cpu;
    if let Err(incompatible) = compat::check(cpu, &HostCapabilities::default()) {
        let text = incompatible.to_string();
        assert!(!text.contains(['\n', '\x1b']), "{text:?}");
    }
    let same = HostCapabilities {
        cpuid: cpu.cpuid.clone(),
        xsave_components: cpu.xsave_components,
        msrs: cpu.msrs.clone(),
        arch_capabilities: cpu.arch_capabilities.unwrap_or_default(),
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
    let mut names = BTreeSet::new();
    for part in parts {
        let _ = Section::decode(part);
        let Ok(section) = Section::decode(&repair_section(part)) else { continue };
        let encoded = section.encode().expect("what was decoded can be encoded");
        assert!(encoded == repair_section(part), "a section has one encoding");
        names.insert(section.name.clone());
        if sections.add(section).is_err() {
            break;
        }
    }
    for name in &names {
        if let Some(Ok(device)) = devices.restore(name, &mut sections) {
            settled(name, device.as_ref(), devices);
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

/// A device that was restored saves a state from which it is restored again, and that stays the
/// same.
fn settled(name: &str, device: &dyn Device, devices: &Devices) {
    let saved = device.save().expect("a device that was restored can be saved");
    let mut sections = SectionSet::new([saved.clone()]).expect("one section");
    let again = devices.restore(name, &mut sections).expect("a device of that name");
    let again = again.expect("a device takes what it saved");
    assert_eq!(again.save().expect("it can be saved again"), saved);
}

fn devices() -> &'static Devices {
    static DEVICES: OnceLock<Devices> = OnceLock::new();
    DEVICES.get_or_init(|| {
        let image = tempfile::NamedTempFile::new().expect("a file");
        image.as_file().set_len(1 << 20).expect("a disk that takes a hole");
        let disk = VirtioSpec::disk(&image.path().display().to_string(), 0).expect("a disk");
        let console = VirtioSpec::console(&ConsoleSpec::Null);
        let specs = vec![disk, VirtioSpec::rng(), console, VirtioSpec::balloon()];
        Devices { specs, _image: image }
    })
}

/// Memory that nobody looks at: the devices are never resumed.
fn ram() -> GuestRam {
    let memory = TrackedMemory::from_ranges(&[(GuestAddress(0), 16 * 4096)]);
    GuestRam::new(memory.expect("memory"))
}
