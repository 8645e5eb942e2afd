//! How an operation went, as far as the handover has to know.

use thiserror::Error;

/// What kind of failure an operation ended with: what a driver is told of it. The text for the user
/// stays with whoever carries the operations out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FailureKind {
    /// It failed or took too long. Whether the other side has carried it out is not known.
    Failed,
    /// It failed, and it is certain that nothing of it was carried out: the source's vmrun said no,
    /// or the file that was written is gone.
    Undone,
    /// The other side refused, durably.
    Refused,
    /// The destination has said that it gave the guest up before it was to run it.
    GivenUp,
    /// The operator cancelled.
    Cancelled,
    /// The promised downtime cannot be kept.
    GaveUp,
    /// Another host answered a query than the one that acknowledged the guest.
    OtherHost,
    /// The destination may have run the guest, and nobody is left there who knows: asking again does
    /// not change that.
    MayHaveRun,
    /// The destination cannot be asked.
    CannotAsk,
}

/// An error of an operation, with its text.
pub trait Failure {
    /// What the driver is told of it.
    fn kind(&self) -> FailureKind;
}

/// What a driver finds wrong with an answer of the other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum HandoverError {
    /// The digest in ACK is not that of what was sent.
    #[error("the destination acknowledged another stream")]
    OtherStream,
    /// The nonce in GO is not that of the ACK: a copy of the stream came here, at once (tee) or
    /// later, and the ACK for it reached no source.
    #[error(
        "GO is for another copy of the guest: this stream was read elsewhere too, and its source \
         heard of that one"
    )]
    OtherCopy,
    /// There is no nonce, which an ACK must carry and GO must bring.
    #[error("nobody has acknowledged the guest")]
    NothingToAcknowledge,
}

impl Failure for HandoverError {
    fn kind(&self) -> FailureKind {
        match self {
            Self::OtherStream | Self::NothingToAcknowledge => FailureKind::Failed,
            // No GO for this copy will come.
            Self::OtherCopy => FailureKind::Refused,
        }
    }
}
