//! The network card (VIRTIO 1.2, section 5.1) over a tap.
//!
//! The header before each frame is that of the tap itself, which takes and gives checksums and
//! large segments as the driver has agreed to: nothing here looks into a frame. A frame for which
//! the driver has no room is dropped, as by any card.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::*;
use vm_state::{LoadError, SaveError, Section, SectionSet, Snapshot};

use super::backend::{Backend, Served};
use super::chain::Malformed;
use super::error::VirtioError;
use super::ram::GuestRam;
use super::ring::{QueueSpec, Ring};
use super::spec::VirtioSpec;
use super::state::TransportState;
use super::tap;

const QUEUES: &[QueueSpec] = &[
    QueueSpec { name: "receiveq1", size: 256 },
    QueueSpec { name: "transmitq1", size: 256 },
    QueueSpec { name: "controlq", size: 64 },
];
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

/// struct virtio_net_hdr with num_buffers (VIRTIO 1.2, 5.1.6).
const HEADER: usize = 12;
const NUM_BUFFERS: std::ops::Range<usize> = 10..12;

/// The longest frame with its header: a segment of 64 KiB that the other side cuts.
const MOST_FRAME: usize = HEADER + 18 + 65536;

/// When a guest that has arrived is announced again: the first switch may still be learning.
const ANNOUNCE_GAPS: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_millis(50),
    Duration::from_millis(150),
    Duration::from_millis(250),
    Duration::from_millis(350),
];

/// The saved state of a network card. Frames under way are the network's, which may lose them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetState {
    /// Registers and rings.
    pub transport: TransportState,
    /// The driver was asked to announce itself and has not said that it did.
    pub announce: bool,
}

impl Snapshot for NetState {
    const NAME: &'static str = "virtio-net";
    const VERSION: u16 = 1;
}

/// See the module.
pub(super) struct Net {
    wire: File,
    mac: [u8; 6],
    /// What the tap offers beside what every card does.
    offloads: u64,
    features: u64,
    announce: bool,
    /// The driver has room, and no frame was there for it.
    waits: bool,
    frame: Vec<u8>,
}

impl Net {
    pub(super) fn open(
        spec: &VirtioSpec,
        params: &mut BTreeMap<String, String>,
    ) -> Result<Self, VirtioError> {
        const MAC: &str = "mac";
        let name = spec.param("tap")?;
        let (device, tap) = (spec.to_string(), name.to_owned());
        let wire = match tap::open(name, HEADER as i32) {
            Ok(wire) => wire,
            Err(source) => return Err(VirtioError::Tap { device, tap, source }),
        };
        let mac = match params.get(MAC) {
            Some(text) => parse_mac(text).ok_or_else(|| spec.wrong(MAC, text))?,
            None => random_mac().map_err(|source| VirtioError::System { device, source })?,
        };
        params.insert(MAC.to_owned(), format_mac(mac));
        let mut offloads =
            1 << VIRTIO_NET_F_CSUM | 1 << VIRTIO_NET_F_HOST_TSO4 | 1 << VIRTIO_NET_F_HOST_TSO6;
        let all = tap::OFFLOAD_CSUM | tap::OFFLOAD_TSO4 | tap::OFFLOAD_TSO6;
        if tap::set_offload(&wire, all).is_ok() {
            offloads |= 1 << VIRTIO_NET_F_GUEST_CSUM
                | 1 << VIRTIO_NET_F_GUEST_TSO4
                | 1 << VIRTIO_NET_F_GUEST_TSO6;
        }
        let mut net = Self::over(wire, mac, offloads);
        net.reset();
        Ok(net)
    }

    /// A card over a descriptor that reads and writes one frame at a time and does not block.
    fn over(wire: File, mac: [u8; 6], offloads: u64) -> Self {
        let frame = vec![0; MOST_FRAME];
        Self { wire, mac, offloads, features: 0, announce: false, waits: false, frame }
    }

    const fn has(&self, feature: u32) -> bool {
        self.features & 1 << feature != 0
    }

    fn receive(&mut self, ring: &mut Ring, ram: &GuestRam) -> Result<Served, Malformed> {
        self.waits = false;
        let Some(first) = ring.pop(ram)? else { return Ok(Served::Empty) };
        let len = match self.wire.read(&mut self.frame) {
            Ok(len) if len >= HEADER => len,
            Ok(_) | Err(_) => {
                ring.put_back();
                self.waits = true;
                return Ok(Served::Waiting);
            }
        };
        let mut chains = vec![first];
        let mut room = chains[0].output.len();
        while room < len as u64 && self.has(VIRTIO_NET_F_MRG_RXBUF) {
            let Some(next) = ring.pop(ram)? else { break };
            if next.output.len() == 0 {
                return Err(Malformed::Request);
            }
            room += next.output.len();
            chains.push(next);
        }
        if room < len as u64 {
            chains.iter().for_each(|_| ring.put_back());
            self.waits = true;
            return Ok(Served::Waiting);
        }
        self.frame[NUM_BUFFERS].copy_from_slice(&(chains.len() as u16).to_le_bytes());
        let mut rest = &self.frame[..len];
        let mut used = Vec::new();
        for chain in &chains {
            let (piece, more) = rest.split_at(rest.len().min(chain.output.len() as usize));
            chain.output.write(ram, 0, piece)?;
            used.push((chain.head, piece.len() as u32));
            rest = more;
        }
        ring.complete_all(ram, &used)?;
        Ok(Served::Done)
    }

