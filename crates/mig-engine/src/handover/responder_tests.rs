//! The driver that answers a query, with every operation failing and every look finding everything.

use migpipe_units::{Acknowledged, HostId, Nonce};

use super::resolver::Query;
use super::responder::{
    Doubt, HostAnswer, HostMemory, Responder, ResponderOperation, ResponderOutcome,
};
use super::responder_io::{ResponderIo, run};
use super::script::{Script, with_every_script};
use crate::ownership::{Decision, MigrationStatus};

const BY: Acknowledged =
    Acknowledged { host: HostId::from_bytes([1; 16]), nonce: Nonce::from_bytes([2; 16]) };

const QUERIES: [Query; 3] = [Query::Committed(Some(BY)), Query::Committed(None), Query::Released];

const DECISIONS: [Option<Decision>; 5] = [
    Some(Decision::MayRun),
    None,
    Some(Decision::Refused),
    Some(Decision::Ran),
    Some(Decision::Restoring),
];

const STATUSES: [Option<MigrationStatus>; 7] = [
    None,
    Some(MigrationStatus::Prepared),
    Some(MigrationStatus::Running),
    Some(MigrationStatus::Receiving),
    Some(MigrationStatus::Refused),
    Some(MigrationStatus::PreparedForAnother),
    Some(MigrationStatus::NotMine),
];

#[derive(Debug)]
struct Failed;

/// A vmrun that has answered.
struct Vmrun(MigrationStatus);

/// A host whose answers come from a script, and which checks each operation against what is known by
/// then.
struct Double<'a> {
    script: &'a Script,
    query: Query,
    /// How often all was looked through. What comes of the first look is gone through whole.
    looks: u32,
    memory: Option<HostMemory>,
    /// What was read before that, in the same look.
    before: Option<HostMemory>,
    /// How often the record was read in this look.
    reads: u32,
    asked: u32,
    all_asked: bool,
    runs: bool,
    refused: bool,
    failed: bool,
}

impl Double<'_> {
    fn pick<T: Copy>(&self, options: &[T]) -> T {
        let count = if self.looks == 1 { options.len() } else { options.len().min(2) };
        self.script.choose(&options[..count])
    }

    fn done_or_failed(&mut self) -> Result<(), Failed> {
        match self.pick(&[true, false]) {
            true => Ok(()),
            false => {
                self.failed = true;
                Err(Failed)
            }
        }
    }

    fn status(&mut self) -> Result<Option<(MigrationStatus, Vmrun)>, Failed> {
        self.done_or_failed()?;
        let status = self.pick(&STATUSES);
        self.runs |= status == Some(MigrationStatus::Running);
        Ok(status.map(|status| (status, Vmrun(status))))
    }
}

