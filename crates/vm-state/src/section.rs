//! One device's saved state as bytes.
//!
//! ```text
//! offset  size  field (integers little-endian)
//!      0     4  magic "MSEC"
//!      4     1  layout version, 1
//!      5     1  length of the name (n), 1 to 64
//!      6     2  version of the payload
//!      8     4  instance
//!     12     4  length of the payload (p), at most 8 MiB
//!     16     n  name: a-z, 0-9 and '-'
//!   16+n     p  payload
//! 16+n+p     4  CRC32C of everything before it
//! ```
//!
//! The layout can be checked by a tool that knows no device: name, version and checksum stand
//! outside the payload. Bytes come from the network: no length in them is believed before it is
//! held against the bytes that are really there.

use std::fmt;

use crc_fast::CrcAlgorithm;
use thiserror::Error;

const MAGIC: [u8; 4] = *b"MSEC";

/// The layout that [`Section::encode`] writes.
const LAYOUT: u8 = 1;

/// Bytes before the name.
const HEADER: usize = 16;

/// Bytes of the checksum.
const TRAILER: usize = 4;

/// Longest name of a section in bytes.
const MAX_NAME: usize = 64;

/// Largest payload of a section in bytes. The largest that exist are a vCPU (some 20 KiB with
/// AMX) and the queues of a network device; 8 MiB leaves room and still bounds what a hostile
/// stream makes us hold.
pub(crate) const MAX_PAYLOAD: usize = 8 << 20;

/// One device's saved state.
#[derive(Clone, PartialEq, Eq)]
pub struct Section {
    /// What it is the state of: `vcpu`, `serial`.
    pub name: String,
    /// Which one of that name, counted from 0.
    pub instance: u32,
    /// How to read the payload; counted from 1 for each name.
    pub version: u16,
    /// The state itself.
    pub payload: Vec<u8>,
}

/// Shows the length of the payload, not the bytes: they may be secrets of the guest.
impl fmt::Debug for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Section")
            .field("name", &self.name)
            .field("instance", &self.instance)
            .field("version", &self.version)
            .field("payload_bytes", &self.payload.len())
            .finish()
    }
}

/// Why bytes are not a section, or a section cannot be written.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SectionError {
    /// The first bytes are something else.
    #[error("this is not a saved section: it does not begin with MSEC")]
    NotASection,
    /// It was written by a newer release.
    #[error("section has layout {found}; this program reads layout {LAYOUT}")]
    Layout {
        /// The layout that the bytes carry.
        found: u8,
    },
    /// The name is empty, too long, or has other characters than a-z, 0-9 and '-'.
    #[error("section name {0:?} is not 1 to {MAX_NAME} characters of a-z, 0-9 and '-'")]
    Name(String),
    /// There are more payload bytes than any section has.
    #[error("section {name} has {bytes} bytes of payload; at most {MAX_PAYLOAD} are taken")]
    TooLong {
        /// The section.
        name: String,
        /// What it has, or claims to have.
        bytes: usize,
    },
    /// The bytes end too early.
    #[error("section is cut short: {found} bytes of {expected}")]
    CutShort {
        /// How many bytes the header asks for.
        expected: usize,
        /// How many there are.
        found: usize,
    },
    /// Something follows the section.
    #[error("section {name} has {bytes} bytes too many")]
    LeftOver {
        /// The section.
        name: String,
        /// How many bytes follow it.
        bytes: usize,
    },
    /// The checksum does not match.
    #[error("section {name} is damaged: its checksum does not match")]
    Damaged {
        /// The section, as far as its damaged bytes can be believed.
        name: String,
    },
}

fn name_is_valid(name: &[u8]) -> bool {
    (1..=MAX_NAME).contains(&name.len())
        && name.iter().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
}

fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

