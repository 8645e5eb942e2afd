//! What a host answers, without KVM: with records in a directory of their own, and vmruns that answer
//! as they are told to.

use std::path::{Path, PathBuf};
use std::time::Duration;

use mig_engine::handover::Query;
use mig_engine::ownership::{Decision, MigrationStatus};
use mig_stream::DestinationOutcome;
use migpipe_units::Acknowledged;
use tempfile::TempDir;
use vm_control::{Reply, Request};
use vm_records::record::{Record, Records};

use crate::query::HostQuery;
use crate::responder::resolve_among;
use crate::scripted_vmrun::{BY, ID, ScriptedVmrun, USELESS, VmrunAnswers, refused};

/// A host whose records are new.
struct TestHost {
    dir: TempDir,
    records: Records,
    vmruns: Vec<ScriptedVmrun>,
}

impl TestHost {
    fn new(vmruns: &[VmrunAnswers]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = |number: usize| dir.path().join(format!("{number}.sock"));
        let vmruns = vmruns.iter().enumerate();
        let vmruns = vmruns
            .map(|(number, answers)| ScriptedVmrun::new(&socket(number), true, *answers))
            .collect();
        let records = Records::at(dir.path());
        Self { dir, records, vmruns }
    }

    /// There is a record, with this socket in it.
    fn with_record(self, decision: Decision, socket: &Path) -> Self {
        self.records.create(ID, &Record::new(decision, "web", socket, false)).unwrap();
        self
    }

    fn answer(&self, query: HostQuery) -> anyhow::Result<DestinationOutcome> {
        let sockets: Vec<PathBuf> =
            self.vmruns.iter().map(|vmrun| vmrun.socket().to_owned()).collect();
        resolve_among(query, &self.records, || Ok(sockets.clone()))
    }

    fn decision(&self) -> Option<Decision> {
        self.records.read(ID).unwrap().map(|record| record.decision)
    }
}

/// From a source that has committed, to this destination if that has acknowledged the guest.
const fn committed(to: Option<Acknowledged>) -> HostQuery {
    HostQuery { id: ID, query: Query::Committed(to), age: Duration::ZERO }
}

fn says(request: &Request, status: MigrationStatus) -> Option<Reply> {
    match request {
        Request::MigrationStatus { .. } => Some(Reply::MigrationStatus(status)),
        _ => None,
    }
}

fn has_nothing(request: &Request) -> Option<Reply> {
    says(request, MigrationStatus::NotMine)
}

fn is_useless(request: &Request) -> Option<Reply> {
    matches!(request, Request::MigrationStatus { .. }).then_some(USELESS)
}

#[test]
fn a_guest_that_waits_is_run_by_the_vmrun_of_its_record_before_that_is_told() {
    let host = TestHost::new(&[has_nothing, |_| None]);
    let socket = host.vmruns[1].socket().to_owned();
    let host = host.with_record(Decision::MayRun, &socket);
    let answer = host.answer(committed(Some(BY))).unwrap();
    assert_eq!(answer, DestinationOutcome::Running);
    assert_eq!(host.vmruns[1].asked(), ["status", "go"]);
    assert!(host.vmruns[0].asked().is_empty(), "the record has the answer");
}

#[test]
fn a_guest_whose_record_is_lost_is_found_where_it_runs() {
    let host = TestHost::new(&[has_nothing, |request| says(request, MigrationStatus::Running)]);
    let answer = host.answer(committed(None)).unwrap();
    assert_eq!(answer, DestinationOutcome::Running);
    assert_eq!(host.decision(), None);
}

#[test]
fn a_guest_that_cannot_be_run_is_not_known_now_and_why_is_said() {
    let host = TestHost::new(&[|request| matches!(request, Request::Go { .. }).then(refused)]);
    let why = migpipe_cli::one_line(&host.answer(committed(None)).unwrap_err());
    assert!(why.contains("waits there and cannot run"), "{why}");
    assert!(why.contains("not on this host"), "{why}");
}

#[test]
fn never_heard_of_is_recorded_before_it_is_said() {
    let host = TestHost::new(&[has_nothing, has_nothing]);
    let answer = host.answer(HostQuery::release(ID)).unwrap();
    assert_eq!(answer, DestinationOutcome::Refused);
    assert_eq!(host.decision(), Some(Decision::Refused));
    for vmrun in &host.vmruns {
        assert_eq!(vmrun.asked(), ["status"], "each is asked");
    }
}

#[test]
fn a_host_that_is_younger_than_the_migration_refuses_nothing() {
    let host = TestHost::new(&[has_nothing]);
    let answer = host.answer(committed(None)).unwrap();
    assert!(matches!(answer, DestinationOutcome::MayHaveRun { .. }), "{answer:?}");
    assert_eq!(host.decision(), None);
}

#[test]
fn a_vmrun_that_does_not_answer_may_be_the_one() {
    let host = TestHost::new(&[has_nothing, is_useless]);
    let why = migpipe_cli::one_line(&host.answer(HostQuery::release(ID)).unwrap_err());
    assert!(why.contains("cannot be known now"), "{why}");
    assert_eq!(host.decision(), None);
}

#[test]
fn another_host_than_the_one_that_acknowledged_the_guest_says_so() {
    let host = TestHost::new(&[has_nothing]);
    let answer = host.answer(committed(Some(BY))).unwrap();
    let DestinationOutcome::OtherHost { host: said } = answer else { panic!("{answer:?}") };
    assert_eq!(said, host.records.identity().unwrap().id);
    assert_eq!(host.decision(), None);
}

#[test]
fn a_guest_whose_vmrun_is_gone_may_have_run() {
    let host = TestHost::new(&[]);
    let gone = host.dir.path().join("gone.sock");
    let host = host.with_record(Decision::MayRun, &gone);
    let answer = host.answer(committed(None)).unwrap();
    let DestinationOutcome::MayHaveRun { why } = answer else { panic!("{answer:?}") };
    assert_eq!(why, "web was received there, and its vmrun is gone");
    assert_eq!(host.decision(), Some(Decision::MayRun));
}
