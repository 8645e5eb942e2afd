//! Whatever a tunnel does to a stream, it never ends well by mistake.

mod common;

use std::time::Duration;

use common::{BOTH_WAYS, ONE_WAY, Stopped, page, probe, reached_end, read, run, sample};
use mig_stream::{Flags, Header, Preamble, QueryBody, Record, StreamReader, StreamWriter};
use proptest::prelude::*;

const UNSUMMED: Flags = Flags { page_sums: false, ..ONE_WAY };

#[test]
fn a_whole_stream_is_read_to_its_end() {
    for flags in [BOTH_WAYS, ONE_WAY, UNSUMMED] {
        assert!(reached_end(&read(&sample(flags))));
    }
}

#[test]
fn every_flipped_bit_ends_in_an_error() {
    for mut bytes in [sample(BOTH_WAYS), probe()] {
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&bytes).is_err(), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }
}

#[test]
fn without_page_sums_every_flipped_bit_outside_of_pages_ends_in_an_error() {
    let mut bytes = sample(UNSUMMED);
    let pages: Vec<u8> = [page(1), page(2)].concat();
    let first = bytes.windows(8192).position(|window| window == pages).unwrap();
    let second = bytes.windows(4096).position(|window| window == page(3)).unwrap();
    for byte in 0..bytes.len() {
        let in_pages =
            (first..first + 8192).contains(&byte) || (second..second + 4096).contains(&byte);
        for bit in 0..8 {
            bytes[byte] ^= 1 << bit;
            assert_eq!(read(&bytes).is_ok(), in_pages, "byte {byte} bit {bit}");
            bytes[byte] ^= 1 << bit;
        }
    }
}

#[test]
fn every_truncation_of_a_one_way_stream_and_of_a_probe_says_where_it_ends() {
    for bytes in [sample(ONE_WAY), probe()] {
        for length in 0..bytes.len() {
            let error = read(&bytes[..length]).unwrap_err();
            let said = error.said();
            if length == 0 {
                assert!(said.contains("nothing came"), "{said}");
            } else {
                assert!(said.contains(&format!("after {length} bytes")), "{length}: {said}");
            }
        }
    }
}

#[test]
fn a_stream_that_stops_inside_pages_says_so() {
    let bytes = sample(ONE_WAY);
    let pages: Vec<u8> = [page(1), page(2)].concat();
    let start = bytes.windows(8192).position(|window| window == pages).unwrap();
    let said = read(&bytes[..start + 5000]).unwrap_err().said();
    let expected = format!(
        "the stream ends inside the payload of a Pages record after {} bytes: \
         the sender or the tunnel died before all was sent",
        start + 5000
    );
    assert_eq!(said, expected);
}

#[test]
fn a_stream_that_stops_between_end_and_go_has_an_end_and_no_go() {
    let bytes = sample(BOTH_WAYS);
    let go = 32 + 32;
    let whole = read(&bytes[..bytes.len() - go]).unwrap();
    assert!(matches!(whole.records.last(), Some(Record::End(_))));
    for cut in 1..go {
        assert!(read(&bytes[..bytes.len() - cut]).is_err());
    }
}

/// Where each record of a stream begins, and where the stream ends.
fn boundaries(bytes: &[u8]) -> Vec<usize> {
    let mut reader = StreamReader::open(bytes).unwrap();
    let mut starts = vec![];
    while reader.next_record().unwrap().is_some() {
        starts.push(reader.record_at().0 as usize);
    }
    starts.push(bytes.len());
    starts
}

#[test]
fn a_record_that_is_lost_repeated_or_moved_is_noticed() {
    let bytes = sample(ONE_WAY);
    let at = boundaries(&bytes);
    let count = at.len() - 1;
    let record = |index: usize| &bytes[at[index]..at[index + 1]];
    let head = &bytes[..at[0]];
    for one in 0..count {
        let lost: Vec<_> = (0..count).filter(|&index| index != one).map(record).collect();
        assert!(!reached_end(&read(&[head, &lost.concat()].concat())), "lost {one}");
        let twice: Vec<_> = (0..count)
            .flat_map(|index| vec![record(index); 1 + usize::from(index == one)])
            .collect();
        assert!(read(&[head, &twice.concat()].concat()).is_err(), "twice {one}");
        for other in 0..one {
            let mut order: Vec<usize> = (0..count).collect();
            order.swap(one, other);
            let moved: Vec<_> = order.into_iter().map(record).collect();
            assert!(read(&[head, &moved.concat()].concat()).is_err(), "{one} and {other}");
        }
    }
}

