//! Which way the messages of a handover go.

use serde::{Deserialize, Serialize};

/// Which way the messages of the handover go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum HandoverMode {
    /// Through the stream and a prompt return path.
    BothWays,
    /// The forward path holds data back: it is closed after `End`, and GO goes through another
    /// command.
    SeparateCommit,
    /// Forward only.
    OneWay,
    /// Into a file, which is the guest from then on: forward only as well, but the source ends once
    /// the file is whole and on the disk, so that nobody will ever ask what became of it.
    Saved,
}

impl HandoverMode {
    /// Whether answers come back.
    pub const fn is_answered(self) -> bool {
        matches!(self, Self::BothWays | Self::SeparateCommit)
    }
}
