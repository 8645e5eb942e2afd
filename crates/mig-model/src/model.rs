//! Everything that may happen next.

use mig_engine::handover::FailureKind;
use mig_engine::ownership::{Authority, Input, State as Owner};
use stateright::{Model, Property};

use crate::action::{Action, Host};
use crate::bounds::{Bounds, HandoverModel, UNBOUNDED};
use crate::mutation::Mutation;
use crate::properties;
use crate::served::Served;
use crate::state::{
    Answer, Line, NOBODY, Phase, Pipe, ProcessState, QUERIES, RESOLVER, Request, SOURCE,
    SOURCE_TOOLS, State, TOOLS, VMS,
};

impl HandoverModel {
    fn apply(&self, state: &mut State, action: Action) -> bool {
        match action {
            Action::Send(sender) => self.start_sender(state, sender),
            Action::Receive(receiver) => self.start_receiver(state, receiver),
            Action::Resolve(resolver) => self.start_resolver(state, resolver),
            Action::Go(tool) if tool < SOURCE_TOOLS => self.send(state, tool),
            Action::Go(tool) => self.receive(state, tool - SOURCE_TOOLS),
            Action::GoElsewhere(tool) => self.ask_elsewhere(state, tool),
            Action::Wipe(host) => Self::wipe(state, host),
            Action::Fail(tool) if tool < SOURCE_TOOLS => {
                self.sender_stops(state, tool, FailureKind::Failed)
            }
            Action::Fail(tool) => self.receiver_stops(state, tool - SOURCE_TOOLS),
            Action::TimeOut(tool) if tool < SOURCE_TOOLS => self.sender_times_out(state, tool),
            Action::TimeOut(tool) => self.receiver_times_out(state, tool - SOURCE_TOOLS),
            Action::Cancel(tool) => self.sender_stops(state, tool, FailureKind::Cancelled),
            Action::Abandon(tool) => self.abandon(state, tool),
            Action::Late(tool) => self.late(state, tool),
            Action::Gone(tool) => self.gone(state, tool),
            Action::Recorded(vm) => {
                self.finish(state, vm);
                true
            }
            Action::RecordedLate(vm) => self.record_later(state, vm),
            Action::Exit(vm) => {
                self.dies(state, vm, ProcessState::Ended);
                true
            }
            Action::GoTimeout(vm) => {
                let Owner::Prepared(id) = state.vms[vm].ownership.state() else { return false };
                self.step(state, vm, NOBODY, Input::Refuse(id));
                true
            }
            Action::AnswerQuery(slot) => self.answer_query(state, slot),
            Action::LoseQuery(slot) => {
                state.queries[slot] = None;
                true
            }
            Action::BreakQuery(slot) => {
                if let Some(query) = &mut state.queries[slot] {
                    query.phase = Phase::Answer(Answer::NotKnownNow);
                }
                true
            }
            Action::CutForward(stream) => {
                state.forward[stream] = Pipe::CLOSED;
                true
            }
            Action::CutBack(stream) => {
                state.back[stream] = Pipe::CLOSED;
                true
            }
            Action::KillTool(tool) => {
                self.end_tool(state, tool);
                Self::crash(state)
            }
            Action::KillVm(vm) => {
                self.killed(state, vm);
                Self::crash(state)
            }
            Action::KillHost(host) => {
                self.kill_host(state, host);
                Self::crash(state)
            }
            Action::Resume => {
                self.resume(state, SOURCE);
                true
            }
            Action::Quit(vm) => {
                state.quits -= 1;
                self.quit(state, vm);
                true
            }
            Action::Commit(vm) => {
                let Owner::Prepared(id) = state.vms[vm].ownership.state() else { return false };
                let go = Input::Go(id, Authority::Operator);
                self.serve(state, vm, NOBODY, Request::Own(go)) == Served::Done
            }
        }
    }

