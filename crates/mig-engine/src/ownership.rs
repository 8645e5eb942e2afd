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

use std::fmt;

use migpipe_units::{Acknowledged, MigrationId, Nonce};
use serde::{Deserialize, Serialize};
use thiserror::Error;

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
    /// The point of no return at the source, with what the destination's ACK said of who gave it;
    /// one way there was none.
    Commit(MigrationId, Option<Acknowledged>),
    /// The destination runs the guest.
    Confirm(MigrationId),
    /// The destination has refused this migration, durably.
    TakeBack(MigrationId),
    /// A guest starts to arrive.
    Receive(MigrationId),
    /// A saved guest starts to arrive: its file is left if it does not run here, and nobody will
    /// ask.
    Restore(MigrationId),
    /// Pages and state are loaded and every check passed. What is to be acknowledged has a fresh
    /// nonce for it.
    Prepared(MigrationId, Option<Nonce>),
    /// Run.
    Go(MigrationId, Authority),
    /// Give this migration up, for ever.
    Refuse(MigrationId),
    /// The operator ends the guest. `force` ends it where it may be the last copy too.
    Quit {
        /// Whether the operator insists.
        force: bool,
    },
}

/// By whose word a prepared guest runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Authority {
    /// A source has committed, with the nonce of the ACK that it got; one way there was none.
    Source(Option<Nonce>),
    /// The operator says so, whatever the source does.
    Operator,
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
    /// GO is for a copy of the guest that another vmrun has.
    #[error(
        "the GO of migration {0} is for another copy of the guest: the stream of this one is a \
         copy, and its source has heard of another ACK"
    )]
    NotAcknowledged(MigrationId),
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
pub enum MigrationStatus {
    /// The guest is arriving.
    Receiving,
    /// The guest waits for GO.
    Prepared,
    /// A copy of the guest waits for GO, and not for the one of who asks.
    PreparedForAnother,
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

#[cfg(test)]
mod tests {
    use migpipe_units::HostId;

    use super::*;

    const ID: MigrationId = MigrationId::from_bytes([1; 16]);
    const OTHER: MigrationId = MigrationId::from_bytes([2; 16]);
    const NONCE: Option<Nonce> = Some(Nonce::from_bytes([3; 16]));
    const ACKNOWLEDGED: Option<Acknowledged> =
        Some(Acknowledged { host: HostId::from_bytes([4; 16]), nonce: Nonce::from_bytes([3; 16]) });
    const COMMIT: Input = Input::Commit(ID, ACKNOWLEDGED);
    const GO: Input = Input::Go(ID, Authority::Source(NONCE));
    const TO_PREPARED: [Input; 2] = [Input::Receive(ID), Input::Prepared(ID, NONCE)];

    fn drive(mut ownership: Ownership, inputs: &[Input]) -> Ownership {
        for input in inputs {
            let transition = ownership.step(*input).expect("the path is allowed");
            ownership.enter(*input, &transition);
        }
        ownership
    }

    fn every_input(id: MigrationId) -> [Input; 14] {
        use Input::*;
        [
            Begin(id),
            Release(id),
            Commit(id, ACKNOWLEDGED),
            Confirm(id),
            TakeBack(id),
            Receive(id),
            Restore(id),
            Prepared(id, NONCE),
            Go(id, Authority::Source(NONCE)),
            Go(id, Authority::Source(None)),
            Go(id, Authority::Operator),
            Refuse(id),
            Quit { force: false },
            Quit { force: true },
        ]
    }

    #[test]
    fn only_the_destinations_refusal_leads_back_from_handed_over() {
        let source = drive(Ownership::booted(), &[Input::Begin(ID), COMMIT]);
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
        for path in [&[][..], &TO_PREPARED[..1], &TO_PREPARED] {
            let destination = drive(Ownership::incoming(), path);
            assert!(!destination.may_run());
            for input in every_input(ID).into_iter().chain(every_input(OTHER)) {
                if let Ok(transition) = destination.step(input) {
                    let runs = matches!(transition.next, State::Owned | State::Migrating(_));
                    let go = [GO, Input::Go(ID, Authority::Operator)].contains(&input);
                    assert_eq!(runs, path.len() == 2 && go, "{input:?}");
                }
            }
        }
    }

