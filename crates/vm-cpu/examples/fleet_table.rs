//! The table of docs/cpu.md: which guests move between the hosts whose CPU fingerprints are in a
//! folder.
//!
//!     cargo run -p vm-cpu --example fleet_table -- FOLDER

#[path = "../tests/fleet/mod.rs"]
#[allow(dead_code, reason = "each program that includes it uses a part of it")]
mod fleet;

use std::io::Write;
use std::path::PathBuf;

fn main() -> std::io::Result<()> {
    let folder = std::env::args_os().nth(1).map(PathBuf::from);
    let hosts = folder.map_or_else(fleet::made::hosts, |folder| fleet::fingerprint::hosts(&folder));
    std::io::stdout().write_all(fleet::table(&hosts).as_bytes())
}
