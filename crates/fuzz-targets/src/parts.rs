//! Inputs that consist of several parts: each has its length in front, 32 bits, little-endian.

/// The parts of `bytes`; the last one is what is there of it.
pub(crate) fn parts(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (length, rest) = bytes.split_first_chunk()?;
        let length = u32::from_le_bytes(*length) as usize;
        let (part, rest) = rest.split_at(length.min(rest.len()));
        bytes = rest;
        Some(part)
    })
}
