//! What the mig-recv that answers a query does for its driver: the operations of
//! `handover::ResponderIo`, in this model.

use mig_engine::handover::{
    HostAnswer, HostMemory, Query, Responder, ResponderOperation, ResponderOutcome,
};
use mig_engine::ownership::{Authority, Decision, Input, MigrationStatus};

use crate::bounds::HandoverModel;
use crate::mutation::Mutation;
use crate::served::Served;
use crate::state::{
    Ack, Answer, NOBODY, PendingQuery, Phase, Request, Rule, SOURCE, State, VMS, id_of,
};

impl HandoverModel {
    /// The driver for a query that comes.
    pub fn responder(&self, released: bool, taken_by: Option<Ack>) -> Responder {
        Responder::new(match released && !self.is(Mutation::ReleaseIsGo) {
            true => Query::Released,
            false => Query::Committed(taken_by.map(Ack::told)),
        })
    }

    /// The mig-recv that answers this query goes on.
    pub fn answer_query(&self, state: &mut State, slot: usize) -> bool {
        let Some(mut query) = state.queries[slot] else { return false };
        if let Phase::Answer(_) = query.phase {
            let unheard = query.asked_by == NOBODY;
            if unheard {
                state.queries[slot] = None;
            }
            return unheard;
        }
        let went_on = self.respond(state, &mut query);
        state.queries[slot] = Some(query);
        went_on
    }

    /// The next operation of the driver. Not, while a vmrun that is needed is busy.
    fn respond(&self, state: &mut State, query: &mut PendingQuery) -> bool {
        let (host, number) = (usize::from(query.host), usize::from(query.number));
        let mut responder = match query.phase {
            Phase::Search(responder) => responder,
            Phase::Recording(mut responder) => {
                let record = &mut state.records[host][number];
                record.durable = record.visible;
                responder.advance(ResponderOutcome::Done);
                self.searched(state, query, responder);
                return true;
            }
            Phase::Answer(_) => return false,
        };
        let outcome = match responder.operation() {
            ResponderOperation::ReadRecord => ResponderOutcome::Memory(self.memory(state, query)),
            ResponderOperation::QueryNamedVmrun
            | ResponderOperation::QueryNextVmrun
            | ResponderOperation::ReadAgain => {
                let Some(found) = self.look(state, query, &mut responder) else { return false };
                query.found = found;
                self.searched(state, query, responder);
                return true;
            }
            ResponderOperation::Run if self.is(Mutation::QueryIsNotGo) => ResponderOutcome::Failed,
            ResponderOperation::Run => {
                let by = Authority::Source(query.taken_by.map(Ack::nonce));
                match self.ask_found(state, query, Input::Go(id_of(query.number), by)) {
                    None => return false,
                    Some(Served::Done) => ResponderOutcome::Done,
                    Some(_) => ResponderOutcome::Failed,
                }
            }
            ResponderOperation::Refuse => {
                match self.ask_found(state, query, Input::Refuse(id_of(query.number))) {
                    None => return false,
                    Some(Served::Done) => ResponderOutcome::Done,
                    Some(_) => ResponderOutcome::Failed,
                }
            }
            ResponderOperation::SyncRefusal => {
                if !self.is(Mutation::RepeatsUnsynced) {
                    let record = &mut state.records[host][number];
                    record.durable = record.visible;
                }
                ResponderOutcome::Done
            }
            ResponderOperation::RecordRefusal if self.is(Mutation::UnknownIsRefusedUnrecorded) => {
                ResponderOutcome::Done
            }
            // The first decision about a migration wins.
            ResponderOperation::RecordRefusal if !state.is_free(host, number) => {
                match self.is(Mutation::OvertakenIsRefused) {
                    true => ResponderOutcome::Done,
                    false => ResponderOutcome::Overtaken,
                }
            }
            ResponderOperation::RecordRefusal => {
                let record = &mut state.records[host][number];
                record.vm = None;
                record.visible = Some(Decision::Refused);
                query.phase = Phase::Recording(responder);
                return true;
            }
            ResponderOperation::AwaitEnd | ResponderOperation::AwaitRetry => ResponderOutcome::Done,
            ResponderOperation::Finished(_) => return false,
        };
        responder.advance(outcome);
        self.searched(state, query, responder);
        true
    }

    /// What the driver has come to. Nobody can tell the wait for another look from a later look.
    fn searched(&self, state: &mut State, query: &mut PendingQuery, mut responder: Responder) {
        while let ResponderOperation::AwaitEnd | ResponderOperation::AwaitRetry =
            responder.operation()
        {
            query.found = None;
            responder.advance(ResponderOutcome::Done);
        }
        let ResponderOperation::Finished(answer) = responder.operation() else {
            query.phase = Phase::Search(responder);
            return;
        };
        query.found = None;
        query.phase = Phase::Answer(match answer {
            HostAnswer::Running => Answer::Running,
            HostAnswer::Refused => {
                let record = &state.records[usize::from(query.host)][usize::from(query.number)];
                if record.durable != Some(Decision::Refused) {
                    state.broke(Rule::RecordedBeforeSaid);
                }
                Answer::Refused
            }
            HostAnswer::MayHaveRun(_) if self.is(Mutation::MayHaveRunIsRefused) => Answer::Refused,
            HostAnswer::MayHaveRun(_) => Answer::MayHaveRun,
            HostAnswer::OtherHost => Answer::OtherHost,
            HostAnswer::NotKnownNow => Answer::NotKnownNow,
        });
    }

