//! mig-recv answering a question: `bins/mig-recv/src/resolve.rs` around `handover::resolve`.

use mig_engine::handover::resolve::{Known, Reply, reply, reply_to_release};
use mig_engine::ownership::{Authority, Decision, Input, MigrationStatus};

use crate::model::HandoverModel;
use crate::mutation::Mutation;
use crate::state::{
    Ack, Answer, NOBODY, Phase, Question, Request, Rule, SOURCE, State, VMS, id_of,
};
use crate::vmrun::Served;

impl HandoverModel {
    /// The next step of the mig-recv that answers this question.
    pub fn migration_status(&self, state: &mut State, slot: usize) -> bool {
        let Some(question) = state.questions[slot] else { return false };
        let (host, number) = (usize::from(question.host), usize::from(question.number));
        let next = match question.phase {
            Phase::Look => Phase::Read(state.records[host][number].visible),
            Phase::Read(record) => match self.look_closer(state, &question, record) {
                Some(next) => next,
                None => return false,
            },
            Phase::Recording => {
                let record = &mut state.records[host][number];
                record.durable = record.visible;
                self.refused(state, &question)
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

    /// What the host knows, and the vmrun that knows it; nothing while one of them is busy. The one
    /// in the record is asked first, the others only if that settles nothing.
    fn known(
        &self,
        state: &State,
        question: &Question,
        read: Option<Decision>,
    ) -> Option<(Known, Option<usize>)> {
        let host = usize::from(question.host);
        let named = read.and(state.records[host][usize::from(question.number)].vm);
        let mut known = Known {
            record: read,
            live: None,
            acknowledged_here: question
                .taken_by
                .map(|by| (by.host, by.lost) == (question.host, state.lost[host]))
                .filter(|_| !self.is(Mutation::AnyHostAnswers)),
            remembers: state.lost[host] == 0 || self.is(Mutation::YoungHostAnswers),
        };
        let nonce = question.taken_by.map(Ack::nonce);
        let all = (1..VMS).filter(|vm| self.host_of(*vm) == host && state.is_alive(*vm));
        let (first, others): (Vec<_>, Vec<_>) = all.partition(|vm| named == Some(*vm as u8));
        for (vm, is_named) in
            first.into_iter().map(|vm| (vm, true)).chain(others.into_iter().map(|vm| (vm, false)))
        {
            let settled = matches!(
                Self::reply(question, known),
                Reply::Prepared | Reply::Running | Reply::Refused | Reply::RefuseInVmrun
            );
            if !is_named && (settled || self.is(Mutation::AsksItsRecordsOnly)) {
                break;
            }
            if state.vms[vm].busy.is_some() {
                return None;
            }
            let standing = state.vms[vm].ownership.migration_status(id_of(question.number), nonce);
            if standing != MigrationStatus::NotMine {
                known.live = Some(standing);
                return Some((known, Some(vm)));
            }
        }
        Some((known, None))
    }

    /// Whether no answer can be had to what became of this migration, whoever asks: the host that
    /// would know does not, and none of its vmruns has the guest.
    pub fn nobody_knows(&self, state: &State, number: usize) -> bool {
        let taken_by = state.vms[SOURCE].ownership.taken_by().map(Ack::of);
        let question = Question {
            asker: NOBODY,
            number: number as u8,
            host: 0,
            released: false,
            taken_by,
            phase: Phase::Look,
        };
        let known = self.known(state, &question, state.records[0][number].visible);
        let unsure = state.history.unsure || state.lost[0] > 0;
        unsure
            && known.is_some_and(|(known, _)| {
                matches!(
                    reply(known),
                    Reply::MayHaveRun
                        | Reply::RecordLost
                        | Reply::RemembersTooLittle
                        | Reply::OtherHost
                )
            })
    }

    const fn reply(question: &Question, known: Known) -> Reply {
        if question.released { reply_to_release(known) } else { reply(known) }
    }

    fn look_closer(
        &self,
        state: &mut State,
        question: &Question,
        read: Option<Decision>,
    ) -> Option<Phase> {
        let (host, number) = (usize::from(question.host), usize::from(question.number));
        let id = id_of(question.number);
        let (known, live) = self.known(state, question, read)?;
        let reply = match question.released && self.is(Mutation::ReleaseIsGo) {
            true => reply(known),
            false => Self::reply(question, known),
        };
        Some(match reply {
            Reply::Running => Phase::Answer(Answer::Running),
            Reply::Refused => {
                // Its writer may not have come to that yet.
                if !self.is(Mutation::RepeatsUnsynced) {
                    let record = &mut state.records[host][number];
                    record.durable = record.visible;
                }
                self.refused(state, question)
            }
            Reply::Prepared if self.is(Mutation::QuestionIsNotGo) => Phase::Look,
            Reply::Prepared => {
                let by = Authority::Source(question.taken_by.map(Ack::nonce));
                let request = Request::Own(Input::Go(id, by));
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
                if !state.is_free(host, number) {
                    return Some(Phase::Look);
                }
                let record = &mut state.records[host][number];
                record.vm = None;
                record.visible = Some(Decision::Refused);
                Phase::Recording
            }
            Reply::MayHaveRun if self.is(Mutation::MayHaveRunIsRefused) => {
                Phase::Answer(Answer::Refused)
            }
            Reply::MayHaveRun | Reply::RecordLost | Reply::RemembersTooLittle => {
                Phase::Answer(Answer::MayHaveRun)
            }
            Reply::OtherHost => Phase::Answer(Answer::OtherHost),
        })
    }

    fn refused(&self, state: &mut State, question: &Question) -> Phase {
        let record = &state.records[usize::from(question.host)][usize::from(question.number)];
        if record.durable != Some(Decision::Refused) {
            state.broke(Rule::RecordedBeforeSaid);
        }
        Phase::Answer(Answer::Refused)
    }

    /// A header names migrations that the source released: what waits for the GO of one gives it up
    /// before another guest comes.
    pub fn forget(&self, state: &mut State, host: usize, released: [bool; 2]) {
        for number in (0..2).filter(|number| released[*number]) {
            let id = id_of(number as u8);
            for vm in (1..VMS).filter(|vm| self.host_of(*vm) == host) {
                let waits = matches!(
                    state.vms[vm].ownership.migration_status(id, None),
                    MigrationStatus::Receiving
                        | MigrationStatus::Prepared
                        | MigrationStatus::PreparedForAnother
                );
                if state.is_alive(vm) && state.vms[vm].busy.is_none() && waits {
                    self.serve(state, vm, NOBODY, Request::Own(Input::Refuse(id)));
                }
            }
        }
    }
}