    #[test]
    fn a_refusal_is_recorded_before_it_takes_effect_and_is_for_ever() {
        let prepared = drive(Ownership::incoming(), &TO_PREPARED);
        for input in [Input::Refuse(ID), Input::Quit { force: false }] {
            let transition = prepared.step(input).unwrap();
            assert_eq!(transition.before, Some(Effect::Record(ID, Decision::Refused)));
            let mut refused = prepared;
            refused.enter(input, &transition);
            assert_eq!(refused.migration_status(ID, NONCE), MigrationStatus::Refused);
            assert_eq!(refused.step(GO), Err(Denied::Refused(ID)));
        }
    }

    #[test]
    fn a_saved_guest_may_be_restored_again_until_it_may_have_run() {
        let receiving = drive(Ownership::incoming(), &[Input::Restore(ID)]);
        let prepared = drive(receiving, &[Input::Prepared(ID, None)]);
        for here in [receiving, prepared] {
            for input in [Input::Refuse(ID), Input::Quit { force: false }] {
                let transition = here.step(input).unwrap();
                assert_eq!(transition.before, Some(Effect::Forget(ID)));
                let mut ended = here;
                ended.enter(input, &transition);
                // Whoever asks now must find the record, or that there is none.
                assert_eq!(ended.migration_status(ID, None), MigrationStatus::NotMine);
            }
        }
        let runs = prepared.step(Input::Go(ID, Authority::Source(None))).unwrap();
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
        let here = drive(drive(Ownership::incoming(), &TO_PREPARED), &[GO]);
        let again = here.step(GO).unwrap();
        assert_eq!((again.next, again.after), (State::Owned, None));
        let gone_on = drive(here, &[Input::Begin(OTHER), Input::Commit(OTHER, None)]);
        let again = gone_on.step(GO).unwrap();
        assert_eq!((again.next, again.after), (State::HandedOver(OTHER), None));
        assert_eq!(gone_on.migration_status(ID, None), MigrationStatus::Running);
    }

    #[test]
    fn go_is_for_the_copy_that_was_acknowledged() {
        let prepared = drive(Ownership::incoming(), &TO_PREPARED);
        let one_way = [Input::Receive(ID), Input::Prepared(ID, None)];
        let one_way = drive(Ownership::incoming(), &one_way);
        let another = Some(Nonce::from_bytes([9; 16]));
        for (ownership, mine, others) in
            [(prepared, NONCE, [another, None]), (one_way, None, [another, NONCE])]
        {
            assert_eq!(ownership.migration_status(ID, mine), MigrationStatus::Prepared);
            let right = Input::Go(ID, Authority::Source(mine));
            let runs = drive(ownership, &[right]);
            for other in others {
                let wrong = Input::Go(ID, Authority::Source(other));
                assert_eq!(ownership.step(wrong), Err(Denied::NotAcknowledged(ID)));
                assert_eq!(
                    ownership.migration_status(ID, other),
                    MigrationStatus::PreparedForAnother
                );
                assert_eq!(runs.step(wrong), Err(Denied::NotAcknowledged(ID)), "a second GO");
            }
        }
    }

    #[test]
    fn a_source_knows_who_took_its_guest_for_as_long_as_it_is_handed_over() {
        let source = drive(Ownership::booted(), &[Input::Begin(ID)]);
        assert_eq!(source.taken_by(), None);
        let source = drive(source, &[COMMIT]);
        assert_eq!(source.taken_by(), ACKNOWLEDGED);
        assert!(source.step(COMMIT).is_ok(), "the answer was lost");
        assert!(source.step(Input::Commit(ID, None)).is_err(), "another commit");
        assert_eq!(drive(source, &[Input::TakeBack(ID)]).taken_by(), None);
    }

    #[test]
    fn a_late_message_of_another_migration_does_nothing() {
        let source = drive(Ownership::booted(), &[Input::Begin(ID)]);
        for input in [Input::Release(OTHER), Input::Commit(OTHER, None), Input::TakeBack(OTHER)] {
            assert!(matches!(source.step(input), Err(Denied::OtherMigration { .. })), "{input:?}");
        }
        assert_eq!(source.step(Input::Begin(OTHER)), Err(Denied::AlreadyMigrating(ID)));
    }

    #[test]
    fn the_last_copy_is_thrown_away_by_force_alone() {
        let source = drive(Ownership::booted(), &[Input::Begin(ID), COMMIT]);
        assert_eq!(source.step(Input::Quit { force: false }), Err(Denied::MayBeLastCopy(ID)));
        assert!(source.step(Input::Quit { force: true }).is_ok());
    }
}
