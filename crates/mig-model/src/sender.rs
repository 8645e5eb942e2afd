//! What mig-send does for its driver: the operations of `handover::SourceIo`, in this model.

use mig_engine::handover::{
    FailureKind, HandoverMode, ResolveOperation, Resolver, Source, SourceGuestState,
    SourceOperation, SourceStep, SourceStepOutcome,
};
use mig_engine::ownership::State as Owner;

use crate::bounds::HandoverModel;
use crate::mutation::Mutation;
use crate::state::{
    Back, Connection, DIGEST, Driver, Forward, Line, Pipe, RESOLVER, Rule, SOURCE, Saved,
    SourceTool, State, id_of, number_of,
};

const FAILED: SourceStepOutcome = SourceStepOutcome::Failed(FailureKind::Failed);

impl HandoverModel {
    /// The operator starts mig-send.
    pub fn start_sender(&self, state: &mut State, sender: usize) -> bool {
        let Some(mode) = self.bounds.modes[sender] else { return false };
        let early = sender == 1
            && !self.bounds.at_once
            && (!state.sent[0] || state.source_tools[0].is_some());
        if state.sent[sender] || early || !state.is_alive(SOURCE) {
            return false;
        }
        state.sent[sender] = true;
        state.forward[sender] = Pipe::OPEN;
        state.back[sender] = if mode.is_answered() { Pipe::OPEN } else { Pipe::CLOSED };
        if self.bounds.twice {
            state.forward[1] = Pipe::OPEN;
        }
        let source = match self.bounds.snapshot {
            true => Source::snapshot(),
            false => Source::new(mode),
        };
        self.start(state, sender, Driver::Source(source), sender);
        self.go_on(state, sender);
        true
    }

    /// The operator starts `mig-send --resolve`: it looks which migration is open first.
    pub fn start_resolver(&self, state: &mut State, resolver: usize) -> bool {
        let Owner::HandedOver(id) = state.vms[SOURCE].ownership.state() else { return false };
        let source_tool = RESOLVER + resolver;
        if resolver >= self.bounds.resolvers
            || !state.is_alive(SOURCE)
            || state.source_tools[source_tool].is_some()
            || state.connections[source_tool] != Connection::IDLE
        {
            return false;
        }
        let number = number_of(id);
        let by = state.vms[SOURCE].ownership.taken_by();
        self.start(state, source_tool, Driver::Resolver(Resolver::new(by, false)), number);
        true
    }

    fn start(&self, state: &mut State, source_tool: usize, driver: Driver, number: usize) {
        state.connections[source_tool] = Connection { line: Line::Open, pending: [None; 2] };
        state.source_tools[source_tool] =
            Some(SourceTool { driver, number: number as u8, asked: false });
    }

    /// mig-send goes on, if what it waits for is there.
    pub fn send(&self, state: &mut State, source_tool: usize) -> bool {
        let Some(tool) = state.source_tools[source_tool] else { return false };
        if state.connections[source_tool].line == Line::Open
            && state.connections[source_tool].pending[0].is_some()
        {
            return false;
        }
        if let Some(request) = self.request_of(&tool) {
            return self.ask(state, source_tool, request);
        }
        match tool.driver.operation() {
            SourceOperation::Step(step) => self.send_step(state, source_tool, &tool, step),
            SourceOperation::Resolve(ResolveOperation::Query(_)) if tool.asked => {
                self.answer(state, source_tool)
            }
            SourceOperation::Resolve(ResolveOperation::Query(_)) => {
                self.drop_query(state, source_tool);
                if !self.send_query(state, source_tool, 0) {
                    return false;
                }
                state.source_tools[source_tool] = Some(SourceTool { asked: true, ..tool });
                true
            }
            _ => false,
        }
    }

    fn send_step(
        &self,
        state: &mut State,
        source_tool: usize,
        tool: &SourceTool,
        step: SourceStep,
    ) -> bool {
        let mode = self.mode_of(tool.number);
        match step {
            SourceStep::AwaitReady => return self.hear(state, source_tool, Back::Ready),
            SourceStep::SendEnd => self.write(state, source_tool, Forward::End),
            SourceStep::AwaitAck => {
                let expected = match state.back[source_tool].queue[0] {
                    Some(Back::Ack(by)) => Back::Ack(by),
                    _ => Back::Ready,
                };
                return self.hear(state, source_tool, expected);
            }
            // By mistake.
            SourceStep::Commit => {
                let message = match mode.is_answered() {
                    true => Self::go_of(tool),
                    false => Forward::End,
                };
                self.write(state, source_tool, message);
            }
            SourceStep::SendGo if mode == HandoverMode::BothWays => {
                self.write(state, source_tool, Self::go_of(tool));
            }
            SourceStep::SendGo => {
                if !self.send_query(state, source_tool, 0) {
                    return false;
                }
                self.advance_sender(state, source_tool, SourceStepOutcome::Done);
            }
            SourceStep::AwaitRunning if mode == HandoverMode::BothWays => {
                return self.hear(state, source_tool, Back::Running);
            }
            SourceStep::AwaitRunning => return self.answer(state, source_tool),
            SourceStep::Close => {
                state.forward[source_tool] = Pipe::CLOSED;
                state.file = match self.is(Mutation::ConfirmsUnsynced) {
                    true => Saved::Visible,
                    false => Saved::Durable,
                };
                self.advance_sender(state, source_tool, SourceStepOutcome::Done);
            }
            SourceStep::SendHeader
            | SourceStep::PreCopy
            | SourceStep::StopAndCopy
            | SourceStep::Resume
            | SourceStep::PrepareCommit => return false,
        }
        true
    }

