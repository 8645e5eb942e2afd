//! Little-endian fields, taken from and put into byte strings without a panic.

use migpipe_units::{Acknowledged, HostId, MigrationId, Nonce};
use thiserror::Error;

/// What is wrong with the fields of a record, a header or a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct Malformed(pub(crate) &'static str);

/// The bytes of a payload that are not read yet.
pub(crate) struct Take<'a>(&'a [u8]);

impl<'a> Take<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self
            .0
            .split_at_checked(count)
            .ok_or(Malformed("it is shorter than its own fields say"))?;
        self.0 = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, rest) =
            self.0.split_first_chunk().ok_or(Malformed("it is shorter than its fields"))?;
        self.0 = rest;
        Ok(*head)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Malformed> {
        self.array().map(u8::from_le_bytes)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn id(&mut self) -> Result<MigrationId, Malformed> {
        self.array().map(MigrationId::from_bytes)
    }

    pub(crate) fn host(&mut self) -> Result<HostId, Malformed> {
        self.array().map(HostId::from_bytes)
    }

    pub(crate) fn nonce(&mut self) -> Result<Nonce, Malformed> {
        self.array().map(Nonce::from_bytes)
    }

    pub(crate) fn acknowledged(&mut self) -> Result<Acknowledged, Malformed> {
        Ok(Acknowledged { host: self.host()?, nonce: self.nonce()? })
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Refuses what is left over: a field that nobody reads would be state that nobody loads.
    pub(crate) const fn finish(self) -> Result<(), Malformed> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(Malformed("bytes are left over behind its fields"))
        }
    }
}

/// Appends fields to a byte string.
pub(crate) trait Put {
    fn raw(&mut self, bytes: &[u8]);

    fn u8(&mut self, value: u8) {
        self.raw(&[value]);
    }

    fn u16(&mut self, value: u16) {
        self.raw(&value.to_le_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.raw(&value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.raw(&value.to_le_bytes());
    }

    fn acknowledged(&mut self, value: &Acknowledged) {
        self.raw(&value.host.to_bytes());
        self.raw(&value.nonce.to_bytes());
    }
}

impl Put for Vec<u8> {
    fn raw(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}
