//! Why a step of the migration did not succeed.

use std::error::Error;
use std::io;
use std::time::Duration;

use mig_channel::{ChannelError, OpenError, TunnelError};
use mig_engine::handover::{Failure, FailureKind, HandoverError};
use mig_engine::precopy::Rule;
use mig_stream::{ReturnError, UnrecognisedStream, WriteError};
use thiserror::Error;
use vm_control::{ClientError, Refusal};
use vm_mapping::MemoryError;

/// Why an operation of the migration did not succeed.
#[derive(Debug, Error)]
pub enum StepError {
    /// What was being done, in front of why it failed.
    #[error("{doing}")]
    While {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        #[source]
        why: Box<Self>,
    },
    /// The destination refused, durably.
    #[error("the destination refused: {0}")]
    Refused(String),
    /// The destination gave the guest up, and says why.
    #[error("the destination: {0}")]
    GivenUp(String),
    /// What came from the destination is no answer, or not the one that was waited for.
    #[error(transparent)]
    Answer(#[from] AnswerError),
    /// No READY came in time.
    #[error(
        "no answer to the header within {} s: the destination does not run, or the tunnel holds \
         data back (gzip, zstd and the like do); use --one-way, or --commit ssh:HOST",
        .within.as_secs_f32()
    )]
    NoReady {
        /// How long it was waited for.
        within: Duration,
    },
    /// A query brought no answer that settles it.
    #[error("{0}")]
    Unanswered(String),
    /// Another host answered a query than the one that took the guest.
    #[error("{0}")]
    OtherHost(String),
    /// The destination may have run the guest, and nobody is left there who knows.
    #[error("{0}")]
    MayHaveRun(String),
    /// The destination cannot be asked.
    #[error("{0}")]
    CannotAsk(String),
    /// The source's vmrun said no: nothing of it was carried out.
    #[error(transparent)]
    Undone(Refusal),
    /// The source's vmrun did not do what it was asked for, or did not say so.
    #[error(transparent)]
    Vmrun(ClientError),
    /// The guest's memory cannot be read.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The guest's disks were not flushed in time.
    #[error(
        "what the guest has written to its disks was not on them within {:.1} s",
        .within.as_secs_f64()
    )]
    SlowDisks {
        /// How long that was waited for.
        within: Duration,
    },
    /// The channel takes or gives nothing.
    #[error(transparent)]
    Channel(io::Error),
    /// The stream takes no such record.
    #[error(transparent)]
    Write(WriteError),
    /// The channel cannot be opened.
    #[error(transparent)]
    Open(OpenError),
    /// `--commit` through a channel without answers.
    #[error(
        "--commit needs the destination's answer, and {channel} has no way back: use ssh: or exec:, or \
         give --return"
    )]
    NoWayBack {
        /// The channel.
        channel: String,
    },
    /// Nobody says whether what leaves this program is saved.
    #[error(
        "{channel} does not say when it has taken all of the guest: save it to a file (> FILE, \
         file:PATH), or by a command whose status says so (exec:CMD)"
    )]
    NoPlace {
        /// The channel.
        channel: String,
    },
    /// The tunnel ended, or does not.
    #[error(transparent)]
    Tunnel(TunnelError),
    /// One way the end of the stream is the end of the tunnel, and not every program ends with its
    /// input.
    #[error("{0}, though the stream has ended: nc ends with its input only as nc -N")]
    StillOpen(TunnelError),
    /// An answer does not belong to what was sent.
    #[error(transparent)]
    Handover(#[from] HandoverError),
    /// A thread or a process of mig-send's own has ended.
    #[error("{0}")]
    Helper(&'static str),
    /// Something else, which says itself what it is.
    #[error(transparent)]
    Other(Box<dyn Error + Send + Sync>),
    /// The operator cancelled.
    #[error("cancelled")]
    Cancelled,
    /// The promised downtime cannot be kept.
    #[error("{rule}")]
    GaveUp {
        /// What would have been needed.
        needed: Duration,
        /// Which rule found that out.
        rule: Rule,
    },
}

impl StepError {
    /// For an error on which nothing depends.
    pub fn other(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Other(error.into())
    }

    /// Why, for a person.
    pub fn reason(&self) -> String {
        migpipe_cli::line_of(self)
    }

    /// A failure with what was being done in front. What says by itself what it is about stays as
    /// it is: a refusal, the operator's cancel.
    pub fn context(self, doing: &'static str) -> Self {
        match self.kind() {
            FailureKind::Failed
            | FailureKind::OtherHost
            | FailureKind::MayHaveRun
            | FailureKind::CannotAsk => Self::While { doing, why: Box::new(self) },
            FailureKind::Undone
            | FailureKind::Refused
            | FailureKind::GivenUp
            | FailureKind::Cancelled
            | FailureKind::GaveUp => self,
        }
    }

    /// Whether a wait took too long.
    pub fn is_timeout(&self) -> bool {
        match self {
            Self::While { why, .. } => why.is_timeout(),
            Self::Channel(error) => error.kind() == io::ErrorKind::TimedOut,
            _ => false,
        }
    }

    /// Whether the command line is what is wrong.
    pub const fn is_usage(&self) -> bool {
        match self {
            Self::Open(error) => error.is_usage(),
            Self::NoWayBack { .. } | Self::NoPlace { .. } => true,
            _ => false,
        }
    }

    /// Whether vmrun has ended, and the guest with it.
    pub fn is_end_of_vmrun(&self) -> bool {
        matches!(self, Self::Vmrun(error) if error.is_end_of_vmrun())
    }

    /// Whether this is what the destination says, or what came in place of that. What the tunnel
    /// command ended with says less then: it ended because nobody read on.
    pub fn names_what_came(&self) -> bool {
        match self {
            Self::While { why, .. } => why.names_what_came(),
            Self::GivenUp(_) => true,
            Self::Answer(error) => error.names_what_came(),
            _ => false,
        }
    }
}

impl Failure for StepError {
    fn kind(&self) -> FailureKind {
        match self {
            Self::While { why, .. } => why.kind(),
            Self::Refused(_) => FailureKind::Refused,
            Self::GivenUp(_) => FailureKind::GivenUp,
            Self::Undone(_) => FailureKind::Undone,
            Self::OtherHost(_) => FailureKind::OtherHost,
            Self::MayHaveRun(_) => FailureKind::MayHaveRun,
            Self::CannotAsk(_) => FailureKind::CannotAsk,
            Self::Cancelled => FailureKind::Cancelled,
            Self::GaveUp { .. } => FailureKind::GaveUp,
            Self::Handover(error) => error.kind(),
            Self::Answer(_)
            | Self::NoReady { .. }
            | Self::Unanswered(_)
            | Self::Vmrun(_)
            | Self::Memory(_)
            | Self::SlowDisks { .. }
            | Self::Channel(_)
            | Self::Write(_)
            | Self::Open(_)
            | Self::NoWayBack { .. }
            | Self::NoPlace { .. }
            | Self::Tunnel(_)
            | Self::StillOpen(_)
            | Self::Helper(_)
            | Self::Other(_) => FailureKind::Failed,
        }
    }
}

impl From<io::Error> for StepError {
    fn from(error: io::Error) -> Self {
        match ChannelError::is_interrupted(&error) {
            true => Self::Cancelled,
            false => Self::Channel(error),
        }
    }
}

impl From<WriteError> for StepError {
    fn from(error: WriteError) -> Self {
        match error {
            // The channel names itself and what it was doing; the record adds nothing to that.
            WriteError::Io { source, .. } => source.into(),
            error => Self::Write(error),
        }
    }
}

impl From<OpenError> for StepError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Wait(ChannelError::Interrupted { .. }) => Self::Cancelled,
            error => Self::Open(error),
        }
    }
}

