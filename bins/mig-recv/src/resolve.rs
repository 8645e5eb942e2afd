//! A source asks what became of a migration, or says that it took the guest back.
//!
//! Only a source that has committed asks, so the question is GO as well: a guest that is prepared
//! here for it runs before the answer is given. What is answered otherwise is decided by
//! [`mig_engine::handover::resolve`]; here the host's memory is looked through for it. The order,
//! and why:
//! 1. The record, and the vmrun whose socket is in it: in most cases they have the answer.
//! 2. Every other vmrun that can be reached: the record may be lost, or be in another state
//!    directory, while the guest runs. One that does not answer may be the one, so that nothing is
//!    known then.
//!    Records that cannot be read make no difference up to here.
//! 3. Only then a refusal of what is unknown is recorded; a guest that came meanwhile has made its
//!    own record first, and all is looked through again.

use std::io;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::bail;
use mig_engine::handover::resolve::{Known, Reply};
use mig_engine::ownership::{Authority, Decision, Input, MigrationStatus};
use mig_stream::{DestinationOutcome, Message};
use migpipe_units::MigrationId;
use vm_control::{Client, ClientError};
use vm_records::identity::Identity;
use vm_records::record::{Record, RecordError, Records, TIDIED_AFTER};

use crate::NAME;
use crate::answers::Answers;
use crate::host::{END_TIMEOUT, Host};
use crate::query::HostQuery;

/// How long a vmrun may take to answer.
const VMRUN_TIMEOUT: Duration = Duration::from_secs(5);

/// How often to look again while a vmrun is between two states.
const ATTEMPTS: u32 = 50;
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// A question is answered, or not waited for any more, within this time of being asked: a host must
/// remember so much more than the migration is old.
const ON_ITS_WAY: Duration = Duration::from_secs(60);

/// The exit status of a question that was not answered for good.
const UNKNOWN: u8 = 4;

/// Answers the question and returns the exit status.
pub fn run(query: HostQuery, host: &mut Host, mut answers: Answers) -> anyhow::Result<u8> {
    let outcome = match host.resolve(query) {
        Ok(outcome) => outcome,
        // A vmrun that does not answer now, or records that cannot be read now, say nothing of
        // the guest: the source may ask again.
        Err(error) => {
            answers.send(&Message::Failed { reason: migpipe_cli::one_line(&error) })?;
            migpipe_cli::complain(NAME, &error);
            return Ok(UNKNOWN);
        }
    };
    let status = match outcome {
        DestinationOutcome::Running => 0,
        DestinationOutcome::Refused => 1,
        DestinationOutcome::Prepared
        | DestinationOutcome::MayHaveRun { .. }
        | DestinationOutcome::OtherHost { .. } => UNKNOWN,
    };
    tracing::info!("migration {}: {outcome:?}", query.id);
    answers.send(&Message::Resolved(outcome))?;
    Ok(status)
}

/// Finishes a migration on this host and says how. Runs in the broker.
pub fn resolve(query: HostQuery, records: &Records) -> anyhow::Result<DestinationOutcome> {
    let id = query.id;
    let mut why = None;
    for _ in 0..ATTEMPTS {
        let host = records.identity();
        let record = records.read(id);
        let found =
            look(&query, record.as_ref().ok().and_then(Option::as_ref), host.as_ref().ok())?;
        let reply = query.reply(found.known);
        match (reply, &found.vmrun) {
            (Reply::Running, _) => return Ok(DestinationOutcome::Running),
            (Reply::Prepared, Some(vmrun)) => {
                let by = Authority::Source(query.to.map(|to| to.nonce));
                match vmrun.go(id, by) {
                    Ok(_) => return Ok(DestinationOutcome::Running),
                    Err(error) => why = Some(error),
                }
            }
            (Reply::RefuseInVmrun, Some(vmrun)) => {
                // If it went on meanwhile, the next look shows where to.
                let refused = vmrun.own(Input::Refuse(id));
                if query.released && refused.is_ok() {
                    // Its name is free then.
                    vmrun.await_end(END_TIMEOUT);
                }
            }
            _ => {
                if let Some(outcome) = without_vmrun(&query, reply, records, &host?, record?)? {
                    return Ok(outcome);
                }
            }
        }
        thread::sleep(POLL_INTERVAL);
    }
    match why {
        Some(why) => Err(anyhow::Error::from(why).context("the guest waits there and cannot run")),
        None => bail!("the vmrun of migration {id} does not come to rest"),
    }
}

