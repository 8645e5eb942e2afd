//! The disk (VIRTIO 1.2, section 5.2) over a raw image.

mod disk_file;
mod image;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_blk::*;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use vm_state::{LoadError, SaveError, Section, SectionSet, Snapshot};

pub use self::disk_file::DiskFile;
use self::image::Image;
use super::backend::{Backend, Served};
use super::chain::{Chain, Malformed};
use super::error::VirtioError;
use super::ram::GuestRam;
use super::ring::{QueueSpec, Ring};
use super::spec::VirtioSpec;
use super::state::TransportState;

/// The unit of a disk, whatever its blocks (VIRTIO 1.2, 5.2.4).
const SECTOR: u64 = 512;

const QUEUES: &[QueueSpec] = &[QueueSpec { name: "requestq", size: 256 }];

/// The type and the first sector of a request, with four bytes of nothing between.
const HEADER: u64 = 16;

/// One range of a discard or write-zeroes request: sector, count of sectors, flags.
const RANGE: u64 = 16;

/// Ranges that a driver may put into one such request.
const MOST_RANGES: u32 = 64;

/// Sectors of one such range: 1 GiB, so that zeros that have to be written do not take for ever.
const MOST_RANGE_SECTORS: u32 = 1 << 21;

/// Data of one request at most; Linux asks for 1.25 MiB unless told otherwise. It bounds how long
/// a pause waits.
const MOST_DATA: u64 = 64 << 20;

/// How much of a request is in our memory at once.
const PIECE: u64 = 1 << 20;

/// The saved state of a disk: what is on it, and where, is not part of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockState {
    /// Registers and rings.
    pub transport: TransportState,
}

impl Snapshot for BlockState {
    const NAME: &'static str = "virtio-block";
    const VERSION: u16 = 1;
}

/// See the module.
pub(super) struct Block {
    image: Image,
    serial: [u8; VIRTIO_BLK_ID_BYTES as usize],
    /// The driver knows that a write is not safe before a flush.
    driver_flushes: bool,
    piece: Vec<u8>,
}

impl Block {
    pub(super) fn open(
        spec: &VirtioSpec,
        params: &mut BTreeMap<String, String>,
    ) -> Result<Self, VirtioError> {
        const BYTES: &str = "bytes";
        const SERIAL: &str = "serial";
        let (read_only, direct) = (spec.flag("ro")?, spec.flag("direct")?);
        let path = PathBuf::from(spec.param(VirtioSpec::PATH_PARAM)?);
        let image = Image::open(&spec.to_string(), path, read_only, direct, SECTOR)?;
        if let Some(expected) = params.get(BYTES) {
            image.must_have(spec.number(BYTES, expected)?)?;
        }
        params.insert(BYTES.to_owned(), image.len().to_string());
        let mut serial = [0; VIRTIO_BLK_ID_BYTES as usize];
        if let Some(text) = spec.params.get(SERIAL) {
            let room = serial.get_mut(..text.len()).ok_or_else(|| spec.wrong(SERIAL, text))?;
            room.copy_from_slice(text.as_bytes());
        }
        Ok(Self { image, serial, driver_flushes: false, piece: Vec::new() })
    }

    /// The image, if it is written.
    pub(super) fn written_disk(&self) -> Option<Arc<DiskFile>> {
        (!self.image.is_read_only()).then(|| Arc::clone(self.image.disk()))
    }

