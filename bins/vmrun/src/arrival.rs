//! The start of a vmrun by a service manager for a guest that mig-recv brings.
//!
//! The unit of a guest boots it. mig-recv has it wait for one instead, by an environment file with
//! other options, and waits at a socket for the vmrun that is started so: over it the vmrun gets the
//! control connection with which mig-recv would have started it by itself. So a mig-recv that went away
//! in between is noticed, and nothing is booted in place of the guest that was to come.
//!
//! What is opened here is opened before this process gives up the rights to: the thread that builds the
//! machine can write the definition, and nothing that sees the guest run can.

use std::fs::{self, File};
use std::io::{self, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use vm_machine::AllowedPaths;
use vm_paths::ArrivalFiles;
use vm_state::MachineDescription;

use crate::definition::{self, Administrators};

/// A mig-recv that waits for this vmrun has nothing else to do.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);

/// An arrival that has begun.
pub struct Arrival {
    /// The control connection of the mig-recv that brings the guest.
    pub connection: UnixStream,
    /// Where the definition of the guest is to be written.
    pub draft: Draft,
}

impl Arrival {
    /// Begins that of a guest called `name`, whose control socket is to be `socket`.
    pub fn begin(name: &str, socket: &Path) -> anyhow::Result<Self> {
        let files = ArrivalFiles::beside(socket);
        // First of all: whatever becomes of this start, the next one is none for a guest that arrives.
        remove(&files.environment)
            .with_context(|| format!("cannot remove {}", files.environment.display()))?;
        let connection = UnixStream::connect(&files.socket)
            .and_then(|from| vm_control::take_connection(&from, CONNECTION_TIMEOUT))
            .with_context(|| format!("whoever was to bring {name} went away"))?;
        let path = files.definition;
        remove(&path)
            .and_then(|()| File::options().write(true).create_new(true).mode(0o600).open(&path))
            .map(|file| Self {
                connection: connection.into(),
                draft: Draft {
                    file,
                    path: path.clone(),
                    administrators: Administrators::read(name),
                },
            })
            .with_context(|| format!("cannot make {}", path.display()))
    }
}

/// Removes a file that may not be there.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// The definition of the guest, until its unit keeps it.
pub struct Draft {
    file: File,
    pub path: PathBuf,
    administrators: Option<Administrators>,
}

impl Draft {
    /// Writes that of `machine`, and returns what is to be said of it.
    pub fn write(
        &mut self,
        machine: &MachineDescription,
        allowed: &AllowedPaths,
    ) -> io::Result<Vec<String>> {
        let (text, notes) = definition::text(machine, allowed, self.administrators.as_ref());
        self.file.set_len(0)?;
        self.file.rewind()?;
        self.file.write_all(text.as_bytes())?;
        Ok(notes)
    }
}
