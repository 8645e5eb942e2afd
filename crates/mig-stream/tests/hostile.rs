//! Frames with right checksums and wrong content: what somebody would send who means harm.

mod common;

use common::{ID, ONE_WAY, Place, Raw, Stopped, page, read};
use mig_stream::{Flags, MOST_FILLS, Preamble, ReadError, Record, StreamReader, StreamWriter};
use migpipe_units::Pages;
use proptest::prelude::*;

const PAGES: u16 = 1;
const FILL: u16 = 2;
const EXTENTS: u16 = 0x8003;
const ROUND: u16 = 0x8004;
const SECTION: u16 = 6;
const DIGEST: u16 = 7;
const END: u16 = 8;
const GO: u16 = 9;
const ABORT: u16 = 10;

const NOWHERE: Place = Place { region: 0, first: 0, count: 0 };

fn at(region: u16, first: u64, count: u32) -> Place {
    Place { region, first, count }
}

fn refused(raw: Raw) -> String {
    match raw.read() {
        Err(Stopped::Read(error)) => Stopped::Read(error).said(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn pages_outside_of_the_guests_memory_are_refused_before_a_byte_of_them_is_read() {
    for place in [
        at(0, 160, 1),
        at(0, 159, 2),
        at(0, u64::MAX, 1),
        at(1, 1000, 1),
        at(2, 0, 1),
        at(u16::MAX, 0, 1),
    ] {
        let raw = Raw::new(ONE_WAY).record(PAGES, place, &page(1));
        let said = refused(raw);
        assert!(said.contains("leaves the guest's memory"), "{said}");
        let raw = Raw::new(ONE_WAY).record(FILL, place, &[0; 8]);
        let said = refused(raw);
        assert!(said.contains("leaves the guest's memory"), "{said}");
        let mut extent = vec![];
        extent.extend(place.region.to_le_bytes());
        extent.extend(place.first.to_le_bytes());
        extent.extend(u64::from(place.count).to_le_bytes());
        let said = refused(Raw::new(ONE_WAY).record(EXTENTS, NOWHERE, &extent));
        assert!(said.contains("leaves the guest's memory"), "{said}");
    }
    let said = refused(Raw::new(ONE_WAY).record(PAGES, at(1, 999, 2), &[0; 8192]));
    assert!(
        said.ends_with("pages 999 to 1001 lie outside region 1, which has 1000 pages"),
        "{said}"
    );
}

#[test]
fn lengths_that_do_not_fit_the_record_are_refused() {
    for (kind, place, length) in [
        (PAGES, at(0, 0, 1), 4095),
        (PAGES, at(0, 0, 2), 4096),
        (PAGES, at(1, 0, 300), 300 * 4096),
        (PAGES, at(0, 0, 0), 0),
        (FILL, at(0, 0, 1), 7),
        (FILL, at(0, 0, 1), 9),
        (FILL, at(0, 0, 0), 8),
        (SECTION, NOWHERE, (16 << 20) + 1),
        (SECTION, NOWHERE, u32::MAX),
        (SECTION, at(0, 0, 1), 0),
        (SECTION, at(0, 1, 0), 0),
        (SECTION, at(1, 0, 0), 0),
        (EXTENTS, NOWHERE, 17),
        (EXTENTS, NOWHERE, 65_537 * 18),
        (EXTENTS, NOWHERE, u32::MAX),
        (ROUND, NOWHERE, 43),
        (ROUND, NOWHERE, 45),
        (0x8005, NOWHERE, 1),
        (END, NOWHERE, 47),
        (END, NOWHERE, 49),
        (ABORT, NOWHERE, 4097),
        (0x8999, NOWHERE, (16 << 20) + 1),
    ] {
        let payload = vec![0; length.min(20 << 20) as usize];
        let mut raw = Raw::new(ONE_WAY).frame(kind, place, length, common::crc32c(&payload));
        raw.bytes.extend(payload);
        refused(raw);
    }
}

#[test]
fn fills_cost_their_reader_a_bounded_amount_of_work() {
    let mut header = common::header();
    header.regions[1].pages = Pages(1 << 20);
    let memory = header.memory().0;
    let stream = StreamWriter::new(Vec::new(), Preamble::migrate(ID, ONE_WAY), header).unwrap();
    let begun = stream.into_inner();
    let raw = || Raw { bytes: begun.clone(), sequence: 0 };

    let said = refused(raw().record(FILL, at(1, 0, 1025), &[1; 8]));
    assert!(said.contains("more pages than one record may"), "{said}");

    let once = |raw: Raw, number: u64| {
        (0..1 << 10).fold(raw, |raw, piece| {
            raw.record(FILL, at(1, piece << 10, 1 << 10), &number.to_le_bytes())
        })
    };
    let often = (0..MOST_FILLS).fold(raw(), once);
    // The other region is the rest of the memory, as often.
    let rest = (memory - (1 << 20)) * MOST_FILLS;
    let full = (0..rest).fold(often, |raw, _| raw.record(FILL, at(0, 0, 1), &[1; 8]));
    let bytes = full.bytes.len() as u64 - begun.len() as u64;
    assert!(bytes < memory * 4096 / 1000, "{bytes} bytes are little beside what they fill");
    let said = refused(full.record(FILL, at(0, 0, 1), &[1; 8]));
    assert!(said.contains("cover the guest's memory more than 16 times"), "{said}");
}

#[test]
fn an_unknown_record_is_skipped_if_it_says_so_and_refused_by_number_otherwise() {
    let raw = Raw::new(ONE_WAY)
        .record(0x8123, at(9, 9, 9), &[7; 100_000])
        .record(0x8123, NOWHERE, b"")
        .record(SECTION, NOWHERE, b"state");
    let mut reader = StreamReader::open(&raw.bytes[..]).unwrap();
    assert_eq!(reader.next_record().unwrap(), Some(Record::Section(b"state".to_vec())));
    assert_eq!(reader.skipped(), 2);
    assert_eq!(reader.totals().records, 3);
    let said = refused(Raw::new(ONE_WAY).record(0x0123, NOWHERE, b"news"));
    assert!(said.contains("is of type 291"), "{said}");
    // A known number with the other bit is another type.
    let said = refused(Raw::new(ONE_WAY).record(3, NOWHERE, b""));
    assert!(said.contains("is of type 3,"), "{said}");
}

#[test]
fn a_skipped_record_is_checked_all_the_same() {
    let mut raw = Raw::new(ONE_WAY).frame(0x8123, NOWHERE, 4, 1);
    raw.bytes.extend(b"news");
    let said = refused(raw);
    assert!(said.contains("unknown record 0x8123") && said.contains("damaged"), "{said}");
    let mut raw = Raw::new(ONE_WAY).frame(0x8123, NOWHERE, 100, 1);
    raw.bytes.extend(b"news");
    let after = raw.bytes.len();
    let said = refused(raw);
    assert!(said.contains(&format!("after {after} bytes")), "{said}");
}

#[test]
fn go_for_another_migration_is_refused() {
    let flags = Flags { return_path: true, ..ONE_WAY };
    let stream = |id: &[u8; 16]| {
        let mut bytes = common::sample(flags);
        bytes.truncate(bytes.len() - 64);
        let sequence = 9;
        let mut raw = Raw { bytes, sequence };
        raw = raw.record(GO, NOWHERE, &[&id[..], &common::BY.nonce.to_bytes()].concat());
        raw.read()
    };
    assert!(stream(b"0123456789abcdef").is_ok());
    assert!(matches!(stream(b"0123456789abcdeX"), Err(Stopped::Read(ReadError::WrongId { .. }))));
}

#[test]
fn a_digest_must_cover_every_region() {
    let flags = Flags { verify: true, ..ONE_WAY };
    for length in [0, 8, 12, 24] {
        refused(Raw::new(flags).record(DIGEST, NOWHERE, &vec![0; length]));
    }
}

#[test]
fn a_reason_is_text_and_cannot_drive_a_terminal() {
    let raw = Raw::new(ONE_WAY).record(ABORT, NOWHERE, b"no \x1b[2Jdisk");
    let records = raw.read().unwrap().records;
    assert_eq!(records, [Record::Abort { reason: "no \u{fffd}[2Jdisk".into() }]);
    refused(Raw::new(ONE_WAY).record(ABORT, NOWHERE, &[0xff]));
}

#[test]
fn after_an_error_nothing_more_is_read() {
    let raw = Raw::new(ONE_WAY).record(0x0123, NOWHERE, b"").record(SECTION, NOWHERE, b"x");
    let mut reader = StreamReader::open(&raw.bytes[..]).unwrap();
    assert!(matches!(reader.next_record(), Err(ReadError::Unknown { .. })));
    assert!(matches!(reader.next_record(), Err(ReadError::GivenUp)));
    assert!(matches!(reader.expect_eof(), Err(ReadError::GivenUp)));
}

#[test]
fn payload_may_be_taken_in_pieces_or_left_and_is_checked_either_way() {
    let good = Raw::new(ONE_WAY).record(PAGES, at(0, 0, 1), &page(5));
    let mut bad = Raw::new(ONE_WAY).record(PAGES, at(0, 0, 1), &page(5));
    *bad.bytes.last_mut().unwrap() ^= 1;
    for (raw, is_good) in [(good, true), (bad, false)] {
        let mut reader = StreamReader::open(&raw.bytes[..]).unwrap();
        reader.next_record().unwrap();
        let mut buf = vec![0; 4096];
        let (head, tail) = buf.split_at_mut(100);
        reader.read_payload(head).unwrap();
        let last = reader.read_payload(tail);
        assert_eq!(last.is_ok(), is_good);
        assert!(!is_good || buf == page(5));

        let mut reader = StreamReader::open(&raw.bytes[..]).unwrap();
        reader.next_record().unwrap();
        let next = reader.next_record().unwrap_err();
        // Behind good pages the stream just ends.
        assert_eq!(matches!(next, ReadError::Truncated { .. }), is_good, "{next}");
    }
}

#[test]
fn more_payload_than_there_is_cannot_be_taken() {
    let raw = Raw::new(ONE_WAY).record(PAGES, at(0, 0, 1), &page(5));
    let mut reader = StreamReader::open(&raw.bytes[..]).unwrap();
    reader.next_record().unwrap();
    assert!(matches!(
        reader.read_payload(&mut [0; 4097]),
        Err(ReadError::NoSuchPayload { wanted: 4097, left: 4096 })
    ));
}

#[test]
fn a_sum_in_a_stream_without_page_sums_is_refused() {
    let flags = Flags { page_sums: false, ..ONE_WAY };
    refused(Raw::new(flags).record(PAGES, at(0, 0, 1), &page(1)));
}

fn any_frame() -> impl Strategy<Value = (u16, Place, Vec<u8>)> {
    let kind = prop_oneof![0u16..12, 0x8000u16..0x800c, any::<u16>()];
    let place = prop_oneof![
        3 => Just(NOWHERE),
        2 => (0u16..3, 0u64..1100, 0u32..400).prop_map(|(r, f, c)| at(r, f, c)),
        1 => (any::<u16>(), any::<u64>(), any::<u32>()).prop_map(|(r, f, c)| at(r, f, c)),
    ];
    let payload = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..64),
        Just(vec![0; 4096]),
        Just(vec![0; 48]),
        Just(vec![0; 36]),
    ];
    (kind, place, payload)
}

proptest! {
    /// Random bytes never get past a checksum; these all do.
    #[test]
    fn records_of_random_content_never_panic_and_never_end_well(
        flags in (any::<bool>(), any::<bool>(), any::<bool>()),
        frames in proptest::collection::vec(any_frame(), 0..12),
    ) {
        let flags = Flags {
            return_path: flags.0,
            page_sums: flags.1,
            separate_commit: false,
            verify: flags.2,
            saved: false,
            snapshot: false,
        };
        let mut raw = Raw::new(flags);
        for (kind, place, payload) in frames {
            raw = raw.record(kind, place, &payload);
        }
        let result = read(&raw.bytes);
        prop_assert!(!common::reached_end(&result), "{:?}", result);
    }
}
