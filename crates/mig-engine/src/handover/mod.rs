//! The handover: never two, never lost.
//!
//! The tools carry messages between the two vmruns; these machines say in which order. Each has
//! one question, `step()`: what is to be done now; and one answer, `advance(outcome)`: how it
//! went. They hold no channel, no clock and no memory of the guest.
//!
//! Both ways:
//! ```text
//! vmrun (source)      mig-send                          mig-recv       vmrun (destination)
//!      |                 | -- header ---------------------> |                  |
//!      |                 |                                  | -- receive ----> | may-run on disk
//!      |                 | <------------------------ READY  |                  |
//!      | <---- begin --- |                                  |                  |
//!      |                 | == rounds of pages ============> | (into its memory)|
//!      | <---- pause --- |                                  |                  |
//!      |                 | -- last pages, sections, End --> |                  |
//!      |                 |                                  | -- load -------> | prepared
//!      |                 | <------------ ACK(host, nonce)  | <----- nonce --- |
//!      | <--- commit --- | (keeps host and nonce)           |                  |
//! handed-over            |                                  |                  |
//!      |                 | -- GO(nonce) ------------------> | -- go(nonce) --> | owned, runs
//!      |                 | <---------------------- RUNNING  |                  |
//!      | <-- confirm --- |                                  |                  |
//!    exits               |                                  |                  |
//! ```
//! One way (`mig-send web | ... | mig-recv`) there is no READY, ACK or RUNNING: the source commits
//! before `End` is written, and the destination runs the guest once it has `End`, its digest and
//! the end of the file. With a separate commit (`--commit`), the forward path is closed after
//! `End` and GO goes through a second command.
//!
//! ACK says who acknowledges: the host whose records have the migration, and a nonce that the
//! destination's vmrun made for this copy of the guest. It is in ACK and not in READY because ACK
//! is what all forms have that ask for an answer, because vmrun alone knows whose records it
//! writes, and because the source commits to what it was told last. The source's vmrun keeps both
//! with the hand-over, so that they outlive mig-send; GO carries the nonce, and every question both.
//!
//! Before the commit every failure ends with the source running and the destination gone. A
//! destination that may be prepared by then is told so, by a question of its own kind and with the
//! guest's next migration; until it hears of that it waits, for it cannot tell a source that took
//! its guest back from one that crashed behind its commit. After the commit, what is not known is
//! resolved: see [`resolve`].

mod destination;
pub mod resolve;
mod source;

pub use destination::{Destination, DestinationEnding, DestinationStep};
pub use source::{Source, SourceEnding, SourceStep};

use serde::{Deserialize, Serialize};

/// Which way the messages of the handover go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Form {
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

impl Form {
    /// Whether answers come back.
    pub const fn is_answered(self) -> bool {
        matches!(self, Self::BothWays | Self::SeparateCommit)
    }
}

/// How a step went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It was done.
    Done,
    /// It failed or took too long.
    Failed,
    /// The other side refused, durably; or there is no other side, as the stream went to a file
    /// that is gone or has no end.
    Refused,
    /// The operator cancelled.
    Cancelled,
}
