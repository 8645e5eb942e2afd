//! The channel from the destination back to the source.

use std::io::{self, Read, Write};

use migpipe_units::MigrationId;
use thiserror::Error;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, transmute};

use crate::answer::Message;
use crate::bytes::{Malformed, crc_of};
use crate::checksum::crc32c;
use crate::frame::OPTIONAL;
use crate::io_util::{read_full, read_growing, write_both};
use crate::preamble::RETURN_MAGIC;
use crate::unrecognised::UnrecognisedStream;

/// Length of what stands in front of the first message (bytes).
const OPENING_BYTES: usize = size_of::<Opening>();

/// Length of the frame in front of each message (bytes).
const FRAME_BYTES: usize = size_of::<MessageFrame>();

/// The longest payload of a message (bytes); the longest one known has less than 5 KiB.
const MAX_MESSAGE: u32 = 64 << 10;

/// Why a return path cannot be read on.
#[derive(Debug, Error)]
pub enum ReturnError {
    /// The channel failed.
    #[error("reading the destination's answer failed")]
    Io(#[source] io::Error),
    /// It is something else.
    #[error("the return path carries no answer: {0}")]
    UnrecognisedStream(UnrecognisedStream),
    /// It ends too early.
    #[error(
        "the destination's answer breaks off after {after} bytes: the receiver or the tunnel died"
    )]
    Truncated {
        /// How many bytes came.
        after: u64,
    },
    /// Something does not fit its checksum.
    #[error("the destination's answer is damaged (CRC-32C): the tunnel changes what it carries")]
    Damaged,
    /// The answer belongs to another migration.
    #[error(
        "the answer is for migration {found}, and {expected} was asked: a fifo or a tunnel is left over from an earlier migration"
    )]
    WrongId {
        /// The migration that is answered.
        found: MigrationId,
        /// The migration that was asked about.
        expected: MigrationId,
    },
    /// A message is missing, or came twice.
    #[error(
        "message {found} came in place of message {expected}: the tunnel lost, repeated or reordered data"
    )]
    Sequence {
        /// The number it should have.
        expected: u16,
        /// The number it has.
        found: u16,
    },
    /// A message is longer than any real one.
    #[error("the destination announces a message of {0} bytes; at most {MAX_MESSAGE} are read")]
    TooLong(u32),
    /// A message that must not be skipped and is not known.
    #[error(
        "the destination sends a message of type {0}, which this program does not know: update the sender"
    )]
    Unknown(u16),
    /// The fields of a message do not hold together.
    #[error("the destination's answer is malformed")]
    Malformed(#[source] Malformed),
    /// An earlier error ended the reading.
    #[error("the return path was given up at an earlier error")]
    GivenUp,
}

/// Sends answers: every message is written and flushed at once.
#[derive(Debug)]
pub struct ReturnWriter<W> {
    out: W,
    sequence: u16,
}

impl<W: Write> ReturnWriter<W> {
    /// Begins to answer the sender of this migration.
    ///
    /// # Errors
    /// Those of the channel.
    pub fn new(mut out: W, id: MigrationId) -> io::Result<Self> {
        out.write_all(Opening::new(id).as_bytes())?;
        out.flush()?;
        Ok(Self { out, sequence: 0 })
    }

    /// Sends one message.
    ///
    /// # Errors
    /// Those of the channel; nothing should be sent behind one.
    pub fn send(&mut self, message: &Message) -> io::Result<()> {
        let payload = message.encode();
        let frame = MessageFrame::new(message.number(), self.sequence, &payload);
        write_both(&mut self.out, frame.as_bytes(), &payload)?;
        self.sequence = self.sequence.wrapping_add(1);
        self.out.flush()
    }

    /// Gives the channel back.
    pub fn into_inner(self) -> W {
        self.out
    }
}

/// Receives answers.
#[derive(Debug)]
pub struct ReturnReader<R> {
    from: R,
    sequence: u16,
    bytes: u64,
    given_up: bool,
}

