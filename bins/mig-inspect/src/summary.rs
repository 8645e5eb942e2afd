//! What was found in a stream, in the form in which `--json` prints it. Times are nanoseconds,
//! sizes say what they are.

use mig_stream::{Kind, RoundStats, StreamReader, Totals};
use migpipe_units::{Bytes, MemoryRegion, Pages};
use serde::Serialize;
use vm_state::MachineDescription;

/// Everything that was found in a stream.
#[derive(Debug, Serialize)]
pub struct Summary {
    pub format: Format,
    pub migration: String,
    /// `guest` or `question`.
    pub kind: &'static str,
    pub flags: Flags,
    pub guest: String,
    /// Nothing where it could not be read.
    pub machine: Option<MachineDescription>,
    pub regions: Vec<MemoryRegion>,
    pub rounds: Vec<Round>,
    pub extents: Extents,
    pub sections: Vec<Section>,
    /// The digests of the whole memory, one for each region.
    pub memory_digest: Option<String>,
    pub totals: Counts,
    pub skipped_records: u64,
    /// Whether the sender let the destination run the guest in this stream.
    pub go: bool,
    pub verdict: Verdict,
}

#[derive(Debug, Serialize)]
pub struct Format {
    pub written: u16,
    pub oldest_reader: u16,
}

#[derive(Debug, Serialize)]
pub struct Flags {
    pub return_path: bool,
    pub page_sums: bool,
    pub separate_commit: bool,
    pub verify: bool,
    pub saved: bool,
}

#[derive(Debug, Serialize)]
pub struct Round {
    pub number: u32,
    pub pages: Pages,
    pub filled: Pages,
    pub bytes: Bytes,
    pub dirty_next: Pages,
    pub nanoseconds: u64,
}

/// Where the source said that it has data.
#[derive(Debug, Default, Serialize)]
pub struct Extents {
    pub runs: u64,
    pub pages: Pages,
}

#[derive(Debug, Serialize)]
pub struct Section {
    pub name: String,
    pub instance: u32,
    pub version: u16,
    /// Of the state itself, without name and checksum.
    pub bytes: Bytes,
    /// Where in the stream its record begins.
    pub at: Bytes,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct Counts {
    pub records: u64,
    pub pages: Pages,
    pub filled: Pages,
    pub sections: u64,
    pub bytes: Bytes,
    pub digest: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "lowercase", tag = "is", content = "why")]
pub enum Verdict {
    Whole,
    Damaged(String),
}

impl Summary {
    /// What the beginning of a stream says.
    pub fn new<R>(reader: &StreamReader<R>) -> Self {
        let preamble = reader.preamble();
        let header = reader.header();
        let flags = preamble.flags;
        Self {
            format: Format { written: preamble.written.0, oldest_reader: preamble.oldest.0 },
            migration: preamble.id.to_string(),
            kind: match preamble.kind {
                Kind::Migrate => "guest",
                Kind::Resolve => "question",
                Kind::Release => "release",
            },
            flags: Flags {
                return_path: flags.return_path,
                page_sums: flags.page_sums,
                separate_commit: flags.separate_commit,
                verify: flags.verify,
                saved: flags.saved,
            },
            guest: header.guest.clone(),
            machine: None,
            regions: header.regions.clone(),
            rounds: vec![],
            extents: Extents::default(),
            sections: vec![],
            memory_digest: None,
            totals: Counts::default(),
            skipped_records: 0,
            go: false,
            verdict: Verdict::Whole,
        }
    }
}

impl From<RoundStats> for Round {
    fn from(stats: RoundStats) -> Self {
        Self {
            number: stats.number,
            pages: stats.pages,
            filled: stats.filled,
            bytes: stats.bytes,
            dirty_next: stats.dirty_next,
            nanoseconds: stats.duration.as_nanos().try_into().unwrap_or(u64::MAX),
        }
    }
}

impl From<Totals> for Counts {
    fn from(totals: Totals) -> Self {
        Self {
            records: totals.records,
            pages: totals.pages,
            filled: totals.filled,
            sections: totals.sections,
            bytes: totals.bytes,
            digest: totals.digest.to_string(),
        }
    }
}

/// One record, as `--records` lists it.
#[derive(Debug, Serialize)]
pub struct Listed {
    /// Where in the stream it begins.
    pub at: Bytes,
    pub record: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub range: Option<migpipe_units::PageRange>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub detail: String,
}