impl Section {
    /// The section as bytes; see the module for the layout.
    ///
    /// # Errors
    /// [`SectionError::Name`] and [`SectionError::TooLong`] for a section that no reader takes.
    pub fn encode(&self) -> Result<Vec<u8>, SectionError> {
        if !name_is_valid(self.name.as_bytes()) {
            return Err(SectionError::Name(self.name.clone()));
        }
        if self.payload.len() > MAX_PAYLOAD {
            return Err(SectionError::TooLong {
                name: self.name.clone(),
                bytes: self.payload.len(),
            });
        }
        let mut bytes = Vec::with_capacity(HEADER + self.name.len() + self.payload.len() + TRAILER);
        bytes.extend_from_slice(&MAGIC);
        bytes.push(LAYOUT);
        bytes.push(self.name.len() as u8);
        bytes.extend_from_slice(&self.version.to_le_bytes());
        bytes.extend_from_slice(&self.instance.to_le_bytes());
        bytes.extend_from_slice(&(self.payload.len() as u32).to_le_bytes());
        bytes.extend_from_slice(self.name.as_bytes());
        bytes.extend_from_slice(&self.payload);
        bytes.extend_from_slice(&crc32c(&bytes).to_le_bytes());
        Ok(bytes)
    }

    /// Reads what [`Self::encode`] wrote; `bytes` must end where the section ends.
    ///
    /// # Errors
    /// One of [`SectionError`] for any other bytes; never panics, and allocates no more than the
    /// bytes that it was given.
    pub fn decode(bytes: &[u8]) -> Result<Self, SectionError> {
        if !bytes.starts_with(&MAGIC) {
            return Err(SectionError::NotASection);
        }
        let Some((header, rest)) = bytes.split_first_chunk::<HEADER>() else {
            return Err(SectionError::CutShort { expected: HEADER, found: bytes.len() });
        };
        let [_, _, _, _, layout, name_len, v0, v1, i0, i1, i2, i3, p0, p1, p2, p3] = *header;
        if layout != LAYOUT {
            return Err(SectionError::Layout { found: layout });
        }
        let name_len = usize::from(name_len);
        let Some((name, rest)) = rest.split_at_checked(name_len) else {
            return Err(SectionError::CutShort { expected: HEADER + name_len, found: bytes.len() });
        };
        let text = || String::from_utf8_lossy(name).into_owned();
        if !name_is_valid(name) {
            return Err(SectionError::Name(text()));
        }
        let payload_len = u32::from_le_bytes([p0, p1, p2, p3]) as usize;
        if payload_len > MAX_PAYLOAD {
            return Err(SectionError::TooLong { name: text(), bytes: payload_len });
        }
        let expected = HEADER + name_len + payload_len + TRAILER;
        if bytes.len() > expected {
            return Err(SectionError::LeftOver { name: text(), bytes: bytes.len() - expected });
        }
        let cut_short = SectionError::CutShort { expected, found: bytes.len() };
        let Some((payload, trailer)) = rest.split_at_checked(payload_len) else {
            return Err(cut_short);
        };
        let Ok(sum) = <[u8; TRAILER]>::try_from(trailer) else {
            return Err(cut_short);
        };
        if u32::from_le_bytes(sum) != crc32c(&bytes[..expected - TRAILER]) {
            return Err(SectionError::Damaged { name: text() });
        }
        Ok(Self {
            name: text(),
            instance: u32::from_le_bytes([i0, i1, i2, i3]),
            version: u16::from_le_bytes([v0, v1]),
            payload: payload.to_vec(),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> Section {
        Section {
            name: "serial".to_owned(),
            instance: 3,
            version: 7,
            payload: b"state of a serial port".to_vec(),
        }
    }

    #[test]
    fn the_layout_is_byte_for_byte_what_the_module_says() {
        let bytes = sample().encode().unwrap();
        assert_eq!(&bytes[..16], b"MSEC\x01\x06\x07\0\x03\0\0\0\x16\0\0\0");
        assert_eq!(&bytes[16..44], b"serialstate of a serial port");
        assert_eq!(bytes.len(), 48);
    }

    #[test]
    fn the_checksum_is_crc32c() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn any_changed_bit_is_noticed() {
        let good = sample().encode().unwrap();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Section::decode(&bad).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_section_that_is_cut_short_or_too_long_is_refused() {
        let good = sample().encode().unwrap();
        for len in 0..good.len() {
            assert!(Section::decode(&good[..len]).is_err(), "{len} bytes");
        }
        let mut long = good;
        long.push(0);
        let error = Section::decode(&long).unwrap_err();
        assert_eq!(error.to_string(), "section serial has 1 bytes too many");
    }

    #[test]
    fn a_length_from_the_wire_is_refused_before_it_is_believed() {
        let mut bytes = sample().encode().unwrap();
        bytes[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(
            Section::decode(&bytes),
            Err(SectionError::TooLong { name: "serial".to_owned(), bytes: u32::MAX as usize })
        );
    }

    #[test]
    fn names_that_could_be_confused_are_neither_written_nor_read() {
        for name in ["", "Serial", "a b", "vcpu/0", &"x".repeat(65)] {
            let section = Section { name: name.to_owned(), ..sample() };
            assert_eq!(section.encode(), Err(SectionError::Name(name.to_owned())));
        }
    }

    #[test]
    fn a_payload_that_no_reader_takes_is_not_written() {
        let section = Section { payload: vec![0; MAX_PAYLOAD + 1], ..sample() };
        assert!(matches!(section.encode(), Err(SectionError::TooLong { .. })));
    }

    #[test]
    fn the_largest_section_is_written_and_read_and_one_byte_more_is_neither() {
        let of =
            |bytes| Section { payload: vec![5; bytes], name: "x".repeat(MAX_NAME), ..sample() };
        let largest = of(MAX_PAYLOAD);
        let bytes = largest.encode().unwrap();
        assert_eq!(bytes.len(), HEADER + MAX_NAME + MAX_PAYLOAD + TRAILER);
        assert_eq!(Section::decode(&bytes).unwrap(), largest);
        let larger = of(MAX_PAYLOAD + 1).encode();
        assert!(
            matches!(larger, Err(SectionError::TooLong { bytes, .. }) if bytes == MAX_PAYLOAD + 1)
        );
    }

    #[test]
    fn how_much_is_missing_or_too_much_is_told() {
        let bytes = sample().encode().unwrap();
        let whole = bytes.len();
        let cut = |found| Section::decode(&bytes[..found]).unwrap_err();
        let in_the_name = HEADER + 1;
        let expected = HEADER + sample().name.len();
        assert_eq!(cut(in_the_name), SectionError::CutShort { expected, found: in_the_name });
        let found = whole - 1;
        assert_eq!(cut(found), SectionError::CutShort { expected: whole, found });
        let more = Section::decode(&[&bytes[..], &[0; 3]].concat());
        assert_eq!(more, Err(SectionError::LeftOver { name: sample().name, bytes: 3 }));
    }

    #[test]
    fn the_payload_does_not_show_in_a_log() {
        assert!(!format!("{:?}", sample()).contains("115"), "no raw bytes");
        assert!(format!("{:?}", sample()).contains("payload_bytes: 22"));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            name in "[a-z0-9-]{1,64}",
            instance: u32,
            version: u16,
            payload in prop::collection::vec(any::<u8>(), 0..2000),
        ) {
            let section = Section { name, instance, version, payload };
            prop_assert_eq!(Section::decode(&section.encode().unwrap()), Ok(section));
        }

        #[test]
        fn no_bytes_make_it_panic(
            mut bytes in prop::collection::vec(any::<u8>(), 0..300),
            header: bool,
        ) {
            if header && bytes.len() > 5 {
                bytes[..5].copy_from_slice(b"MSEC\x01");
            }
            let _ = Section::decode(&bytes);
        }
    }
}