    /// Does what the request asks for. Returns how many bytes of output it wrote, without the
    /// status behind them.
    fn handle(&mut self, chain: &Chain, room: u64, ram: &GuestRam) -> Result<u64, Failure> {
        let header: [u8; HEADER as usize] = chain.input.read_array(ram, 0)?;
        let (kind, rest) = header.split_first_chunk().expect("16 bytes");
        let (_, sector) = rest.split_last_chunk().expect("12 bytes");
        let sector = u64::from_le_bytes(*sector);
        let data = chain.input.len() - HEADER;
        match u32::from_le_bytes(*kind) {
            VIRTIO_BLK_T_IN => self.read(chain, sector, room, ram),
            VIRTIO_BLK_T_OUT => self.write(chain, sector, data, ram),
            VIRTIO_BLK_T_FLUSH => Ok(self.image.flush().map(|()| 0)?),
            VIRTIO_BLK_T_GET_ID => {
                let len = room.min(self.serial.len() as u64);
                chain.output.write(ram, 0, &self.serial[..len as usize])?;
                Ok(len)
            }
            kind @ (VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES) => {
                self.clear(chain, kind, data, ram)
            }
            _ => Err(Failure::Unsupported),
        }
    }

    /// Where `bytes` from `sector` on are in the image, if they are in it.
    fn place(&self, sector: u64, bytes: u64) -> Result<u64, Failure> {
        let offset = sector.checked_mul(SECTOR).ok_or(Failure::Io)?;
        let end = offset.checked_add(bytes).ok_or(Failure::Io)?;
        if end > self.image.len() || !bytes.is_multiple_of(SECTOR) {
            return Err(Failure::Io);
        }
        Ok(offset)
    }

    fn read(
        &mut self,
        chain: &Chain,
        sector: u64,
        len: u64,
        ram: &GuestRam,
    ) -> Result<u64, Failure> {
        let offset = self.place(sector, len)?;
        if len > MOST_DATA {
            return Err(Failure::Io);
        }
        for at in (0..len).step_by(PIECE as usize) {
            self.piece.resize(PIECE.min(len - at) as usize, 0);
            self.image.read(offset + at, &mut self.piece)?;
            chain.output.write(ram, at, &self.piece)?;
        }
        Ok(len)
    }

    fn write(
        &mut self,
        chain: &Chain,
        sector: u64,
        len: u64,
        ram: &GuestRam,
    ) -> Result<u64, Failure> {
        self.must_be_writable()?;
        let offset = self.place(sector, len)?;
        if len > MOST_DATA {
            return Err(Failure::Io);
        }
        for at in (0..len).step_by(PIECE as usize) {
            self.piece.resize(PIECE.min(len - at) as usize, 0);
            chain.input.read(ram, HEADER + at, &mut self.piece)?;
            self.image.write(offset + at, &self.piece)?;
        }
        self.settle()
    }

    /// Discards or zeroes ranges (VIRTIO 1.2, 5.2.6).
    fn clear(
        &mut self,
        chain: &Chain,
        kind: u32,
        data: u64,
        ram: &GuestRam,
    ) -> Result<u64, Failure> {
        self.must_be_writable()?;
        if data == 0 || !data.is_multiple_of(RANGE) || data / RANGE > MOST_RANGES.into() {
            return Err(Failure::Io);
        }
        for at in (0..data).step_by(RANGE as usize) {
            let sector = u64::from_le_bytes(chain.input.read_array(ram, HEADER + at)?);
            let sectors = u32::from_le_bytes(chain.input.read_array(ram, HEADER + at + 8)?);
            let flags = u32::from_le_bytes(chain.input.read_array(ram, HEADER + at + 12)?);
            let unmap = flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0;
            let unknown = flags & !VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0;
            // The flag is for zeroes alone (VIRTIO 1.2, 5.2.6.2).
            if unknown || kind == VIRTIO_BLK_T_DISCARD && unmap {
                return Err(Failure::Unsupported);
            }
            let bytes = u64::from(sectors) * SECTOR;
            let offset = self.place(sector, bytes)?;
            if sectors > MOST_RANGE_SECTORS {
                return Err(Failure::Io);
            }
            match kind {
                _ if bytes == 0 => {}
                VIRTIO_BLK_T_DISCARD => self.image.discard(offset, bytes)?,
                _ => self.image.write_zeroes(offset, bytes, unmap)?,
            }
        }
        self.settle()
    }

