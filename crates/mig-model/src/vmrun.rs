//! vmrun around its ownership machine: what `bins/vmrun/src/guest.rs` and `service.rs` do.
//!
//! A step that has a record to write first is two states: the record becomes visible and the
//! vmrun is busy (its lock is held), then the record is on the disk and the state is entered. A
//! crash may come between.

use mig_engine::ownership::{Authority, Decision, Effect, Input, State as Owner, Transition};

use crate::bounds::HandoverModel;
use crate::mutation::Mutation;
use crate::served::Served;
use crate::state::{
    Ack, Busy, Leaving, Line, NOBODY, ProcessState, Request, Rule, SOURCE, State, number_of,
};

impl HandoverModel {
    /// vmrun serves one request. It must be alive and not busy.
    pub fn serve(&self, state: &mut State, vm: usize, client: u8, request: Request) -> Served {
        let mine = |leaving: &Option<Leaving>| leaving.is_some_and(|it| it.client == client);
        match request {
            Request::Save => {
                if !mine(&state.vms[vm].leaving) {
                    return Served::Refused;
                }
                let vm = &mut state.vms[vm];
                vm.running = false;
                vm.leaving = vm.leaving.map(|it| Leaving { paused: true, saved: true, ..it });
                Served::Done
            }
            Request::Own(input @ Input::Begin(_)) => {
                let served = self.step(state, vm, client, input);
                if served == Served::Done {
                    state.vms[vm].leaving = Some(Leaving { client, paused: false, saved: false });
                }
                served
            }
            Request::Own(input @ Input::Commit(..)) => {
                let owner = state.vms[vm].ownership.state();
                if owner == Owner::Owned && self.is(Mutation::ReleasedAnswersCommit) {
                    return Served::Done;
                }
                let bound = self.is(Mutation::CommitsAfterResume)
                    || mine(&state.vms[vm].leaving)
                        && state.vms[vm].leaving.is_some_and(|it| it.saved);
                if matches!(owner, Owner::Migrating(_)) && !bound {
                    return Served::Refused;
                }
                self.step(state, vm, client, input)
            }
            Request::Own(Input::TakeBack(_)) if self.is(Mutation::IgnoresTakeBack) => Served::Done,
            Request::Own(Input::Release(id))
                if self.is(Mutation::ReleasesWhenAskedTwice)
                    && state.vms[vm].ownership.state() == Owner::HandedOver(id) =>
            {
                match state.vms[vm].leaving.take() {
                    Some(_) => Served::Refused,
                    None => self.step(state, vm, client, Input::TakeBack(id)),
                }
            }
            Request::Own(input @ (Input::Release(_) | Input::TakeBack(_))) => {
                let saved = state.vms[vm].leaving.is_some_and(|it| it.saved);
                let served = self.step(state, vm, client, input);
                if served == Served::Done {
                    state.vms[vm].leaving = None;
                    if let (Input::Release(id), true) = (input, saved) {
                        state.vms[vm].released[number_of(id)] = true;
                    }
                }
                served
            }
            Request::Own(input) => self.step(state, vm, client, input),
        }
    }

    /// One step of the ownership machine with its effects in their order.
    pub fn step(&self, state: &mut State, vm: usize, client: u8, input: Input) -> Served {
        if let (Input::Go(id, _), Owner::Refused(mine)) = (input, state.vms[vm].ownership.state())
            && self.is(Mutation::GoAfterRefusal)
            && id == mine
        {
            state.vms[vm].ownership = mig_engine::ownership::Ownership::booted();
            state.history.continued[number_of(id)] += 1;
            state.vms[vm].running = true;
            return Served::Done;
        }
        let Ok(mut transition) = state.vms[vm].ownership.step(input) else {
            return Served::Refused;
        };
        if let Some(Effect::Record(id, decision)) = transition.before {
            match (decision, client, self.mutation) {
                (Decision::Refused, _, Some(Mutation::RefusalRecordedAfter))
                | (Decision::MayRun, _, Some(Mutation::MayRunRecordedLate)) => {
                    transition.later = transition.before;
                }
                (Decision::Refused, NOBODY, Some(Mutation::TimeoutUnrecorded))
                | (Decision::MayRun, _, Some(Mutation::MayRunUnrecorded)) => {}
                _ => {
                    if !self.may_record(state, vm, number_of(id), decision) {
                        return Served::Refused;
                    }
                    let record = &mut state.records[self.host_of(vm)][number_of(id)];
                    record.visible = Some(decision);
                    record.vm = Some(vm as u8);
                    state.vms[vm].busy = Some(Busy { input, by: client });
                    return Served::Busy;
                }
            }
        }
        if let Some(Effect::Forget(id)) = transition.before {
            let record = &mut state.records[self.host_of(vm)][number_of(id)];
            if record.visible == Some(Decision::Restoring) && record.vm == Some(vm as u8) {
                (record.visible, record.vm) = (None, None);
            }
        }
        self.enter(state, vm, input, &transition);
        self.received(state, vm, client, input);
        Served::Done
    }

