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
//!                             Confirm(id)  v           | Go(id)          v
//!                                        exit          v             [refused] -> exit
//!                                                   [owned]
//! ```
//!
//! Two rules carry the safety of the handover:
//! - the source records [`State::HandedOver`] before anyone writes `Go`, and only the
//!   destination's own refusal ([`Input::TakeBack`]) leads back from there;
//! - the destination runs from [`State::Prepared`] alone, and a refusal is on disk before it
//!   takes effect.

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use units::MigrationId;

/// What one vmrun is to its guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum State {
    /// The guest is this vmrun's: it may run and may be paused.
    Owned,
    /// A client sends the guest away; it may run until the blackout.
    Migrating(MigrationId),
    /// The guest belongs to the destination. It never runs here again, unless the destination
    /// refuses it.
    HandedOver(MigrationId),
    /// No guest yet.
    Incoming,
    /// A guest is arriving.
    Receiving(MigrationId),
    /// The guest is here, whole, and waits for GO.
    Prepared(MigrationId),
    /// This host will never run that migration's guest.
    Refused(MigrationId),
    /// Nothing is left to do; the process ends.
    Finished,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Owned => f.write_str("owned"),
            Self::Migrating(id) => write!(f, "migrating ({id})"),
            Self::HandedOver(id) => write!(f, "handed-over ({id})"),
            Self::Incoming => f.write_str("incoming"),
            Self::Receiving(id) => write!(f, "receiving ({id})"),
            Self::Prepared(id) => write!(f, "prepared ({id})"),
            Self::Refused(id) => write!(f, "refused ({id})"),
            Self::Finished => f.write_str("finished"),
        }
    }
}

/// What somebody asks of a vmrun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Input {
    /// A client starts to send the guest away.
    Begin(MigrationId),
    /// The migration ends before its commit: cancelled, failed, or its client went away.
    Release(MigrationId),
    /// The point of no return at the source.
    Commit(MigrationId),
    /// The destination runs the guest.
    Confirm(MigrationId),
    /// The destination has refused this migration, durably.
    TakeBack(MigrationId),
    /// A guest starts to arrive.
    Receive(MigrationId),
    /// A saved guest starts to arrive: its file is left if it does not run here, and nobody will
    /// ask.
    Restore(MigrationId),
    /// Pages and state are loaded and every check passed.
    Prepared(MigrationId),
    /// The source has committed: run.
    Go(MigrationId),
    /// Give this migration up, for ever.
    Refuse(MigrationId),
    /// The operator ends the guest. `force` ends it where it may be the last copy too.
    Quit {
        /// Whether the operator insists.
        force: bool,
    },
}

/// What a vmrun has to do for a transition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Write this decision to the state directory, and to the disk.
    Record(MigrationId, Decision),
    /// Remove what is recorded of this migration, which has not run here and may arrive again. That
    /// it stays does no harm: see [`Decision::Restoring`].
    Forget(MigrationId),
    /// Let the vCPUs run, if the guest was not paused by its operator.
    Run,
    /// End the process.
    Exit,
}

/// What a destination host remembers of a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Decision {
    /// A saved guest is being restored and has not run. This holds for as long as the process that
    /// recorded it lives: after that the migration may arrive again.
    Restoring,
    /// The guest may have run here: nobody else may run it unless this host says so.
    MayRun,
    /// The guest did run here.
    Ran,
    /// The guest has not run here and never will.
    Refused,
}

/// One step of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    /// What must be complete before `next` holds. If it fails, the state stays as it was.
    pub before: Option<Effect>,
    /// The state from now on.
    pub next: State,
    /// What follows from the new state.
    pub after: Option<Effect>,
    /// What is to be recorded some time after; nobody waits for it.
    pub later: Option<Effect>,
}

/// Why a vmrun does not do what it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Denied {
    /// The guest is on its way already.
    #[error("a migration of this guest is under way ({0}): wait for it, or cancel it")]
    AlreadyMigrating(MigrationId),
    /// The guest is not this vmrun's any more.
    #[error("the guest was handed over ({0}): find its outcome with mig-send --resolve")]
    HandedOver(MigrationId),
    /// The guest has not arrived.
    #[error("the guest is still arriving")]
    StillArriving,
    /// This migration was refused, and a refusal is for ever.
    #[error("this host has refused the migration {0}, for ever: send the guest again")]
    Refused(MigrationId),
    /// The request names another migration.
    #[error("this is not about the migration {asked}: the guest is {state}")]
    OtherMigration {
        /// The migration that was asked about.
        asked: MigrationId,
        /// What the vmrun is.
        state: State,
    },
    /// The vmrun holds a guest, and was asked to take another.
    #[error("this vmrun has a guest: start another with vmrun --incoming")]
    NotIncoming,
    /// The guest may exist nowhere else.
    #[error(
        "the guest was handed over ({0}) and the destination has not confirmed it: resolve it, or \
         quit with --force to throw this copy away"
    )]
    MayBeLastCopy(MigrationId),
    /// The process is about to end.
    #[error("this vmrun is ending")]
    Finished,
}

