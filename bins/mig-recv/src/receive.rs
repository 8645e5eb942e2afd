//! Receiving: pages go straight to the guest's memory, and its saved state is kept for
//! [`load`](crate::load).

use std::io;
use std::time::Instant;

use anyhow::anyhow;
use mig_engine::handover::HandoverMode;
use mig_engine::report::Phase;
use mig_stream::{ReadError, Record, StreamDigest};
use tracing::debug;

use crate::error::StepError;
use crate::incoming::{Content, Guest, IncomingMigration};

/// Reads pages and sections up to `End`.
pub fn read(
    migration: &mut IncomingMigration<'_>,
    guest: &mut Guest,
) -> Result<(StreamDigest, Content), StepError> {
    let mut content = Content::default();
    migration.arrival.enter(Phase::PreCopy);
    while let Some(record) = migration.stream.next_record()? {
        migration.arrival.take(&record, migration.stream.bytes_read());
        match record {
            Record::Pages(range) => guest.memory.receive(range, &mut migration.stream)?,
            Record::Fill { range, pattern } => guest.memory.fill(range, pattern),
            Record::Extents(extents) => guest.memory.expect(extents),
            Record::Round(round) => debug!("{round:?}"),
            Record::Blackout if migration.mode == HandoverMode::Saved => {}
            Record::Blackout => migration.paused = Some(Instant::now()),
            Record::Section(section) => content.sections.push(section),
            Record::Digest(digest) => content.digest = Some(digest),
            Record::End(totals) => return Ok((totals.digest, content)),
            Record::Go { .. } => return Err(anyhow!("GO before the end of the guest").into()),
            Record::Abort { reason } => return Err(StepError::Refused(anyhow!("{reason}"))),
        }
    }
    Err(anyhow!("the stream ends before the guest is complete").into())
}

/// Makes sure that nothing follows `End`: one way that is the last proof that the sender finished.
pub fn await_eof(migration: &mut IncomingMigration<'_>) -> Result<(), StepError> {
    migration.stream.expect_eof().map_err(|error| match &error {
        ReadError::Io { source, .. } if source.kind() == io::ErrorKind::TimedOut => {
            anyhow::Error::from(error)
                .context(
                    "the guest is complete, but the connection stays open behind it (nc closes it \
                     only as nc -N)",
                )
                .into()
        }
        _ => error.into(),
    })
}