    /// The first decision about a migration wins; a restore that is over was none, and one that
    /// goes on is decided by its own vmrun.
    fn may_record(&self, state: &State, vm: usize, number: usize, decision: Decision) -> bool {
        let host = self.host_of(vm);
        let record = &state.records[host][number];
        match decision {
            Decision::Restoring if self.is(Mutation::TakesOverLiving) => {
                matches!(record.visible, None | Some(Decision::Restoring))
            }
            Decision::Restoring => state.is_free(host, number),
            Decision::MayRun if state.vms[vm].ownership.is_saved() => {
                let mine =
                    record.visible == Some(Decision::Restoring) && record.vm == Some(vm as u8);
                mine || self.is(Mutation::TakesOverLiving)
            }
            Decision::MayRun => record.visible.is_none(),
            Decision::Ran | Decision::Refused => true,
        }
    }

    /// The record of a busy vmrun is on the disk: the state is entered, and its client answered.
    pub fn finish(&self, state: &mut State, vm: usize) {
        let Some(Busy { input, by }) = state.vms[vm].busy.take() else { return };
        let transition = state.vms[vm].ownership.step(input).expect("the lock was held");
        if let Some(Effect::Record(id, _)) = transition.before {
            let host = self.host_of(vm);
            let record = &mut state.records[host][number_of(id)];
            record.durable = record.visible;
        }
        self.enter(state, vm, input, &transition);
        self.received(state, vm, by, input);
        if by != NOBODY {
            let tool = usize::from(by);
            state.connections[tool].take();
            if state.connections[tool].line == Line::Open {
                self.answered(state, tool, Served::Done);
            }
        }
    }

    fn received(&self, state: &mut State, vm: usize, client: u8, input: Input) {
        match input {
            Input::Receive(_) | Input::Restore(_) => state.vms[vm].receiver = Some(client),
            Input::Go(..) => state.vms[vm].receiver = None,
            Input::Prepared(id, nonce) if self.is(Mutation::RunsWhenPrepared) => {
                self.step(state, vm, client, Input::Go(id, Authority::Source(nonce)));
            }
            _ => {}
        }
    }

    pub(crate) fn record_later(&self, state: &mut State, vm: usize) -> bool {
        let Some((number, decision)) = state.vms[vm].later.take() else { return false };
        let host = self.host_of(vm);
        let record = &mut state.records[host][usize::from(number)];
        (record.visible, record.durable) = (Some(decision), Some(decision));
        record.vm = Some(vm as u8);
        true
    }

    fn enter(&self, state: &mut State, vm: usize, input: Input, transition: &Transition) {
        let before = state.vms[vm].ownership.state();
        state.vms[vm].ownership.enter(input, transition);
        if let (Owner::Prepared(id), Input::Refuse(_)) = (before, input)
            && state.history.taken_by[number_of(id)] == Some(vm as u8)
            && !state.is_alive(SOURCE)
        {
            state.broke(Rule::KeptForSomebody);
        }
        if let (Owner::Migrating(id), Owner::HandedOver(_)) = (before, transition.next) {
            let number = number_of(id);
            state.history.committed[number] = true;
            let taken_by = state.vms[vm].ownership.taken_by();
            state.history.taken_by[number] = taken_by.map(|by| Ack::of(by).vm);
            if state.history.stays[number] {
                state.broke(Rule::StaysMeansStays);
            }
        }
        match (transition.after, before) {
            (Some(Effect::Run), Owner::Prepared(id)) => self.runs_here(state, vm, number_of(id)),
            (Some(Effect::Run), Owner::Migrating(id) | Owner::HandedOver(id)) => {
                self.runs_on(state, vm, number_of(id));
            }
            _ => {}
        }
        if let Some(Effect::Record(id, decision)) = transition.later {
            state.vms[vm].later = Some((number_of(id) as u8, decision));
        }
    }

