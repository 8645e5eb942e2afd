//! A migration at the source, from its setup to its end.
//!
//! [`mig_engine::handover::Source`] decides what is done when, what a failure leads to and who has the
//! guest then; [`run_source`] has it done. Where all goes well that is, both ways, in this order:
//!
//! | phase | steps |
//! | --- | --- |
//! | [`setup`] | everything is opened, the header goes out, and READY comes back |
//! | [`precopy`] | rounds of pages, while the guest runs |
//! | [`stop_and_copy`] | the guest is paused; the last pages and its state |
//! | [`handover`] | `End`, ACK, the commit in the source's vmrun, GO, and RUNNING |
//! | [`resolve`](mod@crate::resolve) | the source's vmrun ends; or it is found out what became of the guest |
//! | [`failure`] | the guest is given back, and then it is found out why |

use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use mig_engine::handover::{
    Source, SourceEnd, SourceEnding, SourceGuestState, SourceIo, SourceStep, run_source,
};
use mig_engine::report::Phase;
use mig_stream::StreamDigest;
use migpipe_cli::{Milestone, output};
use migpipe_units::Acknowledged;
use vm_control::Client;

use crate::args::Args;
use crate::error::StepError;
use crate::monitor::{self, Shared};
use crate::outgoing::OutgoingMigration;
use crate::precopy::Remainder;
use crate::query::ResolveHelper;
use crate::report::Draft;
use crate::status::StatusConnection;
use crate::{NAME, failure, handover, precopy, report, setup, stop_and_copy};

/// How long a tunnel may take to end by itself after the last word was said.
const TUNNEL_END_TIMEOUT: Duration = Duration::from_secs(10);

/// Migrates, and returns the exit status; an error if it could not begin.
pub fn run(
    draft: &Draft<'_>,
    args: &Args,
    client: Client,
    status: &mut StatusConnection,
    shared: &Arc<Shared>,
) -> Result<u8, StepError> {
    let (mut outgoing, watch) =
        setup::open(draft, args, client, status, shared, ResolveHelper::command)?;
    let monitor = monitor::start(watch, shared);
    let source = match args.snapshot {
        true => Source::snapshot(),
        false => Source::new(outgoing.channel.mode),
    };
    let end = run_source(source, &mut outgoing);
    shared.progress(|progress| progress.phase = Phase::Done);
    drop(monitor);
    Ok(leave(draft, outgoing, &end))
}

impl SourceIo for OutgoingMigration<'_> {
    type Remainder = Remainder;

    fn send_header(&mut self) -> Result<(), StepError> {
        Ok(self.channel.stream.flush()?)
    }

    fn await_ready(&mut self) -> Result<(), StepError> {
        handover::await_ready(self)?;
        self.reached(Milestone::Ready);
        Ok(())
    }

    fn precopy(&mut self) -> Result<Remainder, StepError> {
        precopy::run(self)
    }

    fn stop_and_copy(&mut self, remainder: Remainder) -> Result<(), StepError> {
        stop_and_copy::run(self, remainder)
    }

    fn resume(&mut self) -> Result<(), StepError> {
        handover::resume(self)
    }

    fn send_end(&mut self) -> Result<StreamDigest, StepError> {
        Ok(self.channel.stream.end()?.digest)
    }

    fn close(&mut self) -> Result<(), StepError> {
        handover::close(self)
    }

    fn await_ack(&mut self) -> Result<(StreamDigest, Acknowledged), StepError> {
        handover::await_ack(self)
    }

    fn prepare_commit(&mut self) -> Result<(), StepError> {
        handover::prepare_commit(self)
    }

    fn commit(&mut self, taken_by: Option<Acknowledged>) -> Result<(), StepError> {
        handover::commit(self, taken_by)?;
        self.reached(Milestone::Committed);
        Ok(())
    }

    fn send_go(&mut self, taken_by: Acknowledged) -> Result<(), StepError> {
        handover::send_go(self, taken_by)
    }

    fn await_running(&mut self, taken_by: Acknowledged) -> Result<(), StepError> {
        handover::await_running(self, taken_by)?;
        self.reached(Milestone::Running);
        Ok(())
    }

    fn remove_file(&mut self) -> bool {
        matches!(self.channel.stream.get_mut().abandon(), Ok(true))
    }

    fn release(&mut self) -> Result<(), StepError> {
        failure::release(self)
    }

    fn guest_state(&mut self) -> SourceGuestState {
        self.guest.status.guest_state(self.id)
    }

    fn explain(&mut self, step: SourceStep, error: StepError, may_be_cancelled: bool) -> StepError {
        failure::explain(self, step, error, may_be_cancelled)
    }

    fn abort_stream(&mut self, why: Option<&StepError>) {
        failure::abort_stream(self, why);
    }

    fn leave_tunnel(&mut self) {
        failure::leave_tunnel(self);
    }
}

/// Ends the tunnel, writes the report, and says what is to be said.
fn leave(draft: &Draft<'_>, mut outgoing: OutgoingMigration<'_>, end: &SourceEnd<StepError>) -> u8 {
    let (ending, guest, why) = (end.ending, end.guest, end.reason.as_ref());
    if ending == SourceEnding::Moved {
        // What copies its input (cat, pv, tee) ends when that ends.
        let _ = outgoing.channel.stream.get_mut().close();
    }
    if ending == SourceEnding::Moved
        && let Some(tunnel) = &mut outgoing.channel.tunnel
        && let Err(error) = tunnel.wait_for_success(TUNNEL_END_TIMEOUT.min(outgoing.args.timeout))
    {
        // The guest has arrived; what the tunnel says now cannot change that.
        tracing::warn!("{}", migpipe_cli::line_of(&error));
    }
    if ending == SourceEnding::Moved && outgoing.channel.mode.is_answered() {
        // Where the destination had to be asked for that.
        outgoing.reached(Milestone::Running);
    }
    let complaint = report::complaint(ending, guest, &outgoing, why);
    report::finish(&mut outgoing, ending, guest, why);
    draft.end(&outgoing.report, outgoing.shared.current_progress());
    let quiet = outgoing.args.quiet || migpipe_cli::is_json();
    if !quiet && !outgoing.report.rounds.is_empty() {
        output::say(outgoing.report.table().trim_end());
    }
    if let Some(complaint) = complaint {
        migpipe_cli::complain(NAME, &anyhow!(complaint));
    }
    ending.exit_status()
}
