//! The devices of the command line.

use vm_machine::{ConsoleSpec, VirtioSpec};

use crate::args::Args;

/// A console of the command line. The path of a file is made absolute, for it has to mean the same
/// at a destination; that of a socket has to be short.
pub fn console_spec(text: &str) -> anyhow::Result<ConsoleSpec> {
    Ok(match text.parse().map_err(migpipe_cli::usage)? {
        ConsoleSpec::File(path) => ConsoleSpec::File(std::path::absolute(path)?),
        other => other,
    })
}

/// The virtio devices of the command line.
pub fn devices(args: &Args) -> anyhow::Result<Vec<VirtioSpec>> {
    let mut devices = Vec::new();
    for (number, disk) in args.disks.iter().enumerate() {
        devices.push(VirtioSpec::disk(disk, number).map_err(migpipe_cli::usage)?);
    }
    for (number, net) in args.nets.iter().enumerate() {
        devices.push(VirtioSpec::net(net, number).map_err(migpipe_cli::usage)?);
    }
    devices.extend(args.rng.then(VirtioSpec::rng));
    if let Some(to) = &args.virtio_console {
        devices.push(VirtioSpec::console(&console_spec(to)?));
    }
    devices.extend(args.balloon.then(VirtioSpec::balloon));
    Ok(devices)
}
