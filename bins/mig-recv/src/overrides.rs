//! What is of this host in the guest's devices: where consoles go, disk images and taps. Paths are those
//! of this process, not of the vmrun, which may have another working directory.

use anyhow::Context;
use vm_control::Overrides;
use vm_state::MachineDescription;

use crate::args::{Args, TERMINAL};

/// Kind, id and parameter of the devices that say where a console goes.
const SERIAL_CONSOLE: (&str, &str, &str) = ("serial", "serial0", "console");
const VIRTIO_CONSOLE: (&str, &str, &str) = ("console", "console0", "console");

/// What replaces what the stream says.
pub fn of(args: &Args, guest: &MachineDescription) -> anyhow::Result<Overrides> {
    Ok(Overrides {
        name: None,
        console: console(args, guest, &args.console, SERIAL_CONSOLE),
        device_params: device_params(args, guest)?,
    })
}

fn device_params(
    args: &Args,
    guest: &MachineDescription,
) -> anyhow::Result<Vec<(String, String, String, String)>> {
    let disk = |(id, path): &(String, String)| {
        let path = std::path::absolute(path).with_context(|| format!("no such path: {path}"))?;
        let path = path.to_str().context("a path that is no UTF-8 text")?.to_owned();
        Ok(("block".to_owned(), id.clone(), "path".to_owned(), path))
    };
    let tap = |(id, tap): &(String, String)| {
        Ok(("net".to_owned(), id.clone(), "tap".to_owned(), tap.clone()))
    };
    let console = console(args, guest, &args.virtio_console, VIRTIO_CONSOLE).map(|to| {
        let (kind, id, param) = VIRTIO_CONSOLE;
        Ok((kind.to_owned(), id.to_owned(), param.to_owned(), to))
    });
    args.disks.iter().map(disk).chain(args.nets.iter().map(tap)).chain(console).collect()
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
