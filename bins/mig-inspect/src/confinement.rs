//! What is left to the process that reads a stream: the stream, and stdout.
//!
//! It is killed for anything else, which costs nothing but the look.

use confine::sets::RUNTIME;
use confine::{Call, Files, Filter, Outside, calls};

/// A stream that is open already.
const STREAM: &[Call] = calls![
    SYS_read;
    SYS_readv;
];

/// The thread that reads.
pub const FILTER: Filter = Filter { thread: "mig-inspect", tables: &[RUNTIME, STREAM] };

/// Confines this process: the stream is open, and no byte was looked at.
pub fn enter(mode: &cli::Confinement) -> anyhow::Result<()> {
    mode.begin(Outside::Killed);
    Ok(confine::enter(&FILTER, &[], &Files::none())?)
}
