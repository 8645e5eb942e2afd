//! Digests of the whole memory, for `--verify`.

use std::fmt;

use crc_fast::{CrcAlgorithm, Digest};
use migpipe_units::{Bytes, PageRange, Pages, RegionId};

use crate::frame::MAX_RUN;

// crc-fast's `checksum_combine` would do for holes too. It makes its operators anew at each call, 70
// to 400 µs for one hole against 0.3 to 6 here (example `speed`), and both ends pay that in the
// blackout, hole by hole.

/// The polynomial of CRC-64/NVME, bit-reversed: bit 63 is x^0 (CRC catalogue, reveng).
const POLYNOMIAL: u64 = 0x9a6c_9329_ac4b_c9b5;

/// x^(2^k) modulo the polynomial. 3 + 64 of them serve every length in bytes that 64 bits hold.
const SQUARES: [u64; 67] = {
    let mut squares = [1 << 62; 67];
    let mut k = 1;
    while k < squares.len() {
        squares[k] = multiply(squares[k - 1], squares[k - 1]);
        k += 1;
    }
    squares
};

/// The product of two polynomials over GF(2) modulo [`POLYNOMIAL`], all bit-reversed.
const fn multiply(a: u64, mut b: u64) -> u64 {
    let mut product = 0;
    let mut bit = 1 << 63;
    while bit != 0 {
        if a & bit != 0 {
            product ^= b;
        }
        b = (b >> 1) ^ (POLYNOMIAL * (b & 1));
        bit >>= 1;
    }
    product
}

/// `register` after `length` zero bytes were shifted through it: `register` times x^(8 `length`).
fn shift(mut register: u64, length: u64) -> u64 {
    for bit in 0..64 {
        if length >> bit & 1 != 0 {
            register = multiply(SQUARES[bit + 3], register);
        }
    }
    register
}

/// The digest of one region of memory in the making: CRC-64/NVME of its bytes in order.
///
/// However the region is cut into pieces, the digest is the same; holes are told by their length,
/// in no time ([`Self::zeros`]).
///
/// ```
/// use mig_stream::RegionDigest;
/// use migpipe_units::Bytes;
///
/// let mut whole = RegionDigest::new();
/// whole.update(&[7; 4096]);
/// whole.update(&[0; 8192]);
/// let mut pieces = RegionDigest::new();
/// pieces.update(&[7; 4096]);
/// pieces.zeros(Bytes(8192));
/// assert_eq!(whole, pieces);
/// ```
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RegionDigest {
    register: u64,
}

/// What the register of CRC-64/NVME holds before the first byte.
const START: u64 = u64::MAX;

impl RegionDigest {
    /// The digest of no bytes.
    pub const fn new() -> Self {
        Self { register: START }
    }

    /// Adds the next bytes of the region.
    pub fn update(&mut self, bytes: &[u8]) {
        let mut digest = Digest::new_with_init_state(CrcAlgorithm::Crc64Nvme, self.register);
        digest.update(bytes);
        self.register = digest.get_state();
    }

    /// Adds `length` zero bytes, in well under a microsecond per bit that is set in `length`.
    pub fn zeros(&mut self, length: Bytes) {
        self.register = shift(self.register, length.0);
    }

    const fn value(&self) -> u64 {
        !self.register
    }
}

impl Default for RegionDigest {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for RegionDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RegionDigest({:016x})", self.value())
    }
}

/// Digests of all regions of a guest's memory, in the order of their numbers.
#[derive(Clone, PartialEq, Eq)]
pub struct MemoryDigest {
    pub(crate) regions: Vec<u64>,
}

impl MemoryDigest {
    /// The digests of these regions, in the order of their numbers.
    pub fn new(regions: impl IntoIterator<Item = RegionDigest>) -> Self {
        Self { regions: regions.into_iter().map(|region| region.value()).collect() }
    }

    /// The digest of a whole memory: `regions` in the order of their numbers, of which the runs
    /// `existing` (in order, none across another) hold something and the rest is zeros. `read`
    /// copies the pages of a run of at most [`MAX_RUN`] into the first bytes of its buffer.
    pub fn of(
        regions: &[(RegionId, Pages)],
        existing: &[PageRange],
        mut read: impl FnMut(PageRange, &mut [u8]),
    ) -> Self {
        let mut buffer = vec![0; MAX_RUN.bytes().0 as usize];
        Self::new(regions.iter().map(|(id, pages)| {
            let mut digest = RegionDigest::new();
            let mut at = 0;
            for run in existing.iter().filter(|run| run.region == *id) {
                digest.zeros(Pages(run.first - at).bytes());
                at = run.first;
                let end = run.first + run.count.0;
                while at < end {
                    let count = Pages(MAX_RUN.0.min(end - at));
                    let bytes = &mut buffer[..count.bytes().0 as usize];
                    read(PageRange { region: *id, first: at, count }, bytes);
                    digest.update(bytes);
                    at += count.0;
                }
            }
            digest.zeros(Pages(pages.0 - at).bytes());
            digest
        }))
    }

