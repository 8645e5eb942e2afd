//! Why a machine cannot do what it was asked for.

use std::path::PathBuf;

use migpipe_units::Bytes;
use thiserror::Error;
use vm_devices::{ConsoleError, DeviceError, VirtioError};
use vm_state::compat::Incompatible;
use vm_state::{LoadError, SaveError};

use crate::arch::{CapabilityError, IoctlError, MachineStateError};
use crate::boot::BootError;
use crate::dirty::DirtyLogError;
use crate::memory::MemoryError;
use crate::vcpu::error::VcpuError;

/// Why a machine cannot do what it was asked for.
#[derive(Debug, Error)]
pub enum MachineError {
    /// There is no KVM.
    #[error("cannot open /dev/kvm; is KVM switched on, and may this user use it?")]
    NoKvm(#[source] kvm_ioctls::Error),
    /// KVM refuses a call while the machine is built.
    #[error("cannot build the machine")]
    Build(#[source] IoctlError),
    /// KVM cannot run such a guest.
    #[error(transparent)]
    Capability(#[from] CapabilityError),
    /// This host lacks what the arriving guest was given.
    #[error(transparent)]
    Incompatible(#[from] Incompatible),
    /// The arriving guest has a device that this program does not know.
    #[error(
        "the guest has a device {kind} '{id}' (section version {version}), which this program does not have; use a newer one"
    )]
    UnknownDevice {
        /// What it is.
        kind: String,
        /// Which one.
        id: String,
        /// The version of its section.
        version: u16,
    },
    /// Two devices of one kind have the same name.
    #[error("there are two devices {0}; give each an id of its own")]
    SameDevice(String),
    /// A parameter was to be replaced in a device that the guest has not.
    #[error("the guest has no {kind} device '{id}' whose parameters could be replaced")]
    NoSuchDevice {
        /// What it would be.
        kind: String,
        /// Which one.
        id: String,
    },
    /// Huge pages are given back and taken again in whole ones, and another guest may have taken
    /// the one that is wanted again.
    #[error(
        "a balloon gives back single pages, and the guest's memory is of huge ones; leave out --balloon or --hugepages"
    )]
    BalloonOnHugePages,
    /// It has no balloon.
    #[error("guest {0} has no balloon; start it with --balloon")]
    NoBalloon(String),
    /// It cannot do with so much.
    #[error(
        "guest {name} has {has} of memory; it can be left with any part of that, not with {asked}"
    )]
    BalloonTarget {
        /// The guest.
        name: String,
        /// What it was to be left with.
        asked: Bytes,
        /// What it has.
        has: Bytes,
    },
    /// Two consoles want the terminal.
    #[error("stdio can be one console's only, and two of the guest's want it")]
    TwoOnStdio,
    /// A virtio device cannot be had.
    #[error(transparent)]
    Virtio(#[from] VirtioError),
    /// The arriving guest lacks a device that every machine has.
    #[error("the machine description has no device {0}")]
    MissingDevice(&'static str),
    /// The console of a guest that arrives is nothing that can be opened.
    #[error("the console of the guest cannot be used here; name another with --console")]
    ConsoleSpec(#[source] vm_devices::ConsoleSpecError),
    /// A file of the arriving guest is where none may be.
    #[error(
        "{device} is at {}, where no file of an arriving guest may be: name another place for it \
         with {option}, or allow this one with --files-in", path.display()
    )]
    Place {
        /// The device.
        device: String,
        /// The file.
        path: PathBuf,
        /// The option that names another.
        option: &'static str,
    },
    /// Guest memory cannot be had.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The dirty log cannot be had.
    #[error(transparent)]
    DirtyLog(#[from] DirtyLogError),
    /// The kernel cannot be booted.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The vCPUs cannot be started.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// The console cannot be opened.
    #[error(transparent)]
    Console(#[from] ConsoleError),
    /// A device cannot be stopped.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The state of the CPUs or chips cannot be read or set.
    #[error(transparent)]
    State(#[from] MachineStateError),
    /// A section cannot be written.
    #[error(transparent)]
    Save(#[from] SaveError),
    /// The sections do not fit the machine.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// It must be paused for that.
    #[error("guest {0} is running; pause it first")]
    NotPaused(String),
    /// It waits for its state.
    #[error("guest {0} has no state yet: it waits for a migration")]
    NotLoaded(String),
    /// It has its state already.
    #[error("guest {0} has its state already; nothing can be loaded into it")]
    Loaded(String),
    /// Loading has failed half-way.
    #[error("guest {0} was not loaded completely and can never run here")]
    Broken(String),
    /// It has ended by itself.
    #[error("guest {0} has switched itself off or failed; it cannot run on")]
    Ended(String),
}
