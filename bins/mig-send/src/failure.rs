//! What follows a failure: the guest is given back, then it is found out why.

use std::time::Duration;

use mig_channel::{Endpoint, ReturnPath, Tunnel};
use mig_engine::handover::{Failure, FailureKind, HandoverMode, SourceStep};
use mig_engine::ownership::Input;
use vm_control::ClientError;

use crate::args::Args;
use crate::error::StepError;
use crate::outgoing::OutgoingMigration;

/// How long a failed destination may take to say why.
const REASON_TIMEOUT: Duration = Duration::from_secs(2);

/// A signal that ended the other programs of a pipeline has come within this time.
const SIGNAL_TIMEOUT: Duration = Duration::from_secs(1);

/// Gives the guest back to its vmrun. Nothing interrupts this any more.
pub fn release(outgoing: &mut OutgoingMigration<'_>) -> Result<(), StepError> {
    outgoing.shared.disarm();
    outgoing.guest.client.own(Input::Release(outgoing.id)).map_err(|error| {
        let error = StepError::from(error);
        tracing::debug!("{}", error.reason());
        error
    })
}

/// Whether a shell has put this program beside the one that it talks to.
fn is_in_a_pipeline(args: &Args) -> bool {
    matches!(args.destination, Endpoint::Standard | Endpoint::Fd(_))
        || matches!(args.return_path, Some(ReturnPath::Stdin | ReturnPath::Fd(_)))
}

/// The destination knows best why a step failed: what it says, or the status of the tunnel.
pub fn explain(
    outgoing: &mut OutgoingMigration<'_>,
    step: SourceStep,
    error: StepError,
    may_be_cancelled: bool,
) -> StepError {
    let error = match (error, outgoing.shared.given_up()) {
        // Not the operator has interrupted the step: vmrun took the guest back.
        (StepError::Cancelled, Some(why)) => StepError::Vmrun(ClientError::Refused(why)),
        (error, _) => error,
    };
    if error.kind() != FailureKind::Failed {
        return error;
    }
    let doing = doing(step, outgoing.channel.mode);
    if error.is_timeout() || matches!(error, StepError::Vmrun(_)) || error.names_what_came() {
        // It has had its time to say something, or has nothing to do with it, or something
        // else speaks in its place.
        return error.context(doing);
    }
    if may_be_cancelled
        && is_in_a_pipeline(outgoing.args)
        && outgoing.shared.is_signalled_within(SIGNAL_TIMEOUT)
    {
        // Ctrl-C is for all of a pipeline, and the reader may be gone before we hear of it.
        return StepError::Cancelled;
    }
    if let Some(reason) = outgoing.channel.answers.failure_reason(REASON_TIMEOUT) {
        return StepError::GivenUp(reason);
    }
    match outgoing.channel.tunnel.as_mut().and_then(Tunnel::failure) {
        Some(ended) if may_be_cancelled => ended.into(),
        Some(ended) => StepError::Tunnel(ended),
        None => error.context(doing),
    }
}

/// The destination would find out by itself when the stream ends.
pub fn abort_stream(outgoing: &mut OutgoingMigration<'_>, why: Option<&StepError>) {
    outgoing.channel.stream.get_mut().set_deadline(Some(REASON_TIMEOUT));
    let _ = outgoing.channel.stream.abort("the source gave the migration up");
    if let Some(tunnel) = &mut outgoing.channel.tunnel {
        let kind = why.map(Failure::kind);
        if matches!(kind, Some(FailureKind::GivenUp | FailureKind::Refused)) {
            // It has given the guest up: it ends by itself, and tells its own user why.
            let _ = tunnel.wait(REASON_TIMEOUT);
        }
        tunnel.kill();
    }
}

pub fn leave_tunnel(outgoing: &mut OutgoingMigration<'_>) {
    if let Some(tunnel) = outgoing.channel.tunnel.take() {
        tunnel.leave();
    }
}

/// What a step was for, in front of the reason why it failed.
const fn doing(step: SourceStep, mode: HandoverMode) -> &'static str {
    match step {
        SourceStep::SendHeader => "cannot send the header",
        SourceStep::AwaitReady => "the destination did not say that it is ready",
        SourceStep::PreCopy => "pre-copy failed",
        SourceStep::PrepareCommit if !mode.is_answered() => "stop-and-copy failed",
        SourceStep::StopAndCopy | SourceStep::Resume | SourceStep::SendEnd => {
            "stop-and-copy failed"
        }
        SourceStep::Close => "the end of the stream may not have arrived",
        SourceStep::AwaitAck | SourceStep::PrepareCommit => {
            "the destination did not acknowledge the guest"
        }
        SourceStep::Commit => "the commit failed",
        SourceStep::SendGo | SourceStep::AwaitRunning => "the destination did not say that it runs",
    }
}
