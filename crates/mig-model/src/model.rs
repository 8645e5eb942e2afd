//! Everything that may happen next.

use mig_engine::handover::{FailureKind, HandoverMode};
use mig_engine::ownership::{Authority, Decision, Input, State as Owner};
use stateright::{Model, Property};

use crate::mutation::Mutation;
use crate::properties;
use crate::state::{
    ASKERS, Ack, Answer, Connection, HOSTS, Life, Line, NOBODY, Phase, Pipe, QUESTIONS, RESOLVER,
    Record, Request, SOURCE, Saved, State, TOOLS, VMS, vm_of,
};
use crate::vmrun::Served;

/// How much of the world is looked at. Delays are not bounded.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// The senders that may be started, in any order and at once: the form of each one's
    /// migration.
    pub forms: [Option<HandoverMode>; 2],
    /// The second sender may start while the first is at work.
    pub at_once: bool,
    /// The one stream is delivered twice, to two vmruns; both ways, the second one is a copy whose
    /// answers reach nobody.
    pub twice: bool,
    /// The second vmrun is on another host, to which every question may come by mistake.
    pub other_host: bool,
    /// Times that a host loses its records.
    pub wipes: u8,
    /// The destination gives a prepared guest up by itself (`--go-timeout`).
    pub go_timeout: bool,
    /// How often a file that the guest is saved to may be read ([`HandoverMode::Saved`]): again after a
    /// restore that failed, and by two at once. It has no name before it is whole: nobody reads it
    /// earlier, and until then it can be given up.
    pub reads: u8,
    /// Resolvers that may be at work at once. Each may be started again and again.
    pub resolvers: usize,
    /// Crashes: of a tool, of a vmrun or of a whole host.
    pub crashes: u8,
    /// Times that the operator ends a guest (without force).
    pub quits: u8,
    /// Tunnels are cut, beside readers that give up waiting.
    pub cuts: bool,
    /// Failures, timeouts, cuts, losses and cancels, or [`UNBOUNDED`].
    pub faults: u8,
}

/// As many as there can be.
pub const UNBOUNDED: u8 = u8::MAX;

/// The model: the bounds, and the mistake in it if there is to be one.
#[derive(Clone, Copy, Debug)]
pub struct HandoverModel {
    /// How much is looked at.
    pub bounds: Bounds,
    /// What is wrong.
    pub mutation: Option<Mutation>,
}

/// A host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// The source's.
    Source,
    /// The one that a guest may come to with this number.
    Destination(usize),
}

/// One thing that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// The operator starts mig-send.
    Send(usize),
    /// A mig-recv takes up a stream.
    Receive(usize),
    /// The operator starts mig-send --resolve.
    Resolve(usize),
    /// A tool goes on.
    Go(usize),
    /// A tool goes on, and its question comes to another host than it should.
    GoElsewhere(usize),
    /// What a tool does fails, or it waited too long for the other side.
    Fail(usize),
    /// A tool stops waiting for its vmrun, which serves the request later.
    TimeOut(usize),
    /// The operator cancels.
    Cancel(usize),
    /// The file cannot be finished, and mig-send removes it.
    Abandon(usize),
    /// vmrun serves a request that nobody waits for any more.
    Late(usize),
    /// vmrun notices that a tool is gone.
    Gone(usize),
    /// A record is on the disk, and vmrun goes on.
    Recorded(usize),
    /// Somebody found the time to record what became of the guest.
    RecordedLate(usize),
    /// A vmrun that has nothing left to do ends.
    Exit(usize),
    /// No GO came.
    GoTimeout(usize),
    /// The mig-recv that answers a question goes on.
    Inquire(usize),
    /// A question, its answer, or the mig-recv between them is lost. That is after the asker gave
    /// up: earlier it would be the same to it.
    LoseQuestion(usize),
    /// A question breaks off in the middle, and mig-recv says so.
    BreakQuestion(usize),
    /// The tunnel ends and loses what is in it. That some of it arrives first is the same as that
    /// it is cut later.
    CutForward(usize),
    /// The way back does.
    CutBack(usize),
    /// kill -9 of a tool.
    KillTool(usize),
    /// kill -9 of a vmrun.
    KillVm(usize),
    /// A host loses its power and starts again.
    KillHost(Host),
    /// A host loses its records, and who it was with them.
    Wipe(usize),
    /// The operator wants the guest to run at the source.
    Resume,
    /// The operator ends a guest.
    Quit(usize),
    /// The operator says GO at the destination ([`Mutation::OperatorsGo`]).
    Commit(usize),
}

