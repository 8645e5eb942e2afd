//! Finding the answer to a query in this host's memory. Runs in the broker.
//!
//! [`mig_engine::handover::Responder`] decides who is asked in which order, what is done with a guest
//! that is found, and what the source is told; here is what each of its operations does.

use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;
use std::vec;

use anyhow::anyhow;
use mig_engine::handover::{Doubt, HostAnswer, HostMemory, Responder, ResponderIo, run_responder};
use mig_engine::ownership::{Authority, Decision, Input, MigrationStatus};
use mig_stream::DestinationOutcome;
use migpipe_units::MigrationId;
use vm_control::{Client, ClientError};
use vm_paths::PathError;
use vm_records::record::{Record, RecordError, Records, TIDIED_AFTER};

use crate::NAME;
use crate::host::END_TIMEOUT;
use crate::query::HostQuery;

/// How long a vmrun may take to answer.
const VMRUN_TIMEOUT: Duration = Duration::from_secs(5);

/// How often to look again while a vmrun is between two states.
const ATTEMPTS: u32 = 50;
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// A query is answered, or not waited for any more, within this time of being asked: a host must
/// remember so much more than the migration is old.
const QUERY_TIMEOUT: Duration = Duration::from_secs(60);

/// What an error of a vmrun that may have the guest comes to.
const UNKNOWN_NOW: &str = "what became of the guest cannot be known now";

/// Finishes a migration on this host and says how.
pub fn resolve(query: HostQuery, records: &Records) -> anyhow::Result<DestinationOutcome> {
    resolve_among(query, records, vm_paths::every_socket)
}

/// [`resolve`], where these are the sockets of all vmruns.
pub fn resolve_among(
    query: HostQuery,
    records: &Records,
    every_socket: impl Fn() -> Result<Vec<PathBuf>, PathError>,
) -> anyhow::Result<DestinationOutcome> {
    let mut search = Search {
        asked: query,
        records,
        every_socket,
        record: None,
        sockets: None,
        attempts_left: ATTEMPTS,
    };
    let (answer, reason) = run_responder(Responder::new(query.query), &mut search);
    let may_have_run = |why| Ok(DestinationOutcome::MayHaveRun { why });
    match answer {
        HostAnswer::Running => Ok(DestinationOutcome::Running),
        HostAnswer::Refused => Ok(DestinationOutcome::Refused),
        HostAnswer::MayHaveRun(Doubt::VmrunGone) => {
            let name = search.record.map_or_else(|| "it".to_owned(), |record| record.name);
            may_have_run(format!("{name} was received there, and its vmrun is gone"))
        }
        HostAnswer::MayHaveRun(Doubt::RecordLost) => may_have_run(
            "it was acknowledged there, its record is lost, and no vmrun has it".to_owned(),
        ),
        HostAnswer::MayHaveRun(Doubt::RemembersTooLittle) => {
            let host = records.identity()?;
            may_have_run(format!(
                "host {} has remembered migrations for {} s, and this one began {} s ago: its state \
                 directory is new, or is not the one that the guest was received with",
                host.id,
                host.age().as_secs(),
                query.age.as_secs()
            ))
        }
        HostAnswer::OtherHost => Ok(DestinationOutcome::OtherHost { host: records.identity()?.id }),
        HostAnswer::NotKnownNow => Err(reason.unwrap_or_else(|| {
            anyhow!("the vmrun of migration {} does not come to rest", query.id)
        })),
    }
}

/// Has a vmrun that still waits for the GO of one of these migrations, which their source took back,
/// give the guest up. What cannot be reached now is left as it is.
pub fn forget(released: &[MigrationId], records: &Records) {
    for id in released {
        // A migration that this host has not heard of needs no record for that.
        if let Ok(Some(Record { decision: Decision::MayRun, .. })) = records.read(*id)
            && let Err(error) = resolve(HostQuery::release(*id), records)
        {
            tracing::info!("migration {id}: {}", migpipe_cli::one_line(&error));
        }
    }
}