    fn vm_actions(&self, state: &State, vm: usize, actions: &mut Vec<Action>) {
        let here = &state.vms[vm];
        if here.process != ProcessState::Alive {
            return;
        }
        if state.crashes > 0 {
            actions.push(Action::KillVm(vm));
        }
        if here.later.is_some() {
            actions.push(Action::RecordedLate(vm));
        }
        if here.busy.is_some() {
            actions.push(Action::Recorded(vm));
            return;
        }
        match here.ownership.state() {
            Owner::Refused(_) | Owner::Finished => {
                actions.push(Action::Exit(vm));
                return;
            }
            Owner::Prepared(_) => {
                if self.bounds.go_timeout || self.is(Mutation::GivesUpByItself) {
                    actions.push(Action::GoTimeout(vm));
                }
                if self.is(Mutation::OperatorsGo) {
                    actions.push(Action::Commit(vm));
                }
            }
            _ => {}
        }
        // A vmrun that waits for a guest and is ended never took part.
        if state.quits > 0 && here.ownership.state() != Owner::Incoming {
            actions.push(Action::Quit(vm));
        }
    }

    fn tool_actions(&self, state: &State, tool: usize, actions: &mut Vec<Action>) {
        match state.connections[tool].line {
            Line::Idle => {}
            Line::Gone => actions.extend([Action::Late(tool), Action::Gone(tool)]),
            Line::TimedOut => actions.push(Action::Late(tool)),
            Line::Open => actions.push(Action::TimeOut(tool)),
        }
        if !self.exists(state, tool) {
            return;
        }
        actions.extend([Action::Go(tool), Action::Fail(tool)]);
        if tool < RESOLVER {
            actions.extend([Action::Cancel(tool), Action::Abandon(tool)]);
        }
        if tool < SOURCE_TOOLS && self.bounds.other_host {
            actions.push(Action::GoElsewhere(tool));
        }
        if state.crashes > 0 {
            actions.push(Action::KillTool(tool));
        }
    }
}

impl Model for HandoverModel {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let Bounds { crashes, quits, wipes, faults, reads, .. } = self.bounds;
        vec![State::initial(crashes, quits, wipes, faults, reads)]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for number in 0..2 {
            actions.extend([Action::Send(number), Action::Resolve(number)]);
            if state.forward[number].queue[0].is_some() || self.can_open_file(state, number) {
                actions.push(Action::Receive(number));
            }
            if !self.bounds.cuts {
                continue;
            }
            // A closed tunnel may still lose what is in it.
            let (forward, back) = (&state.forward[number], &state.back[number]);
            if forward.open || !forward.is_empty() {
                actions.push(Action::CutForward(number));
            }
            if back.open || !back.is_empty() {
                actions.push(Action::CutBack(number));
            }
        }
        for vm in 0..VMS {
            self.vm_actions(state, vm, actions);
        }
        for tool in 0..TOOLS {
            self.tool_actions(state, tool, actions);
        }
        for slot in 0..QUERIES {
            let Some(query) = state.queries[slot] else { continue };
            actions.push(Action::AnswerQuery(slot));
            if query.asked_by == NOBODY {
                actions.push(Action::LoseQuery(slot));
            }
            if query.is_new() {
                actions.push(Action::BreakQuery(slot));
            }
        }
        if state.crashes > 0 {
            actions.push(Action::KillHost(Host::Source));
            actions.extend(self.hosts().map(|host| Action::KillHost(Host::Destination(host))));
        }
        if state.wipes > 0 && state.sent[0] {
            actions.extend(self.hosts().map(Action::Wipe));
        }
        if state.is_alive(SOURCE) {
            actions.push(Action::Resume);
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = *state;
        if !self.apply(&mut next, action) || next == *state {
            return None;
        }
        if action.is_fault() && state.faults != UNBOUNDED {
            next.faults = state.faults.checked_sub(1)?;
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::of(&self.bounds)
    }
}
