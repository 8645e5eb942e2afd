//! The attempts at an answer of a destination, and what an answer means.

use std::time::{Duration, Instant};

use mig_channel::Endpoint;
use mig_engine::handover::{FailureKind, Query};
use mig_stream::DestinationOutcome;

use crate::args::Args;
use crate::error::StepError;
use crate::query::QueryResult;

/// How long to wait between two attempts.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// Whether what became of a migration can be found out.
pub fn can_be_asked(args: &Args) -> bool {
    !args.saves() && can_be_opened_again(args.asked())
}

fn can_be_opened_again(destination: &Endpoint) -> bool {
    !matches!(destination, Endpoint::Standard | Endpoint::Fd(_) | Endpoint::File(_))
}

/// The attempts at one answer of a destination.
pub struct Attempts<'a> {
    destination: &'a Endpoint,
    limit: Duration,
    began: Option<Instant>,
}

impl<'a> Attempts<'a> {
    /// As the command line says: whom, and for how long.
    pub fn new(args: &'a Args) -> Self {
        Self { destination: args.asked(), limit: args.resolve_for, began: None }
    }

    /// Before each attempt: whether there can be one.
    pub fn begin(&mut self) -> Result<(), StepError> {
        self.began.get_or_insert_with(Instant::now);
        if self.limit.is_zero() {
            return Err(StepError::CannotAsk("it was not asked: --resolve-for is 0".to_owned()));
        }
        if !can_be_opened_again(self.destination) {
            return Err(StepError::CannotAsk(format!(
                "{} can be opened only once: the destination must be asked another way",
                self.destination
            )));
        }
        Ok(())
    }

    /// Waits for the next one; false if there is no time left.
    pub fn await_next(&self) -> bool {
        let goes_on = self.began.is_none_or(|began| began.elapsed() < self.limit);
        if goes_on {
            std::thread::sleep(RETRY_INTERVAL);
        }
        goes_on
    }
}

/// What came of a query, in words where it is not what was hoped for.
pub fn verdict(query: Query, result: QueryResult) -> Result<(), StepError> {
    let answer = match result {
        QueryResult::Known(answer) => answer,
        QueryResult::Failed(why) => return Err(StepError::Unanswered(why)),
        QueryResult::Cancelled => return Err(StepError::Cancelled),
    };
    query.verdict(&answer).map_err(|kind| match kind {
        FailureKind::Refused => StepError::Refused("for ever".to_owned()),
        FailureKind::OtherHost => StepError::OtherHost(other_host(query, &answer)),
        FailureKind::MayHaveRun => StepError::MayHaveRun(may_have_run(&answer)),
        _ => StepError::Unanswered("the destination has the guest, paused".to_owned()),
    })
}

fn may_have_run(answer: &DestinationOutcome) -> String {
    let why = match answer {
        DestinationOutcome::MayHaveRun { why } => why.clone(),
        other => format!("{other:?}"),
    };
    format!(
        "the guest may have run at the destination ({why}): look there; only --force runs it here"
    )
}

fn other_host(query: Query, answer: &DestinationOutcome) -> String {
    let asked = match answer {
        DestinationOutcome::OtherHost { host } => host.to_string(),
        other => format!("{other:?}"),
    };
    match query {
        Query::Committed(Some(by)) => format!(
            "host {asked} has answered, and the guest was acknowledged by host {}: DEST leads \
             elsewhere now, or that host has lost its state directory; look for the guest there",
            by.host
        ),
        Query::Committed(None) | Query::Released => {
            format!("host {asked} answered for another one")
        }
    }
}

#[cfg(test)]
mod tests {
    use mig_engine::handover::Failure;
    use migpipe_units::{Acknowledged, HostId, Nonce};

    use super::*;

    fn host(number: u8) -> HostId {
        HostId::from_bytes([number; 16])
    }

    #[test]
    fn only_an_answer_that_says_so_is_a_refusal_and_each_other_one_says_why() {
        let by = Acknowledged { host: host(1), nonce: Nonce::from_bytes([2; 16]) };
        let committed = Query::Committed(Some(by));
        let may_have_run = || DestinationOutcome::MayHaveRun { why: "it was wiped".to_owned() };
        let known = |query, answer| verdict(query, QueryResult::Known(answer));
        assert!(known(committed, DestinationOutcome::Running).is_ok());
        assert!(known(Query::Released, DestinationOutcome::Refused).is_ok());
        for (query, answer, kind, said) in [
            (committed, DestinationOutcome::Refused, FailureKind::Refused, "refused"),
            (committed, DestinationOutcome::Prepared, FailureKind::Failed, "paused"),
            (committed, may_have_run(), FailureKind::MayHaveRun, "it was wiped"),
            (
                committed,
                DestinationOutcome::OtherHost { host: host(3) },
                FailureKind::OtherHost,
                "acknowledged by host",
            ),
            (Query::Released, DestinationOutcome::Running, FailureKind::MayHaveRun, "Running"),
        ] {
            let error = known(query, answer).unwrap_err();
            assert_eq!(error.kind(), kind, "{error:?}");
            assert!(error.reason().contains(said), "{error:?}");
        }
        let failed = verdict(committed, QueryResult::Failed("no route".to_owned())).unwrap_err();
        assert_eq!((failed.kind(), failed.reason()), (FailureKind::Failed, "no route".to_owned()));
        let cancelled = verdict(committed, QueryResult::Cancelled).unwrap_err();
        assert_eq!(cancelled.kind(), FailureKind::Cancelled);
    }

    #[test]
    fn there_is_no_attempt_where_the_destination_cannot_be_opened_again_or_no_time_is_given() {
        let unix: Endpoint = "unix:/destination".parse().unwrap();
        let attempts = |destination, seconds| Attempts {
            destination,
            limit: Duration::from_secs(seconds),
            began: None,
        };
        assert!(attempts(&unix, 60).begin().is_ok());
        for (destination, seconds) in [(&Endpoint::Standard, 60), (&unix, 0)] {
            let error = attempts(destination, seconds).begin().unwrap_err();
            assert_eq!(error.kind(), FailureKind::CannotAsk, "{error:?}");
        }
        let mut over = attempts(&unix, 0);
        over.began = Some(Instant::now());
        assert!(!over.await_next());
    }
}
