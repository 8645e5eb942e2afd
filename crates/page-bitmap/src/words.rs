//! The words of a bitmap: on the heap, or in a memory file that two processes have mapped.
//!
//! All words are atomic: whoever shares them may write at any time.
#![allow(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use vm_memory::MmapRegion;

#[derive(Debug)]
pub(crate) enum Words {
    Heap(Box<[AtomicU64]>),
    Mapped(Mapped),
}

/// A part of a mapping.
#[derive(Debug)]
pub(crate) struct Mapped {
    map: Arc<MmapRegion>,
    first: usize,
    count: usize,
}

impl Words {
    /// So many words of zero.
    pub(crate) fn zeros(count: usize) -> Self {
        Self::Heap((0..count).map(|_| AtomicU64::new(0)).collect())
    }

    /// `count` words of the mapping `map` from the word `first` on.
    ///
    /// # Panics
    /// If they are not inside the mapping.
    pub(crate) fn mapped(map: Arc<MmapRegion>, first: usize, count: usize) -> Self {
        let end = first.checked_add(count).and_then(|words| words.checked_mul(size_of::<u64>()));
        assert!(end.is_some_and(|end| end <= map.size()), "beyond the end of the mapping");
        Self::Mapped(Mapped { map, first, count })
    }

    pub(crate) fn as_slice(&self) -> &[AtomicU64] {
        match self {
            Self::Heap(words) => words,
            Self::Mapped(Mapped { map, first, count }) => {
                let start = map.as_ptr().cast::<AtomicU64>();
                // SAFETY: the words are inside the mapping (checked by `mapped`), which `map` keeps
                // for longer than the slice lives; its start is page-aligned. This process and the
                // one with which it is shared reach them by atomic operations alone, for which every
                // bit pattern is valid; the file is sealed, so that it cannot become shorter.
                unsafe { std::slice::from_raw_parts(start.add(*first), *count) }
            }
        }
    }
}
