//! Goes through a stream record by record and keeps what is worth saying.

use std::collections::BTreeSet;
use std::io::Read;

use mig_stream::{Kind, OpenError, ReadError, Record, StreamReader, Totals};
use migpipe_units::{Bytes, Pages};
use thiserror::Error;
use vm_state::{Section, SectionError};

use crate::machine::{self, MachineError};
use crate::summary::{self, Listed, Summary, Verdict};

/// What is wrong with a stream beyond its bytes.
#[derive(Debug, Error)]
pub enum Fault {
    /// It is damaged or cut short.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The machine in it cannot be built.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// A section in it cannot be loaded.
    #[error("the section at byte {at} cannot be read", at = .at.0)]
    Section {
        /// Where its record begins.
        at: Bytes,
        /// What is wrong with it.
        #[source]
        source: SectionError,
    },
    /// A device's state came twice.
    #[error("section {name} {instance} came a second time at byte {at}", at = .at.0)]
    SectionTwice {
        /// The section.
        name: String,
        /// Which one of that name.
        instance: u32,
        /// Where its second record begins.
        at: Bytes,
    },
    /// The sender gave up.
    #[error("the sender gave the migration up: {0}")]
    Aborted(String),
}

/// A stream that is being read.
pub struct Inspection<R> {
    reader: StreamReader<R>,
    summary: Summary,
    seen: BTreeSet<(String, u32)>,
    ended: Option<Totals>,
    /// The first thing that is wrong though the bytes are whole: said at the end, since the rest
    /// of the stream is worth a look.
    fault: Option<Fault>,
}

impl<R: Read> Inspection<R> {
    /// Reads the beginning of a stream.
    pub fn open(from: R) -> Result<Self, OpenError> {
        let reader = StreamReader::open(from)?;
        let mut summary = Summary::new(&reader);
        let mut fault = None;
        if reader.preamble().kind == Kind::Migrate {
            match machine::read(reader.header()) {
                Ok(machine) => summary.machine = Some(machine),
                Err(error) => fault = Some(error.into()),
            }
        }
        Ok(Self { reader, summary, seen: BTreeSet::new(), ended: None, fault })
    }

    /// The next record, or nothing at the end of a whole stream.
    pub fn next(&mut self) -> Result<Option<Listed>, Fault> {
        let Some(record) = self.reader.next_record()? else {
            self.reader.expect_eof()?;
            return Ok(None);
        };
        Ok(Some(self.note(record)))
    }

    /// Whether a stream that is whole can be received too.
    pub fn judge(&mut self) -> Result<(), Fault> {
        self.fault.take().map_or(Ok(()), Err)
    }

    /// What was found.
    pub fn into_summary(self, fault: Option<&Fault>) -> Summary {
        let mut summary = self.summary;
        // Of a stream without End, what came.
        summary.totals = self.ended.unwrap_or_else(|| self.reader.totals());
        summary.skipped_records = self.reader.skipped();
        if let Some(fault) = fault {
            summary.verdict = Verdict::Damaged(said(fault));
        }
        summary
    }

    fn note(&mut self, record: Record) -> Listed {
        let at = self.reader.record_at();
        let kind = record.kind();
        let mut range = None;
        let detail = match record {
            Record::Pages(pages) => {
                range = Some(pages);
                String::new()
            }
            Record::Fill { range: pages, pattern } => {
                range = Some(pages);
                format!("pattern {pattern:#018x}")
            }
            Record::Extents(extents) => {
                let pages: Pages =
                    Pages(extents.iter().fold(0, |sum, run| run.count.0.saturating_add(sum)));
                let known = &mut self.summary.extents;
                known.runs += extents.len() as u64;
                known.pages.0 = known.pages.0.saturating_add(pages.0);
                format!("{} runs, {pages}", extents.len())
            }
            Record::Round(stats) => {
                // More than anybody reads would only fill memory.
                if self.summary.rounds.len() < MAX_ROUNDS {
                    self.summary.rounds.push(stats);
                }
                format!("round {}", stats.number)
            }
            Record::Blackout => String::new(),
            Record::Section(bytes) => self.section(&bytes, at),
            Record::Digest(digest) => {
                let text = digest.to_string();
                self.summary.memory_digest = Some(text.clone());
                text
            }
            Record::End(totals) => {
                self.ended = Some(totals);
                format!("digest {}", totals.digest)
            }
            Record::Go { nonce, .. } => {
                self.summary.go = true;
                format!("nonce {nonce}")
            }
            Record::Abort { reason } => {
                self.fault.get_or_insert(Fault::Aborted(reason.clone()));
                reason
            }
        };
        Listed { at, record: kind.to_string(), range, detail }
    }

    fn section(&mut self, bytes: &[u8], at: Bytes) -> String {
        let section = match Section::decode(bytes) {
            Ok(section) => section,
            Err(source) => {
                let detail = source.to_string();
                self.fault.get_or_insert(Fault::Section { at, source });
                return detail;
            }
        };
        let Section { name, instance, version, payload } = section;
        let bytes = Bytes(payload.len() as u64);
        let detail = format!("{name} {instance}, version {version}, {bytes}");
        if !self.seen.insert((name.clone(), instance)) {
            let fault = Fault::SectionTwice { name: name.clone(), instance, at };
            self.fault.get_or_insert(fault);
        }
        self.summary.sections.push(summary::Section { name, instance, version, bytes, at });
        detail
    }
}

/// The most rounds that are kept for the table; mig-send makes some 30.
const MAX_ROUNDS: usize = 10_000;

fn said(fault: &Fault) -> String {
    let mut text = fault.to_string();
    let mut cause = std::error::Error::source(fault);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
