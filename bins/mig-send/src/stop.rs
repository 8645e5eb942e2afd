//! Why a step of the migration did not succeed.

use std::io;
use std::time::Duration;

use mig_channel::ChannelError;
use mig_engine::handover::Outcome;
use mig_engine::precopy::Rule;
use mig_stream::{ReturnError, WriteError};

/// Why a step did not succeed.
#[derive(Debug)]
pub enum Stop {
    /// It failed.
    Failed(anyhow::Error),
    /// The destination refused, durably.
    Refused(String),
    /// It failed, and what was written is gone for certain: nobody can ever run a guest from it.
    Undone(anyhow::Error),
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

impl Stop {
    /// What the handover machine is told.
    pub const fn outcome(&self) -> Outcome {
        match self {
            Self::Failed(_) | Self::GaveUp { .. } => Outcome::Failed,
            Self::Refused(_) | Self::Undone(_) => Outcome::Refused,
            Self::Cancelled => Outcome::Cancelled,
        }
    }

    /// A failure with what was being done in front.
    pub fn context(self, doing: impl std::fmt::Display + Send + Sync + 'static) -> Self {
        match self {
            Self::Failed(error) => Self::Failed(error.context(doing)),
            other => other,
        }
    }
}

impl From<anyhow::Error> for Stop {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        if ChannelError::is_interrupted(&error) {
            Self::Cancelled
        } else {
            Self::Failed(error.into())
        }
    }
}

impl From<WriteError> for Stop {
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

impl From<ReturnError> for Stop {
    fn from(error: ReturnError) -> Self {
        match error {
            ReturnError::Io(source) if ChannelError::is_interrupted(&source) => Self::Cancelled,
            ReturnError::Io(source) => Self::Failed(source.into()),
            error => Self::Failed(error.into()),
        }
    }
}

impl From<vm_control::ClientError> for Stop {
    fn from(error: vm_control::ClientError) -> Self {
        Self::Failed(error.into())
    }
}

/// Whether `error` comes from a wait that took too long.
pub fn is_timeout(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|error| error.kind() == io::ErrorKind::TimedOut)
}
