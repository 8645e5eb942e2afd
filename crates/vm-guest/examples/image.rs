//! Writes the built-in guest to a file, for another hypervisor to boot:
//!
//!     cargo run -p vm-guest --example image -- guest.elf builtin:dirty,rate=max 2 2800000
//!
//! prints the command line of that guest with so many vCPUs and such a TSC (kHz).

use std::error::Error;
use std::io::Write;

use vm_guest::{DirtySpec, IMAGE};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [file, spec, cpus, tsc_khz] = &args[..] else {
        return Err("usage: image FILE builtin:... VCPUS TSC-KHZ".into());
    };
    let spec: DirtySpec = spec.parse()?;
    std::fs::write(file, IMAGE)?;
    let line = spec.command_line(cpus.parse()?, tsc_khz.parse()?);
    Ok(writeln!(std::io::stdout(), "{line}")?)
}
