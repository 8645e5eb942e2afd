//! The forward path and the return path.

use mig_stream::{
    Header, Message, Preamble, Record, ReturnReader, ReturnWriter, StreamReader, StreamWriter,
    WriteError,
};
use migpipe_units::MigrationId;
use vm_state::MachineDescription;

use crate::memory::within;
use crate::sums::{repair_answers, repair_stream};

/// What a reader holds beside the bytes that came: scratch to skip payload, and its own fields.
const FIXED: usize = 256 << 10;

/// What a reader holds for each byte that came: a payload that grows by doubling, with its old and
/// its new copy for a moment, and what is decoded from it. A machine description is the worst: a
/// device of 6 bytes has four collections.
const PER_BYTE: usize = 40;

/// Bytes as they come out of a tunnel, in either direction.
pub fn stream_raw(bytes: &[u8]) {
    forward(bytes);
    backward(bytes);
}

/// A stream whose checksums are right, whatever else is wrong with it.
pub fn stream(bytes: &[u8]) {
    forward(&repair_stream(bytes));
}

/// Answers whose checksums are right, whatever else is wrong with them.
pub fn answers(bytes: &[u8]) {
    backward(&repair_answers(bytes));
}

fn bound(bytes: &[u8]) -> usize {
    FIXED + PER_BYTE * bytes.len()
}

/// A stream that was accepted.
struct Accepted {
    preamble: Preamble,
    header: Header,
    records: Vec<Record>,
    pages: Vec<Vec<u8>>,
    skipped: u64,
}

fn forward(bytes: &[u8]) {
    within(bound(bytes), || read(bytes, |_, _| {}).is_some());
    let mut records = Vec::new();
    let mut pages = Vec::new();
    let Some((preamble, header, skipped)) = read(bytes, |record, payload| {
        if let Record::Pages(_) = record {
            pages.push(payload);
        }
        records.push(record);
    }) else {
        return;
    };
    let accepted = Accepted { preamble, header, records, pages, skipped };
    let again = write(&accepted).expect("what was read can be written");
    let mut repeated = Vec::new();
    read(&again, |record, _| repeated.push(record)).expect("what was written can be read");
    if is_exact(bytes, &accepted) {
        assert!(again == bytes, "the stream that was read is written otherwise");
    } else {
        // `End` counts what was left out.
        let is_end = |record: &Record| matches!(record, Record::End(_));
        // A list of nothing is not written.
        let is_empty = |record: &&Record| matches!(record, Record::Extents(all) if all.is_empty());
        let written = accepted.records.iter().filter(|record| !is_empty(record));
        for (first, second) in written.zip(&repeated) {
            assert!(first == second || is_end(first), "{first:?} was written as {second:?}");
        }
    }
}

/// Reads a stream as mig-recv does, to its last byte; hands out each record with the bytes of a run
/// of pages. Nothing if it is refused.
fn read(bytes: &[u8], mut each: impl FnMut(Record, Vec<u8>)) -> Option<(Preamble, Header, u64)> {
    let mut reader = StreamReader::open(bytes).map_err(said).ok()?;
    if let Ok(machine) =
        MachineDescription::decode(&reader.header().machine, &reader.header().regions)
    {
        let again = machine.encode().expect("what was decoded can be encoded");
        assert_eq!(
            MachineDescription::decode(&again, &machine.memory).expect("it can be decoded"),
            machine
        );
    }
    while let Some(record) = reader.next_record().map_err(said).ok()? {
        let mut payload = Vec::new();
        if let Record::Pages(range) = &record {
            // No more than has come: a run may be longer than all that follows.
            payload = vec![0; (range.len().0 as usize).min(bytes.len())];
            reader.read_payload(&mut payload).map_err(said).ok()?;
        }
        if let Record::Pages(range) | Record::Fill { range, .. } = &record {
            reader.header().check_range(range).expect("pages of the guest's memory");
        }
        each(record, payload);
    }
    let skipped = reader.skipped();
    reader.expect_eof().map_err(said).ok()?;
    Some((*reader.preamble(), reader.header().clone(), skipped))
}

/// Every error has a text, of one line and of bounded length.
fn said(error: impl std::error::Error) {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    assert!(text.len() < 16 << 10 && !text.contains(['\n', '\x1b']), "{text:?}");
}

fn write(accepted: &Accepted) -> Result<Vec<u8>, WriteError> {
    let mut out = StreamWriter::new(Vec::new(), accepted.preamble, accepted.header.clone())?;
    let mut pages = accepted.pages.iter();
    for record in &accepted.records {
        match record {
            Record::Pages(range) => out.pages(*range, pages.next().expect("its bytes"))?,
            Record::Fill { range, pattern } => out.fill(*range, *pattern)?,
            Record::Extents(extents) => out.extents(extents)?,
            Record::Round(stats) => out.round(stats)?,
            Record::Blackout => out.blackout()?,
            Record::Section(section) => out.section(section)?,
            Record::Digest(digest) => out.digest(digest)?,
            Record::End(_) => drop(out.end()?),
            Record::Go { nonce, .. } => out.go(*nonce)?,
            Record::Abort { reason } => out.abort(reason)?,
        }
    }
    Ok(out.into_inner())
}

/// Whether the stream holds nothing that a reader passes over or makes harmless: reserved fields,
/// flags and records that may be ignored, text that would drive a terminal, a list of no extents.
fn is_exact(bytes: &[u8], accepted: &Accepted) -> bool {
    let ignored = [14, 15, 18, 19].iter().all(|&at| bytes[at] == 0);
    let plain = |record: &Record| match record {
        Record::Abort { .. } => false,
        Record::Extents(extents) => !extents.is_empty(),
        _ => true,
    };
    ignored && accepted.skipped == 0 && accepted.records.iter().all(plain)
}

fn backward(bytes: &[u8]) {
    // Any answer is one to the query that it names.
    let id = bytes.get(8..24).and_then(|id| id.try_into().ok()).unwrap_or([0; 16]);
    let id = MigrationId::from_bytes(id);
    within(bound(bytes), || {
        if let Some(messages) = read_answers(bytes, id) {
            let mut writer = ReturnWriter::new(Vec::new(), id).expect("memory takes it");
            messages.iter().for_each(|message| writer.send(message).expect("memory takes it"));
            assert_eq!(read_answers(&writer.into_inner(), id), Some(messages));
        }
    });
}

fn read_answers(bytes: &[u8], id: MigrationId) -> Option<Vec<Message>> {
    let mut reader = ReturnReader::open(bytes, id).map_err(said).ok()?;
    let mut messages = Vec::new();
    while let Some(message) = reader.next_message().map_err(said).ok()? {
        messages.push(message);
    }
    Some(messages)
}
