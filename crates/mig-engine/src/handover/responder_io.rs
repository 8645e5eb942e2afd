//! What a host can do to answer a query, and the loop that has it done.

use super::responder::{HostAnswer, HostMemory, Responder, ResponderOperation, ResponderOutcome};
use crate::ownership::MigrationStatus;

/// What a host can do to answer a query: one method for each operation of [`Responder`], which alone
/// decides what is done when and what follows from it.
pub trait ResponderIo {
    /// Why something could not be done.
    type Error;
    /// A vmrun that has to do with the migration.
    type Vmrun;

    /// See [`ResponderOperation::ReadRecord`] and [`ResponderOperation::ReadAgain`].
    ///
    /// # Errors
    /// When it cannot be read, or the host does not know who it is.
    fn read_record(&mut self) -> Result<HostMemory, Self::Error>;

    /// See [`ResponderOperation::QueryNamedVmrun`]. Nothing, if no vmrun is named, or nobody is there.
    ///
    /// # Errors
    /// When it may be there, and does not answer.
    fn query_named_vmrun(&mut self) -> Result<Option<(MigrationStatus, Self::Vmrun)>, Self::Error>;

    /// See [`ResponderOperation::QueryNextVmrun`]. Nothing when all were asked; after
    /// [`Self::read_record`] it begins anew.
    ///
    /// # Errors
    /// When one may be there, and does not answer.
    fn query_next_vmrun(&mut self) -> Result<Option<(MigrationStatus, Self::Vmrun)>, Self::Error>;

    /// See [`ResponderOperation::Run`].
    ///
    /// # Errors
    /// When the vmrun did not say that it runs the guest.
    fn run(&mut self, vmrun: &mut Self::Vmrun) -> Result<(), Self::Error>;

    /// See [`ResponderOperation::Refuse`].
    ///
    /// # Errors
    /// When the vmrun did not confirm it.
    fn refuse(&mut self, vmrun: &mut Self::Vmrun) -> Result<(), Self::Error>;

    /// See [`ResponderOperation::AwaitEnd`].
    fn await_end(&mut self, vmrun: &mut Self::Vmrun);

    /// See [`ResponderOperation::SyncRefusal`].
    ///
    /// # Errors
    /// When it may not be on the disk.
    fn sync_refusal(&mut self) -> Result<(), Self::Error>;

    /// See [`ResponderOperation::RecordRefusal`]. False if somebody else has recorded something first.
    ///
    /// # Errors
    /// When it is not on the disk.
    fn record_refusal(&mut self) -> Result<bool, Self::Error>;

    /// See [`ResponderOperation::AwaitRetry`]. False if there is no time left.
    fn await_retry(&mut self) -> bool;
}

/// Finds the answer. With it comes what failed last, if something did.
pub fn run<I: ResponderIo>(mut responder: Responder, io: &mut I) -> (HostAnswer, Option<I::Error>) {
    let mut found = None;
    let mut reason = None;
    loop {
        if let ResponderOperation::Finished(answer) = responder.operation() {
            return (answer, reason);
        }
        let outcome = perform(responder.operation(), io, &mut found).unwrap_or_else(|error| {
            reason = Some(error);
            ResponderOutcome::Failed
        });
        responder.advance(outcome);
    }
}

fn perform<I: ResponderIo>(
    operation: ResponderOperation,
    io: &mut I,
    found: &mut Option<I::Vmrun>,
) -> Result<ResponderOutcome, I::Error> {
    match (operation, found) {
        (ResponderOperation::ReadRecord | ResponderOperation::ReadAgain, _) => {
            return Ok(ResponderOutcome::Memory(io.read_record()?));
        }
        (ResponderOperation::QueryNamedVmrun, found) => {
            return Ok(status(io.query_named_vmrun()?, found));
        }
        (ResponderOperation::QueryNextVmrun, found) => {
            return Ok(status(io.query_next_vmrun()?, found));
        }
        (ResponderOperation::Run, Some(vmrun)) => io.run(vmrun)?,
        (ResponderOperation::Refuse, Some(vmrun)) => io.refuse(vmrun)?,
        (ResponderOperation::AwaitEnd, Some(vmrun)) => io.await_end(vmrun),
        (
            ResponderOperation::Run | ResponderOperation::Refuse | ResponderOperation::AwaitEnd,
            None,
        ) => unreachable!("{operation:?} is for a vmrun that says what it has"),
        (ResponderOperation::SyncRefusal, _) => io.sync_refusal()?,
        (ResponderOperation::RecordRefusal, _) => {
            if !io.record_refusal()? {
                return Ok(ResponderOutcome::Overtaken);
            }
        }
        (ResponderOperation::AwaitRetry, _) => {
            if !io.await_retry() {
                return Ok(ResponderOutcome::Failed);
            }
        }
        (ResponderOperation::Finished(_), _) => {}
    }
    Ok(ResponderOutcome::Done)
}

/// What a vmrun says; who it is is kept for what follows.
fn status<V>(answer: Option<(MigrationStatus, V)>, found: &mut Option<V>) -> ResponderOutcome {
    ResponderOutcome::Status(answer.map(|(status, vmrun)| {
        *found = Some(vmrun);
        status
    }))
}
