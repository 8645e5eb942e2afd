//! What a destination says to its source: the messages of the return path.

use std::time::Duration;

use migpipe_units::{Acknowledged, Bytes, Finding, HostId};
use serde::{Deserialize, Serialize};
use zerocopy::little_endian::{U16, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::bytes::{AcknowledgedBytes, Malformed, Put, Take, whole};
use crate::checksum::StreamDigest;
use crate::preamble::FormatVersion;
use crate::record::nanoseconds;
use crate::text::{MAX_REASON, clean};

/// The longest name of a phase (bytes); longer ones are cut when written.
pub const MAX_PHASE_NAME: usize = 64;

/// The most phases in one message; further ones are not written.
pub const MAX_PHASES: usize = 64;

/// The most findings in one message; with more of them, those that are in the way come first.
pub const MAX_FINDINGS: usize = 60;

/// The longest subject and the longest text of a finding (bytes); longer ones are cut when written.
const MAX_SUBJECT: usize = 64;
const MAX_FINDING: usize = 992;

/// How long each phase took at the destination, in the order in which they ended.
pub type Timings = Vec<(String, Duration)>;

/// What became of a migration, as the destination knows it. The serde form is for the processes of
/// one program; the wire has its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DestinationOutcome {
    /// The guest is complete there and waits for `Go`.
    Prepared,
    /// The guest runs there.
    Running,
    /// The guest has not run there and never will: recorded before this was said.
    Refused,
    /// The destination cannot rule out that the guest ran there.
    MayHaveRun {
        /// Why it cannot.
        why: String,
    },
    /// Another host than the one that acknowledged the guest was asked, and it knows of none that
    /// runs or is complete.
    OtherHost {
        /// The host that was asked.
        host: HostId,
    },
}

/// One message of the return path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// The header is accepted: send, in this version of the format.
    Ready {
        /// The version.
        version: FormatVersion,
    },
    /// Memory and state are complete and loaded; the guest waits for `Go`.
    Ack {
        /// The digest that `End` carried.
        digest: StreamDigest,
        /// Who acknowledges: `Go` and every query bring it back.
        by: Acknowledged,
        /// How long the destination took, by phase.
        timings: Timings,
    },
    /// The guest runs here.
    Running {
        /// How long the destination took, by phase.
        timings: Timings,
    },
    /// The guest cannot be taken, and was not touched.
    Refused {
        /// Why, and what to do about it.
        reason: String,
    },
    /// Something failed on the way; the guest has not run here and will not.
    Failed {
        /// What failed, and what to do about it.
        reason: String,
    },
    /// The answer to a query.
    Resolved(DestinationOutcome),
    /// The answer to the header of a probe: what this host finds about that guest.
    Examined {
        /// One for each part of the guest.
        findings: Vec<Finding>,
    },
    /// The answer to a `Round` of a probe: all in front of it has arrived.
    Measured {
        /// The length of the stream up to there.
        bytes: Bytes,
    },
}

/// The numbers of the messages; bit 15 would mark one that may be skipped.
const READY: u16 = 1;
const ACK: u16 = 2;
const RUNNING: u16 = 3;
const REFUSED: u16 = 4;
const FAILED: u16 = 5;
const RESOLVED: u16 = 6;
const EXAMINED: u16 = 7;
const MEASURED: u16 = 8;

/// The numbers of the outcomes.
const PREPARED: u8 = 1;
const HAS_RUN: u8 = 2;
const HAS_REFUSED: u8 = 3;
const MAY_HAVE_RUN: u8 = 4;
const OTHER_HOST: u8 = 5;

/// The beginning of an `Ack`, in front of its timings.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct AckBytes {
    digest: U64,
    by: AcknowledgedBytes,
}

impl Message {
    pub(crate) const fn number(&self) -> u16 {
        match self {
            Self::Ready { .. } => READY,
            Self::Ack { .. } => ACK,
            Self::Running { .. } => RUNNING,
            Self::Refused { .. } => REFUSED,
            Self::Failed { .. } => FAILED,
            Self::Resolved(_) => RESOLVED,
            Self::Examined { .. } => EXAMINED,
            Self::Measured { .. } => MEASURED,
        }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self {
            Self::Ready { version } => bytes.put(&U16::new(version.0)),
            Self::Ack { digest, by, timings } => {
                bytes.put(&AckBytes { digest: digest.0.into(), by: by.into() });
                encode_timings(&mut bytes, timings);
            }
            Self::Running { timings } => encode_timings(&mut bytes, timings),
            Self::Refused { reason } | Self::Failed { reason } => {
                bytes.put(clean(reason, MAX_REASON).as_bytes());
            }
            Self::Resolved(DestinationOutcome::Prepared) => bytes.put(&PREPARED),
            Self::Resolved(DestinationOutcome::Running) => bytes.put(&HAS_RUN),
            Self::Resolved(DestinationOutcome::Refused) => bytes.put(&HAS_REFUSED),
            Self::Resolved(DestinationOutcome::MayHaveRun { why }) => {
                bytes.put(&MAY_HAVE_RUN);
                bytes.put(clean(why, MAX_REASON).as_bytes());
            }
            Self::Resolved(DestinationOutcome::OtherHost { host }) => {
                bytes.put(&OTHER_HOST);
                bytes.put(&host.to_bytes());
            }
            Self::Examined { findings } => encode_findings(&mut bytes, findings),
            Self::Measured { bytes: so_far } => bytes.put(&U64::new(so_far.0)),
        }
        bytes
    }