    /// What is written before its commit by mistake is committed in its own step.
    fn commits_last(&self, message: Forward) -> bool {
        matches!(message, Forward::Go(_)) && self.is(Mutation::CommitAfterGo)
            || message == Forward::End && self.is(Mutation::EndBeforeCommit)
    }

    fn write(&self, state: &mut State, source_tool: usize, message: Forward) {
        let Some(tool) = state.source_tools[source_tool] else { return };
        let mode = self.mode_of(tool.number);
        let committing = Self::is_at(&tool, SourceStep::Commit);
        if self.commits_last(message) && !committing {
            self.ask(state, source_tool, Self::commit_of(&tool));
            return;
        }
        let is_go = message == Forward::End && !mode.is_answered() && !self.bounds.snapshot;
        if matches!(message, Forward::Go(_)) || is_go {
            self.lets_go(state, tool.number);
        }
        self.say(state, source_tool, message);
        self.advance_sender(
            state,
            source_tool,
            match message {
                Forward::End => SourceStepOutcome::Sent(DIGEST),
                _ => SourceStepOutcome::Done,
            },
        );
    }

    fn say(&self, state: &mut State, source_tool: usize, message: Forward) {
        state.forward[source_tool].write(message);
        if self.bounds.twice {
            state.forward[1].write(message);
        }
    }

    pub(crate) fn lets_go(&self, state: &mut State, number: u8) {
        let number = usize::from(number);
        state.history.released[number] = true;
        if !state.history.committed[number] {
            state.broke(Rule::CommitBeforeGo);
        }
    }

    pub(crate) fn close(&self, state: &mut State, source_tool: usize) {
        if source_tool < RESOLVER {
            state.forward[source_tool].open = false;
            if self.bounds.twice {
                state.forward[1].open = false;
            }
        }
    }

    fn hear(&self, state: &mut State, source_tool: usize, expected: Back) -> bool {
        let outcome = match state.back[source_tool].read() {
            Some(message) if message == expected => match message {
                Back::Ack(by) => SourceStepOutcome::Acknowledged(by.told()),
                _ => SourceStepOutcome::Done,
            },
            // With a separate commit nobody has waited for READY.
            Some(Back::Ready) => return true,
            Some(Back::Failed) => SourceStepOutcome::Failed(FailureKind::GivenUp),
            Some(_) => FAILED,
            None if state.back[source_tool].open => return false,
            None => FAILED,
        };
        self.advance_sender(state, source_tool, outcome);
        true
    }

    fn go_of(tool: &SourceTool) -> Forward {
        Forward::Go(tool.driver.taken_by())
    }

    /// What mig-send sees of its guest by a connection of its own.
    fn guest_state(&self, state: &State, number: u8) -> SourceGuestState {
        let vm = &state.vms[SOURCE];
        match state.is_alive(SOURCE) {
            true => SourceGuestState::of(vm.ownership.state(), vm.running, id_of(number)),
            false => SourceGuestState::Gone,
        }
    }

    /// What nobody can tell from a moment later is done at once. What is only written is: nobody can
    /// tell that from a reader who comes to it later, nor a writer who dies before it from a tunnel
    /// that loses it. That is not so for GO and the one-way `End`: a source that is handed-over and
    /// has not let go yet is a moment of its own. Nor is there time for a second attempt: that is
    /// another resolver's.
    pub(crate) fn go_on(&self, state: &mut State, source_tool: usize) {
        let Some(tool) = state.source_tools[source_tool] else { return };
        let mode = self.mode_of(tool.number);
        let outcome = match tool.driver.operation() {
            SourceOperation::Step(SourceStep::SendHeader) => {
                let released = state.vms[SOURCE].released;
                return self.write(state, source_tool, Forward::Header(released));
            }
            SourceOperation::Step(SourceStep::SendEnd) if mode.is_answered() => {
                return self.write(state, source_tool, Forward::End);
            }
            SourceOperation::Step(SourceStep::Close) if mode != HandoverMode::Saved => {
                self.close(state, source_tool);
                SourceStepOutcome::Done
            }
            SourceOperation::LookAtGuest => {
                SourceStepOutcome::Guest(self.guest_state(state, tool.number))
            }
            SourceOperation::AbortStream => {
                self.say(state, source_tool, Forward::Abort);
                self.close(state, source_tool);
                SourceStepOutcome::Done
            }
            SourceOperation::Step(SourceStep::PrepareCommit)
            | SourceOperation::Explain(_)
            | SourceOperation::LeaveTunnel => SourceStepOutcome::Done,
            SourceOperation::RemoveFile
            | SourceOperation::Resolve(ResolveOperation::AwaitRetry) => FAILED,
            _ => return,
        };
        self.advance_sender(state, source_tool, outcome);
    }
}