impl From<TunnelError> for StepError {
    fn from(error: TunnelError) -> Self {
        match error {
            TunnelError::Cancelled { .. } | TunnelError::Interrupted { .. } => Self::Cancelled,
            error => Self::Tunnel(error),
        }
    }
}

impl From<ClientError> for StepError {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Refused(Refusal::Cancelled) => Self::Cancelled,
            error => Self::Vmrun(error),
        }
    }
}

impl From<ReturnError> for StepError {
    fn from(error: ReturnError) -> Self {
        match error {
            ReturnError::Io(source) => source.into(),
            error => Self::Answer(AnswerError::Read(error)),
        }
    }
}

/// Why what the destination answers is of no use.
#[derive(Debug, Error)]
pub enum AnswerError {
    /// What came cannot be read.
    #[error(transparent)]
    Read(ReturnError),
    /// Another message came than the one that was waited for.
    #[error("the destination answered {found} where {expected} was expected")]
    OutOfTurn {
        /// What came.
        found: String,
        /// What was waited for.
        expected: &'static str,
    },
    /// The destination says why it has no answer to a query. That says nothing of the guest.
    #[error("the destination: {0}")]
    NoOutcome(String),
    /// The return path ended.
    #[error("the destination closed the return path without a word")]
    Ended,
    /// There is no return path, or nothing is read from it any more.
    #[error("the return path is closed")]
    Closed,
}

