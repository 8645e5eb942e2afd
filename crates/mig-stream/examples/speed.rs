//! What checksums and framing cost on this machine, best of five:
//! `cargo run --release -p mig-stream --example speed`
#![allow(clippy::print_stdout, reason = "it prints what it measured")]

use std::error::Error;
use std::hint::black_box;
use std::io;
use std::time::{Duration, Instant};

use crc_fast::{CrcAlgorithm, checksum_combine};
use mig_stream::{
    Flags, Header, MAX_RUN, Preamble, Record, RegionDigest, StreamReader, StreamWriter,
    checksum_implementation,
};
use migpipe_units::{Bytes, Gfn, MemoryRegion, MigrationId, PageRange, Pages, RegionId};

/// More than the caches hold.
const AMOUNT: usize = 256 << 20;

fn best(mut work: impl FnMut()) -> Duration {
    let once = |_| {
        let start = Instant::now();
        work();
        start.elapsed()
    };
    (0..5).map(once).min().unwrap_or_default()
}

fn report(what: &str, mut work: impl FnMut()) {
    let time = best(&mut work);
    let gigabytes = AMOUNT as f64 / 1e9;
    println!("{what:44} {:6.1} GB/s", gigabytes / time.as_secs_f64());
}

fn parts(page_sums: bool) -> (Preamble, Header) {
    let flags = Flags { page_sums, ..Flags::default() };
    let pages = Bytes(AMOUNT as u64).pages();
    let regions = vec![MemoryRegion { id: RegionId(0), base: Gfn(0), pages }];
    let header = Header { guest: "speed".into(), machine: vec![], regions, released: vec![] };
    (Preamble::migrate(MigrationId::from_bytes([1; 16]), flags), header)
}

fn write<W: io::Write>(out: W, memory: &[u8], page_sums: bool) -> Result<W, Box<dyn Error>> {
    let (preamble, header) = parts(page_sums);
    let mut stream = StreamWriter::new(out, preamble, header)?;
    for (index, bytes) in memory.chunks(MAX_RUN.bytes().0 as usize).enumerate() {
        let first = index as u64 * MAX_RUN.0;
        let count = Pages(bytes.len() as u64 / migpipe_units::PAGE_SIZE);
        stream.pages(PageRange { region: RegionId(0), first, count }, bytes)?;
    }
    stream.end()?;
    Ok(stream.into_inner())
}

fn read(stream: &[u8], memory: &mut [u8]) -> Result<(), Box<dyn Error>> {
    let mut reader = StreamReader::open(stream)?;
    while let Some(record) = reader.next_record()? {
        if let Record::Pages(range) = record {
            let start = range.offset().0 as usize;
            reader.read_payload(&mut memory[start..start + range.len().0 as usize])?;
        }
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    println!("CRC-32C and CRC-64 by {}", checksum_implementation());
    let memory: Vec<u8> = (0..AMOUNT).map(|index| ((index * 31) >> 5) as u8).collect();
    report("memory digest (CRC-64/NVME)", || {
        let mut digest = RegionDigest::new();
        digest.update(black_box(&memory));
        black_box(digest);
    });
    for (sums, what) in [(true, "with page sums"), (false, "without page sums")] {
        report(&format!("writer, {what}, into nothing"), || {
            black_box(write(io::sink(), &memory, sums).is_ok());
        });
        let stream = write(Vec::with_capacity(AMOUNT + (1 << 20)), &memory, sums)?;
        let mut arrived = vec![1; AMOUNT];
        report(&format!("reader, {what}, from memory to memory"), || {
            black_box(read(&stream, &mut arrived).is_ok());
        });
        assert!(arrived == memory, "memory did not arrive whole");
    }
    let mut copy = vec![1; AMOUNT];
    report("memcpy, for comparison", || {
        copy.copy_from_slice(black_box(&memory));
        black_box(&mut copy);
    });
    for hole in [4 << 10, (2 << 20) - 4096, (16 << 30) - 4096].map(Bytes) {
        let mut digest = RegionDigest::new();
        let ours = best(|| digest.zeros(black_box(hole)));
        let combine = |digest| checksum_combine(CrcAlgorithm::Crc64Nvme, digest, 0, hole.0);
        let theirs = best(|| {
            black_box(combine(black_box(1)));
        });
        let what = format!("digest of a hole of {hole}");
        println!("{what:44} {ours:9.1?}, crc-fast's combine {theirs:.1?}");
    }
    Ok(())
}
