//! A source asks what became of a migration, or says that it took the guest back.

use mig_stream::{DestinationOutcome, Message};

use crate::NAME;
use crate::answers::Answers;
use crate::host::Host;
use crate::query::HostQuery;

/// The exit status of a query that was not answered for good.
const UNKNOWN: u8 = 4;

/// Has the answer found, tells it, and returns the exit status.
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
