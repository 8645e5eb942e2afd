//! The console (VIRTIO 1.2, section 5.3) with one port, whose far end is a [`Console`].
//!
//! What is typed waits in an [`Inbox`] until the driver has a buffer for it; when that is full it
//! waits at the far end, as it does while the guest is stopped.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::eventfd::{EfdFlags, EventFd};
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;
use vm_state::{LoadError, PayloadError, SaveError, Section, SectionSet, Snapshot};

use super::backend::{Backend, Served};
use super::chain::Malformed;
use super::error::VirtioError;
use super::ram::GuestRam;
use super::ring::{QueueSpec, Ring};
use super::spec::VirtioSpec;
use super::state::TransportState;
use crate::console::{Console, ConsoleSpec, Input};

/// Feature bit (VIRTIO 1.2, 5.3.3).
const EMERGENCY_WRITE: u32 = 2;

const QUEUES: &[QueueSpec] =
    &[QueueSpec { name: "receiveq", size: 64 }, QueueSpec { name: "transmitq", size: 64 }];
const RECEIVE: usize = 0;

/// What is typed ahead of the driver: a page, as a terminal of Linux takes.
const INBOX: usize = 4096;

/// What a request can print at most; Linux prints a page, or 32 KiB by a write to the port. It
/// bounds how long a pause waits.
const MOST_PRINTED: u64 = 1 << 20;

/// How much of a request is in our memory at once.
const PIECE: u64 = 64 << 10;

/// Where emerg_wr is in struct virtio_console_config (VIRTIO 1.2, 5.3.4), which ends with it.
const EMERGENCY: usize = 8;

/// The saved state of a console. Where it goes is not part of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleState {
    /// Registers and rings.
    pub transport: TransportState,
    /// What was typed and has not been given to the driver.
    pub typed: Vec<u8>,
}

impl Snapshot for ConsoleState {
    const NAME: &'static str = "virtio-console";
    const VERSION: u16 = 1;

    fn validate(&self) -> Result<(), PayloadError> {
        if self.typed.len() > INBOX {
            return Err(PayloadError::Field {
                field: "typed",
                problem: format!("has {} bytes; the console keeps {INBOX}", self.typed.len()),
            });
        }
        Ok(())
    }
}

/// What was typed and the driver has not taken yet.
struct Inbox {
    typed: Mutex<Typed>,
    /// Readable while there may be something.
    filled: EventFd,
}

struct Typed {
    bytes: VecDeque<u8>,
    stopped: bool,
}

impl Inbox {
    fn typed(&self) -> MutexGuard<'_, Typed> {
        // Each change of a queue of bytes is complete in itself.
        self.typed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Input for Inbox {
    fn receive(&self, bytes: &[u8]) -> usize {
        let mut typed = self.typed();
        if typed.stopped {
            return 0;
        }
        let room = (INBOX - typed.bytes.len()).min(bytes.len());
        typed.bytes.extend(&bytes[..room]);
        if room > 0 {
            // A full counter is readable already.
            let _ = self.filled.write(1);
        }
        room
    }
}

/// See the module.
pub(super) struct VirtioConsole {
    far_end: Console,
    inbox: Arc<Inbox>,
    /// The driver has a buffer, and nothing was typed for it.
    waits: bool,
}

impl VirtioConsole {
    fn place(spec: &VirtioSpec) -> Result<ConsoleSpec, VirtioError> {
        let to = spec.param(VirtioSpec::CONSOLE_PARAM)?;
        Ok(to.parse().map_err(|_| spec.wrong(VirtioSpec::CONSOLE_PARAM, to))?)
    }

    /// Whether its far end could be opened.
    pub(super) fn examine(spec: &VirtioSpec) -> Result<(), VirtioError> {
        Console::examine(&Self::place(spec)?)
            .map_err(|source| VirtioError::Console { device: spec.to_string(), source })
    }

