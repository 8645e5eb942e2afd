//! Whether a guest that arrives can be taken here.
//!
//! Each check is one function, and there are two who call them: [`Machine::incoming`], which builds
//! the machine and ends at the first that fails, and [`examine`], which builds nothing and says what
//! all of them found.
//!
//! [`Machine::incoming`]: crate::Machine::incoming

use std::error::Error;

use migpipe_units::{Bytes, Finding};
use vm_devices::{
    Console, ConsoleSpec, MmioWindow, OpenedDevice, SerialSnapshot, VirtioError, VirtioKind,
    VirtioSpec,
};
use vm_state::compat::Incompatible;
use vm_state::{DeviceDescription, MachineDescription, Snapshot};

use crate::arch::check_vcpus;
use crate::config::IncomingConfig;
use crate::error::MachineError;
use crate::host::Host;
use crate::memory::{Memory, MemorySource};
use crate::{boot, capacity, virtio};

/// What the description calls the serial port.
const SERIAL: &str = "serial";

/// A guest that arrives, and where.
#[derive(Clone, Copy)]
pub(crate) struct Arrival<'a> {
    /// What its source says it is.
    pub(crate) description: &'a MachineDescription,
    /// What this host makes of it.
    pub(crate) here: &'a IncomingConfig,
    /// The host.
    pub(crate) host: &'a Host,
}

/// The devices of a guest as they are to be on this host.
pub(crate) struct ArrivingDevices {
    pub(crate) descriptions: Vec<DeviceDescription>,
    pub(crate) console: ConsoleSpec,
    pub(crate) specs: Vec<VirtioSpec>,
    /// The id of the serial port.
    serial: String,
}

impl Arrival<'_> {
    /// That its kernel, its processor and its vCPUs can run here.
    pub(crate) fn check_host(&self) -> Result<(), MachineError> {
        self.check_kernel()?;
        self.host.check(&self.description.cpu)?;
        self.check_vcpus()
    }

    fn check_kernel(&self) -> Result<(), MachineError> {
        Ok(boot::check_arriving(self.description)?)
    }

    fn check_vcpus(&self) -> Result<(), MachineError> {
        Ok(check_vcpus(&self.host.kvm, self.description.vcpus)?)
    }

    /// Its devices, with what is another here, and the consoles where they may be.
    pub(crate) fn devices(&self) -> Result<ArrivingDevices, MachineError> {
        // A device that nobody knows is named before a parameter that none has.
        devices_of(&self.description.devices)?;
        let mut descriptions = self.description.devices.clone();
        virtio::replace(&mut descriptions, &self.here.overrides)?;
        let (serial, mut specs) = devices_of(&descriptions)?;
        let (mut console, serial) = (console_of(serial)?, serial.id.clone());
        let name = self.here.name.as_ref().unwrap_or(&self.description.name);
        self.here.allowed_paths.move_consoles(name, (&serial, &mut console), &mut specs);
        Ok(ArrivingDevices { descriptions, console, specs, serial })
    }

    /// That the host has as much memory left. Huge pages are set apart, and the kernel says itself
    /// when they do not suffice.
    pub(crate) fn check_memory_left(&self) -> Result<(), MachineError> {
        match self.description.hugetlb {
            true => Ok(()),
            false => Ok(capacity::check(self.memory())?),
        }
    }

    fn memory(&self) -> Bytes {
        let bytes = self.description.memory.iter().map(|region| region.pages.bytes().0);
        Bytes(bytes.fold(0, u64::saturating_add))
    }

    /// Where its memory comes from here.
    pub(crate) fn memory_source(&self) -> &MemorySource {
        match self.description.hugetlb {
            true => &MemorySource::HugeTlb,
            false => &self.here.memory,
        }
    }

    /// Memory of that kind, for a moment: the kernel makes its files and reserves huge pages, and
    /// nothing is filled.
    fn check_memory(&self) -> Result<(), MachineError> {
        self.check_memory_left()?;
        Memory::new(&self.description.memory, self.memory_source())?;
        Ok(())
    }
}

/// What this host would find if that guest arrived, part by part. Nothing of it is made or kept, and
/// no file is made.
pub fn examine(
    description: &MachineDescription,
    here: &IncomingConfig,
    host: &Host,
) -> Vec<Finding> {
    let arrival = Arrival { description, here, host };
    let mut findings = Vec::new();
    let kernel = format!("{}", description.kernel);
    findings.push(finding("kernel", kernel, arrival.check_kernel()));
    match host.check(&description.cpu) {
        Err(MachineError::Incompatible(lacks)) => findings.extend(processor(&lacks)),
        checked => {
            let here = "this host has all that the guest was given".to_owned();
            findings.push(finding("processor", here, checked));
        }
    }
    findings.push(finding("vCPUs", description.vcpus.to_string(), arrival.check_vcpus()));
    let memory = format!("{} can be had", arrival.memory());
    findings.push(finding("memory", memory, arrival.check_memory()));
    match arrival.devices() {
        Ok(devices) => findings.extend(devices.examine(&arrival)),
        Err(error) => findings.push(Finding::in_the_way("devices", said(&error))),
    }
    findings
}

