//! A migration at the destination, from its header to its end.
//!
//! [`mig_engine::handover::Destination`] decides what is done when, what a failure leads to and
//! whether the guest runs then; [`run_destination`] has it done. Where all goes well that is, both
//! ways, in this order:
//!
//! | phase | steps |
//! | --- | --- |
//! | [`setup`] | the header is checked, a vmrun builds the machine, and READY goes back |
//! | [`receive`] | pages go to the guest's memory, and the state is read, up to `End` |
//! | [`load`] | the vmrun loads the state |
//! | [`handover`] | ACK goes back, GO comes, the guest runs, and RUNNING goes back |
//! | [`failure`] | it is found out what became of the guest; or the guest is given up |
//! | [`outcome`] | what the user is told |

use std::sync::Arc;

use mig_channel::ChannelReader;
use mig_engine::handover::{Destination, DestinationIo, run_destination};
use mig_engine::ownership::{Decision, MigrationStatus};
use mig_stream::{StreamDigest, StreamReader};
use migpipe_cli::Milestone;
use migpipe_units::{Acknowledged, Nonce};

use crate::answers::Answers;
use crate::args::Args;
use crate::error::StepError;
use crate::host::LocalHost;
use crate::incoming::{Content, Guest, IncomingMigration};
use crate::report::Watch;
use crate::{failure, handover, load, outcome, receive, setup};

/// Receives the guest whose header was read, and returns the exit status.
pub fn run(
    args: &Args,
    host: &mut dyn LocalHost,
    stream: StreamReader<ChannelReader>,
    answers: Answers,
    watch: Watch,
) -> anyhow::Result<u8> {
    let mut migration = setup::accept(args, host, stream, answers, Arc::clone(&watch.arrival))?;
    let end = run_destination(Destination::new(migration.mode), &mut migration);
    // The live line is gone before anything is said.
    drop(watch);
    let totals = migration.stream.totals();
    migration.arrival.report(|report| {
        report.totals.bytes = migration.stream.bytes_read();
        report.totals.pages = totals.pages;
        report.totals.fills = totals.filled;
    });
    outcome::tell(&migration, end)
}

impl DestinationIo for IncomingMigration<'_> {
    type Error = StepError;
    type Guest = Guest;
    type Content = Content;

    fn receive(&mut self) -> Result<Guest, StepError> {
        let guest = setup::build(self)?;
        self.arrival.reached(Milestone::Ready);
        Ok(guest)
    }

    fn send_ready(&mut self) -> Result<(), StepError> {
        setup::send_ready(self)
    }

    fn read(&mut self, guest: &mut Guest) -> Result<(StreamDigest, Content), StepError> {
        receive::read(self, guest)
    }

    fn await_eof(&mut self) -> Result<(), StepError> {
        receive::await_eof(self)
    }

    fn prepare(
        &mut self,
        guest: &mut Guest,
        content: Content,
    ) -> Result<Option<Acknowledged>, StepError> {
        load::run(self, guest, content)
    }

    fn send_ack(
        &mut self,
        guest: &mut Guest,
        digest: StreamDigest,
        by: Acknowledged,
    ) -> Result<(), StepError> {
        handover::send_ack(self, guest, digest, by)
    }

    fn await_go(&mut self) -> Result<Nonce, StepError> {
        handover::await_go(self)
    }

    fn await_commit(&mut self, guest: &mut Guest, nonce: Option<Nonce>) -> Result<(), StepError> {
        handover::await_commit(self, guest, nonce)?;
        self.arrival.reached(Milestone::Committed);
        self.arrival.reached(Milestone::Running);
        Ok(())
    }

    fn run(&mut self, guest: &mut Guest, nonce: Option<Nonce>) -> Result<(), StepError> {
        self.arrival.reached(Milestone::Committed);
        handover::run(self, guest, nonce)?;
        self.arrival.reached(Milestone::Running);
        Ok(())
    }

    fn send_running(&mut self, guest: &mut Guest) -> Result<(), StepError> {
        handover::send_running(self, guest)
    }

    fn migration_status(
        &mut self,
        guest: &mut Guest,
        nonce: Option<Nonce>,
    ) -> Result<MigrationStatus, StepError> {
        Ok(guest.vmrun.client.migration_status(self.id, nonce)?)
    }

    fn record(&mut self) -> Result<Option<Decision>, StepError> {
        Ok(self.host.decision(self.id)?)
    }

    fn refuse(&mut self, guest: &mut Guest) -> Result<(), StepError> {
        failure::refuse(self, guest)
    }

    fn await_end(&mut self, guest: Guest, gave_up: bool) {
        self.host.await_end(guest.vmrun, gave_up);
    }

    fn say_given_up(&mut self, received: bool, why: Option<&StepError>) {
        failure::say_given_up(self, received, why);
    }
}
