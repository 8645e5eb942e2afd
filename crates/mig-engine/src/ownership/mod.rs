//! Ownership: which vmrun may run the guest.
//!
//! Each vmrun holds one [`Ownership`] and asks it before it does anything that matters. A step
//! yields a [`Transition`]: effects that must be complete *before* the new state is taken on
//! (durable records), the state itself, and effects that follow from it (run, exit). A state that
//! must not do something refuses with a [`Denied`] that says why.
//!
//! ```text
//!            boot                                  --incoming
//!             |                                        |
//!             v      Begin(id)                         v
//!          [owned] ------------> [migrating]       [incoming]
//!             ^  ^    Release       |   |              | Receive(id): record "may run"
//!             |  +------------------+   | Commit(id)   v
//!             |                         v          [receiving] ----------+
//!             |      TakeBack(id)  [handed-over]       | Prepared(id)    | Refuse(id):
//!             +-------------------------+  |           v                 | record "refused"
//!                                          |       [prepared] -----------+
//!                             Confirm(id)  v           | Go(id, nonce)   v
//!                                        exit          v             [refused] -> exit
//!                                                   [owned]
//! ```
//!
//! Four rules carry the safety of the handover:
//! - the source records [`State::HandedOver`] before anyone writes `Go`, and only the
//!   destination's own refusal ([`Input::TakeBack`]) leads back from there;
//! - the destination runs from [`State::Prepared`] alone, and a refusal is on disk before it
//!   takes effect;
//! - `Go` is for the copy of the guest that was acknowledged: it carries the nonce which that one
//!   made, so that a copy of the stream which came to another vmrun waits in vain;
//! - a guest that is prepared waits for as long as nobody decides. It may be the last whole copy:
//!   its source may have committed and crashed then. It is refused by its source, which says that
//!   it took the guest back, or by an operator's word, never by the lapse of time, unless the user
//!   asked for that (`--go-timeout`).

mod denied;
mod input;
mod machine;
mod migration_status;
mod state;
mod transition;

#[cfg(test)]
mod machine_tests;
#[cfg(test)]
mod table_tests;

pub use denied::Denied;
pub use input::{Authority, Input};
pub use machine::Ownership;
pub use migration_status::MigrationStatus;
pub use state::State;
pub use transition::{Decision, Effect, Transition};