    fn transmit(&mut self, ring: &mut Ring, ram: &GuestRam) -> Result<Served, Malformed> {
        let Some(chain) = ring.pop(ram)? else { return Ok(Served::Empty) };
        let len = chain.input.len() as usize;
        if len < HEADER {
            return Err(Malformed::Request);
        }
        if len <= MOST_FRAME {
            chain.input.read(ram, 0, &mut self.frame[..len])?;
            // A frame that the tap does not take, or has no room for, is lost as on any wire.
            if let Err(error) = self.wire.write(&self.frame[..len]) {
                tracing::debug!("a frame is lost: {error}");
            }
        }
        ring.complete(ram, chain.head, 0)?;
        Ok(Served::Done)
    }

    /// The control queue (VIRTIO 1.2, 5.1.6.5): of its commands the one that answers an announcement.
    fn control(&mut self, ring: &mut Ring, ram: &GuestRam) -> Result<Served, Malformed> {
        let Some(chain) = ring.pop(ram)? else { return Ok(Served::Empty) };
        let command: [u8; 2] = chain.input.read_array(ram, 0)?;
        let known = command == [VIRTIO_NET_CTRL_ANNOUNCE as u8, VIRTIO_NET_CTRL_ANNOUNCE_ACK as u8];
        if known {
            self.announce = false;
        }
        let answer = if known { VIRTIO_NET_OK } else { VIRTIO_NET_ERR };
        chain.output.write(ram, 0, &[answer as u8])?;
        ring.complete(ram, chain.head, 1)?;
        Ok(Served::Done)
    }
}

impl Backend for Net {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn features(&self) -> u64 {
        self.offloads
            | 1 << VIRTIO_NET_F_MAC
            | 1 << VIRTIO_NET_F_STATUS
            | 1 << VIRTIO_NET_F_MRG_RXBUF
            | 1 << VIRTIO_NET_F_CTRL_VQ
            | 1 << VIRTIO_NET_F_GUEST_ANNOUNCE
    }

    fn queues(&self) -> &'static [QueueSpec] {
        QUEUES
    }

    /// struct virtio_net_config (VIRTIO 1.2, 5.1.4): address and status.
    fn config(&self) -> Vec<u8> {
        let announce = if self.announce { VIRTIO_NET_S_ANNOUNCE } else { 0 };
        let status = (VIRTIO_NET_S_LINK_UP | announce) as u16;
        [&self.mac[..], &status.to_le_bytes()].concat()
    }

    fn activate(&mut self, features: u64) {
        self.features = features;
        let offload = [
            (VIRTIO_NET_F_GUEST_CSUM, tap::OFFLOAD_CSUM),
            (VIRTIO_NET_F_GUEST_TSO4, tap::OFFLOAD_TSO4),
            (VIRTIO_NET_F_GUEST_TSO6, tap::OFFLOAD_TSO6),
        ];
        let offload = offload.iter().filter(|(feature, _)| self.has(*feature));
        // What is no tap, or a tap that takes none, has offered none either.
        let _ = tap::set_offload(&self.wire, offload.fold(0, |all, (_, flag)| all | flag));
    }

    fn reset(&mut self) {
        self.announce = false;
        self.waits = false;
        self.activate(0);
    }

    fn serve(
        &mut self,
        queue: usize,
        ring: &mut Ring,
        ram: &GuestRam,
    ) -> Result<Served, Malformed> {
        match queue {
            RECEIVE => self.receive(ring, ram),
            TRANSMIT => self.transmit(ring, ram),
            _ => self.control(ring, ram),
        }
    }

    fn source(&self) -> Option<OwnedFd> {
        self.wire.try_clone().map(OwnedFd::from).ok()
    }

    fn wants_source(&self) -> bool {
        self.waits
    }

    fn save(&self, instance: u32, transport: TransportState) -> Result<Section, SaveError> {
        NetState { transport, announce: self.announce }.to_section(instance)
    }

    fn restore(
        &mut self,
        instance: u32,
        sections: &mut SectionSet,
    ) -> Result<TransportState, LoadError> {
        let state: NetState = sections.take(instance)?;
        self.announce = state.announce;
        Ok(state.transport)
    }

    /// By frames of our own, and by the driver's where it can: it knows its addresses.
    fn announce(&mut self) -> bool {
        let (wire, frame) = (self.wire.try_clone(), rarp(self.mac));
        let announcer = std::thread::Builder::new().name("announce".to_owned());
        let spawned = wire.and_then(|mut wire| {
            announcer.spawn(move || {
                for gap in ANNOUNCE_GAPS {
                    std::thread::sleep(gap);
                    let _ = wire.write(&frame);
                }
            })
        });
        if let Err(error) = spawned {
            tracing::warn!("cannot announce {}: {error}", format_mac(self.mac));
        }
        self.announce = self.has(VIRTIO_NET_F_GUEST_ANNOUNCE);
        self.announce
    }
}

/// A reverse ARP request of the card for its own address (RFC 903), with a header before it: it
/// tells every switch where the card is now.
fn rarp(mac: [u8; 6]) -> Vec<u8> {
    const SHORTEST: usize = 60;
    let mut frame = vec![0; HEADER];
    frame.extend([0xff; 6]);
    frame.extend(mac);
    // RARP; Ethernet, IPv4, 6 and 4 bytes of address, request.
    frame.extend([0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
    for _ in 0..2 {
        frame.extend(mac);
        frame.extend([0; 4]);
    }
    frame.resize(HEADER + SHORTEST, 0);
    frame
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2)?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    // The lowest bit is for groups.
    (parts.next().is_none() && mac[0] & 1 == 0).then_some(mac)
}

fn format_mac(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// An address of the range that people give to virtual machines.
fn random_mac() -> io::Result<[u8; 6]> {
    let mut mac = [0x52, 0x54, 0, 0, 0, 0];
    File::open("/dev/urandom")?.read_exact(&mut mac[3..])?;
    Ok(mac)
}

#[cfg(test)]
mod tests;
