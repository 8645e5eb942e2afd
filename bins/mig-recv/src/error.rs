//! Why a step of the migration did not succeed.

use mig_engine::handover::{Failure, FailureKind, HandoverError};
use mig_stream::ReadError;
use vm_control::ClientError;

/// Why an operation of the migration did not succeed.
#[derive(Debug)]
pub enum StepError {
    /// It failed. What its vmrun has made of it is not known.
    Failed(anyhow::Error),
    /// No GO will come for this copy of the guest.
    Refused(anyhow::Error),
}

impl StepError {
    /// Why, without what it means for the guest.
    pub fn into_reason(self) -> anyhow::Error {
        match self {
            Self::Failed(why) | Self::Refused(why) => why,
        }
    }

    /// Why, on one line.
    pub fn one_line(&self) -> String {
        match self {
            Self::Failed(why) | Self::Refused(why) => migpipe_cli::one_line(why),
        }
    }
}

impl Failure for StepError {
    fn kind(&self) -> FailureKind {
        match self {
            Self::Failed(_) => FailureKind::Failed,
            Self::Refused(_) => FailureKind::Refused,
        }
    }
}

impl From<HandoverError> for StepError {
    fn from(error: HandoverError) -> Self {
        match error.kind() {
            FailureKind::Refused => Self::Refused(error.into()),
            _ => Self::Failed(error.into()),
        }
    }
}

impl From<anyhow::Error> for StepError {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}

impl From<ReadError> for StepError {
    fn from(error: ReadError) -> Self {
        Self::Failed(error.into())
    }
}

impl From<ClientError> for StepError {
    fn from(error: ClientError) -> Self {
        Self::Failed(error.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_go_for_another_copy_is_a_refusal_and_a_lost_stream_is_none() {
        assert_eq!(StepError::from(HandoverError::OtherCopy).kind(), FailureKind::Refused);
        assert_eq!(StepError::from(HandoverError::OtherStream).kind(), FailureKind::Failed);
        assert_eq!(StepError::from(ReadError::GivenUp).kind(), FailureKind::Failed);
    }
}
