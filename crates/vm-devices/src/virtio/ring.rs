//! A split virtqueue: requests out of it, answers into it, and its saved state.

use std::ops::Deref;
use std::sync::atomic::{Ordering, fence};

use virtio_queue::{Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vm_state::PayloadError;

use super::chain::{Chain, Malformed};
use super::ram::GuestRam;
use super::state::RingState;

/// Bytes of the used ring before its first element, and of an element (VIRTIO 1.2, 2.7.8).
const USED_HEADER: u64 = 4;
const USED_ELEMENT: u64 = 8;
const USED_INDEX: u64 = 2;
/// The same of the available ring (VIRTIO 1.2, 2.7.6).
const AVAILABLE_HEADER: u64 = 4;
const AVAILABLE_ELEMENT: u64 = 2;

/// A queue that a kind of device has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct QueueSpec {
    /// What VIRTIO 1.2 calls it.
    pub(super) name: &'static str,
    /// How many elements a driver may choose, a power of two.
    pub(super) size: u16,
}

pub(super) struct Ring {
    queue: Queue,
    /// Elements of the used ring since used_event was read.
    unannounced: u16,
}

impl Ring {
    /// A queue that no driver has set up.
    pub(super) fn new(spec: &QueueSpec) -> Self {
        let queue = Queue::new(spec.size).expect("queue sizes are powers of two");
        Self { queue, unannounced: 0 }
    }

    pub(super) fn registers(&mut self) -> &mut Queue {
        &mut self.queue
    }

    /// Whether the driver has set it up; if so its rings must be in memory.
    pub(super) fn check(&self, ram: &GuestRam) -> Result<(), Malformed> {
        if self.queue.ready() && !self.queue.is_valid(ram.memory()) {
            return Err(Malformed::Ring);
        }
        Ok(())
    }

    /// The next request, if the driver has made one.
    pub(super) fn pop(&mut self, ram: &GuestRam) -> Result<Option<Chain>, Malformed> {
        if !self.queue.ready() {
            return Ok(None);
        }
        let mut requests = self.queue.iter(ram.memory()).map_err(|_| Malformed::Ring)?;
        match requests.next() {
            Some(chain) => Chain::look_at(ram, chain).map(Some),
            None => Ok(None),
        }
    }

    /// Gives the request back that [`Self::pop`] returned last: it will be returned again.
    pub(super) fn put_back(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// Tells the driver that a request is done and that `written` bytes of its output were used.
    /// It is not interrupted by it.
    pub(super) fn complete(
        &mut self,
        ram: &GuestRam,
        head: u16,
        written: u32,
    ) -> Result<(), Malformed> {
        self.complete_all(ram, &[(head, written)])
    }

    /// The same for several requests, of which the driver sees all or none: it must not find the
    /// first buffer of a frame without the others (VIRTIO 1.2, 5.1.6.4).
    pub(super) fn complete_all(
        &mut self,
        ram: &GuestRam,
        done: &[(u16, u32)],
    ) -> Result<(), Malformed> {
        let used = self.queue.used_ring();
        let mut next = self.queue.next_used();
        for &(head, written) in done {
            let place = USED_HEADER + u64::from(next % self.queue.size()) * USED_ELEMENT;
            let address = used.checked_add(place).ok_or(Malformed::Ring)?;
            let element = u64::from(head) | u64::from(written) << 32;
            ram.write(address, &element.to_le_bytes()).map_err(|_| Malformed::Ring)?;
            next = next.wrapping_add(1);
        }
        self.queue.set_next_used(next);
        self.unannounced = self.unannounced.wrapping_add(done.len() as u16);
        let index = GuestAddress(used.checked_add(USED_INDEX).ok_or(Malformed::Ring)?);
        // Release: a driver that sees the index sees the elements and what they stand for.
        let stored = ram.memory().store(next.to_le(), index, Ordering::Release);
        stored.map_err(|_| Malformed::Ring)
    }

    /// Whether the driver wants to be interrupted for what was completed since the last call: if
    /// used_event lies among it (VIRTIO 1.2, 2.7.10), or always where there is no such thing.
    pub(super) fn must_interrupt(&mut self, ram: &GuestRam) -> bool {
        let completed = std::mem::take(&mut self.unannounced);
        if !self.queue.event_idx_enabled() {
            return true;
        }
        // The elements are visible before used_event is read, or both sides could wait.
        fence(Ordering::SeqCst);
        let place = AVAILABLE_HEADER + AVAILABLE_ELEMENT * u64::from(self.queue.size());
        let address = GuestAddress(self.queue.avail_ring().saturating_add(place));
        // A ring that cannot be read is found by the next `pop`.
        let Ok(used_event) = ram.memory().load::<u16>(address, Ordering::Relaxed) else {
            return true;
        };
        let behind = self.queue.next_used().wrapping_sub(u16::from_le(used_event)).wrapping_sub(1);
        behind < completed
    }

    /// Asks the driver to kick us, and says whether there is a request already.
    pub(super) fn want_kicks(&mut self, ram: &GuestRam) -> bool {
        if !self.queue.ready() {
            return false;
        }
        self.queue.enable_notification(ram.memory()).unwrap_or(false)
    }

    pub(super) fn save(&self) -> RingState {
        let state = self.queue.state();
        RingState {
            size: state.size,
            ready: state.ready,
            event_idx: state.event_idx_enabled,
            next_avail: state.next_avail,
            next_used: state.next_used,
            descriptors: state.desc_table,
            available: state.avail_ring,
            used: state.used_ring,
        }
    }

    /// The queue that was saved, if `spec` can be in that state.
    ///
    /// # Errors
    /// [`PayloadError::Field`] with the name of the queue.
    pub(super) fn restore(spec: &QueueSpec, saved: &RingState) -> Result<Self, PayloadError> {
        let state = QueueState {
            max_size: spec.size,
            next_avail: saved.next_avail,
            next_used: saved.next_used,
            event_idx_enabled: saved.event_idx,
            size: saved.size,
            ready: saved.ready,
            desc_table: saved.descriptors,
            avail_ring: saved.available,
            used_ring: saved.used,
        };
        let queue = Queue::try_from(state).map_err(|error| PayloadError::Field {
            field: "rings",
            problem: format!("has a {} that no driver can set up: {error}", spec.name),
        })?;
        Ok(Self { queue, unannounced: 0 })
    }
}

impl Deref for Ring {
    type Target = Queue;

    fn deref(&self) -> &Queue {
        &self.queue
    }
}
