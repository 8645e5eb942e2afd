//! What is of this host in the guest's devices: where consoles go, disk images and taps. Paths are those
//! of this process, not of the vmrun, which may have another working directory.

use anyhow::Context;
use vm_state::{DeviceParam, MachineDescription};

use crate::args::{Args, TERMINAL};

/// Kind, id and parameter of the devices that say where a console goes.
const SERIAL_CONSOLE: (&str, &str, &str) = ("serial", "serial0", "console");
const VIRTIO_CONSOLE: (&str, &str, &str) = ("console", "console0", "console");

/// What replaces what the stream says.
pub fn of(args: &Args, guest: &MachineDescription) -> anyhow::Result<Vec<DeviceParam>> {
    let mut overrides = Vec::new();
    for (id, path) in &args.disks {
        let path = std::path::absolute(path).with_context(|| format!("no such path: {path}"))?;
        let path = path.to_str().context("a path that is no UTF-8 text")?.to_owned();
        overrides.push(device_param(("block", id, "path"), path));
    }
    for (id, tap) in &args.nets {
        overrides.push(device_param(("net", id, "tap"), tap.clone()));
    }
    for (named, param) in [(&args.console, SERIAL_CONSOLE), (&args.virtio_console, VIRTIO_CONSOLE)]
    {
        overrides.extend(console(args, guest, named, param).map(|to| device_param(param, to)));
    }
    Ok(overrides)
}

/// The parameter `name` of the device `id` of this kind.
fn device_param((kind, id, name): (&str, &str, &str), value: String) -> DeviceParam {
    DeviceParam { kind: kind.to_owned(), id: id.to_owned(), name: name.to_owned(), value }
}

/// Where a console goes that is the parameter of a device: as the command line says, or as on the
/// source, unless that makes no sense here: a terminal stays behind.
fn console(
    args: &Args,
    guest: &MachineDescription,
    named: &Option<String>,
    (kind, id, param): (&str, &str, &str),
) -> Option<String> {
    if args.vm.is_some() {
        return named.clone();
    }
    let mut devices = guest.devices.iter();
    let device = devices.find(|device| device.kind == kind && device.id == id);
    let there = device.and_then(|device| device.params.get(param));
    named.clone().or_else(|| there.filter(|there| *there != TERMINAL).cloned())
}