impl Action {
    /// What the bound on faults counts.
    pub const fn is_fault(self) -> bool {
        matches!(
            self,
            Self::Fail(_)
                | Self::TimeOut(_)
                | Self::Cancel(_)
                | Self::Abandon(_)
                | Self::LoseQuestion(_)
                | Self::BreakQuestion(_)
                | Self::CutForward(_)
                | Self::CutBack(_)
        )
    }

    /// What happens even if nothing breaks and nobody but `--resolve` is called: what the pair
    /// has to come to rest by.
    pub const fn is_recovery(self) -> bool {
        matches!(
            self,
            Self::Receive(_)
                | Self::Resolve(_)
                | Self::Go(_)
                | Self::Fail(_)
                | Self::Late(_)
                | Self::Gone(_)
                | Self::Recorded(_)
                | Self::RecordedLate(_)
                | Self::Exit(_)
                | Self::GoTimeout(_)
                | Self::Inquire(_)
        )
    }
}

impl HandoverModel {
    /// The real protocol within these bounds.
    pub const fn new(bounds: Bounds) -> Self {
        Self { bounds, mutation: None }
    }

    /// The protocol with one mistake.
    pub const fn with(bounds: Bounds, mutation: Mutation) -> Self {
        Self { bounds, mutation: Some(mutation) }
    }

    pub(crate) fn is(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }

    pub(crate) fn answered(&self, state: &mut State, tool: usize, served: Served) {
        if tool < ASKERS {
            self.answered_sender(state, tool, served);
        } else {
            self.answered_reception(state, tool - ASKERS, served);
        }
    }

    fn exists(&self, state: &State, tool: usize) -> bool {
        if tool < ASKERS {
            state.askers[tool].is_some()
        } else {
            state.receptions[tool - ASKERS].is_some()
        }
    }

    fn late(&self, state: &mut State, tool: usize) -> bool {
        let vm = vm_of(tool);
        let connection = state.connections[tool];
        let Some(request) = connection.pending[0] else { return false };
        if connection.line == Line::Open || !state.is_alive(vm) || state.vms[vm].busy.is_some() {
            return false;
        }
        if self.serve(state, vm, tool as u8, request) != Served::Busy {
            state.connections[tool].take();
        }
        true
    }

    fn gone(&self, state: &mut State, tool: usize) -> bool {
        let (vm, connection) = (vm_of(tool), state.connections[tool]);
        let quiet = connection.pending[0].is_none() && state.vms[vm].busy.is_none();
        if connection.line != Line::Gone || !quiet {
            return false;
        }
        state.connections[tool] = Connection::IDLE;
        self.closed(state, vm, tool as u8);
        true
    }

    fn record_later(&self, state: &mut State, vm: usize) -> bool {
        let Some((number, decision)) = state.vms[vm].later.take() else { return false };
        let host = self.host_of(vm);
        let record = &mut state.records[host][usize::from(number)];
        (record.visible, record.durable) = (Some(decision), Some(decision));
        record.vm = Some(vm as u8);
        true
    }

    fn crash(state: &mut State) -> bool {
        match state.crashes.checked_sub(1) {
            Some(left) => {
                state.crashes = left;
                true
            }
            None => false,
        }
    }

    /// The tool's connection ends. Where vmrun would do nothing about that, now or later, it is
    /// forgotten at once.
    pub(crate) fn hang_up(&self, state: &mut State, tool: usize) {
        let (vm, client) = (&state.vms[vm_of(tool)], tool as u8);
        let leaving = vm.leaving.is_some_and(|it| it.client == client);
        let matters = leaving && matches!(vm.ownership.state(), Owner::Migrating(_))
            || vm.receiver == Some(client) && matches!(vm.ownership.state(), Owner::Receiving(_))
            || vm.receiver == Some(client) && vm.ownership.is_saved()
            || vm.receiver == Some(client)
                && matches!(vm.ownership.state(), Owner::Prepared(_))
                && vm.ownership.is_saved()
            || state.connections[tool].pending[0].is_some()
            || leaving && self.is(Mutation::ClientGoneAfterCommit)
            || self.is(Mutation::ReleasedAnswersCommit);
        state.connections[tool].line = match state.is_alive(vm_of(tool)) && matters {
            true => Line::Gone,
            false => Line::Idle,
        };
    }

