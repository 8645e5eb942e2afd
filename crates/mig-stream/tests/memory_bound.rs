//! No length in a stream makes a reader allocate more than arrives. Alone in its process, since
//! the allocator counts for all threads.

mod common;

use common::{ONE_WAY, Place, Raw, read};
use mig_stream::{ReturnReader, ReturnWriter};
use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// How many bytes `work` holds at most, beyond what was held before.
fn peak(work: impl FnOnce()) -> usize {
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    work();
    ALLOCATOR.peak_usage() - before
}

const SMALL: usize = 256 << 10;

#[test]
fn announced_lengths_allocate_nothing_before_the_bytes_are_there() {
    let nowhere = Place::default();
    for (kind, length) in
        [(6, 16 << 20), (6, u32::MAX), (0x8003, 65_536 * 18), (0x8123, 16 << 20), (10, u32::MAX)]
    {
        let raw = Raw::new(ONE_WAY).frame(kind, nowhere, length, 0);
        let used = peak(|| assert!(raw.read().is_err()));
        assert!(used < SMALL, "type {kind:#x}, {length} bytes announced, {used} allocated");
    }

    let mut header = Raw::new(ONE_WAY).bytes;
    header[36..40].copy_from_slice(&(2u32 << 20).to_le_bytes());
    let sum = common::crc32c(&header[..44]);
    header[44..48].copy_from_slice(&sum.to_le_bytes());
    let used = peak(|| assert!(read(&header).is_err()));
    assert!(used < SMALL, "{used} allocated for a header");

    let mut answer = ReturnWriter::new(Vec::new(), common::ID).unwrap().into_inner();
    let mut frame = vec![4, 0, 0, 0];
    frame.extend((64u32 << 10).to_le_bytes());
    frame.extend([0; 4]);
    frame.extend(common::crc32c(&frame).to_le_bytes());
    answer.extend(frame);
    let used = peak(|| {
        let mut reader = ReturnReader::open(&answer[..], common::ID).unwrap();
        assert!(reader.next_message().is_err());
    });
    assert!(used < SMALL, "{used} allocated for an answer");

    // What does arrive is held twice at most, while it grows.
    let raw = Raw::new(ONE_WAY).record(6, nowhere, &vec![1; 16 << 20]);
    let used = peak(|| assert!(raw.read().is_err()));
    assert!((16 << 20..50 << 20).contains(&used), "{used} allocated for a section");
}