/// The answer from the records of this host, or nothing if they have changed meanwhile.
fn without_vmrun(
    query: &HostQuery,
    reply: Reply,
    records: &Records,
    host: &Identity,
    record: Option<Record>,
) -> anyhow::Result<Option<DestinationOutcome>> {
    let id = query.id;
    let may_have_run = |why: String| Ok(Some(DestinationOutcome::MayHaveRun { why }));
    match reply {
        Reply::Running => Ok(Some(DestinationOutcome::Running)),
        Reply::Prepared | Reply::RefuseInVmrun => Ok(None),
        Reply::Refused => {
            records.settle()?;
            Ok(Some(DestinationOutcome::Refused))
        }
        Reply::RefuseFirst => match records.refuse_unknown(id) {
            Ok(()) => Ok(Some(DestinationOutcome::Refused)),
            Err(RecordError::Exists { .. } | RecordError::BeingRestored { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        },
        // Its vmrun may have refused, and ended, since the record was read.
        Reply::MayHaveRun if records.read(id)? != record => Ok(None),
        Reply::MayHaveRun => {
            let name = record.map_or_else(|| "it".to_owned(), |record| record.name);
            may_have_run(format!("{name} was received there, and its vmrun is gone"))
        }
        Reply::RecordLost => may_have_run(
            "it was acknowledged there, its record is lost, and no vmrun has it".to_owned(),
        ),
        Reply::RemembersTooLittle => may_have_run(format!(
            "host {} has remembered migrations for {} s, and this one began {} s ago: its state \
             directory is new, or is not the one that the guest was received with",
            host.id,
            host.age().as_secs(),
            query.age.as_secs()
        )),
        Reply::OtherHost => Ok(Some(DestinationOutcome::OtherHost { host: host.id })),
    }
}

/// What was found, and the vmrun that has to do with it.
struct Found {
    known: Known,
    vmrun: Option<Client>,
}

/// Looks for the migration in this host's memory. Without an identity it remembers nothing.
fn look(
    query: &HostQuery,
    record: Option<&Record>,
    host: Option<&Identity>,
) -> anyhow::Result<Found> {
    let enough = query.age.saturating_add(ON_ITS_WAY);
    let mut found = Found {
        known: Known {
            record: record.map(|record| record.decision),
            live: None,
            acknowledged_here: query.to.map(|to| host.is_some_and(|host| to.host == host.id)),
            // And not so old that a record of it would have been removed.
            remembers: host.is_some_and(|host| host.age() > enough) && enough < TIDIED_AFTER,
        },
        vmrun: None,
    };
    if let Some(record) = record.filter(|record| record.socket != Path::new("")) {
        found.ask(query, &record.socket)?;
    }
    if let Reply::Prepared | Reply::Running | Reply::Refused | Reply::RefuseInVmrun =
        query.reply(found.known)
    {
        return Ok(found);
    }
    for socket in vm_paths::every_socket()? {
        if found.vmrun.is_some() {
            break;
        }
        found.ask(query, &socket)?;
    }
    Ok(found)
}

impl Found {
    /// Asks the vmrun at `socket`, if it lives. One that does not answer is an error: it may run the
    /// guest.
    fn ask(&mut self, query: &HostQuery, socket: &Path) -> anyhow::Result<()> {
        let vmrun = match Client::connect_within(socket, NAME, VMRUN_TIMEOUT) {
            Ok(vmrun) => vmrun,
            Err(ClientError::Connect { ref source, .. }) if is_nobody(source) => return Ok(()),
            Err(error) => return Err(unsure(error)),
        };
        let status =
            vmrun.migration_status(query.id, query.to.map(|to| to.nonce)).map_err(unsure)?;
        if status != MigrationStatus::NotMine {
            self.known.live = Some(status);
            self.vmrun = Some(vmrun);
        }
        Ok(())
    }
}

fn unsure(error: ClientError) -> anyhow::Error {
    anyhow::Error::from(error).context("what became of the guest cannot be known now")
}

/// Whether nobody listens there, or nobody whom this user could have started.
fn is_nobody(error: &io::Error) -> bool {
    use io::ErrorKind::*;
    matches!(error.kind(), NotFound | ConnectionRefused | PermissionDenied)
}

/// Has a vmrun that still waits for the GO of one of these migrations, which their source took back,
/// give the guest up. What cannot be reached now is left as it is. Runs in the broker.
pub fn forget(released: &[MigrationId], records: &Records) {
    for id in released {
        // A migration that this host has not heard of needs no record for that.
        if let Ok(Some(Record { decision: Decision::MayRun, .. })) = records.read(*id) {
            let query = HostQuery { id: *id, released: true, to: None, age: Duration::ZERO };
            if let Err(error) = resolve(query, records) {
                tracing::info!("migration {id}: {}", migpipe_cli::one_line(&error));
            }
        }
    }
}