impl AnswerError {
    const fn names_what_came(&self) -> bool {
        match self {
            Self::NoOutcome(_) => true,
            Self::Read(ReturnError::UnrecognisedStream(UnrecognisedStream::Nothing)) => false,
            Self::Read(error) => !matches!(
                error,
                ReturnError::Io(_) | ReturnError::Truncated { .. } | ReturnError::GivenUp
            ),
            Self::OutOfTurn { .. } | Self::Ended | Self::Closed => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use migpipe_units::MigrationId;

    use super::*;

    #[test]
    fn what_came_on_the_return_path_is_told_from_that_nothing_came() {
        let read = |bytes: &'static [u8]| {
            let read = mig_stream::ReturnReader::open(bytes, MigrationId::from_bytes([1; 16]));
            StepError::from(read.map(drop).unwrap_err()).context("no READY")
        };
        assert!(read(b"Welcome to hostb\nand so on and so forth\n").names_what_came());
        assert!(read(&[0x1f, 0x8b, 8, 0]).names_what_came());
        assert!(!read(b"").names_what_came());
        assert!(!read(b"\x89MIR\r\n\x1a\n").names_what_came());
        assert!(!StepError::Helper("no answer").names_what_came());
        assert!(StepError::GivenUp("no memory".to_owned()).names_what_came());
        let no_outcome = AnswerError::NoOutcome("it cannot be read".to_owned());
        assert!(StepError::from(no_outcome).names_what_came());
    }

    #[test]
    fn what_was_being_done_changes_no_kind_and_stands_in_front() {
        let slow = || StepError::Channel(io::ErrorKind::TimedOut.into());
        let error = slow().context("inner").context("outer");
        assert!(error.is_timeout());
        assert_eq!(error.kind(), FailureKind::Failed);
        assert_eq!(error.reason(), format!("outer: inner: {}", slow().reason()));
        let error = StepError::OtherHost("another one".to_owned()).context("not asked");
        assert_eq!(error.kind(), FailureKind::OtherHost);
        assert_eq!(error.reason(), "not asked: another one");
        let refused = StepError::Refused("no".to_owned()).context("not asked");
        assert_eq!(refused.reason(), "the destination refused: no");
    }

    #[test]
    fn whoever_interrupts_the_channel_or_cancels_in_vmrun_has_cancelled() {
        let doing = || "writing".to_owned();
        let interrupted = || io::Error::from(ChannelError::Interrupted { doing: doing() });
        let written =
            WriteError::Io { what: "a page", at: migpipe_units::Bytes(0), source: interrupted() };
        let refused = ClientError::Refused(Refusal::Cancelled);
        for error in [
            StepError::from(interrupted()),
            written.into(),
            OpenError::Wait(ChannelError::Interrupted { doing: doing() }).into(),
            TunnelError::Interrupted { tunnel: "ssh to hostb".to_owned() }.into(),
            refused.into(),
        ] {
            assert_eq!(error.kind(), FailureKind::Cancelled, "{error:?}");
        }
        let denied = ClientError::Refused(Refusal::failed("it is paused"));
        assert_eq!(StepError::from(denied).kind(), FailureKind::Failed);
    }
}