    fn must_be_writable(&self) -> Result<(), Failure> {
        if self.image.is_read_only() { Err(Failure::Io) } else { Ok(()) }
    }

    /// A driver that cannot flush takes every write for safe (VIRTIO 1.2, 5.2.6.2).
    fn settle(&self) -> Result<u64, Failure> {
        if !self.driver_flushes {
            self.image.flush()?;
        }
        Ok(0)
    }
}

/// Why a request is answered with an error.
enum Failure {
    Io,
    Unsupported,
    Malformed(Malformed),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        tracing::warn!("disk image: {error}");
        Self::Io
    }
}

impl From<Malformed> for Failure {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed(malformed)
    }
}

impl Backend for Block {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn features(&self) -> u64 {
        let always =
            1 << VIRTIO_BLK_F_SEG_MAX | 1 << VIRTIO_BLK_F_BLK_SIZE | 1 << VIRTIO_BLK_F_FLUSH;
        always
            | match self.image.is_read_only() {
                true => 1 << VIRTIO_BLK_F_RO,
                false => 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES,
            }
    }

    fn queues(&self) -> &'static [QueueSpec] {
        QUEUES
    }

    /// struct virtio_blk_config (VIRTIO 1.2, 5.2.4).
    fn config(&self) -> Vec<u8> {
        let mut config = vec![0; 60];
        let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &(self.image.len() / SECTOR).to_le_bytes());
        // Two descriptors are for header and status.
        put(12, &u32::from(QUEUES[0].size - 2).to_le_bytes());
        put(20, &(SECTOR as u32).to_le_bytes());
        // Discard: most sectors, most ranges, alignment in sectors.
        put(36, &MOST_RANGE_SECTORS.to_le_bytes());
        put(40, &MOST_RANGES.to_le_bytes());
        put(44, &((image::DIRECT_BLOCK / SECTOR) as u32).to_le_bytes());
        // Write zeroes: most sectors, most ranges, and that unmapping is possible.
        put(48, &MOST_RANGE_SECTORS.to_le_bytes());
        put(52, &MOST_RANGES.to_le_bytes());
        put(56, &[1]);
        config
    }

    fn activate(&mut self, features: u64) {
        self.driver_flushes = features & 1 << VIRTIO_BLK_F_FLUSH != 0;
    }

    fn serve(&mut self, _: usize, ring: &mut Ring, ram: &GuestRam) -> Result<Served, Malformed> {
        let Some(chain) = ring.pop(ram)? else { return Ok(Served::Empty) };
        let room = chain.output.len().checked_sub(1).ok_or(Malformed::Request)?;
        if chain.input.len() < HEADER {
            return Err(Malformed::Request);
        }
        let (written, status) = match self.handle(&chain, room, ram) {
            Ok(written) => (written, VIRTIO_BLK_S_OK),
            Err(Failure::Io) => (0, VIRTIO_BLK_S_IOERR),
            Err(Failure::Unsupported) => (0, VIRTIO_BLK_S_UNSUPP),
            Err(Failure::Malformed(malformed)) => return Err(malformed),
        };
        chain.output.write(ram, room, &[status as u8])?;
        ring.complete(ram, chain.head, (written + 1) as u32)?;
        Ok(Served::Done)
    }

    fn save(&self, instance: u32, transport: TransportState) -> Result<Section, SaveError> {
        BlockState { transport }.to_section(instance)
    }

    fn restore(
        &mut self,
        instance: u32,
        sections: &mut SectionSet,
    ) -> Result<TransportState, LoadError> {
        Ok(sections.take::<BlockState>(instance)?.transport)
    }

    fn acquire(&mut self) -> Result<(), VirtioError> {
        self.image.lock()
    }

    fn release(&mut self) {
        self.image.unlock();
    }
}

#[cfg(test)]
mod shared_tests;
#[cfg(test)]
mod tests;