    /// The message of this number and payload, or nothing for a number that is not known.
    pub(crate) fn decode(number: u16, payload: &[u8]) -> Result<Option<Self>, Malformed> {
        let mut take = Take::new(payload);
        Ok(Some(match number {
            READY => Self::Ready { version: FormatVersion(whole::<U16>(payload)?.get()) },
            ACK => {
                let AckBytes { digest, by } = take.read()?;
                let timings = decode_timings(take)?;
                Self::Ack { digest: StreamDigest(digest.get()), by: by.into(), timings }
            }
            RUNNING => Self::Running { timings: decode_timings(take)? },
            REFUSED => Self::Refused { reason: decode_text(payload)? },
            FAILED => Self::Failed { reason: decode_text(payload)? },
            RESOLVED => Self::Resolved(decode_outcome(take)?),
            EXAMINED => Self::Examined { findings: decode_findings(take)? },
            MEASURED => Self::Measured { bytes: Bytes(whole::<U64>(payload)?.get()) },
            _ => return Ok(None),
        }))
    }
}

fn decode_outcome(mut take: Take<'_>) -> Result<DestinationOutcome, Malformed> {
    let outcome = match take.read()? {
        PREPARED => DestinationOutcome::Prepared,
        HAS_RUN => DestinationOutcome::Running,
        HAS_REFUSED => DestinationOutcome::Refused,
        MAY_HAVE_RUN => {
            return Ok(DestinationOutcome::MayHaveRun { why: decode_text(take.rest())? });
        }
        OTHER_HOST => DestinationOutcome::OtherHost { host: HostId::from_bytes(take.read()?) },
        _ => return Err(Malformed("it names an outcome that is not known")),
    };
    take.finish()?;
    Ok(outcome)
}

fn decode_text(bytes: &[u8]) -> Result<String, Malformed> {
    let text = str::from_utf8(bytes).map_err(|_| Malformed("its text is not UTF-8"))?;
    Ok(clean(text, MAX_REASON))
}

fn encode_timings(bytes: &mut Vec<u8>, timings: &Timings) {
    let count = timings.len().min(MAX_PHASES);
    bytes.put(&U16::new(count as u16));
    for (name, duration) in &timings[..count] {
        let name = clean(name, MAX_PHASE_NAME);
        bytes.put(&(name.len() as u8));
        bytes.put(name.as_bytes());
        bytes.put(&U64::new(nanoseconds(*duration)));
    }
}

fn decode_timings(mut take: Take<'_>) -> Result<Timings, Malformed> {
    let count = usize::from(take.read::<U16>()?.get());
    if count > MAX_PHASES {
        return Err(Malformed("it names more phases than a message may"));
    }
    let mut timings = Vec::with_capacity(count);
    for _ in 0..count {
        let length = usize::from(take.read::<u8>()?);
        if length > MAX_PHASE_NAME {
            return Err(Malformed("the name of a phase is too long"));
        }
        let name = str::from_utf8(take.bytes(length)?)
            .map_err(|_| Malformed("the name of a phase is not UTF-8"))?;
        let name = clean(name, MAX_PHASE_NAME);
        timings.push((name, Duration::from_nanos(take.read::<U64>()?.get())));
    }
    take.finish()?;
    Ok(timings)
}

fn encode_findings(bytes: &mut Vec<u8>, findings: &[Finding]) {
    let bad = findings.iter().filter(|finding| finding.in_the_way);
    let good = findings.iter().filter(|finding| !finding.in_the_way);
    let written: Vec<_> = match findings.len() > MAX_FINDINGS {
        true => bad.chain(good).take(MAX_FINDINGS).collect(),
        false => findings.iter().collect(),
    };
    bytes.put(&U16::new(written.len() as u16));
    for finding in written {
        let (subject, text) =
            (clean(&finding.subject, MAX_SUBJECT), clean(&finding.text, MAX_FINDING));
        bytes.put(&u8::from(finding.in_the_way));
        bytes.put(&(subject.len() as u8));
        bytes.put(subject.as_bytes());
        bytes.put(&U16::new(text.len() as u16));
        bytes.put(text.as_bytes());
    }
}

fn decode_findings(mut take: Take<'_>) -> Result<Vec<Finding>, Malformed> {
    let count = usize::from(take.read::<U16>()?.get());
    if count > MAX_FINDINGS {
        return Err(Malformed("it has more findings than a message may"));
    }
    let mut findings = Vec::with_capacity(count);
    for _ in 0..count {
        let in_the_way = match take.read::<u8>()? {
            0 => false,
            1 => true,
            _ => return Err(Malformed("a finding is neither in the way nor not")),
        };
        let subject = usize::from(take.read::<u8>()?);
        let subject = decode_short(take.bytes(subject)?, MAX_SUBJECT)?;
        let text = usize::from(take.read::<U16>()?.get());
        let text = decode_short(take.bytes(text)?, MAX_FINDING)?;
        findings.push(Finding { subject, text, in_the_way });
    }
    take.finish()?;
    Ok(findings)
}

fn decode_short(bytes: &[u8], most: usize) -> Result<String, Malformed> {
    if bytes.len() > most {
        return Err(Malformed("the text of a finding is too long"));
    }
    let text = str::from_utf8(bytes).map_err(|_| Malformed("a finding is not UTF-8"))?;
    Ok(clean(text, most))
}