    /// The host on which a vmrun that waits for a guest is.
    pub(crate) const fn host_of(&self, vm: usize) -> usize {
        if self.bounds.other_host && vm == 2 { 1 } else { 0 }
    }

    fn hosts(&self) -> impl Iterator<Item = usize> {
        0..if self.bounds.other_host { HOSTS } else { 1 }
    }

    /// What the ACK of this vmrun says.
    pub(crate) fn ack_of(&self, state: &State, vm: usize) -> Ack {
        let host = self.host_of(vm);
        Ack { vm: vm as u8, host: host as u8, lost: state.lost[host] }
    }

    /// The directory of a host's records is gone; its vmruns live on. A host that forgets a refusal
    /// takes the same stream when it is sent again, as the first that reads a saved guest does.
    fn wipe(state: &mut State, host: usize) -> bool {
        if state.records[host].iter().any(|record| record.visible == Some(Decision::Refused)) {
            return false;
        }
        let Some(left) = state.wipes.checked_sub(1) else { return false };
        state.wipes = left;
        state.records[host] = [Record::NONE; 2];
        state.lost[host] += 1;
        true
    }

    fn end_tool(&self, state: &mut State, tool: usize) {
        if tool < ASKERS {
            self.end_sender(state, tool);
        } else {
            self.end_reception(state, tool - ASKERS);
        }
    }

    fn kill_host(&self, state: &mut State, host: Host) {
        let here = |vm: usize| match host {
            Host::Source => vm == SOURCE,
            Host::Destination(number) => vm != SOURCE && self.host_of(vm) == number,
        };
        for tool in (0..TOOLS).filter(|tool| here(vm_of(*tool))) {
            if self.exists(state, tool) {
                self.end_tool(state, tool);
            }
        }
        for vm in (0..VMS).filter(|vm| here(*vm)) {
            if state.is_alive(vm) {
                self.killed(state, vm);
            }
        }
        if host == Host::Source && state.file == Saved::Visible {
            state.file = Saved::No;
        }
        if let Host::Destination(number) = host {
            for record in &mut state.records[number] {
                record.visible = record.durable;
                if record.visible.is_none() {
                    record.vm = None;
                }
            }
            for slot in &mut state.questions {
                if slot.is_some_and(|question| {
                    usize::from(question.host) == number
                        && !matches!(question.phase, Phase::Answer(_))
                }) {
                    *slot = None;
                }
            }
        }
    }

    fn apply(&self, state: &mut State, action: Action) -> bool {
        match action {
            Action::Send(sender) => self.start_sender(state, sender),
            Action::Receive(reception) => self.start_reception(state, reception),
            Action::Resolve(resolver) => self.start_resolver(state, resolver),
            Action::Go(tool) if tool < ASKERS => self.send(state, tool),
            Action::Go(tool) => self.receive(state, tool - ASKERS),
            Action::GoElsewhere(tool) => self.ask_elsewhere(state, tool),
            Action::Wipe(host) => Self::wipe(state, host),
            Action::Fail(tool) if tool < ASKERS => {
                self.sender_stops(state, tool, FailureKind::Failed)
            }
            Action::Fail(tool) => self.reception_stops(state, tool - ASKERS),
            Action::TimeOut(tool) if tool < ASKERS => self.sender_times_out(state, tool),
            Action::TimeOut(tool) => self.reception_times_out(state, tool - ASKERS),
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
                self.dies(state, vm, Life::Ended);
                true
            }
            Action::GoTimeout(vm) => {
                let Owner::Prepared(id) = state.vms[vm].ownership.state() else { return false };
                self.step(state, vm, NOBODY, Input::Refuse(id));
                true
            }
            Action::Inquire(slot) => self.inquire(state, slot),
            Action::LoseQuestion(slot) => {
                state.questions[slot] = None;
                true
            }
            Action::BreakQuestion(slot) => {
                if let Some(question) = &mut state.questions[slot] {
                    question.phase = Phase::Answer(Answer::Unreadable);
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
        if here.life != Life::Alive {
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
        if tool < ASKERS && self.bounds.other_host {
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
        for slot in 0..QUESTIONS {
            let Some(question) = state.questions[slot] else { continue };
            actions.push(Action::Inquire(slot));
            if question.asker == NOBODY {
                actions.push(Action::LoseQuestion(slot));
            }
            if question.phase == Phase::Look {
                actions.push(Action::BreakQuestion(slot));
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
