//! A source asks what became of a migration.
//!
//! Only a source that has committed asks, so the question is GO as well: a guest that is prepared
//! here runs before the answer is given. A migration that this host never heard of, or whose guest
//! is not complete, is refused for ever first, and answered then.

use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use mig_channel::ChannelWriter;
use mig_engine::handover::resolve::{Reply, reply};
use mig_engine::ownership::Input;
use mig_stream::{Message, Outcome, ReturnWriter};
use units::MigrationId;
use vm_control::record::{RecordError, Records};
use vm_control::{Client, ClientError};

use crate::NAME;
use crate::host::Host;

/// How long a vmrun may take to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// How often to look again while a vmrun is between two states.
const ATTEMPTS: u32 = 50;
const PAUSE: Duration = Duration::from_millis(20);

/// The exit status of a question that was not answered for good.
const UNKNOWN: u8 = 4;

/// Answers the question and returns the exit status.
pub fn run(
    id: MigrationId,
    host: &mut Host,
    back: Option<ReturnWriter<ChannelWriter>>,
) -> anyhow::Result<u8> {
    let mut back = back.context("a question without a way back")?;
    let outcome = match host.resolve(id) {
        Ok(outcome) => outcome,
        // A vmrun that does not answer now, or records that cannot be read now, say nothing of
        // the guest: the source may ask again.
        Err(error) => {
            back.send(&Message::Failed { reason: cli::one_line(&error) })
                .context("cannot answer the source")?;
            cli::complain(NAME, &error);
            return Ok(UNKNOWN);
        }
    };
    let status = match outcome {
        Outcome::Running => 0,
        Outcome::Refused => 1,
        Outcome::Prepared | Outcome::MayHaveRun { .. } => UNKNOWN,
    };
    tracing::info!("migration {id}: {outcome:?}");
    back.send(&Message::Resolved(outcome)).context("cannot answer the source")?;
    Ok(status)
}

/// Finishes the migration `id` on this host and says how. Runs in the broker.
pub fn resolve(id: MigrationId, records: &Records) -> anyhow::Result<Outcome> {
    for _ in 0..ATTEMPTS {
        let record = records.read(id)?;
        let vmrun = match &record {
            Some(record) => connect(&record.socket)?,
            None => None,
        };
        let live = vmrun.as_ref().map(|vmrun| vmrun.inquire(id)).transpose()?;
        match reply(record.as_ref().map(|record| record.decision), live) {
            Reply::Running => return Ok(Outcome::Running),
            Reply::Refused => {
                records.settle()?;
                return Ok(Outcome::Refused);
            }
            Reply::Prepared => {
                if let Some(vmrun) = &vmrun
                    && vmrun.go(id).is_ok()
                {
                    return Ok(Outcome::Running);
                }
            }
            Reply::RefuseInVmrun => {
                if let Some(vmrun) = &vmrun {
                    // If it went on meanwhile, the next look shows where to.
                    let _ = vmrun.own(Input::Refuse(id));
                }
            }
            Reply::RefuseFirst => match records.refuse_unknown(id) {
                Ok(()) => return Ok(Outcome::Refused),
                Err(RecordError::Exists { .. } | RecordError::BeingRestored { .. }) => {}
                Err(error) => return Err(error.into()),
            },
            // Its vmrun may have refused, and ended, since the record was read.
            Reply::MayHaveRun if records.read(id)? != record => {}
            Reply::MayHaveRun => {
                let name = record.map(|record| record.name).unwrap_or_default();
                return Ok(Outcome::MayHaveRun {
                    why: format!("{name} was received there, and its vmrun is gone"),
                });
            }
        }
        thread::sleep(PAUSE);
    }
    bail!("the vmrun of migration {id} does not come to rest")
}

/// The vmrun at `socket`, if it lives. One that does not answer is an error: it may run the guest.
fn connect(socket: &Path) -> anyhow::Result<Option<Client>> {
    match Client::connect_within(socket, NAME, ANSWER) {
        Ok(client) => Ok(Some(client)),
        Err(ClientError::Connect { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
