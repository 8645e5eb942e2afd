//! The source of randomness (VIRTIO 1.2, section 5.4), from the host's getrandom(2).

use std::fs::File;
use std::io::Read;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use vm_state::{LoadError, SaveError, Section, SectionSet, Snapshot};

use super::backend::{Backend, Served};
use super::chain::Malformed;
use super::error::VirtioError;
use super::ram::GuestRam;
use super::ring::{QueueSpec, Ring};
use super::spec::VirtioSpec;
use super::state::TransportState;

const QUEUES: &[QueueSpec] = &[QueueSpec { name: "requestq", size: 64 }];

/// What one request gets at most; a device may give less than was asked for (VIRTIO 1.2, 5.4.6.1).
const MOST: u64 = 4096;

/// The saved state of the device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RngState {
    /// Registers and rings.
    pub transport: TransportState,
}

impl Snapshot for RngState {
    const NAME: &'static str = "virtio-rng";
    const VERSION: u16 = 1;
}

/// See the module.
pub(super) struct Rng {
    source: File,
}

impl Rng {
    pub(super) fn open(spec: &VirtioSpec) -> Result<Self, VirtioError> {
        let source = File::open("/dev/urandom");
        let source =
            source.map_err(|source| VirtioError::System { device: spec.to_string(), source })?;
        Ok(Self { source })
    }
}

impl Backend for Rng {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn features(&self) -> u64 {
        0
    }

    fn queues(&self) -> &'static [QueueSpec] {
        QUEUES
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn activate(&mut self, _: u64) {}

    fn serve(&mut self, _: usize, ring: &mut Ring, ram: &GuestRam) -> Result<Served, Malformed> {
        let Some(chain) = ring.pop(ram)? else { return Ok(Served::Empty) };
        let mut bytes = vec![0; chain.output.len().min(MOST) as usize];
        if let Err(error) = self.source.read_exact(&mut bytes) {
            tracing::warn!("/dev/urandom: {error}");
            bytes.clear();
        }
        chain.output.write(ram, 0, &bytes)?;
        ring.complete(ram, chain.head, bytes.len() as u32)?;
        Ok(Served::Done)
    }

    fn save(&self, instance: u32, transport: TransportState) -> Result<Section, SaveError> {
        RngState { transport }.to_section(instance)
    }

    fn restore(
        &mut self,
        instance: u32,
        sections: &mut SectionSet,
    ) -> Result<TransportState, LoadError> {
        Ok(sections.take::<RngState>(instance)?.transport)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;
    use crate::virtio::RingState;
    use crate::virtio::driver::{BUFFERS, Driver, NEEDS_RESET, Part, STATUS};

    #[test]
    fn a_request_is_filled_and_marked_and_no_two_are_alike() {
        let mut driver = Driver::start(&VirtioSpec::rng(), 0);
        assert_eq!(driver.read(8), 4);
        let mut ask = |len| {
            let place = driver.put(0, &[Part::Takes(len)])[0];
            driver.marked();
            driver.kick(0);
            assert_eq!(driver.take(0).1, len.min(4096));
            assert!(driver.marked().contains(&(place / 4096)));
            driver.bytes(place, len)
        };
        let (first, second) = (ask(64), ask(64));
        assert_ne!(first, second);
        assert_ne!(first, [0; 64]);
        assert_eq!(ask(5000)[4096..], [0; 904], "no more than a page");
    }

    #[test]
    fn a_request_that_is_parked_is_served_where_the_guest_goes() {
        let mut driver = Driver::start(&VirtioSpec::rng(), 0);
        driver.device.quiesce().unwrap();
        let place = driver.put(0, &[Part::Takes(32)])[0];
        driver.kick(0);
        let mut there = driver.move_to(&VirtioSpec::rng());
        there.device.resume();
        assert_eq!(there.take(0), (0, 32));
        assert_ne!(there.bytes(place, 32), [0; 32]);
        there.settle();
        assert_eq!((there.used(0), driver.used(0)), (1, 0));
    }

    #[test]
    fn what_only_says_something_gets_nothing_and_what_lies_outside_memory_is_refused() {
        let mut driver = Driver::start(&VirtioSpec::rng(), 0);
        driver.put(0, &[Part::Says(&[1; 16])]);
        driver.kick(0);
        assert_eq!(driver.take(0).1, 0);
        driver.descriptor(0, 1, (u64::MAX - 8, 64, 2, 0));
        driver.offer(0, 1);
        driver.kick(0);
        driver.wait("refusal", |driver| driver.read(STATUS) & NEEDS_RESET != 0);
        assert_eq!(driver.bytes(BUFFERS, 16), [1; 16]);
    }

    #[test]
    fn every_version_ever_released_still_loads() {
        let ring = RingState {
            size: 8,
            ready: true,
            event_idx: false,
            next_avail: 9,
            next_used: 8,
            descriptors: 0x1_0000,
            available: 0x1_2000,
            used: 0x1_3000,
        };
        let transport = TransportState {
            status: 15,
            driver_features: 1 << 32,
            interrupt_status: 1,
            rings: vec![ring],
            ..TransportState::default()
        };
        let golden = RngState { transport };
        let bytes = include_bytes!("../../tests/golden/virtio-rng-1.section");
        assert_eq!(golden.to_section(0).unwrap().encode().unwrap(), bytes);
        let driver = Driver::restored(&VirtioSpec::rng(), Section::decode(bytes).unwrap()).unwrap();
        let again = driver.device.save().unwrap();
        assert_eq!(RngState::from_section(&again).unwrap(), golden);
    }
}
