//! Why vmrun does not do what it was asked: a code, by which programs decide, with its fields. The
//! sentence that a person reads is made from it here.

use std::time::Duration;

use mig_engine::ownership::{Denied, State};
use migpipe_units::MigrationId;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Why vmrun does not do what it was asked. As text it is one line: what, on which thing, and what to
/// do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Error)]
pub enum Refusal {
    /// The client is neither vmrun's user nor root.
    #[error("this guest belongs to uid {owner}; uid {client} may not control it")]
    OtherUser {
        /// vmrun's user.
        owner: u32,
        /// The client's.
        client: u32,
    },
    /// The system does not say whose the client is.
    #[error("cannot tell who you are: {reason}")]
    UnknownUser {
        /// What it says.
        reason: String,
    },
    /// Every connection that vmrun serves is taken.
    #[error("{most} clients are connected already: try again later")]
    TooManyClients {
        /// How many it serves.
        most: u32,
    },
    /// The message is beyond every real one of its kind.
    #[error("a message of {length} bytes; at most {most} are read here")]
    TooLong {
        /// Its length (bytes).
        length: u64,
        /// The longest that is read (bytes).
        most: u32,
    },
    /// The message is none of this protocol.
    #[error("the message is damaged, or from another release")]
    Damaged,
    /// The first request of a connection is [`Request::Hello`](crate::Request::Hello).
    #[error("say hello first")]
    NotGreeted,
    /// This step of the ownership machine has a request of its own.
    #[error("this step has a request of its own")]
    OtherRequest,

    /// The ownership machine does not allow it.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// A guest of this name has left this host.
    #[error("{}", or_silence(why))]
    Held {
        /// Where it went, and what to do.
        why: String,
    },
    /// vmrun has no guest.
    #[error("no guest has arrived yet")]
    NoGuest,
    /// A guest is arriving already.
    #[error("a guest arrives here, or has arrived")]
    AlreadyReceiving,
    /// The client that brings the guest has gone.
    #[error("whoever brought a guest went away while its files were being opened")]
    ClientGone,
    /// The guest may not run here now.
    #[error("the guest may not run here: it is {state}")]
    MayNotRun {
        /// What vmrun is to it.
        state: State,
    },
    /// A guest that does not run gives no memory back.
    #[error("the guest cannot be asked for memory while it does not run: it is {state}")]
    NotRunning {
        /// What vmrun is to it.
        state: State,
    },
    /// A guest that runs has no state to save.
    #[error("only a paused guest has a state to save: pause it first")]
    NotPaused,

    /// This is for the connection that began a migration.
    #[error("begin a migration on this connection first")]
    NotBegun,
    /// The guest is not on its way.
    #[error("no migration is under way")]
    NoMigration,
    /// The guest is on its way by another migration than the client's.
    #[error("another migration is under way ({have}), not {asked}")]
    WrongMigration {
        /// The one that is under way.
        have: MigrationId,
        /// The one that the request names.
        asked: MigrationId,
    },
    /// The operator has cancelled the client's migration, and the guest is its vmrun's again.
    #[error("the operator has cancelled this migration")]
    Cancelled,
    /// The client gave no sign of life while the guest stood still for it, and the guest is its
    /// vmrun's again.
    #[error(
        "nothing was heard of the sender for {} s while the guest stood still for it, and the guest \
         was given back",
        after.as_secs()
    )]
    GivenUp {
        /// How long nothing was heard.
        after: Duration,
    },
    /// The guest was handed over: nobody here takes orders for its migration any more.
    #[error("the guest was handed over ({id}): it is too late for orders")]
    TooLateForOrders {
        /// The migration.
        id: MigrationId,
    },
    /// The sender leaves its orders where they are.
    #[error("mig-send does not take its orders: does it still run?")]
    OrdersPending {
        /// How many wait.
        most: u32,
    },
    /// The dirty log was not started.
    #[error("the dirty log is not on")]
    DirtyLogOff,
    /// The state was not saved in this blackout.
    #[error("commit before the state was saved: the destination would run an older guest")]
    NotSaved,
    /// The disks were not flushed in this blackout.
    #[error(
        "commit before the disks were flushed: the destination might read what was there before"
    )]
    NotFlushed,

    /// No guest is slowed down so much.
    #[error("a guest is slowed down by 0 to {most} percent")]
    ThrottleTooHigh {
        /// The most (percent).
        most: u8,
    },
    /// The progress is longer than what is shown.
    #[error("the progress is too long to be shown: at most {most} bytes")]
    ProgressTooLong {
        /// The longest (bytes).
        most: u32,
    },

    /// Storage that does not answer keeps an order from being carried out.
    #[error(
        "the guest's storage hangs, and the order is not carried out: try again, or end the guest \
         (vmctl quit)"
    )]
    StorageHangs,
    /// Storage that does not answer keeps the refusal of a prepared guest from being recorded.
    #[error(
        "the guest waits for GO, and its storage hangs so that it cannot be refused: quit with \
         --force to throw this copy away"
    )]
    CannotRecordRefusal,

    /// What it takes has failed.
    #[error("{}", or_silence(reason))]
    Failed {
        /// What, on which thing, and why: one line.
        reason: String,
    },
}

impl Refusal {
    /// What it takes has failed, for this reason.
    pub fn failed(reason: impl ToString) -> Self {
        Self::Failed { reason: reason.to_string() }
    }
}

/// A reason, also where there is none.
fn or_silence(reason: &str) -> &str {
    if reason.is_empty() { "vmrun refuses and does not say why" } else { reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: MigrationId = MigrationId::from_bytes([1; 16]);
    const OTHER: MigrationId = MigrationId::from_bytes([2; 16]);

    #[test]
    fn the_sentence_names_what_is_in_the_fields() {
        let after = Duration::from_secs(10);
        for (refusal, parts) in [
            (Refusal::OtherUser { owner: 7, client: 65_534 }, ["uid 7", "uid 65534"]),
            (Refusal::TooLong { length: 5000, most: 4096 }, ["of 5000 bytes", "most 4096"]),
            (
                Refusal::WrongMigration { have: ID, asked: OTHER },
                [&*format!("({ID})"), &*format!("not {OTHER}")],
            ),
            (Refusal::GivenUp { after }, ["for 10 s", "given back"]),
            (Refusal::NotRunning { state: State::Incoming }, ["memory", "incoming"]),
            (Denied::Refused(ID).into(), ["refused the migration", &*ID.to_string()]),
        ] {
            let text = refusal.to_string();
            assert!(parts.iter().all(|part| text.contains(part)), "{text}");
        }
    }

    #[test]
    fn a_refusal_without_a_reason_says_that() {
        for refusal in [Refusal::failed(""), Refusal::Held { why: String::new() }] {
            assert!(refusal.to_string().contains("does not say why"), "{refusal:?}");
        }
        assert_eq!(Refusal::failed("the disk is full").to_string(), "the disk is full");
    }
}