/// What a vmrun says when it is asked about a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Standing {
    /// The guest is arriving.
    Receiving,
    /// The guest waits for GO.
    Prepared,
    /// The guest runs here, or ran here and went on from here.
    Running,
    /// The guest was refused here.
    Refused,
    /// This vmrun has nothing to do with that migration.
    NotMine,
}

/// The ownership of one vmrun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ownership {
    state: State,
    /// The migration by which the guest came, kept for as long as the process lives: a second GO
    /// and late questions are answered from it.
    arrived_by: Option<MigrationId>,
    /// The guest that arrives comes from a file.
    saved: bool,
}

impl Ownership {
    /// A vmrun that booted its guest.
    pub const fn booted() -> Self {
        Self { state: State::Owned, arrived_by: None, saved: false }
    }

    /// A vmrun that waits for a guest.
    pub const fn incoming() -> Self {
        Self { state: State::Incoming, arrived_by: None, saved: false }
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

    /// What is known here of the migration `id`.
    pub fn standing(&self, id: MigrationId) -> Standing {
        if self.arrived_by == Some(id) {
            return Standing::Running;
        }
        match self.state {
            State::Receiving(mine) if mine == id => Standing::Receiving,
            State::Prepared(mine) if mine == id => Standing::Prepared,
            State::Refused(mine) if mine == id => Standing::Refused,
            _ => Standing::NotMine,
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
            (State::Migrating(id), Commit(asked)) if id == asked => to(State::HandedOver(id)),
            // A client that lost the answer to its commit may ask again.
            (State::HandedOver(id), Commit(asked)) if id == asked => to(self.state),
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
            (State::Receiving(id), Prepared(asked)) if id == asked => to(State::Prepared(id)),
            (State::Prepared(id), Go(asked)) if id == asked => Transition {
                // Up to here the saved guest has run nowhere and its file is good; a crash from here
                // on must not let it run twice. Nobody's downtime waits for this.
                before: self.saved.then_some(Effect::Record(id, Decision::MayRun)),
                after: Some(Effect::Run),
                later: Some(Effect::Record(id, Decision::Ran)),
                ..to(State::Owned)
            },
            (_, Go(asked)) if self.arrived_by == Some(asked) => to(self.state),
            (State::Receiving(id) | State::Prepared(id), Refuse(asked))
                if self.saved && id == asked =>
            {
                self.give_up(id)
            }
            (State::Receiving(id) | State::Prepared(id), Quit { .. }) if self.saved => {
                self.give_up(id)
            }
            (State::Receiving(id) | State::Prepared(id), Refuse(asked)) if id == asked => {
                Transition {
                    before: Some(Effect::Record(id, Decision::Refused)),
                    after: Some(Effect::Exit),
                    ..to(State::Refused(id))
                }
            }
            (State::Refused(id), Refuse(asked)) if id == asked => to(self.state),

            (State::HandedOver(id), Quit { force: false }) => {
                return Err(Denied::MayBeLastCopy(id));
            }
            (State::Receiving(id) | State::Prepared(id), Quit { .. }) => Transition {
                before: Some(Effect::Record(id, Decision::Refused)),
                after: Some(Effect::Exit),
                ..to(State::Refused(id))
            },
            (_, Quit { .. }) => Transition { after: Some(Effect::Exit), ..to(State::Finished) },

            (state, input) => return Err(Self::denial(state, input)),
        })
    }

    /// A saved guest that has not run is given up here, and may be restored again: this is no
    /// refusal, and nothing of it is to be told to anybody who asks.
    const fn give_up(&self, id: MigrationId) -> Transition {
        Transition {
            before: Some(Effect::Forget(id)),
            next: State::Finished,
            after: Some(Effect::Exit),
            later: None,
        }
    }

