//! mig-recv answering a question: `bins/mig-recv/src/inquiry.rs` around `resolve::reply`.

use mig_engine::handover::resolve::{Reply, reply};
use mig_engine::ownership::{Decision, Input};

use crate::mutation::Mutation;
use crate::state::{Answer, NOBODY, Phase, Request, Rule, State, id_of};
use crate::vmrun::Served;
use crate::world::World;

impl World {
    /// The next step of the mig-recv that answers this question.
    pub fn inquire(&self, state: &mut State, slot: usize) -> bool {
        let Some(question) = state.questions[slot] else { return false };
        let number = usize::from(question.number);
        let next = match question.phase {
            Phase::Look => Phase::Read(state.records[number].visible),
            Phase::Read(record) => match self.look_closer(state, number, record) {
                Some(next) => next,
                None => return false,
            },
            Phase::Recording => {
                state.records[number].durable = state.records[number].visible;
                self.refused(state, number)
            }
            Phase::Answer(_) if question.asker == NOBODY => {
                state.questions[slot] = None;
                return true;
            }
            Phase::Answer(_) => return false,
        };
        if let Some(question) = &mut state.questions[slot] {
            question.phase = next;
        }
        true
    }

    /// With the record in hand the vmrun that is named in it is asked.
    fn look_closer(
        &self,
        state: &mut State,
        number: usize,
        read: Option<Decision>,
    ) -> Option<Phase> {
        let id = id_of(number as u8);
        let vm = read.and(state.records[number].vm).map(usize::from);
        let live = vm.filter(|vm| state.is_alive(*vm));
        if live.is_some_and(|vm| state.vms[vm].busy.is_some()) {
            return None;
        }
        let standing = live.map(|vm| state.vms[vm].ownership.standing(id));
        Some(match reply(read, standing) {
            Reply::Running => Phase::Answer(Answer::Running),
            Reply::Refused => {
                // Its writer may not have come to that yet.
                if !self.is(Mutation::RepeatsUnsynced) {
                    state.records[number].durable = state.records[number].visible;
                }
                self.refused(state, number)
            }
            Reply::Prepared if self.is(Mutation::QuestionIsNotGo) => Phase::Look,
            Reply::Prepared => {
                let request = Request::Own(Input::Go(id));
                match live.map(|vm| self.serve(state, vm, NOBODY, request)) {
                    Some(Served::Done) => Phase::Answer(Answer::Running),
                    _ => Phase::Look,
                }
            }
            Reply::RefuseInVmrun => {
                if let Some(vm) = live {
                    self.serve(state, vm, NOBODY, Request::Own(Input::Refuse(id)));
                }
                Phase::Look
            }
            Reply::RefuseFirst if self.is(Mutation::UnknownIsRefusedUnrecorded) => {
                Phase::Answer(Answer::Refused)
            }
            Reply::RefuseFirst => {
                // The first decision about a migration wins.
                if !state.is_free(number) {
                    return Some(Phase::Look);
                }
                let record = &mut state.records[number];
                record.vm = None;
                record.visible = Some(Decision::Refused);
                Phase::Recording
            }
            Reply::MayHaveRun if self.is(Mutation::MayHaveRunIsRefused) => {
                Phase::Answer(Answer::Refused)
            }
            Reply::MayHaveRun => Phase::Answer(Answer::MayHaveRun),
        })
    }

    fn refused(&self, state: &mut State, number: usize) -> Phase {
        if state.records[number].durable != Some(Decision::Refused) {
            state.broke(Rule::RecordedBeforeSaid);
        }
        Phase::Answer(Answer::Refused)
    }
}
