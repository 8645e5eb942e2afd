//! What of a guest this host could not take: the answer for a mig-recv whose source asks before it sends
//! anything. No socket, no record and no machine comes of it.

use std::io::{self, Read, Write};

use anyhow::{Context, ensure};
use migpipe_confine::ViolationAction;
use migpipe_units::limits::MAX_DESCRIPTION;
use vm_state::{DeviceParam, MachineDescription};

use crate::args::Args;
use crate::builder::Builder;
use crate::{boot, confinement, incoming};

/// The longest request: its JSON is some times as long as the description on the wire (bytes).
const MAX_REQUEST: u64 = 16 * MAX_DESCRIPTION as u64;

/// Reads the machine, and what is another on this host, and prints the findings.
pub fn run(args: &Args) -> anyhow::Result<u8> {
    args.confinement.begin(ViolationAction::NoSuchCall);
    // The same thread as for a guest that comes: what it may open decides too.
    let builder = Builder::start(boot::allowed(args)?, boot::memory_source(args), None, None)?;
    confinement::examiner()?;
    let mut request = Vec::new();
    io::stdin().take(MAX_REQUEST + 1).read_to_end(&mut request).context("cannot read stdin")?;
    ensure!(request.len() as u64 <= MAX_REQUEST, "the description of the guest is too long");
    let (mut description, overrides): (MachineDescription, Vec<DeviceParam>) =
        serde_json::from_slice(&request).context("the description of the guest makes no sense")?;
    let consoles = (args.console.as_str(), args.virtio_console.as_deref());
    let here = incoming::here(&args.name, consoles, &mut description, overrides);
    let findings = builder.examine(description, here)?;
    let answer = serde_json::to_vec(&findings)?;
    io::stdout().write_all(&answer).context("cannot print the findings")?;
    Ok(0)
}