    pub(super) fn open(spec: &VirtioSpec) -> Result<Self, VirtioError> {
        let to = Self::place(spec)?;
        let device = || spec.to_string();
        let far_end = Console::open(&to)
            .map_err(|source| VirtioError::Console { device: device(), source })?;
        let filled = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)
            .map_err(|error| VirtioError::System { device: device(), source: error.into() })?;
        let typed = Typed { bytes: VecDeque::new(), stopped: true };
        let inbox = Arc::new(Inbox { typed: Mutex::new(typed), filled });
        let input: Arc<dyn Input> = inbox.clone();
        far_end.attach(&input);
        Ok(Self { far_end, inbox, waits: false })
    }

    fn receive(&mut self, ring: &mut Ring, ram: &GuestRam) -> Result<Served, Malformed> {
        self.waits = false;
        let Some(chain) = ring.pop(ram)? else { return Ok(Served::Empty) };
        if chain.output.len() == 0 {
            return Err(Malformed::Request);
        }
        // Emptied before the look: what comes after the look fills it again.
        let _ = self.inbox.filled.read();
        let mut typed = self.inbox.typed();
        let len = chain.output.len().min(typed.bytes.len() as u64) as usize;
        if len == 0 {
            ring.put_back();
            self.waits = true;
            return Ok(Served::Waiting);
        }
        chain.output.write(ram, 0, &typed.bytes.make_contiguous()[..len])?;
        typed.bytes.drain(..len);
        ring.complete(ram, chain.head, len as u32)?;
        Ok(Served::Done)
    }

    fn transmit(&self, ring: &mut Ring, ram: &GuestRam) -> Result<Served, Malformed> {
        let Some(chain) = ring.pop(ram)? else { return Ok(Served::Empty) };
        let len = chain.input.len();
        if len > MOST_PRINTED {
            return Err(Malformed::Request);
        }
        for at in (0..len).step_by(PIECE as usize) {
            let mut piece = vec![0; PIECE.min(len - at) as usize];
            chain.input.read(ram, at, &mut piece)?;
            self.far_end.print(&piece);
        }
        ring.complete(ram, chain.head, 0)?;
        Ok(Served::Done)
    }
}

impl Backend for VirtioConsole {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_CONSOLE
    }

    fn features(&self) -> u64 {
        1 << EMERGENCY_WRITE
    }

    fn queues(&self) -> &'static [QueueSpec] {
        QUEUES
    }

    /// struct virtio_console_config (VIRTIO 1.2, 5.3.4): no size, no ports, and what is only
    /// written.
    fn config(&self) -> Vec<u8> {
        vec![0; EMERGENCY + 4]
    }

    /// A character that a guest in trouble prints without a queue, whatever state it has brought
    /// the device to (VIRTIO 1.2, 5.3.4).
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (true, [character, ..]) = (offset == EMERGENCY as u64, data) {
            self.far_end.print(&[*character]);
        }
    }

    fn activate(&mut self, _: u64) {}

    fn reset(&mut self) {
        self.waits = false;
    }

    fn serve(
        &mut self,
        queue: usize,
        ring: &mut Ring,
        ram: &GuestRam,
    ) -> Result<Served, Malformed> {
        match queue {
            RECEIVE => self.receive(ring, ram),
            _ => self.transmit(ring, ram),
        }
    }

    fn source(&self) -> Option<OwnedFd> {
        self.inbox.filled.as_fd().try_clone_to_owned().ok()
    }

    fn wants_source(&self) -> bool {
        self.waits
    }

    fn quiesce(&mut self) {
        self.inbox.typed().stopped = true;
    }

    fn resume(&mut self) {
        self.inbox.typed().stopped = false;
    }

    fn save(&self, instance: u32, transport: TransportState) -> Result<Section, SaveError> {
        let typed = self.inbox.typed().bytes.iter().copied().collect();
        ConsoleState { transport, typed }.to_section(instance)
    }

    fn restore(
        &mut self,
        instance: u32,
        sections: &mut SectionSet,
    ) -> Result<TransportState, LoadError> {
        let state: ConsoleState = sections.take(instance)?;
        self.inbox.typed().bytes = state.typed.into();
        Ok(state.transport)
    }
}

#[cfg(test)]
mod tests;
