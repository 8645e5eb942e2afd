//! The handover: never two, never lost.
//!
//! The tools carry messages between the two vmruns; these drivers say what is to be done. Each hands
//! out one operation, [`Source::operation`], and is told how it went, [`Source::advance`]. They hold
//! no channel, no clock and no memory of the guest. What they need done is a trait with one method for
//! each operation ([`SourceIo`], [`DestinationIo`], [`ResolveIo`]), and one loop ([`run_source`],
//! [`run_destination`], [`run_resolver`]) has it done. mig-send and mig-recv implement the traits with
//! channels and vmruns, unit tests with a double that fails in every way, and the model check drives
//! the same drivers in its own world.
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
//! A snapshot (`--snapshot`) is a file that the guest is written to and not moved to: nothing is
//! committed, and the guest runs on before `End` is written. Its stream says what it is, and a
//! destination runs it as a copy alone, under a migration id of its own.
//!
//! ACK says who acknowledges: the host whose records have the migration, and a nonce that the
//! destination's vmrun made for this copy of the guest. It is in ACK and not in READY because ACK
//! is what all forms have that ask for an answer, because vmrun alone knows whose records it
//! writes, and because the source commits to what it was told last. The source's vmrun keeps both
//! with the hand-over, so that they outlive mig-send; GO carries the nonce, and every query both.
//!
//! Before the commit every failure ends with the source running and the destination gone. A
//! destination that may be prepared by then is told so, by a query of its own kind and with the
//! guest's next migration; until it hears of that it waits, for it cannot tell a source that took
//! its guest back from one that crashed behind its commit. After the commit, what is not known is
//! resolved: the source asks ([`Resolver`]), and the host answers ([`Responder`]).
//!
//! # What decides outside this crate who has the guest
//! Of mig-send, mig-recv, `mig-send --resolve` and the mig-recv that answers it: nothing. They report
//! what happened as a [`FailureKind`], and these are the reports that the drivers rely on:
//! - a commit is [`FailureKind::Undone`] only if vmrun said no, and [`FailureKind::Cancelled`] only if
//!   it was not asked for, or refused because the operator cancelled in vmrun;
//! - before the commit a failure is [`FailureKind::Refused`] or [`FailureKind::GivenUp`] only if the
//!   destination itself has said so on the return path: it is not told that the guest was released;
//! - what became of the guest at its source is what its vmrun says, and
//!   [`Gone`](SourceGuestState::Gone) only if that has ended;
//! - an answer of the destination to a query is what [`Query::verdict`] says of it;
//! - a file is removed only if [`SourceIo::remove_file`] knows that it has no end;
//! - a destination reads that no GO will come only from the source itself (`Abort`);
//! - what a vmrun or a record says of the guest is passed on as it is said.
//!
//! A time that runs out is [`FailureKind::Failed`] everywhere: how long is waited decides when a driver
//! goes on, and never where to. That the destination cannot be asked at all (`--resolve-for 0`, a
//! pipe) is [`FailureKind::CannotAsk`]: the source stays handed-over, unless the operator forces it.
//! What each vmrun decides is in [`ownership`](crate::ownership); vmrun itself releases a guest whose
//! client goes away, and refuses one whose time limit for GO (`--go-timeout`) is over. Who is asked
//! for the answer to a query, in which order, and what may be said of it when, is decided by
//! [`Responder`]; mig-recv reads records and asks vmruns for it.

mod destination;
mod destination_io;
mod ending;
mod failure;
mod guest;
mod mode;
mod reply;
mod resolver;
mod responder;
mod responder_io;
mod source;
mod source_io;

#[cfg(test)]
mod destination_tests;
#[cfg(test)]
mod responder_tests;
#[cfg(test)]
mod script;
#[cfg(test)]
mod source_tests;

pub use destination::{
    Destination, DestinationEnding, DestinationOperation, DestinationStep, DestinationStepOutcome,
};
pub use destination_io::{DestinationEnd, DestinationIo, run as run_destination};
pub use ending::SourceEnding;
pub use failure::{Failure, FailureKind, HandoverError};
pub use guest::SourceGuestState;
pub use mode::HandoverMode;
pub use resolver::{Query, ResolveIo, ResolveOperation, Resolver, run as run_resolver};
pub use responder::{
    Doubt, HostAnswer, HostMemory, Responder, ResponderOperation, ResponderOutcome,
};
pub use responder_io::{ResponderIo, run as run_responder};
pub use source::{Source, SourceOperation, SourceStep, SourceStepOutcome};
pub use source_io::{SourceEnd, SourceIo, run as run_source};