    fn runs_here(&self, state: &mut State, vm: usize, number: usize) {
        state.vms[vm].running = true;
        state.history.ran[vm] = true;
        state.history.continued[number] += 1;
        if !state.history.released[number] {
            state.broke(Rule::GoBeforeRunning);
        }
        if state.history.never[vm] {
            state.broke(Rule::RefusedMeansNever);
        }
        if state.history.stays[number] {
            state.broke(Rule::StaysMeansStays);
        }
    }

    /// The source goes on; if that is after its state was saved, somebody else must not.
    fn runs_on(&self, state: &mut State, vm: usize, number: usize) {
        let vm = &mut state.vms[vm];
        if !vm.running {
            vm.running = true;
            if vm.leaving.is_some_and(|it| it.saved) {
                state.history.continued[number] += 1;
            }
            vm.leaving = vm.leaving.map(|it| Leaving { saved: false, ..it });
        }
    }

    /// The operator wants the guest to run.
    pub fn resume(&self, state: &mut State, vm: usize) {
        let here = &state.vms[vm];
        let may = here.ownership.may_run()
            || self.is(Mutation::ResumeIgnoresOwnership)
                && matches!(here.ownership.state(), Owner::HandedOver(_));
        let blackout = here.leaving.is_some_and(|it| it.paused) && here.ownership.may_run();
        if !may || blackout && !self.is(Mutation::CommitsAfterResume) {
            return;
        }
        if let Owner::Migrating(id) | Owner::HandedOver(id) = here.ownership.state() {
            self.runs_on(state, vm, number_of(id));
        }
    }

    /// vmrun notices that a connection is gone.
    pub fn closed(&self, state: &mut State, vm: usize, client: u8) {
        match state.vms[vm].ownership.state() {
            Owner::Migrating(_) if self.is(Mutation::ForgetsClient) => {}
            Owner::Migrating(id)
                if state.vms[vm].leaving.is_some_and(|it| it.client == client)
                    || self.is(Mutation::ReleasedAnswersCommit) =>
            {
                self.serve(state, vm, client, Request::Own(Input::Release(id)));
            }
            Owner::HandedOver(id) if self.is(Mutation::ClientGoneAfterCommit) => {
                self.serve(state, vm, client, Request::Own(Input::TakeBack(id)));
            }
            Owner::Receiving(id) if state.vms[vm].receiver == Some(client) => {
                self.step(state, vm, NOBODY, Input::Refuse(id));
            }
            Owner::Prepared(id)
                if state.vms[vm].receiver == Some(client) && state.vms[vm].ownership.is_saved() =>
            {
                self.step(state, vm, NOBODY, Input::Refuse(id));
            }
            Owner::Prepared(id)
                if state.vms[vm].receiver == Some(client) && state.vms[vm].ownership.is_saved() =>
            {
                self.step(state, vm, NOBODY, Input::Refuse(id));
            }
            _ => {}
        }
    }

    /// The process is no more: its clients find out, and what it had not recorded is lost.
    pub fn dies(&self, state: &mut State, vm: usize, process: ProcessState) {
        let here = &mut state.vms[vm];
        here.process = process;
        here.running = false;
        here.leaving = None;
        here.receiver = None;
        here.busy = None;
        here.later = None;
        for tool in 0..state.connections.len() {
            if crate::state::vm_of(tool) != vm {
                continue;
            }
            if state.connections[tool].line == Line::Gone {
                state.connections[tool].line = Line::Idle;
            }
            let waited = state.connections[tool].line == Line::Open
                && state.connections[tool].pending[0].is_some();
            state.connections[tool].pending = [None; 2];
            if waited {
                self.answered(state, tool, Served::Lost);
            }
        }
    }

    /// vmrun is killed.
    pub fn killed(&self, state: &mut State, vm: usize) {
        let owner = state.vms[vm].ownership.state();
        let held = matches!(owner, Owner::Owned | Owner::Migrating(_) | Owner::HandedOver(_));
        state.history.gone |= held;
        state.history.unsure |= vm != SOURCE;
        state.vms[vm].ownership = mig_engine::ownership::Ownership::incoming();
        self.dies(state, vm, ProcessState::Killed);
    }

    /// The operator ends the guest, unless this may be its last copy.
    pub fn quit(&self, state: &mut State, vm: usize) {
        let owned = state.vms[vm].ownership.may_run();
        self.step(state, vm, NOBODY, Input::Quit { force: false });
        if owned {
            state.history.gone = true;
            state.history.unsure |= vm != SOURCE;
            state.vms[vm].running = false;
        }
    }
}