impl ResponderIo for Double<'_> {
    type Error = Failed;
    type Vmrun = Vmrun;

    fn read_record(&mut self) -> Result<HostMemory, Failed> {
        self.reads += 1;
        if self.reads == 1 {
            (self.looks, self.memory) = (self.looks + 1, None);
            (self.asked, self.all_asked) = (0, false);
        }
        self.done_or_failed()?;
        let record = self.pick(&DECISIONS);
        self.before = self.memory;
        let memory = match self.memory {
            Some(before) => HostMemory { record, remembers: self.pick(&[true, false]), ..before },
            None => HostMemory {
                record,
                acknowledged_here: match self.query {
                    Query::Committed(Some(_)) => Some(self.pick(&[true, false])),
                    _ => None,
                },
                remembers: self.pick(&[true, false]),
            },
        };
        self.memory = Some(memory);
        Ok(memory)
    }

    fn query_named_vmrun(&mut self) -> Result<Option<(MigrationStatus, Vmrun)>, Failed> {
        assert_eq!((self.reads, self.asked), (1, 0));
        self.asked = 1;
        self.status()
    }

    fn query_next_vmrun(&mut self) -> Result<Option<(MigrationStatus, Vmrun)>, Failed> {
        assert!(self.asked > 0, "the one that is named is asked first");
        self.asked += 1;
        // Two others at most.
        if self.asked > 3 {
            self.all_asked = true;
            return Ok(None);
        }
        let status = self.status()?;
        self.all_asked = status.is_none();
        Ok(status)
    }

    fn run(&mut self, vmrun: &mut Vmrun) -> Result<(), Failed> {
        assert_eq!(vmrun.0, MigrationStatus::Prepared);
        assert_ne!(self.query, Query::Released, "that is no GO");
        self.done_or_failed()?;
        self.runs = true;
        Ok(())
    }

    fn refuse(&mut self, vmrun: &mut Vmrun) -> Result<(), Failed> {
        let released = matches!(
            vmrun.0,
            MigrationStatus::Receiving
                | MigrationStatus::Prepared
                | MigrationStatus::PreparedForAnother
        );
        let may = match self.query {
            Query::Released => released,
            Query::Committed(by) => by.is_none() && vmrun.0 == MigrationStatus::Receiving,
        };
        assert!(may, "{:?} and {:?}: it may be awaited", self.query, vmrun.0);
        self.done_or_failed()
    }

    fn await_end(&mut self, _: &mut Vmrun) {
        assert_eq!(self.query, Query::Released);
    }

    fn sync_refusal(&mut self) -> Result<(), Failed> {
        self.done_or_failed()?;
        self.refused = true;
        Ok(())
    }

    fn record_refusal(&mut self) -> Result<bool, Failed> {
        let memory = self.memory.expect("the record was read");
        assert!(self.all_asked, "a vmrun that was not asked may run the guest");
        assert_eq!((self.reads, self.before), (2, self.memory), "it remembers the same");
        assert!(matches!(memory.record, None | Some(Decision::Restoring)), "{memory:?}");
        let is_heard_of = memory.acknowledged_here.is_some() || !memory.remembers;
        assert!(!is_heard_of || self.query == Query::Released, "{memory:?}");
        self.done_or_failed()?;
        self.refused = self.pick(&[true, false]);
        Ok(self.refused)
    }

    fn await_retry(&mut self) -> bool {
        self.reads = 0;
        self.looks == 1
    }
}

#[test]
fn what_is_answered_is_true_whatever_fails() {
    for query in QUERIES {
        let mut answers = Vec::new();
        let runs = with_every_script(|script| {
            let mut io = Double {
                script,
                query,
                looks: 0,
                memory: None,
                before: None,
                reads: 0,
                asked: 0,
                all_asked: false,
                runs: false,
                refused: false,
                failed: false,
            };
            let (answer, reason) = run(Responder::new(query), &mut io);
            let record = io.memory.and_then(|memory| memory.record);
            match answer {
                HostAnswer::Running => {
                    assert!(io.runs || record == Some(Decision::Ran), "{script:?}");
                }
                HostAnswer::Refused => assert!(io.refused && !io.runs, "{script:?}"),
                HostAnswer::MayHaveRun(doubt) => {
                    assert!(!io.refused && !io.runs, "{script:?}");
                    assert_eq!(doubt == Doubt::VmrunGone, io.reads == 2, "{script:?}");
                }
                HostAnswer::OtherHost => {
                    let memory = io.memory.expect("the host knows who it is");
                    assert_eq!(memory.acknowledged_here, Some(false), "{script:?}");
                }
                HostAnswer::NotKnownNow => {
                    assert!(io.looks == 2 || io.failed, "{script:?}");
                    assert_eq!(reason.is_some(), io.failed, "{script:?}");
                }
            }
            if !answers.contains(&answer) {
                answers.push(answer);
            }
        });
        assert!(runs > 1000, "{query:?}: {runs}");
        assert!(answers.len() >= 4, "{query:?}: {answers:?}");
    }
}

const NOTHING: HostMemory = HostMemory { record: None, acknowledged_here: None, remembers: true };

/// What is done where every operation goes as `outcome` says.
fn operations(
    query: Query,
    outcome: impl Fn(ResponderOperation) -> ResponderOutcome,
) -> Vec<ResponderOperation> {
    let mut responder = Responder::new(query);
    let mut operations = Vec::new();
    loop {
        let operation = responder.operation();
        operations.push(operation);
        if let ResponderOperation::Finished(_) = operation {
            return operations;
        }
        responder.advance(outcome(operation));
    }
}