#[test]
fn the_end_of_another_stream_does_not_fit() {
    let ours = sample(ONE_WAY);
    let mut other =
        StreamWriter::new(Vec::new(), *reader_of(&ours).preamble(), header_of(&ours)).unwrap();
    // As many records, pages and bytes as in the sample, with one other byte in a page.
    let mut pages = [page(1), page(2)].concat();
    pages[17] ^= 1;
    other.extents(&[run(0, 0, 2), run(1, 0, 1000)]).unwrap();
    other.pages(run(0, 0, 2), &pages).unwrap();
    other.fill(run(1, 100, 900), 0x0102_0304_0506_0708).unwrap();
    other.round(&common::round(0)).unwrap();
    other.blackout().unwrap();
    other.section(b"state of a serial port").unwrap();
    other.pages(run(1, 999, 1), &page(3)).unwrap();
    other.section(b"").unwrap();
    other.end().unwrap();
    let other = other.into_inner();
    assert_eq!(other.len(), ours.len());
    let end = *boundaries(&ours).iter().rev().nth(1).unwrap();
    let said = read(&[&ours[..end], &other[end..]].concat()).unwrap_err().said();
    assert!(said.contains("digest by its own account"), "{said}");
}

fn reader_of(bytes: &[u8]) -> StreamReader<&[u8]> {
    StreamReader::open(bytes).unwrap()
}

fn header_of(bytes: &[u8]) -> Header {
    reader_of(bytes).header().clone()
}

#[test]
fn bytes_behind_the_end_are_refused() {
    for flags in [BOTH_WAYS, ONE_WAY] {
        for extra in [1, 31, 32, 100] {
            let mut bytes = sample(flags);
            bytes.resize(bytes.len() + extra, 0);
            let said = read(&bytes).unwrap_err().said();
            assert!(said.contains("where the stream must end"), "{said}");
        }
    }
}

#[test]
fn a_query_ends_behind_its_header() {
    let asked = QueryBody { to: Some(common::BY), age: Duration::from_secs(7) };
    for preamble in [Preamble::resolve(common::ID), Preamble::release(common::ID)] {
        let stream = StreamWriter::new(Vec::new(), preamble, Header::from(&asked)).unwrap();
        let mut query = stream.into_inner();
        assert_eq!(read(&query).unwrap().records, []);
        let reader = StreamReader::open(&query[..]).unwrap();
        assert_eq!((reader.preamble().kind, reader.query()), (preamble.kind, Some(asked)));
        for length in 0..query.len() {
            assert!(matches!(read(&query[..length]), Err(Stopped::Open(_))), "{length}");
        }
        query.push(0);
        assert!(read(&query).is_err());
    }
}

proptest! {
    #[test]
    fn random_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(read(&bytes).is_err());
    }

    #[test]
    fn random_bytes_behind_a_good_header_are_refused(
        bytes in proptest::collection::vec(any::<u8>(), 0..300)
    ) {
        let mut raw = common::Raw::new(ONE_WAY);
        raw.bytes.extend(&bytes);
        prop_assert!(raw.read().is_err());
    }

    #[test]
    fn any_stretch_of_wrong_bytes_is_noticed(
        at in any::<proptest::sample::Index>(),
        wrong in proptest::collection::vec(any::<u8>(), 1..64),
    ) {
        let good = sample(BOTH_WAYS);
        let at = at.index(good.len());
        let mut bytes = good.clone();
        for (byte, wrong) in bytes[at..].iter_mut().zip(&wrong) {
            *byte = *wrong;
        }
        prop_assume!(bytes != good);
        prop_assert!(read(&bytes).is_err());
    }
}