    /// Takes on the state of `transition`, after its `before` effect is complete.
    pub fn enter(&mut self, transition: &Transition) {
        if let Some(Effect::Record(_, Decision::Restoring)) = transition.before {
            self.saved = true;
        }
        if let (State::Prepared(id), State::Owned) = (self.state, transition.next) {
            self.arrived_by = Some(id);
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
                Release(asked) | Commit(asked) | Confirm(asked) | TakeBack(asked) | Prepared(asked)
                | Go(asked) | Refuse(asked),
            ) => Denied::OtherMigration { asked, state },
            (_, Begin(_) | Quit { .. }) => Denied::Finished,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: MigrationId = MigrationId::from_bytes([1; 16]);
    const OTHER: MigrationId = MigrationId::from_bytes([2; 16]);

    fn drive(mut ownership: Ownership, inputs: &[Input]) -> Ownership {
        for input in inputs {
            let transition = ownership.step(*input).expect("the path is allowed");
            ownership.enter(&transition);
        }
        ownership
    }

    fn every_input(id: MigrationId) -> [Input; 12] {
        use Input::*;
        [
            Begin(id),
            Release(id),
            Commit(id),
            Confirm(id),
            TakeBack(id),
            Receive(id),
            Restore(id),
            Prepared(id),
            Go(id),
            Refuse(id),
            Quit { force: false },
            Quit { force: true },
        ]
    }

    #[test]
    fn only_the_destinations_refusal_leads_back_from_handed_over() {
        let source = drive(Ownership::booted(), &[Input::Begin(ID), Input::Commit(ID)]);
        assert!(!source.may_run());
        for input in every_input(ID).into_iter().chain(every_input(OTHER)) {
            if let Ok(transition) = source.step(input) {
                let runs = matches!(transition.next, State::Owned | State::Migrating(_));
                assert_eq!(runs, input == Input::TakeBack(ID), "{input:?}");
            }
        }
    }

    #[test]
    fn a_destination_runs_after_go_alone() {
        for path in [&[][..], &[Input::Receive(ID)], &[Input::Receive(ID), Input::Prepared(ID)]] {
            let destination = drive(Ownership::incoming(), path);
            assert!(!destination.may_run());
            for input in every_input(ID).into_iter().chain(every_input(OTHER)) {
                if let Ok(transition) = destination.step(input) {
                    let runs = matches!(transition.next, State::Owned | State::Migrating(_));
                    assert_eq!(runs, path.len() == 2 && input == Input::Go(ID), "{input:?}");
                }
            }
        }
    }

    #[test]
    fn a_refusal_is_recorded_before_it_takes_effect_and_is_for_ever() {
        let prepared = drive(Ownership::incoming(), &[Input::Receive(ID), Input::Prepared(ID)]);
        for input in [Input::Refuse(ID), Input::Quit { force: false }] {
            let transition = prepared.step(input).unwrap();
            assert_eq!(transition.before, Some(Effect::Record(ID, Decision::Refused)));
            let mut refused = prepared;
            refused.enter(&transition);
            assert_eq!(refused.standing(ID), Standing::Refused);
            assert_eq!(refused.step(Input::Go(ID)), Err(Denied::Refused(ID)));
        }
    }

    #[test]
    fn a_saved_guest_may_be_restored_again_until_it_may_have_run() {
        let receiving = drive(Ownership::incoming(), &[Input::Restore(ID)]);
        let prepared = drive(receiving, &[Input::Prepared(ID)]);
        for here in [receiving, prepared] {
            for input in [Input::Refuse(ID), Input::Quit { force: false }] {
                let transition = here.step(input).unwrap();
                assert_eq!(transition.before, Some(Effect::Forget(ID)));
                let mut ended = here;
                ended.enter(&transition);
                // Whoever asks now must find the record, or that there is none.
                assert_eq!(ended.standing(ID), Standing::NotMine);
            }
        }
        let runs = prepared.step(Input::Go(ID)).unwrap();
        assert_eq!(runs.before, Some(Effect::Record(ID, Decision::MayRun)));
        assert_eq!(runs.later, Some(Effect::Record(ID, Decision::Ran)));
    }

    #[test]
    fn may_run_is_on_disk_before_the_first_page_is_taken() {
        let transition = Ownership::incoming().step(Input::Receive(ID)).unwrap();
        assert_eq!(transition.before, Some(Effect::Record(ID, Decision::MayRun)));
    }

    #[test]
    fn a_second_go_is_answered_as_the_first_and_changes_nothing() {
        let here =
            drive(Ownership::incoming(), &[Input::Receive(ID), Input::Prepared(ID), Input::Go(ID)]);
        let again = here.step(Input::Go(ID)).unwrap();
        assert_eq!((again.next, again.after), (State::Owned, None));
        let gone_on = drive(here, &[Input::Begin(OTHER), Input::Commit(OTHER)]);
        let again = gone_on.step(Input::Go(ID)).unwrap();
        assert_eq!((again.next, again.after), (State::HandedOver(OTHER), None));
        assert_eq!(gone_on.standing(ID), Standing::Running);
    }

    #[test]
    fn a_late_message_of_another_migration_does_nothing() {
        let source = drive(Ownership::booted(), &[Input::Begin(ID)]);
        for input in [Input::Release(OTHER), Input::Commit(OTHER), Input::TakeBack(OTHER)] {
            assert!(matches!(source.step(input), Err(Denied::OtherMigration { .. })), "{input:?}");
        }
        assert_eq!(source.step(Input::Begin(OTHER)), Err(Denied::AlreadyMigrating(ID)));
    }

    #[test]
    fn the_last_copy_is_thrown_away_by_force_alone() {
        let source = drive(Ownership::booted(), &[Input::Begin(ID), Input::Commit(ID)]);
        assert_eq!(source.step(Input::Quit { force: false }), Err(Denied::MayBeLastCopy(ID)));
        assert!(source.step(Input::Quit { force: true }).is_ok());
    }
}
