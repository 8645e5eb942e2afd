//! How a migration ended for its sender.

/// How a migration ended for its sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SourceEnding {
    /// The destination runs the guest (both ways), or the stream is complete (one way).
    Moved,
    /// A snapshot of the guest is whole, and the guest runs on the source.
    Snapshot,
    /// The guest runs on the source.
    Stayed,
    /// The operator cancelled; the guest runs on the source.
    Cancelled,
    /// The operator has forced the guest back; it runs on the source.
    Forced,
    /// The source is handed-over and the outcome is not known.
    Unknown,
}

impl SourceEnding {
    /// mig-send's exit status for this ending.
    pub const fn exit_status(self) -> u8 {
        match self {
            Self::Moved | Self::Snapshot => 0,
            Self::Stayed | Self::Forced => 1,
            Self::Cancelled => 3,
            Self::Unknown => 4,
        }
    }
}