impl ArrivingDevices {
    fn examine(&self, arrival: &Arrival<'_>) -> Vec<Finding> {
        let allowed = &arrival.here.allowed_paths;
        let together = check_devices(&self.console, &self.specs, arrival.description.hugetlb);
        let mut findings = Vec::new();
        if let Err(error) = together {
            findings.push(Finding::in_the_way("devices", said(&error)));
        }
        let console = allowed
            .check_console(&self.console)
            .and_then(|()| Ok(Console::examine(&self.console)?));
        let (subject, place) = (format!("{SERIAL} {}", self.serial), self.console.to_string());
        findings.push(finding(subject, place, console));
        for spec in &self.specs {
            let device = allowed.check_device(spec).and_then(|()| Ok(OpenedDevice::examine(spec)?));
            findings.push(finding(spec.to_string(), place_of(spec), device));
        }
        findings
    }
}

/// Where a device is on this host, in a word.
fn place_of(spec: &VirtioSpec) -> String {
    let tap = spec.params.get("tap").map(|tap| format!("tap {tap}"));
    let path = spec.path().map(|path| path.display().to_string());
    tap.or(path).unwrap_or_else(|| "can be had".to_owned())
}

fn processor(lacks: &Incompatible) -> Vec<Finding> {
    lacks
        .problems
        .iter()
        .map(|problem| Finding::in_the_way("processor", problem.to_string()))
        .collect()
}

fn finding(subject: impl Into<String>, fine: String, checked: Result<(), MachineError>) -> Finding {
    match checked {
        Ok(()) => Finding::fine(subject, fine),
        Err(error) => Finding::in_the_way(subject, said(&error)),
    }
}

/// An error with its causes, in one line.
fn said(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// The serial port and the virtio devices of a description.
fn devices_of(
    devices: &[DeviceDescription],
) -> Result<(&DeviceDescription, Vec<VirtioSpec>), MachineError> {
    let mut serial = None;
    let mut specs = Vec::new();
    for device in devices {
        let is_serial = device.kind == SERIAL && device.section_version <= SerialSnapshot::VERSION;
        if is_serial && serial.is_none() {
            serial = Some(device);
        } else if let Some(spec) = VirtioSpec::of(device) {
            specs.push(spec);
        } else {
            return Err(MachineError::UnknownDevice {
                kind: device.kind.clone(),
                id: device.id.clone(),
                version: device.section_version,
            });
        }
    }
    Ok((serial.ok_or(MachineError::MissingDevice(SERIAL))?, specs))
}

fn console_of(serial: &DeviceDescription) -> Result<ConsoleSpec, MachineError> {
    match serial.params.get(VirtioSpec::CONSOLE_PARAM) {
        Some(console) => console.parse().map_err(MachineError::ConsoleSpec),
        None => Ok(ConsoleSpec::Null),
    }
}

/// What no device can see by itself.
pub(crate) fn check_devices(
    console: &ConsoleSpec,
    specs: &[VirtioSpec],
    hugetlb: bool,
) -> Result<(), MachineError> {
    let names: Vec<_> = specs.iter().map(VirtioSpec::to_string).collect();
    if let Some(twice) = (1..names.len()).find(|&it| names[..it].contains(&names[it])) {
        return Err(MachineError::SameDevice(names[twice].clone()));
    }
    if specs.len() > MmioWindow::MOST as usize {
        return Err(VirtioError::TooMany.into());
    }
    let stdio = ConsoleSpec::Stdio.to_string();
    let on_stdio = |spec: &&VirtioSpec| {
        spec.kind == VirtioKind::Console
            && spec.params.get(VirtioSpec::CONSOLE_PARAM) == Some(&stdio)
    };
    let consoles = usize::from(*console == ConsoleSpec::Stdio);
    if consoles + specs.iter().filter(on_stdio).count() > 1 {
        return Err(MachineError::TwoOnStdio);
    }
    if hugetlb && specs.iter().any(|spec| spec.kind == VirtioKind::Balloon) {
        return Err(MachineError::BalloonOnHugePages);
    }
    Ok(())
}
