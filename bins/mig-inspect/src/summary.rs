//! What was found in a stream, in the form in which `--json` prints it. Times are nanoseconds,
//! sizes say what they are.

use mig_stream::{Flags, FormatVersion, Kind, RoundStats, StreamReader, Totals};
use migpipe_units::{Bytes, MemoryRegion, MigrationId, Pages};
use serde::Serialize;
use vm_state::MachineDescription;

/// The version of what is printed.
const VERSION: u32 = 1;

/// Everything that was found in a stream.
#[derive(Debug, Serialize)]
pub struct Summary {
    /// The version of this form.
    pub version: u32,
    pub format: Format,
    pub migration: MigrationId,
    pub kind: Kind,
    pub flags: Flags,
    pub guest: String,
    /// Nothing where it could not be read.
    pub machine: Option<MachineDescription>,
    pub regions: Vec<MemoryRegion>,
    pub rounds: Vec<RoundStats>,
    pub extents: Extents,
    pub sections: Vec<Section>,
    /// The digests of the whole memory, one for each region.
    pub memory_digest: Option<String>,
    pub totals: Totals,
    pub skipped_records: u64,
    /// Whether the sender let the destination run the guest in this stream.
    pub go: bool,
    pub verdict: Verdict,
}

#[derive(Debug, Serialize)]
pub struct Format {
    pub written: FormatVersion,
    pub oldest_reader: FormatVersion,
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
        Self {
            version: VERSION,
            format: Format { written: preamble.written, oldest_reader: preamble.oldest },
            migration: preamble.id,
            kind: preamble.kind,
            flags: preamble.flags,
            guest: header.guest.clone(),
            machine: None,
            regions: header.regions.clone(),
            rounds: vec![],
            extents: Extents::default(),
            sections: vec![],
            memory_digest: None,
            totals: Totals::default(),
            skipped_records: 0,
            go: false,
            verdict: Verdict::Whole,
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
