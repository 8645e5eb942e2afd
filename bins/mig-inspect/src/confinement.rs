//! What is left to the process that reads a stream: the stream, and stdout.
//!
//! It is killed for anything else, which costs nothing but the look.

use migpipe_confine::sets::RUNTIME;
use migpipe_confine::{Call, Files, Filter, ViolationAction, calls};

/// A stream that is open already.
const STREAM: &[Call] = calls![
    SYS_read;
    SYS_readv;
];

/// The thread that reads.
pub const FILTER: Filter = Filter { thread: "mig-inspect", tables: &[RUNTIME, STREAM] };

/// Confines this process: the stream is open, and no byte was looked at.
pub fn enter(mode: &migpipe_cli::Confinement) -> anyhow::Result<()> {
    mode.begin(ViolationAction::Killed);
    Ok(migpipe_confine::enter(&FILTER, &[], &Files::none())?)
}