    /// How many regions it covers.
    pub const fn regions(&self) -> usize {
        self.regions.len()
    }

    /// The first region whose bytes are not the same in both.
    pub fn first_difference(&self, other: &Self) -> Option<RegionId> {
        let longest = self.regions.len().max(other.regions.len());
        (0..longest)
            .find(|&index| self.regions.get(index) != other.regions.get(index))
            .map(|index| RegionId(index as u16))
    }
}

impl fmt::Display for MemoryDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, value) in self.regions.iter().enumerate() {
            let gap = if index == 0 { "" } else { " " };
            write!(f, "{gap}{value:016x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for MemoryDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemoryDigest({self})")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn digest(bytes: &[u8]) -> RegionDigest {
        let mut digest = RegionDigest::new();
        digest.update(bytes);
        digest
    }

    #[test]
    fn it_is_the_crc_of_the_catalogue() {
        assert_eq!(digest(b"123456789").value(), 0xae8b_1486_0a79_9888);
    }

    #[test]
    fn sixteen_gib_of_holes_are_two_times_eight() {
        let mut at_once = digest(b"x");
        at_once.zeros(Bytes(16 << 30));
        let mut twice = digest(b"x");
        twice.zeros(Bytes(8 << 30));
        twice.zeros(Bytes(8 << 30));
        assert_eq!(at_once, twice);
        assert_ne!(at_once.value(), digest(b"x").value());
    }

    #[test]
    fn the_digest_of_a_memory_is_that_of_its_runs_and_of_zeros_between_them() {
        const REGIONS: [(RegionId, Pages); 2] =
            [(RegionId(0), Pages(600)), (RegionId(1), Pages(9))];
        let run = |region, first, count| PageRange {
            region: RegionId(region),
            first,
            count: Pages(count),
        };
        // One is longer than what is read at once, one ends with its region.
        let existing = [run(0, 3, 1), run(0, 40, 2 * MAX_RUN.0 + 7), run(1, 0, 2), run(1, 8, 1)];
        let page = |region: RegionId, page: u64| [(region.0 as u8) << 7 | (page % 100) as u8; 4096];
        let mut read = Vec::new();
        let found = MemoryDigest::of(&REGIONS, &existing, |range, buffer| {
            assert!(range.count <= MAX_RUN && buffer.len() == range.len().0 as usize);
            read.push(range);
            for (number, bytes) in (range.first..).zip(buffer.chunks_mut(4096)) {
                bytes.copy_from_slice(&page(range.region, number));
            }
        });
        let whole = REGIONS.map(|(id, pages)| {
            let mut memory = vec![0; pages.bytes().0 as usize];
            for run in existing.iter().filter(|run| run.region == id) {
                for number in run.first..run.first + run.count.0 {
                    memory[number as usize * 4096..][..4096].copy_from_slice(&page(id, number));
                }
            }
            digest(&memory)
        });
        assert_eq!(found, MemoryDigest::new(whole));
        let pages: u64 = read.iter().map(|range| range.count.0).sum();
        assert_eq!(pages, existing.iter().map(|run| run.count.0).sum::<u64>(), "{read:?}");
        assert_eq!(read.len(), 1 + 3 + 1 + 1);
        assert_eq!((found.regions(), found.to_string().len()), (2, 2 * 16 + 1));
    }

    #[test]
    fn pages_that_changed_places_are_noticed_and_the_region_is_named() {
        let (a, b) = ([1; 4096], [2; 4096]);
        let same = digest(&a);
        let right = MemoryDigest::new([same, digest(&[a, b].concat())]);
        let wrong = MemoryDigest::new([same, digest(&[b, a].concat())]);
        assert_eq!(right.first_difference(&wrong), Some(RegionId(1)));
        assert_eq!(right.first_difference(&right.clone()), None);
        let short = MemoryDigest::new([same]);
        assert_eq!(short.first_difference(&right), Some(RegionId(1)));
    }

    proptest! {
        #[test]
        fn however_memory_is_cut_its_digest_is_the_same(
            head in proptest::collection::vec(any::<u8>(), 0..600),
            zeros in 0usize..100_000,
            tail in proptest::collection::vec(any::<u8>(), 0..600),
        ) {
            let whole = digest(&[&head[..], &vec![0; zeros], &tail].concat());
            let mut told = digest(&head);
            told.zeros(Bytes(zeros as u64));
            told.update(&tail);
            prop_assert_eq!(whole, told);
        }
    }
}