    /// What the host remembers.
    fn memory(&self, state: &State, query: &PendingQuery) -> HostMemory {
        let host = usize::from(query.host);
        let acknowledged_here =
            query.taken_by.map(|by| (by.host, by.lost) == (query.host, state.lost[host]));
        HostMemory {
            record: state.records[host][usize::from(query.number)].visible,
            acknowledged_here: acknowledged_here.filter(|_| !self.is(Mutation::AnyHostAnswers)),
            remembers: state.lost[host] == 0
                || self.is(Mutation::YoungHostAnswers)
                || self.is(Mutation::UnknownBeforeAllAreAsked),
        }
    }

    /// All vmruns that the driver wants to ask are asked at once, and the record is read again.
    /// Returns the one that has to do with the migration; nothing while one of them is busy.
    fn look(
        &self,
        state: &State,
        query: &PendingQuery,
        responder: &mut Responder,
    ) -> Option<Option<u8>> {
        let host = usize::from(query.host);
        let here = |vm: &usize| self.host_of(*vm) == host && state.is_alive(*vm);
        let named = state.records[host][usize::from(query.number)].vm;
        let mut others = (1..VMS).filter(here);
        let asks_named_alone =
            self.is(Mutation::AsksItsRecordsOnly) || self.is(Mutation::UnknownBeforeAllAreAsked);
        let mut found = None;
        loop {
            let vm = match responder.operation() {
                ResponderOperation::QueryNamedVmrun => named.map(usize::from).filter(here),
                ResponderOperation::QueryNextVmrun if asks_named_alone => None,
                ResponderOperation::QueryNextVmrun => others.next(),
                ResponderOperation::ReadAgain => {
                    responder.advance(ResponderOutcome::Memory(self.memory(state, query)));
                    continue;
                }
                _ => return Some(found),
            };
            if vm.is_some_and(|vm| state.vms[vm].busy.is_some()) {
                return None;
            }
            let status = vm.map(|vm| {
                let nonce = query.taken_by.map(Ack::nonce);
                state.vms[vm].ownership.migration_status(id_of(query.number), nonce)
            });
            if status.is_some_and(|status| status != MigrationStatus::NotMine) {
                found = vm.map(|vm| vm as u8);
            }
            responder.advance(ResponderOutcome::Status(status));
        }
    }

    /// Asks the vmrun that was found for a step; nothing while it is busy.
    fn ask_found(&self, state: &mut State, query: &PendingQuery, input: Input) -> Option<Served> {
        let vm = query.found.map(usize::from).filter(|vm| state.is_alive(*vm));
        let Some(vm) = vm else { return Some(Served::Lost) };
        match state.vms[vm].busy {
            Some(_) => None,
            None => Some(self.serve(state, vm, NOBODY, Request::Own(input))),
        }
    }

    fn query_about(
        &self,
        number: usize,
        host: usize,
        released: bool,
        taken_by: Option<Ack>,
    ) -> PendingQuery {
        PendingQuery {
            asked_by: NOBODY,
            number: number as u8,
            host: host as u8,
            released,
            taken_by,
            found: None,
            phase: Phase::Search(self.responder(released, taken_by)),
        }
    }

    /// Whether no answer can be had to what became of this migration, whoever asks: the host that
    /// would know does not, and none of its vmruns has the guest.
    pub fn nobody_knows(&self, state: &State, number: usize) -> bool {
        let taken_by = state.vms[SOURCE].ownership.taken_by().map(Ack::of);
        let query = self.query_about(number, 0, false, taken_by);
        let mut responder = self.responder(false, taken_by);
        responder.advance(ResponderOutcome::Memory(self.memory(state, &query)));
        let unsure = state.history.unsure || state.lost[0] > 0;
        unsure
            && self.look(state, &query, &mut responder).is_some()
            && matches!(
                responder.operation(),
                ResponderOperation::Finished(HostAnswer::MayHaveRun(_) | HostAnswer::OtherHost)
            )
    }

    /// A header names migrations that the source released: what waits for the GO of one gives it up
    /// before another guest comes, unless its vmrun is busy.
    pub fn forget(&self, state: &mut State, host: usize, released: [bool; 2]) {
        for number in (0..2).filter(|number| released[*number]) {
            if state.records[host][number].visible == Some(Decision::MayRun) {
                let mut query = self.query_about(number, host, true, None);
                while self.respond(state, &mut query) {}
            }
        }
    }
}
