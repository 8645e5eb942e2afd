//! The command at the far end: its input, and what keeps it from noticing that we are gone.

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Mutex;

/// The far end's input, and its output once more.
pub struct Far {
    input: Mutex<Option<ChildStdin>>,
    output: OwnedFd,
}

impl Far {
    pub fn new(input: ChildStdin, output: &ChildStdout) -> Self {
        Self {
            input: Mutex::new(Some(input)),
            output: output.as_fd().try_clone_to_owned().expect("a descriptor"),
        }
    }

    /// Writes to it; what comes after its end is lost.
    pub fn write(&self, bytes: &[u8]) -> io::Result<()> {
        match &mut *self.input.lock().expect("no panic with it") {
            Some(input) => input.write_all(bytes),
            None => Ok(()),
        }
    }

    /// Ends its input.
    pub fn close(&self) {
        *self.input.lock().expect("no panic with it") = None;
    }

    /// Leaves somebody who holds both its ends and does nothing; returns the process.
    pub fn hold(&self) -> u32 {
        let input = self.input.lock().expect("no panic with it").take();
        let output = self.output.try_clone().expect("a descriptor");
        #[expect(clippy::zombie_processes, reason = "it outlives this tunnel on purpose")]
        let holder = Command::new("sleep")
            .arg("600")
            .process_group(0)
            .stdin(Stdio::from(output))
            .stdout(input.map_or_else(Stdio::null, Stdio::from))
            .stderr(Stdio::null())
            .spawn()
            .expect("sleep");
        holder.id()
    }
}
