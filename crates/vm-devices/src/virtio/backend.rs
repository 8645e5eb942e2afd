//! What one kind of device does behind the registers and rings that all of them have.

use std::os::fd::OwnedFd;

use vm_state::{LoadError, SaveError, Section, SectionSet};

use super::chain::Malformed;
use super::error::VirtioError;
use super::ram::GuestRam;
use super::ring::{QueueSpec, Ring};
use super::state::TransportState;

/// What came of looking at a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Served {
    /// A request was completed; there may be another.
    Done,
    /// The driver has made no request.
    Empty,
    /// The driver has made one, and the device has nothing for it yet.
    Waiting,
}

/// A kind of device. All methods are called with the device's lock held, so that none runs beside
/// another; none is called between `quiesce` and `resume` but `save`, and those by which the
/// locks of the host are taken and given back.
pub(super) trait Backend: Send {
    /// VIRTIO 1.2, section 5.
    fn device_id(&self) -> u32;

    /// The feature bits of its kind that it can offer on this host.
    fn features(&self) -> u64;

    /// Its queues in the order of their numbers.
    fn queues(&self) -> &'static [QueueSpec];

    /// Its configuration space, as the bytes that are there.
    fn config(&self) -> Vec<u8>;

    /// The driver writes to its configuration space.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// The driver is ready and has accepted `features`.
    fn activate(&mut self, features: u64);

    /// The driver starts afresh.
    fn reset(&mut self) {}

    /// Serves one request of a queue. What it has written is in the dirty log when it returns.
    fn serve(&mut self, queue: usize, ring: &mut Ring, ram: &GuestRam)
    -> Result<Served, Malformed>;

    /// A descriptor that is readable when the device has something for a queue that waits.
    fn source(&self) -> Option<OwnedFd> {
        None
    }

    /// Whether the source is to be looked at now.
    fn wants_source(&self) -> bool {
        false
    }

    /// No request is served and no source looked at before [`Self::resume`]: whoever else reaches
    /// its state, a thread that reads from outside, leaves that alone too. A device is made so.
    fn quiesce(&mut self) {}

    /// It goes on.
    fn resume(&mut self) {}

    /// The section of its kind with the state of the registers and rings in it.
    fn save(&self, instance: u32, transport: TransportState) -> Result<Section, SaveError>;

    /// Takes its section, for a device that has done nothing yet, and returns the state of the
    /// registers and rings. After an error the device is given up.
    fn restore(
        &mut self,
        instance: u32,
        sections: &mut SectionSet,
    ) -> Result<TransportState, LoadError>;

    /// Takes for itself what only the one who may run the guest holds. Does nothing if it has it.
    fn acquire(&mut self) -> Result<(), VirtioError> {
        Ok(())
    }

    /// Gives that back.
    fn release(&mut self) {}

    /// The guest is here now. Says whether its configuration changed by it.
    fn announce(&mut self) -> bool {
        false
    }
}
