//! The contract that every device keeps.

use thiserror::Error;
use vm_state::{DeviceDescription, SaveError, Section};

/// Why a device cannot be stopped.
#[derive(Debug, Error)]
pub enum DeviceError {
    /// Requests that it has begun do not end.
    #[error("device {device} still has {requests} requests under way; the guest was not stopped")]
    Busy {
        /// The device.
        device: String,
        /// How many requests.
        requests: usize,
    },
}

/// A device that can be stopped, saved, restored in another process and set going there.
///
/// The machine calls these methods in one order only: [`Self::quiesce`] after the last vCPU has
/// left guest mode, then any number of [`Self::save`], then [`Self::resume`] before the first vCPU
/// enters it again. On a destination each kind of device is made from its section: that returns the
/// stopped device or an error, and so no device can be resumed that has half a state. Then comes
/// `resume`, then [`Self::announce`].
///
/// A device writes guest memory through [`GuestRam`](crate::GuestRam) alone, which marks each page
/// after it was written. After `quiesce` it writes nothing until `resume`: the last dirty log is
/// harvested in between.
pub trait Device: Send + Sync {
    /// What the machine description says of it.
    fn describe(&self) -> DeviceDescription;

    /// Finishes or parks all I/O. When it returns the device touches neither guest memory nor its
    /// own state, and holds no lock that something outside this process could wait for. Stopping a
    /// stopped device does nothing.
    ///
    /// # Errors
    /// [`DeviceError`] if that cannot be had; the device then goes on as before.
    fn quiesce(&self) -> Result<(), DeviceError>;

    /// The state of the stopped device.
    ///
    /// # Errors
    /// [`SaveError`] if it has no encoding.
    fn save(&self) -> Result<Section, SaveError>;

    /// Goes on with parked I/O. Resuming a running device does nothing.
    fn resume(&self);

    /// Tells the world outside that the guest is here now, as a network device does after a move.
    /// Never called on the source.
    fn announce(&self);
}
