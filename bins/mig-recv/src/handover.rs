//! The handover: from ACK to RUNNING.
//!
//! In which order, and what a failure leads to, is in [`mig_engine::handover`].

use std::mem;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use mig_engine::ownership::{Authority, MigrationStatus};
use mig_stream::{Message, Record, StreamDigest};
use migpipe_units::{Acknowledged, Nonce};

use crate::args::Args;
use crate::error::StepError;
use crate::incoming::{Guest, IncomingMigration};

/// How often a guest whose GO comes another way is looked at.
const COMMIT_POLL_INTERVAL: Duration = Duration::from_millis(20);

/// After its timeout the vmrun refuses, and that is known so much later.
const GO_GRACE: Duration = Duration::from_millis(500);

/// Tells the source that the guest is here, whole.
pub fn send_ack(
    migration: &mut IncomingMigration<'_>,
    guest: &mut Guest,
    digest: StreamDigest,
    by: Acknowledged,
) -> Result<(), StepError> {
    let timings = mem::take(&mut guest.timings);
    migration.acknowledged = Some(Instant::now());
    Ok(migration.answers.send(&Message::Ack { digest, by, timings })?)
}

/// Waits for GO through the stream.
pub fn await_go(migration: &mut IncomingMigration<'_>) -> Result<Nonce, StepError> {
    let timeout = go_timeout(migration.args);
    migration.stream.get_mut().set_deadline(Some(timeout));
    match migration.stream.next_record()? {
        Some(Record::Go { nonce, .. }) => Ok(nonce),
        Some(Record::Abort { reason }) => Err(StepError::Refused(anyhow!("{reason}"))),
        Some(other) => Err(anyhow!("{other:?} where GO was expected").into()),
        None => Err(anyhow!("the stream ended before GO came").into()),
    }
}

/// Waits until somebody else has brought GO to the vmrun.
pub fn await_commit(
    migration: &mut IncomingMigration<'_>,
    guest: &mut Guest,
    nonce: Option<Nonce>,
) -> Result<(), StepError> {
    let deadline = Instant::now() + go_timeout(migration.args);
    loop {
        match guest.vmrun.client.migration_status(migration.id, nonce) {
            Ok(MigrationStatus::Running) => {
                let total = migration.paused.map(|at| at.elapsed());
                migration.arrival.report(|report| report.downtime.total = total);
                return Ok(());
            }
            Ok(MigrationStatus::Prepared) if Instant::now() <= deadline => {
                thread::sleep(COMMIT_POLL_INTERVAL);
            }
            _ => return Err(anyhow!("no GO came in time").into()),
        }
    }
}

/// Has the vmrun run the guest, by the word of its source.
pub fn run(
    migration: &mut IncomingMigration<'_>,
    guest: &mut Guest,
    nonce: Option<Nonce>,
) -> Result<(), StepError> {
    let go = migration.acknowledged.map(|at| at.elapsed());
    let started = guest.vmrun.client.go(migration.id, Authority::Source(nonce))?;
    migration.arrival.report(|report| {
        report.downtime.go = go;
        report.downtime.first_instruction = Some(started.first_instruction);
        report.downtime.total = migration.paused.map(|at| at.elapsed());
    });
    guest.timings.push(("go".into(), started.go));
    guest.timings.push(("first instruction".into(), started.first_instruction));
    Ok(())
}

/// Tells the source that the guest runs.
pub fn send_running(
    migration: &mut IncomingMigration<'_>,
    guest: &mut Guest,
) -> Result<(), StepError> {
    let timings = mem::take(&mut guest.timings);
    Ok(migration.answers.send(&Message::Running { timings })?)
}

/// How long a GO is waited for here; the vmrun may wait longer.
fn go_timeout(args: &Args) -> Duration {
    let refused = args.go_timeout.0.map(|limit| limit + GO_GRACE);
    refused.map_or(args.timeout, |refused| refused.min(args.timeout))
}
