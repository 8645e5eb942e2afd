//! The state machine.

use migpipe_units::{Acknowledged, MigrationId, Nonce};

use super::denied::Denied;
use super::input::{Authority, Input};
use super::migration_status::MigrationStatus;
use super::state::State;
use super::transition::{Decision, Effect, Transition};

/// The ownership of one vmrun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ownership {
    state: State,
    /// The migration by which the guest came, kept for as long as the process lives: a second GO
    /// and late queries are answered from it.
    arrived_by: Option<MigrationId>,
    /// The guest that arrives comes from a file.
    saved: bool,
    /// What GO must bring for the guest that arrives or arrived.
    nonce: Option<Nonce>,
    /// Who took the guest that was handed over, as far as that is known.
    taken_by: Option<Acknowledged>,
}

impl Ownership {
    const fn new(state: State) -> Self {
        Self { state, arrived_by: None, saved: false, nonce: None, taken_by: None }
    }

    /// A vmrun that booted its guest.
    pub const fn booted() -> Self {
        Self::new(State::Owned)
    }

    /// A vmrun that waits for a guest.
    pub const fn incoming() -> Self {
        Self::new(State::Incoming)
    }

    /// The state now.
    pub const fn state(&self) -> State {
        self.state
    }

    /// Whether vCPUs may run now.
    pub const fn may_run(&self) -> bool {
        matches!(self.state, State::Owned | State::Migrating(_))
    }

    /// Whether the guest that arrives, or arrived, comes from a file.
    pub const fn is_saved(&self) -> bool {
        self.saved
    }

    /// Who took the guest that is handed over: what every query about it carries. Nothing one
    /// way.
    pub fn taken_by(&self) -> Option<Acknowledged> {
        self.taken_by.filter(|_| matches!(self.state, State::HandedOver(_)))
    }

    /// What is known here of the migration `id`, for one whose ACK had this nonce.
    pub fn migration_status(&self, id: MigrationId, nonce: Option<Nonce>) -> MigrationStatus {
        if self.arrived_by == Some(id) {
            return MigrationStatus::Running;
        }
        match self.state {
            State::Receiving(mine) if mine == id => MigrationStatus::Receiving,
            State::Prepared(mine) if mine == id && self.nonce == nonce => MigrationStatus::Prepared,
            State::Prepared(mine) if mine == id => MigrationStatus::PreparedForAnother,
            State::Refused(mine) if mine == id => MigrationStatus::Refused,
            _ => MigrationStatus::NotMine,
        }
    }

    /// What `input` leads to. Nothing changes until [`Self::enter`].
    ///
    /// # Errors
    /// [`Denied`] where the state does not allow it.
    pub fn step(&self, input: Input) -> Result<Transition, Denied> {
        use Input::*;
        let to = |next| Transition { before: None, next, after: None, later: None };
        Ok(match (self.state, input) {
            (State::Owned, Begin(id)) => to(State::Migrating(id)),
            (State::Migrating(id), Release(asked)) if id == asked => {
                Transition { after: Some(Effect::Run), ..to(State::Owned) }
            }
            (State::Migrating(id), Commit(asked, _)) if id == asked => to(State::HandedOver(id)),
            // A client that lost the answer to its commit may ask again.
            (State::HandedOver(id), Commit(asked, by)) if id == asked && by == self.taken_by => {
                to(self.state)
            }
            (State::HandedOver(id), Confirm(asked)) if id == asked => {
                Transition { after: Some(Effect::Exit), ..to(State::Finished) }
            }
            (State::HandedOver(id), TakeBack(asked)) if id == asked => {
                Transition { after: Some(Effect::Run), ..to(State::Owned) }
            }

            (State::Incoming, Receive(id)) => Transition {
                before: Some(Effect::Record(id, Decision::MayRun)),
                ..to(State::Receiving(id))
            },
            (State::Incoming, Restore(id)) => Transition {
                before: Some(Effect::Record(id, Decision::Restoring)),
                ..to(State::Receiving(id))
            },
            (State::Receiving(id), Prepared(asked, _)) if id == asked => to(State::Prepared(id)),
            (State::Prepared(id), Go(asked, by)) if id == asked => {
                self.check(id, by)?;
                Transition {
                    // Up to here the saved guest has run nowhere and its file is good; a crash from
                    // here on must not let it run twice. Nobody's downtime waits for this.
                    before: self.saved.then_some(Effect::Record(id, Decision::MayRun)),
                    after: Some(Effect::Run),
                    later: Some(Effect::Record(id, Decision::Ran)),
                    ..to(State::Owned)
                }
            }
            (_, Go(asked, by)) if self.arrived_by == Some(asked) => {
                self.check(asked, by)?;
                to(self.state)
            }
            (State::Receiving(id) | State::Prepared(id), Refuse(asked)) if id == asked => {
                self.give_up(id)
            }
            (State::Receiving(id) | State::Prepared(id), Quit { .. }) => self.give_up(id),
            (State::Refused(id), Refuse(asked)) if id == asked => to(self.state),

            (State::HandedOver(id), Quit { force: false }) => {
                return Err(Denied::MayBeLastCopy(id));
            }
            (_, Quit { .. }) => Transition { after: Some(Effect::Exit), ..to(State::Finished) },

            (state, input) => return Err(Self::denial(state, input)),
        })
    }

    /// A guest that has not run is given up here: for ever, so that whoever asks is told. A saved one
    /// may be restored again: this is no refusal, and nothing of it is told.
    const fn give_up(&self, id: MigrationId) -> Transition {
        let (before, next) = match self.saved {
            true => (Effect::Forget(id), State::Finished),
            false => (Effect::Record(id, Decision::Refused), State::Refused(id)),
        };
        Transition { before: Some(before), next, after: Some(Effect::Exit), later: None }
    }

    /// Whether GO is for this copy of the guest.
    fn check(&self, id: MigrationId, by: Authority) -> Result<(), Denied> {
        match by {
            Authority::Source(nonce) if nonce != self.nonce => Err(Denied::NotAcknowledged(id)),
            Authority::Source(_) | Authority::Operator => Ok(()),
        }
    }

    /// Takes on the state of `transition`, to which `input` led, after its `before` effect is
    /// complete.
    pub fn enter(&mut self, input: Input, transition: &Transition) {
        match (self.state, input) {
            (State::Migrating(_), Input::Commit(_, by)) => self.taken_by = by,
            (State::Receiving(_), Input::Prepared(_, nonce)) => self.nonce = nonce,
            (State::Incoming, Input::Restore(_)) => self.saved = true,
            (State::Prepared(id), Input::Go(..)) => self.arrived_by = Some(id),
            _ => {}
        }
        self.state = transition.next;
    }

    fn denial(state: State, input: Input) -> Denied {
        use Input::*;
        match (state, input) {
            (State::Finished, _) => Denied::Finished,
            (State::Migrating(id), Begin(_)) => Denied::AlreadyMigrating(id),
            (State::HandedOver(id), Begin(_)) => Denied::HandedOver(id),
            (State::Incoming | State::Receiving(_) | State::Prepared(_), Begin(_)) => {
                Denied::StillArriving
            }
            (State::Refused(id), _) => Denied::Refused(id),
            (_, Receive(_) | Restore(_)) => Denied::NotIncoming,
            (
                state,
                Release(asked)
                | Commit(asked, _)
                | Confirm(asked)
                | TakeBack(asked)
                | Prepared(asked, _)
                | Go(asked, _)
                | Refuse(asked),
            ) => Denied::OtherMigration { asked, state },
            (_, Begin(_) | Quit { .. }) => Denied::Finished,
        }
    }
}
