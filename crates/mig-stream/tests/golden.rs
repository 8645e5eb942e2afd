//! Streams of released formats must be readable for ever, and written the same for ever.

mod common;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use common::{BOTH_WAYS, BY, ID, memory_digest, page, probe, read, round, run, sample};
use mig_stream::{
    DestinationOutcome, FormatVersion, Message, Record, ReturnReader, ReturnWriter, StreamDigest,
    Totals,
};
use migpipe_units::{Bytes, Finding, Pages};

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn golden(name: &str) -> Vec<u8> {
    fs::read(path(name)).unwrap()
}

fn answers() -> Vec<Message> {
    let timings = vec![
        ("state load".to_owned(), Duration::from_micros(1500)),
        ("first instruction".to_owned(), Duration::from_nanos(7)),
    ];
    let digest = StreamDigest(0x0123_4567_89ab_cdef);
    vec![
        Message::Ready { version: FormatVersion(1) },
        Message::Ack { digest, by: BY, timings: timings.clone() },
        Message::Running { timings },
        Message::Refused { reason: "this host has no avx512f".into() },
        Message::Failed { reason: "no space left on device".into() },
        Message::Resolved(DestinationOutcome::Prepared),
        Message::Resolved(DestinationOutcome::Running),
        Message::Resolved(DestinationOutcome::Refused),
        Message::Resolved(DestinationOutcome::MayHaveRun { why: "the host crashed".into() }),
        Message::Resolved(DestinationOutcome::OtherHost { host: BY.host }),
    ]
}

fn probe_answers() -> Vec<Message> {
    vec![
        Message::Examined {
            findings: vec![
                Finding::fine("processor", "this host has all that the guest was given"),
                Finding::in_the_way("block disk0", "cannot open /srv/web.raw"),
            ],
        },
        Message::Measured { bytes: Bytes(1 << 33) },
    ]
}

fn written(answers: &[Message]) -> Vec<u8> {
    let mut writer = ReturnWriter::new(Vec::new(), ID).unwrap();
    for answer in answers {
        writer.send(answer).unwrap();
    }
    writer.into_inner()
}

#[test]
fn format_1_is_written_as_it_always_was() {
    assert!(sample(BOTH_WAYS) == golden("v1.mig"), "the bytes of format 1 have changed");
}

#[test]
fn format_1_is_read_as_it_always_was() {
    let whole = read(&golden("v1.mig")).unwrap();
    let totals = Totals {
        records: 9,
        pages: Pages(3),
        filled: Pages(900),
        sections: 2,
        bytes: Bytes(12_822),
        digest: StreamDigest(0x7285_343b_03d0_5f32),
    };
    let expected = [
        Record::Extents(vec![run(0, 0, 2), run(1, 0, 1000)]),
        Record::Pages(run(0, 0, 2)),
        Record::Fill { range: run(1, 100, 900), pattern: 0x0102_0304_0506_0708 },
        Record::Round(round(0)),
        Record::Blackout,
        Record::Section(b"state of a serial port".to_vec()),
        Record::Pages(run(1, 999, 1)),
        Record::Section(vec![]),
        Record::Digest(memory_digest()),
        Record::End(totals),
        Record::Go { id: ID, nonce: BY.nonce },
    ];
    assert_eq!(whole.records, expected);
    assert_eq!(whole.payloads, [[page(1), page(2)].concat(), page(3)]);
    assert_eq!(whole.skipped, 0);
}

#[test]
fn answers_of_format_1_are_written_and_read_as_they_always_were() {
    for (name, answers) in [("v1.answers", answers()), ("v1.probe.answers", probe_answers())] {
        let bytes = golden(name);
        assert!(written(&answers) == bytes, "the bytes of {name} have changed");
        let mut reader = ReturnReader::open(&bytes[..], ID).unwrap();
        for answer in answers {
            assert_eq!(reader.next_message().unwrap(), Some(answer));
        }
        assert_eq!(reader.next_message().unwrap(), None);
    }
}

#[test]
fn a_probe_of_format_1_is_written_and_read_as_it_always_was() {
    let bytes = golden("v1.probe");
    assert!(probe() == bytes, "the bytes of a probe have changed");
    let whole = read(&bytes).unwrap();
    let [Record::Pages(first), Record::Fill { .. }, Record::Round(stats), Record::End(totals)] =
        &whole.records[..]
    else {
        panic!("{:?}", whole.records)
    };
    assert_eq!((*first, *stats), (run(0, 0, 2), round(0)));
    assert_eq!((totals.pages, totals.filled), (Pages(2), Pages(900)));
}
