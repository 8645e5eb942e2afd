//! The balloon (VIRTIO 1.2, section 5.5): memory that the guest does without is given back to the
//! host.
//!
//! It comes back in two ways. An operator asks for pages, and the driver *inflates* the balloon by
//! as many when it can, until they are wanted back or it has none left to live on
//! (VIRTIO_BALLOON_F_DEFLATE_ON_OOM). And the driver *reports* ranges that are free just now
//! (VIRTIO_BALLOON_F_REPORTING), without being asked and without losing them. In both a page is
//! discarded as soon as the device learns of it: it is zeros and a hole in the guest's memory file
//! from then on, neither read nor sent by a migration, and comes back by being touched. So deflating
//! needs nothing of the device, and it keeps no account of which pages it has.
//!
//! The driver is believed in what is its own loss only. It may name pages that it uses, and finds
//! zeros there; what it cannot do is reach beyond its memory, or keep the device for longer than a
//! pause waits.

mod config;

use std::sync::Arc;

use migpipe_units::PAGE_SIZE;
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
use vm_state::{LoadError, SaveError, Section, SectionSet, Snapshot};

pub(super) use self::config::BalloonConfig;
pub use self::config::BalloonSize;
use super::backend::{Backend, Served};
use super::chain::{Buffer, Malformed};
use super::ram::GuestRam;
use super::ring::{QueueSpec, Ring};
use super::state::TransportState;

/// Feature bits (VIRTIO 1.2, 5.5.3).
const DEFLATE_ON_OOM: u32 = 2;
const REPORTING: u32 = 5;

/// Linux puts 256 page numbers, or 32 ranges, into a request.
const QUEUES: &[QueueSpec] = &[
    QueueSpec { name: "inflateq", size: 128 },
    QueueSpec { name: "deflateq", size: 128 },
    QueueSpec { name: "reporting_vq", size: 32 },
];
const INFLATE: usize = 0;
const DEFLATE: usize = 1;
/// A queue that was not negotiated has no number (VIRTIO 1.2, 5.5.2): without those for statistics
/// and hints this one follows.
const REPORT: usize = 2;

/// Page numbers of one request at most (256 MiB), so that it does not hold up a pause.
const MOST_NUMBERS: usize = 1 << 16;
/// Ranges of one report at most, for the same reason.
const MOST_RANGES: usize = 1 << 12;
/// Bytes of a page number.
const NUMBER: usize = 4;

/// Where the fields of struct virtio_balloon_config are (VIRTIO 1.2, 5.5.4).
const ACTUAL: u64 = 4;

/// The saved state of a balloon. Its pages are holes in the guest's memory, and travel as those.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonState {
    /// Registers and rings.
    pub transport: TransportState,
    /// Pages that the driver was asked for.
    pub num_pages: u32,
    /// Pages that the driver says it has given.
    pub actual: u32,
}

impl Snapshot for BalloonState {
    const NAME: &'static str = "virtio-balloon";
    const VERSION: u16 = 1;
}

/// See the module.
#[derive(Default)]
pub(super) struct Balloon {
    config: Arc<BalloonConfig>,
    reports: bool,
    /// A discard has failed, and that was said.
    complained: bool,
}

impl Balloon {
    /// The numbers that its operator shares with its driver.
    pub(super) fn shared_config(&self) -> Arc<BalloonConfig> {
        Arc::clone(&self.config)
    }

    fn inflate(&mut self, numbers: &Buffer, ram: &GuestRam) -> Result<(), Malformed> {
        let mut bytes = vec![0; numbers.len() as usize];
        numbers.read(ram, 0, &mut bytes)?;
        let (numbers, _) = bytes.as_chunks::<NUMBER>();
        let mut pages: Vec<u64> =
            numbers.iter().map(|number| u32::from_le_bytes(*number).into()).collect();
        // Nothing is discarded of a request of which a part is wrong.
        if !pages.iter().all(|page| ram.holds(page * PAGE_SIZE, PAGE_SIZE)) {
            return Err(Malformed::Memory);
        }
        pages.sort_unstable();
        pages.dedup();
        for run in pages.chunk_by(|page, next| page + 1 == *next) {
            self.discard(ram, run[0] * PAGE_SIZE, run.len() as u64 * PAGE_SIZE);
        }
        Ok(())
    }

    fn discard(&mut self, ram: &GuestRam, address: u64, len: u64) {
        if let Err(error) = ram.discard(address, len)
            && !std::mem::replace(&mut self.complained, true)
        {
            // The guest does without these pages all the same; only the host gains nothing.
            tracing::warn!("the host does not take memory back from the balloon: {error}");
        }
    }
}

/// Whether these can be page numbers, and not too many.
fn check_numbers(numbers: &Buffer) -> Result<(), Malformed> {
    let len = numbers.len();
    if !len.is_multiple_of(NUMBER as u64) || len > (MOST_NUMBERS * NUMBER) as u64 {
        return Err(Malformed::Request);
    }
    Ok(())
}

impl Backend for Balloon {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_BALLOON
    }

    fn features(&self) -> u64 {
        1 << DEFLATE_ON_OOM | 1 << REPORTING
    }

    fn queues(&self) -> &'static [QueueSpec] {
        QUEUES
    }

    /// struct virtio_balloon_config (VIRTIO 1.2, 5.5.4), as far as the features go.
    fn config(&self) -> Vec<u8> {
        self.config.bytes()
    }

    /// The driver says how many pages it has given.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (ACTUAL, Ok(actual)) = (offset, <[u8; 4]>::try_from(data)) {
            self.config.set_actual(u32::from_le_bytes(actual));
        }
    }

    fn activate(&mut self, features: u64) {
        self.reports = features & 1 << REPORTING != 0;
    }

    /// A driver that starts afresh has given nothing. What it was asked for stays: that is the
    /// operator's.
    fn reset(&mut self) {
        self.config.set_actual(0);
        self.reports = false;
    }

    fn serve(
        &mut self,
        queue: usize,
        ring: &mut Ring,
        ram: &GuestRam,
    ) -> Result<Served, Malformed> {
        let Some(chain) = ring.pop(ram)? else { return Ok(Served::Empty) };
        match queue {
            INFLATE => {
                check_numbers(&chain.input)?;
                self.inflate(&chain.input, ram)?;
            }
            // The pages come back when they are touched.
            DEFLATE => check_numbers(&chain.input)?,
            REPORT if self.reports && chain.output.parts().len() <= MOST_RANGES => {
                for &(address, len) in chain.output.parts() {
                    self.discard(ram, address, len.into());
                }
            }
            _ => return Err(Malformed::Request),
        }
        ring.complete(ram, chain.head, 0)?;
        Ok(Served::Done)
    }

    fn save(&self, instance: u32, transport: TransportState) -> Result<Section, SaveError> {
        let (num_pages, actual) = (self.config.num_pages(), self.config.actual());
        BalloonState { transport, num_pages, actual }.to_section(instance)
    }

    fn restore(
        &mut self,
        instance: u32,
        sections: &mut SectionSet,
    ) -> Result<TransportState, LoadError> {
        let state: BalloonState = sections.take(instance)?;
        self.config.set_num_pages(state.num_pages);
        self.config.set_actual(state.actual);
        Ok(state.transport)
    }
}

#[cfg(test)]
mod tests;
