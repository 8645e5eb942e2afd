//! One request of a driver: a descriptor chain that was looked at from end to end.

use page_bitmap::TrackedMemory;
use thiserror::Error;
use virtio_queue::DescriptorChain;

use super::ram::GuestRam;

/// What a driver must not do. The device stops and asks to be reset then (VIRTIO 1.2, 2.1.1,
/// DEVICE_NEEDS_RESET).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(super) enum Malformed {
    #[error("a descriptor chain is empty, has a loop or leaves its table")]
    Chain,
    #[error("a descriptor points outside memory")]
    Memory,
    #[error("a descriptor for reading follows one for writing")]
    Order,
    #[error("the available ring counts further than the queue is long, or is outside memory")]
    Ring,
    #[error("a request has no room for what its kind needs")]
    Request,
}

/// A list of ranges of guest memory that are read or written as if they were one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Buffer {
    parts: Vec<(u64, u32)>,
    len: u64,
}

impl Buffer {
    fn push(&mut self, address: u64, len: u32) {
        if len > 0 {
            self.parts.push((address, len));
            self.len += u64::from(len);
        }
    }

    pub(super) const fn len(&self) -> u64 {
        self.len
    }

    /// The ranges: guest-physical address and length of each, none of them empty.
    pub(super) fn parts(&self) -> &[(u64, u32)] {
        &self.parts
    }

    /// Calls `each` for each piece of guest memory in `offset..offset + len` with its place in
    /// that range.
    fn pieces(
        &self,
        offset: u64,
        len: usize,
        mut each: impl FnMut(u64, std::ops::Range<usize>) -> Result<(), Malformed>,
    ) -> Result<(), Malformed> {
        let end = offset.checked_add(len as u64).filter(|end| *end <= self.len);
        let end = end.ok_or(Malformed::Request)?;
        let mut at = 0;
        for &(address, part) in &self.parts {
            let part = u64::from(part);
            let from = offset.max(at);
            let to = end.min(at + part);
            if from < to {
                each(address + (from - at), (from - offset) as usize..(to - offset) as usize)?;
            }
            at += part;
        }
        Ok(())
    }

    /// Fills `into` from `offset` on.
    pub(super) fn read(
        &self,
        ram: &GuestRam,
        offset: u64,
        into: &mut [u8],
    ) -> Result<(), Malformed> {
        self.pieces(offset, into.len(), |address, range| {
            ram.read(address, &mut into[range]).map_err(|_| Malformed::Memory)
        })
    }

    pub(super) fn read_array<const N: usize>(
        &self,
        ram: &GuestRam,
        offset: u64,
    ) -> Result<[u8; N], Malformed> {
        let mut bytes = [0; N];
        self.read(ram, offset, &mut bytes)?;
        Ok(bytes)
    }

    /// Writes `bytes` from `offset` on.
    pub(super) fn write(&self, ram: &GuestRam, offset: u64, bytes: &[u8]) -> Result<(), Malformed> {
        self.pieces(offset, bytes.len(), |address, range| {
            ram.write(address, &bytes[range]).map_err(|_| Malformed::Memory)
        })
    }
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chain {
    /// By which index the driver knows it.
    pub(super) head: u16,
    /// What the driver says.
    pub(super) input: Buffer,
    /// Where the answer goes.
    pub(super) output: Buffer,
}

impl Chain {
    /// Everything of it lies in memory, and what is read comes before what is written (VIRTIO 1.2,
    /// 2.7.4.2). It has at most as many descriptors as its table.
    pub(super) fn look_at(
        ram: &GuestRam,
        chain: DescriptorChain<&TrackedMemory>,
    ) -> Result<Self, Malformed> {
        let head = chain.head_index();
        let mut looked = Self { head, input: Buffer::default(), output: Buffer::default() };
        let mut goes_on = true;
        let mut wrote = false;
        for descriptor in chain {
            goes_on = descriptor.has_next();
            let (address, len) = (descriptor.addr().0, descriptor.len());
            if len > 0 && !ram.holds(address, len.into()) {
                return Err(Malformed::Memory);
            }
            if descriptor.is_write_only() {
                wrote = true;
                looked.output.push(address, len);
            } else if wrote {
                return Err(Malformed::Order);
            } else {
                looked.input.push(address, len);
            }
        }
        // The iterator ends without a word at a loop, an index outside the table, a bad indirect
        // table; the last descriptor then says that there are more.
        if goes_on { Err(Malformed::Chain) } else { Ok(looked) }
    }
}