impl<R: Read> ReturnReader<R> {
    /// Waits for the first bytes of an answer and looks whether it is one, to this migration.
    ///
    /// # Errors
    /// [`ReturnError`].
    pub fn open(mut from: R, expected: MigrationId) -> Result<Self, ReturnError> {
        let mut opening = [0; OPENING_BYTES];
        let came = read_full(&mut from, &mut opening).map_err(ReturnError::Io)?;
        let bytes = &opening[..came];
        if !bytes.starts_with(&RETURN_MAGIC) {
            if came > 0 && RETURN_MAGIC.starts_with(bytes) {
                return Err(ReturnError::Truncated { after: came as u64 });
            }
            return Err(ReturnError::UnrecognisedStream(UnrecognisedStream::recognise(
                bytes,
                &RETURN_MAGIC,
            )));
        }
        if came < OPENING_BYTES {
            return Err(ReturnError::Truncated { after: came as u64 });
        }
        let opening: Opening = transmute!(opening);
        let found = opening.id().ok_or(ReturnError::Damaged)?;
        if found != expected {
            return Err(ReturnError::WrongId { found, expected });
        }
        Ok(Self { from, sequence: 0, bytes: OPENING_BYTES as u64, given_up: false })
    }

    /// The next message, or nothing where the destination closed the channel between two: what
    /// that means only the caller knows.
    ///
    /// # Errors
    /// [`ReturnError`]; from then on [`ReturnError::GivenUp`].
    pub fn next_message(&mut self) -> Result<Option<Message>, ReturnError> {
        if self.given_up {
            return Err(ReturnError::GivenUp);
        }
        let result = self.advance();
        self.given_up = result.is_err();
        result
    }

    fn advance(&mut self) -> Result<Option<Message>, ReturnError> {
        loop {
            let mut frame = [0; FRAME_BYTES];
            let came = read_full(&mut self.from, &mut frame).map_err(ReturnError::Io)?;
            self.bytes += came as u64;
            match came {
                0 => return Ok(None),
                FRAME_BYTES => {}
                _ => return Err(ReturnError::Truncated { after: self.bytes }),
            }
            let frame = MessageFrame::decode(frame).ok_or(ReturnError::Damaged)?;
            let (expected, found) = (self.sequence, frame.sequence.get());
            if found != expected {
                return Err(ReturnError::Sequence { expected, found });
            }
            let length = frame.length.get();
            if length > MAX_MESSAGE {
                return Err(ReturnError::TooLong(length));
            }
            let payload = read_growing(&mut self.from, length).map_err(ReturnError::Io)?;
            self.bytes += payload.len() as u64;
            if payload.len() < length as usize {
                return Err(ReturnError::Truncated { after: self.bytes });
            }
            if crc32c(&payload) != frame.payload_crc.get() {
                return Err(ReturnError::Damaged);
            }
            self.sequence = self.sequence.wrapping_add(1);
            let kind = frame.kind.get();
            match Message::decode(kind, &payload).map_err(ReturnError::Malformed)? {
                Some(message) => return Ok(Some(message)),
                None if kind & OPTIONAL != 0 => {}
                None => return Err(ReturnError::Unknown(kind)),
            }
        }
    }
}

impl<R> ReturnReader<R> {
    /// The channel, for its settings.
    pub const fn get_mut(&mut self) -> &mut R {
        &mut self.from
    }

    /// Gives the channel back.
    pub fn into_inner(self) -> R {
        self.from
    }
}

/// What stands in front of the first message.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Opening {
    magic: [u8; 8],
    id: [u8; 16],
    /// Zero: a later version may give it a meaning that old readers can ignore.
    reserved: U32,
    /// CRC-32C of all that is in front of it.
    crc: U32,
}

impl Opening {
    fn new(id: MigrationId) -> Self {
        let (id, zero) = (id.to_bytes(), U32::ZERO);
        let opening = Self { magic: RETURN_MAGIC, id, reserved: zero, crc: zero };
        Self { crc: crc_of(&opening).into(), ..opening }
    }

    /// The migration that is answered, where the checksum fits.
    fn id(&self) -> Option<MigrationId> {
        (self.crc.get() == crc_of(self)).then(|| MigrationId::from_bytes(self.id))
    }
}

/// What stands in front of a message.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct MessageFrame {
    kind: U16,
    sequence: U16,
    length: U32,
    payload_crc: U32,
    /// CRC-32C of all that is in front of it.
    crc: U32,
}

