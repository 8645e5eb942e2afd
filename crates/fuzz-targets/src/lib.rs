//! What bytes from outside reach, as functions of bytes.
//!
//! Each target takes any bytes at all and holds the code to what it promises of them: it does not
//! panic, it holds no more memory than its bound, and what it accepts is what was written. The
//! coverage-guided fuzzer (`fuzz`) and the replay of its corpus (`tests/replay.rs` here) run
//! the same functions.
//!
//! | target | who reads these bytes | where they come from |
//! | --- | --- | --- |
//! | [`stream_raw`] | `mig-stream`, both directions | the tunnel |
//! | [`stream`], [`answers`] | the same, with right checksums | a hostile peer |
//! | [`state`] | `vm-state`, `vm-machine`, `vm-devices` | the sections of a stream |
//! | [`control_server`], [`control_client`] | `vm-control` | the control socket |
//! | [`kernel`] | `vm-machine`'s loaders | a kernel image |
//! | [`rings`] | the virtio devices | the guest's memory |
//!
//! Random bytes do not get past a checksum. Where the format has some, the target puts right ones
//! in before the bytes are read, so that what is behind them is reached; the raw target shows that
//! wrong ones are refused.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod control;
mod kernel;
mod memory;
mod parts;
mod rings;
mod state;
mod stream;
mod sums;

pub use control::{control_client, control_server};
pub use kernel::kernel;
pub use rings::rings;
pub use state::state;
pub use stream::{answers, stream, stream_raw};

/// One of the functions, with the name of its corpus.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// The name: of the fuzzer's program and of the directory of the corpus.
    pub name: &'static str,
    /// The function.
    pub run: fn(&[u8]),
}

/// All targets.
pub const TARGETS: [Target; 8] = [
    Target { name: "stream_raw", run: stream_raw },
    Target { name: "stream", run: stream },
    Target { name: "answers", run: answers },
    Target { name: "state", run: state },
    Target { name: "control_server", run: control_server },
    Target { name: "control_client", run: control_client },
    Target { name: "kernel", run: kernel },
    Target { name: "rings", run: rings },
];