/// The search for one answer.
struct Search<'a, F> {
    asked: HostQuery,
    records: &'a Records,
    /// The sockets of the vmruns of this host.
    every_socket: F,
    /// What was read last.
    record: Option<Record>,
    /// The vmruns that were not asked yet, once one was asked for that.
    sockets: Option<vec::IntoIter<PathBuf>>,
    attempts_left: u32,
}

impl<F> Search<'_, F> {
    /// Asks the vmrun at `socket`, if it lives. One that does not answer is an error: it may run the
    /// guest.
    fn ask(&self, socket: &Path) -> anyhow::Result<Option<(MigrationStatus, Client)>> {
        let vmrun = match Client::connect_within(socket, NAME, VMRUN_TIMEOUT) {
            Ok(vmrun) => vmrun,
            Err(ClientError::Connect { ref source, .. }) if is_nobody(source) => return Ok(None),
            Err(error) => return Err(anyhow::Error::from(error).context(UNKNOWN_NOW)),
        };
        let nonce = self.asked.query.taken_by().map(|by| by.nonce);
        match vmrun.migration_status(self.asked.id, nonce) {
            Ok(status) => Ok(Some((status, vmrun))),
            Err(error) => Err(anyhow::Error::from(error).context(UNKNOWN_NOW)),
        }
    }
}

/// Whether nobody listens there, or nobody whom this user could have started.
fn is_nobody(error: &io::Error) -> bool {
    use io::ErrorKind::*;
    matches!(error.kind(), NotFound | ConnectionRefused | PermissionDenied)
}

impl<F: Fn() -> Result<Vec<PathBuf>, PathError>> ResponderIo for Search<'_, F> {
    type Error = anyhow::Error;
    type Vmrun = Client;

    fn read_record(&mut self) -> anyhow::Result<HostMemory> {
        (self.record, self.sockets) = (None, None);
        self.record = self.records.read(self.asked.id)?;
        let host = self.records.identity()?;
        let enough = self.asked.age.saturating_add(QUERY_TIMEOUT);
        Ok(HostMemory {
            record: self.record.as_ref().map(|record| record.decision),
            acknowledged_here: self.asked.query.taken_by().map(|by| by.host == host.id),
            // And not so old that a record of it would have been removed.
            remembers: host.age() > enough && enough < TIDIED_AFTER,
        })
    }

    fn query_named_vmrun(&mut self) -> anyhow::Result<Option<(MigrationStatus, Client)>> {
        match self.record.as_ref().filter(|record| record.socket != Path::new("")) {
            Some(record) => self.ask(&record.socket),
            None => Ok(None),
        }
    }

    fn query_next_vmrun(&mut self) -> anyhow::Result<Option<(MigrationStatus, Client)>> {
        let mut sockets = match self.sockets.take() {
            Some(sockets) => sockets,
            None => (self.every_socket)()?.into_iter(),
        };
        let mut answer = None;
        while answer.is_none()
            && let Some(socket) = sockets.next()
        {
            answer = self.ask(&socket)?;
        }
        self.sockets = Some(sockets);
        Ok(answer)
    }

    fn run(&mut self, vmrun: &mut Client) -> anyhow::Result<()> {
        let by = Authority::Source(self.asked.query.taken_by().map(|by| by.nonce));
        match vmrun.go(self.asked.id, by) {
            Ok(_) => Ok(()),
            Err(error) => {
                Err(anyhow::Error::from(error).context("the guest waits there and cannot run"))
            }
        }
    }

    fn refuse(&mut self, vmrun: &mut Client) -> anyhow::Result<()> {
        Ok(vmrun.own(Input::Refuse(self.asked.id))?)
    }

    fn await_end(&mut self, vmrun: &mut Client) {
        vmrun.await_end(END_TIMEOUT);
    }

    fn sync_refusal(&mut self) -> anyhow::Result<()> {
        Ok(self.records.settle()?)
    }

    fn record_refusal(&mut self) -> anyhow::Result<bool> {
        match self.records.refuse_unknown(self.asked.id) {
            Ok(()) => Ok(true),
            Err(RecordError::Exists { .. } | RecordError::BeingRestored { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn await_retry(&mut self) -> bool {
        thread::sleep(POLL_INTERVAL);
        self.attempts_left = self.attempts_left.saturating_sub(1);
        self.attempts_left > 0
    }
}