impl MessageFrame {
    fn new(kind: u16, sequence: u16, payload: &[u8]) -> Self {
        let frame = Self {
            kind: kind.into(),
            sequence: sequence.into(),
            length: (payload.len() as u32).into(),
            payload_crc: crc32c(payload).into(),
            crc: U32::ZERO,
        };
        Self { crc: crc_of(&frame).into(), ..frame }
    }

    fn decode(bytes: [u8; FRAME_BYTES]) -> Option<Self> {
        let frame: Self = transmute!(bytes);
        (frame.crc.get() == crc_of(&frame)).then_some(frame)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use migpipe_units::{Acknowledged, Bytes, Finding, HostId, Nonce};

    use super::*;
    use crate::answer::{DestinationOutcome, MAX_FINDINGS, MAX_PHASE_NAME, MAX_PHASES};
    use crate::checksum::StreamDigest;
    use crate::preamble::FormatVersion;
    use crate::text::MAX_REASON;

    const ID: MigrationId = MigrationId::from_bytes(*b"0123456789abcdef");

    fn all_messages() -> Vec<Message> {
        let timings = vec![
            ("state load".to_owned(), Duration::from_micros(1500)),
            ("go".to_owned(), Duration::from_nanos(7)),
        ];
        vec![
            Message::Ready { version: FormatVersion(1) },
            Message::Ack {
                digest: StreamDigest(0x0123_4567_89ab_cdef),
                by: Acknowledged {
                    host: HostId::from_bytes([3; 16]),
                    nonce: Nonce::from_bytes([4; 16]),
                },
                timings: timings.clone(),
            },
            Message::Running { timings },
            Message::Refused { reason: "the guest uses avx512f, this host has no avx512f".into() },
            Message::Failed { reason: String::new() },
            Message::Resolved(DestinationOutcome::Prepared),
            Message::Resolved(DestinationOutcome::Running),
            Message::Resolved(DestinationOutcome::Refused),
            Message::Resolved(DestinationOutcome::MayHaveRun { why: "the host crashed".into() }),
            Message::Resolved(DestinationOutcome::OtherHost { host: HostId::from_bytes([5; 16]) }),
            Message::Examined {
                findings: vec![
                    Finding::fine("processor", "all of it is here"),
                    Finding::in_the_way("block disk0", "no such file"),
                ],
            },
            Message::Measured { bytes: Bytes(0x0102_0304_0506_0708) },
        ]
    }

    fn written(messages: &[Message]) -> Vec<u8> {
        let mut writer = ReturnWriter::new(Vec::new(), ID).unwrap();
        for message in messages {
            writer.send(message).unwrap();
        }
        writer.into_inner()
    }

    fn read(bytes: &[u8]) -> Result<Vec<Message>, ReturnError> {
        let mut reader = ReturnReader::open(bytes, ID)?;
        let mut messages = Vec::new();
        while let Some(message) = reader.next_message()? {
            messages.push(message);
        }
        Ok(messages)
    }

    #[test]
    fn every_message_arrives_as_it_was_sent() {
        assert_eq!(read(&written(&all_messages())).unwrap(), all_messages());
    }

    #[test]
    fn a_ready_is_these_bytes() {
        let bytes = written(&all_messages()[..1]);
        assert_eq!(bytes[..8], [0x89, b'M', b'I', b'R', 13, 10, 26, 10]);
        assert_eq!(bytes[8..24], *b"0123456789abcdef");
        assert_eq!(bytes[24..28], [0; 4]);
        assert_eq!(bytes[28..32], crc32c(&bytes[..28]).to_le_bytes());
        assert_eq!(bytes[32..40], [1, 0, 0, 0, 2, 0, 0, 0]);
        assert_eq!(bytes[40..44], crc32c(&[1, 0]).to_le_bytes());
        assert_eq!(bytes[44..48], crc32c(&bytes[32..44]).to_le_bytes());
        assert_eq!(bytes[48..], [1, 0]);
    }

    #[test]
    fn every_flipped_bit_of_an_answer_is_noticed() {
        let bytes = written(&all_messages());
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&damaged).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn an_answer_that_breaks_off_never_yields_half_a_message() {
        let bytes = written(&all_messages());
        for length in 0..bytes.len() {
            match read(&bytes[..length]) {
                Ok(messages) => {
                    assert_eq!(messages, all_messages()[..messages.len()]);
                    assert_eq!(written(&messages).len(), length);
                }
                Err(ReturnError::Truncated { after }) => assert_eq!(after, length as u64),
                Err(error) => assert_eq!(length, 0, "{error}"),
            }
        }
    }

    #[test]
    fn an_answer_to_an_earlier_migration_is_refused() {
        let other = MigrationId::from_bytes([2; 16]);
        let bytes = written(&[]);
        let result = ReturnReader::open(&bytes[..], other);
        assert!(matches!(result, Err(ReturnError::WrongId { found: ID, .. })));
    }

    #[test]
    fn a_message_that_comes_twice_is_noticed() {
        let mut bytes = written(&all_messages()[..1]);
        let message = bytes[OPENING_BYTES..].to_owned();
        bytes.extend(message);
        assert!(matches!(read(&bytes), Err(ReturnError::Sequence { expected: 1, found: 0 })));
    }

    fn framed(kind: u16, payload: &[u8]) -> Vec<u8> {
        let frame = MessageFrame::new(kind, 0, payload);
        [&written(&[]), frame.as_bytes(), payload].concat()
    }

    #[test]
    fn an_unknown_message_is_skipped_if_it_says_so_and_refused_otherwise() {
        assert_eq!(read(&framed(0x8123, b"news")).unwrap(), []);
        assert!(matches!(read(&framed(0x0123, b"news")), Err(ReturnError::Unknown(0x0123))));
        let long = vec![0; MAX_MESSAGE as usize + 1];
        assert!(matches!(read(&framed(0x8123, &long)), Err(ReturnError::TooLong(_))));
    }

    #[test]
    fn malformed_messages_are_refused() {
        for (kind, payload) in [
            (1, &[1][..]),
            (1, &[1, 0, 0]),
            (2, &[0; 9]),
            (3, &[65, 0]),
            (3, &[1, 0, 65]),
            (3, &[1, 0, 1, 0xff, 0, 0, 0, 0, 0, 0, 0, 0]),
            (4, &[0xff]),
            (6, &[]),
            (6, &[9]),
            (6, &[1, 1]),
            (7, &[1, 0, 2, 0, 0, 0]),
            (7, &[61, 0]),
            (7, &[1, 0, 0, 65]),
            (7, &[0, 0, 0]),
            (8, &[0; 7]),
        ] {
            assert!(
                matches!(read(&framed(kind, payload)), Err(ReturnError::Malformed(_))),
                "{kind} {payload:?}"
            );
        }
    }

    #[test]
    fn too_long_words_are_cut_and_still_arrive() {
        let sent = [
            Message::Refused { reason: "x".repeat(MAX_REASON + 9) },
            Message::Running { timings: vec![("y".repeat(99), Duration::MAX); MAX_PHASES + 9] },
            Message::Examined {
                findings: [
                    vec![Finding::fine("z".repeat(99), "z".repeat(9999)); MAX_FINDINGS],
                    vec![Finding::in_the_way("disk", "gone")],
                ]
                .concat(),
            },
        ];
        let timing = ("y".repeat(MAX_PHASE_NAME), Duration::from_nanos(u64::MAX));
        let fine = Finding::fine("z".repeat(64), "z".repeat(992));
        assert_eq!(
            read(&written(&sent)).unwrap(),
            [
                Message::Refused { reason: "x".repeat(MAX_REASON) },
                Message::Running { timings: vec![timing; MAX_PHASES] },
                Message::Examined {
                    findings: [
                        vec![Finding::in_the_way("disk", "gone")],
                        vec![fine; MAX_FINDINGS - 1],
                    ]
                    .concat(),
                },
            ]
        );
    }

    #[test]
    fn a_shell_that_answers_instead_is_quoted() {
        let error = read(b"bash: mig-recv: command not found\n").unwrap_err();
        assert!(error.to_string().contains("bash: mig-recv"), "{error}");
        let error = read(b"").unwrap_err();
        assert!(error.to_string().contains("nothing came"), "{error}");
    }
}
