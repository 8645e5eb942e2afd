//! Right checksums for wrong streams.
//!
//! The offsets are those of the tables in the documentation of `mig-stream`. Lengths stay as they
//! are, however wrong: what a reader does with them is what the fuzzer is to find out.

use crc_fast::{CrcAlgorithm, Digest, checksum};

const PREAMBLE: usize = 48;
const FRAME: usize = 32;
const ANSWER_OPENING: usize = 32;
const ANSWER_FRAME: usize = 16;

const FLAG_PAGE_SUMS: u8 = 2;
const PAGES: u16 = 1;
const FILL: u16 = 2;
const SECTION: u16 = 6;
const END: u16 = 8;
const END_BYTES: usize = 48;

/// Fields that hold such a number are left alone, so that wrong ones are tried too.
const LEFT_ALONE: u8 = 0x80;

fn crc32c(bytes: &[u8]) -> [u8; 4] {
    (checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32).to_le_bytes()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("2 bytes"))
}

/// Puts the checksum of `start..end` behind it.
fn sum(bytes: &mut [u8], start: usize, end: usize) {
    let sum = crc32c(&bytes[start..end]);
    bytes[end..end + 4].copy_from_slice(&sum);
}

/// The totals of a stream so far, as `End` says them.
struct Totals {
    records: u64,
    pages: u64,
    filled: u64,
    sections: u64,
    digest: Digest,
}

/// The stream with its magic, checksums, sequence numbers and totals put right.
pub(crate) fn repair_stream(bytes: &[u8]) -> Vec<u8> {
    let mut stream = bytes.to_vec();
    if stream.len() < PREAMBLE {
        return stream;
    }
    stream[..8].copy_from_slice(b"\x89MIG\r\n\x1a\n");
    let header = PREAMBLE.saturating_add(u32_at(&stream, 36) as usize);
    if header <= stream.len() {
        let sum = crc32c(&stream[PREAMBLE..header]);
        stream[40..44].copy_from_slice(&sum);
    }
    sum(&mut stream, 0, PREAMBLE - 4);
    let mut digest = Digest::new(CrcAlgorithm::Crc64Nvme);
    digest.update(&stream[..PREAMBLE]);
    let mut totals = Totals { records: 0, pages: 0, filled: 0, sections: 0, digest };
    let mut at = header;
    while at.saturating_add(FRAME) <= stream.len() {
        at = repair_record(&mut stream, at, &mut totals);
    }
    stream
}

/// Repairs the record at `at`; returns where the next one begins.
fn repair_record(stream: &mut [u8], at: usize, totals: &mut Totals) -> usize {
    let kind = u16_at(stream, at);
    if stream[at + 7] & LEFT_ALONE == 0 {
        stream[at + 4..at + 8].copy_from_slice(&(totals.records as u32).to_le_bytes());
    }
    let payload = at + FRAME;
    let end = payload.saturating_add(u32_at(stream, at + 20) as usize);
    let count = u64::from(u32_at(stream, at + 16));
    if end <= stream.len() {
        if kind == END && end - payload == END_BYTES && stream[payload + 7] & LEFT_ALONE == 0 {
            let said = [totals.records, totals.pages, totals.filled, totals.sections, at as u64];
            for (field, value) in said.into_iter().chain([totals.digest.finalize()]).enumerate() {
                let field = payload + field * 8;
                stream[field..field + 8].copy_from_slice(&value.to_le_bytes());
            }
        }
        let unsummed = kind == PAGES && stream[12] & FLAG_PAGE_SUMS == 0;
        if !unsummed {
            let sum = crc32c(&stream[payload..end]);
            stream[at + 24..at + 28].copy_from_slice(&sum);
        }
    }
    sum(stream, at, payload - 4);
    totals.records += 1;
    match kind {
        PAGES => totals.pages = totals.pages.wrapping_add(count),
        FILL => totals.filled = totals.filled.wrapping_add(count),
        SECTION => totals.sections += 1,
        _ => {}
    }
    totals.digest.update(&stream[at..payload]);
    end
}

/// The return path with its magic, checksums and sequence numbers put right.
pub(crate) fn repair_answers(bytes: &[u8]) -> Vec<u8> {
    let mut answers = bytes.to_vec();
    if answers.len() < ANSWER_OPENING {
        return answers;
    }
    answers[..8].copy_from_slice(b"\x89MIR\r\n\x1a\n");
    sum(&mut answers, 0, ANSWER_OPENING - 4);
    let mut at = ANSWER_OPENING;
    let mut sequence = 0_u16;
    while at.saturating_add(ANSWER_FRAME) <= answers.len() {
        if answers[at + 3] & LEFT_ALONE == 0 {
            answers[at + 2..at + 4].copy_from_slice(&sequence.to_le_bytes());
        }
        sequence = sequence.wrapping_add(1);
        let payload = at + ANSWER_FRAME;
        let end = payload.saturating_add(u32_at(&answers, at + 4) as usize);
        if end <= answers.len() {
            let sum = crc32c(&answers[payload..end]);
            answers[at + 8..at + 12].copy_from_slice(&sum);
        }
        sum(&mut answers, at, payload - 4);
        at = end;
    }
    answers
}

/// An encoded section with its checksum put right.
pub(crate) fn repair_section(bytes: &[u8]) -> Vec<u8> {
    let mut section = bytes.to_vec();
    if let Some(end) = section.len().checked_sub(4) {
        sum(&mut section, 0, end);
    }
    section
}
