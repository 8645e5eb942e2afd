//! The seeds are of today: each is read to its end, and together they hold every kind of message
//! there is. From seeds that are refused at their first byte the fuzzer gets nowhere.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::fs;
use std::path::Path;

use mig_stream::{DestinationOutcome, Message, Record, ReturnReader, StreamReader};
use migpipe_units::{Gfn, MemoryRegion, MigrationId, Pages, RegionId};
use serde::de::value::Error;
use serde::de::{DeserializeOwned, Deserializer, Error as _, Visitor};
use serde::forward_to_deserialize_any;
use vm_control::{Event, Order, Reply, Request};
use vm_state::{MachineDescription, Section};

const ID: MigrationId = MigrationId::from_bytes(*b"0123456789abcdef");

/// What the guest of the seeds has.
const MEMORY: MemoryRegion = MemoryRegion { id: RegionId(0), base: Gfn(0), pages: Pages(4096) };

/// So many answers the target waits for; events follow.
const ANSWERS: usize = 16;

fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    entries
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect()
}

fn seed(target: &str, name: &str) -> Vec<u8> {
    seeds(target).into_iter().find(|(found, _)| found == name).expect(name).1
}

/// What is behind each length.
fn parts(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk() {
        let (part, rest) = rest.split_at(u32::from_le_bytes(*length) as usize);
        parts.push(part);
        bytes = rest;
    }
    assert_eq!(bytes, [0; 0], "half a length");
    parts
}

fn decode<T: DeserializeOwned>(name: &str, parts: &[&[u8]]) -> Vec<T> {
    let decoded = parts.iter().map(|part| postcard::take_from_bytes(part));
    let whole = decoded.map(|message| {
        let (message, rest) = message.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(rest.is_empty(), "{name}: more than a message");
        message
    });
    whole.collect()
}

/// The name of the variant.
fn kind(message: &impl Debug) -> String {
    let text = format!("{message:?}");
    text.split(|it: char| !it.is_alphanumeric()).next().unwrap_or_default().to_owned()
}

fn kinds<'a>(messages: impl IntoIterator<Item = &'a (impl Debug + 'a)>) -> BTreeSet<String> {
    messages.into_iter().map(kind).collect()
}

/// Asks a type for the names of its variants, and gives it nothing.
struct Variants<'a>(&'a mut &'static [&'static str]);

impl<'de> Deserializer<'de> for Variants<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
        Err(Error::custom("no enum"))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Error> {
        *self.0 = variants;
        Err(Error::custom("only asked"))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

/// Every kind there is of these messages.
fn all<T: DeserializeOwned>() -> BTreeSet<String> {
    let mut variants: &[&str] = &[];
    let _ = T::deserialize(Variants(&mut variants));
    assert!(!variants.is_empty());
    variants.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn every_request_and_every_order_is_in_a_seed() {
    let mut requests = Vec::new();
    for (name, bytes) in seeds("control_server") {
        requests.extend(decode::<Request>(&name, &parts(&bytes[1..])));
    }
    let mut found = kinds(&requests);
    // The target says it by itself.
    found.insert("Hello".to_owned());
    assert_eq!(found, all::<Request>());
    let orders = requests.iter().filter_map(|request| match request {
        Request::Order(order) => Some(order),
        _ => None,
    });
    assert_eq!(kinds(orders), all::<Order>());
}

#[test]
fn every_reply_and_every_event_is_in_the_seed_of_a_session() {
    let bytes = seed("control_client", "session");
    let parts = parts(&bytes[1..]);
    let (replies, events) = parts.split_at(ANSWERS);
    let mut found = kinds(&decode::<Reply>("session", replies));
    found.insert("Hello".to_owned());
    assert_eq!(found, all::<Reply>());
    assert_eq!(kinds(&decode::<Event>("session", events)), all::<Event>());
}

#[test]
fn every_record_is_in_a_stream_that_is_read_to_its_end() {
    let (mut found, mut purposes, mut saved) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
    for (name, bytes) in seeds("stream") {
        // One of its records is changed, and only the target puts its checksum right.
        if name == "unknown" {
            continue;
        }
        let mut reader =
            StreamReader::open(&bytes[..]).unwrap_or_else(|error| panic!("{name}: {error}"));
        purposes.insert(kind(&reader.preamble().kind));
        let flags = reader.preamble().flags;
        saved.extend(flags.saved.then_some(flags.snapshot));
        while let Some(record) =
            reader.next_record().unwrap_or_else(|error| panic!("{name}: {error}"))
        {
            if let Record::Pages(range) = record {
                reader.read_payload(&mut vec![0; range.len().0 as usize]).unwrap();
            }
            found.insert(match record {
                Record::Pages(_) => 1,
                Record::Fill { .. } => 2,
                Record::Extents(_) => 3,
                Record::Round(_) => 4,
                Record::Blackout => 5,
                Record::Section(_) => 6,
                Record::Digest(_) => 7,
                Record::End(_) => 8,
                Record::Go { .. } => 9,
                Record::Abort { .. } => 10,
            });
        }
        reader.expect_eof().unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    assert_eq!(found, (1..=10).collect());
    assert_eq!(purposes, ["Migrate", "Probe", "Release", "Resolve"].map(str::to_owned).into());
    saved.sort_unstable();
    assert_eq!(saved, [false, true], "a saved guest and a snapshot");
}

#[test]
fn every_answer_is_in_a_seed() {
    let mut found = BTreeSet::new();
    for (name, bytes) in seeds("answers") {
        let mut reader = ReturnReader::open(&bytes[..], ID).unwrap();
        while let Some(message) =
            reader.next_message().unwrap_or_else(|error| panic!("{name}: {error}"))
        {
            found.insert(match message {
                Message::Ready { .. } => 1,
                Message::Ack { .. } => 2,
                Message::Running { .. } => 3,
                Message::Refused { .. } => 4,
                Message::Failed { .. } => 5,
                Message::Resolved(DestinationOutcome::Prepared) => 6,
                Message::Resolved(DestinationOutcome::Running) => 7,
                Message::Resolved(DestinationOutcome::Refused) => 8,
                Message::Resolved(DestinationOutcome::MayHaveRun { .. }) => 9,
                Message::Resolved(DestinationOutcome::OtherHost { .. }) => 10,
                Message::Examined { .. } => 11,
                Message::Measured { .. } => 12,
            });
        }
    }
    assert_eq!(found, (1..=12).collect());
}

#[test]
fn the_saved_state_is_written_as_it_would_be_today() {
    let bytes = seed("state", "saved");
    let parts = parts(&bytes);
    let machine = MachineDescription::decode(parts[0], &[MEMORY]).unwrap();
    assert_eq!(machine.encode().unwrap(), parts[0]);
    assert!(machine.devices.len() >= 4, "{machine:?}");
    for part in &parts[1..] {
        assert_eq!(Section::decode(part).unwrap().encode().unwrap(), *part);
    }
    // Of the versions before.
    for old in ["saved-1", "saved-2"] {
        let bytes = seed("state", old);
        MachineDescription::decode(self::parts(&bytes)[0], &[MEMORY]).unwrap();
    }
}
