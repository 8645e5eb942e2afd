//! Why a step of the migration did not succeed.

use std::io;
use std::time::Duration;

use mig_channel::{ChannelError, OpenError, TunnelError};
use mig_engine::handover::{Failure, FailureKind, HandoverError};
use mig_engine::precopy::Rule;
use mig_stream::{ReturnError, UnrecognisedStream, WriteError};
use thiserror::Error;

/// Why an operation of the migration did not succeed.
#[derive(Debug)]
pub enum StepError {
    /// It failed. What the other side has made of it is not known.
    Failed(anyhow::Error),
    /// The destination refused, durably.
    Refused(String),
    /// It failed, and it is certain that nothing of it was carried out.
    Undone(anyhow::Error),
    /// Another host answered a query than the one that took the guest.
    OtherHost(anyhow::Error),
    /// The destination may have run the guest, and nobody is left there who knows.
    MayHaveRun(anyhow::Error),
    /// The destination cannot be asked.
    CannotAsk(anyhow::Error),
    /// The operator cancelled.
    Cancelled,
    /// The promised downtime cannot be kept.
    GaveUp {
        /// What would have been needed.
        needed: Duration,
        /// Which rule found that out.
        rule: Rule,
    },
}

impl StepError {
    /// The error of a query whose answer was of this kind ([`Query::verdict`]).
    ///
    /// [`Query::verdict`]: mig_engine::handover::Query::verdict
    pub const fn of_answer(kind: FailureKind, error: anyhow::Error) -> Self {
        match kind {
            FailureKind::OtherHost => Self::OtherHost(error),
            FailureKind::MayHaveRun => Self::MayHaveRun(error),
            _ => Self::Failed(error),
        }
    }

    /// Why, for a person.
    pub fn reason(&self) -> String {
        match self {
            Self::Failed(error)
            | Self::Undone(error)
            | Self::OtherHost(error)
            | Self::MayHaveRun(error)
            | Self::CannotAsk(error) => migpipe_cli::one_line(error),
            Self::Refused(reason) => format!("the destination refused: {reason}"),
            Self::Cancelled => "cancelled".to_owned(),
            Self::GaveUp { rule, .. } => rule.to_string(),
        }
    }

    /// A failure with what was being done in front.
    pub fn context(self, doing: impl std::fmt::Display + Send + Sync + 'static) -> Self {
        match self {
            Self::Failed(error) => Self::Failed(error.context(doing)),
            Self::OtherHost(error) => Self::OtherHost(error.context(doing)),
            Self::MayHaveRun(error) => Self::MayHaveRun(error.context(doing)),
            Self::CannotAsk(error) => Self::CannotAsk(error.context(doing)),
            other => other,
        }
    }
}

impl Failure for StepError {
    fn kind(&self) -> FailureKind {
        match self {
            Self::Failed(_) => FailureKind::Failed,
            Self::Refused(_) => FailureKind::Refused,
            Self::Undone(_) => FailureKind::Undone,
            Self::OtherHost(_) => FailureKind::OtherHost,
            Self::MayHaveRun(_) => FailureKind::MayHaveRun,
            Self::CannotAsk(_) => FailureKind::CannotAsk,
            Self::Cancelled => FailureKind::Cancelled,
            Self::GaveUp { .. } => FailureKind::GaveUp,
        }
    }
}

impl From<HandoverError> for StepError {
    fn from(error: HandoverError) -> Self {
        Self::Failed(error.into())
    }
}

impl From<anyhow::Error> for StepError {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}

impl From<io::Error> for StepError {
    fn from(error: io::Error) -> Self {
        if ChannelError::is_interrupted(&error) {
            Self::Cancelled
        } else {
            Self::Failed(error.into())
        }
    }
}

impl From<WriteError> for StepError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Io { source, .. } if ChannelError::is_interrupted(&source) => {
                Self::Cancelled
            }
            // The channel names itself and what it was doing; the record adds nothing to that.
            WriteError::Io { source, .. } => Self::Failed(source.into()),
            error => Self::Failed(error.into()),
        }
    }
}

impl From<ReturnError> for StepError {
    fn from(error: ReturnError) -> Self {
        match error {
            ReturnError::Io(source) if ChannelError::is_interrupted(&source) => Self::Cancelled,
            ReturnError::Io(source) => Self::Failed(source.into()),
            error => Self::Failed(error.into()),
        }
    }
}

impl From<OpenError> for StepError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Wait(ChannelError::Interrupted { .. }) => Self::Cancelled,
            error if error.is_usage() => Self::Failed(migpipe_cli::usage(error)),
            error => Self::Failed(error.into()),
        }
    }
}

impl From<TunnelError> for StepError {
    fn from(error: TunnelError) -> Self {
        match error {
            TunnelError::Cancelled { .. } | TunnelError::Interrupted { .. } => Self::Cancelled,
            error => Self::Failed(error.into()),
        }
    }
}

impl From<vm_control::ClientError> for StepError {
    fn from(error: vm_control::ClientError) -> Self {
        match error {
            vm_control::ClientError::Refused(why) if why.is_cancelled() => Self::Cancelled,
            error => Self::Failed(error.into()),
        }
    }
}

/// What the destination says of its failure.
#[derive(Debug, Error)]
#[error("the destination: {0}")]
pub struct Told(pub String);

/// Whether `error` is what the destination says, or what came in place of that. What the tunnel
/// command ended with says less then: it ended because nobody read on.
pub fn names_what_came(error: &anyhow::Error) -> bool {
    if error.is::<Told>() {
        return true;
    }
    let what = error.chain().find_map(|cause| cause.downcast_ref::<ReturnError>());
    match what {
        Some(ReturnError::UnrecognisedStream(UnrecognisedStream::Nothing)) => false,
        Some(ReturnError::Io(_) | ReturnError::Truncated { .. } | ReturnError::GivenUp) => false,
        Some(_) => true,
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn what_came_on_the_return_path_is_told_from_that_nothing_came() {
        let id = migpipe_units::MigrationId::from_bytes([1; 16]);
        let read = |bytes: &'static [u8]| {
            let read = mig_stream::ReturnReader::open(bytes, id);
            read.map(drop).context("the destination did not say that it is ready").unwrap_err()
        };
        assert!(names_what_came(&read(b"Welcome to hostb\nand so on and so forth\n")));
        assert!(names_what_came(&read(&[0x1f, 0x8b, 8, 0])));
        assert!(!names_what_came(&read(b"")));
        assert!(!names_what_came(&read(b"\x89MIR\r\n\x1a\n")));
        assert!(!names_what_came(&anyhow::anyhow!("no answer")));
        assert!(names_what_came(&Told("no memory".to_owned()).into()));
    }
}