#[test]
fn never_heard_of_is_said_after_every_vmrun_was_asked_and_the_refusal_is_recorded() {
    use ResponderOperation::*;
    let done = operations(Query::Committed(None), |operation| match operation {
        ReadRecord | ReadAgain => ResponderOutcome::Memory(NOTHING),
        QueryNamedVmrun | QueryNextVmrun => ResponderOutcome::Status(None),
        _ => ResponderOutcome::Done,
    });
    let refused = Finished(HostAnswer::Refused);
    assert_eq!(
        done,
        [ReadRecord, QueryNamedVmrun, QueryNextVmrun, ReadAgain, RecordRefusal, refused]
    );
}

#[test]
fn a_host_whose_records_are_lost_while_it_looks_refuses_nothing() {
    use ResponderOperation::*;
    let lost = std::cell::Cell::new(false);
    let done = operations(Query::Committed(None), |operation| match operation {
        ReadRecord | ReadAgain => {
            let remembers = !lost.replace(true);
            ResponderOutcome::Memory(HostMemory { remembers, ..NOTHING })
        }
        QueryNamedVmrun | QueryNextVmrun => ResponderOutcome::Status(None),
        _ => ResponderOutcome::Done,
    });
    assert!(!done.contains(&RecordRefusal), "{done:?}");
    let doubt = HostAnswer::MayHaveRun(Doubt::RemembersTooLittle);
    assert_eq!(done.last(), Some(&Finished(doubt)));
}

#[test]
fn a_refusal_that_was_recorded_is_told_when_it_is_on_the_disk() {
    use ResponderOperation::*;
    let refused = HostMemory { record: Some(Decision::Refused), ..NOTHING };
    let done = operations(Query::Committed(None), |operation| match operation {
        ReadRecord => ResponderOutcome::Memory(refused),
        QueryNamedVmrun => ResponderOutcome::Status(None),
        _ => ResponderOutcome::Failed,
    });
    let unknown = Finished(HostAnswer::NotKnownNow);
    assert_eq!(done, [ReadRecord, QueryNamedVmrun, SyncRefusal, unknown]);
}

#[test]
fn a_guest_whose_vmrun_has_just_refused_it_is_not_said_to_have_run() {
    use ResponderOperation::*;
    let reads = std::cell::Cell::new(0);
    let done = operations(Query::Committed(None), |operation| match operation {
        ReadRecord | ReadAgain => {
            reads.set(reads.get() + 1);
            let record = if reads.get() == 1 { Decision::MayRun } else { Decision::Refused };
            ResponderOutcome::Memory(HostMemory { record: Some(record), ..NOTHING })
        }
        QueryNamedVmrun | QueryNextVmrun => ResponderOutcome::Status(None),
        _ => ResponderOutcome::Done,
    });
    assert_eq!(done.last(), Some(&Finished(HostAnswer::Refused)), "{done:?}");
}

#[test]
fn a_vmrun_that_runs_the_guest_is_found_though_the_records_cannot_be_read() {
    for (status, answer) in [
        (MigrationStatus::Running, HostAnswer::Running),
        (MigrationStatus::Prepared, HostAnswer::Running),
        (MigrationStatus::Refused, HostAnswer::NotKnownNow),
        (MigrationStatus::NotMine, HostAnswer::NotKnownNow),
    ] {
        let asked = std::cell::Cell::new(false);
        let done = operations(Query::Committed(Some(BY)), |operation| match operation {
            ResponderOperation::ReadRecord => ResponderOutcome::Failed,
            ResponderOperation::QueryNextVmrun if !asked.replace(true) => {
                ResponderOutcome::Status(Some(status))
            }
            ResponderOperation::QueryNamedVmrun | ResponderOperation::QueryNextVmrun => {
                ResponderOutcome::Status(None)
            }
            _ => ResponderOutcome::Done,
        });
        assert_eq!(done.last(), Some(&ResponderOperation::Finished(answer)), "{done:?}");
    }
}
