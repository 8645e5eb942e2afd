//! What mig-send does for its driver: the operations of `handover::SourceIo`, in this world.

use mig_engine::handover::{
    FailureKind, HandoverMode, Query, ResolveOperation, Resolver, Source, SourceEnding,
    SourceGuestState, SourceOperation, SourceStep, SourceStepOutcome,
};
use mig_engine::ownership::{Input, State as Owner};
use mig_stream::{DestinationOutcome, StreamDigest};

use crate::model::HandoverModel;
use crate::mutation::Mutation;
use crate::state::{
    Ack, Answer, Asker, Back, Connection, Driver, Forward, Line, NOBODY, Phase, Pipe, Question,
    RESOLVER, Request, Rule, SOURCE, Saved, State, id_of, number_of,
};
use crate::vmrun::Served;

/// That of every stream.
pub const DIGEST: StreamDigest = StreamDigest(1);

const FAILED: SourceStepOutcome = SourceStepOutcome::Failed(FailureKind::Failed);

impl HandoverModel {
    /// The operator starts mig-send.
    pub fn start_sender(&self, state: &mut State, sender: usize) -> bool {
        let Some(form) = self.bounds.forms[sender] else { return false };
        let early =
            sender == 1 && !self.bounds.at_once && (!state.sent[0] || state.askers[0].is_some());
        if state.sent[sender] || early || !state.is_alive(SOURCE) {
            return false;
        }
        state.sent[sender] = true;
        state.forward[sender] = Pipe::OPEN;
        state.back[sender] = if form.is_answered() { Pipe::OPEN } else { Pipe::CLOSED };
        if self.bounds.twice {
            state.forward[1] = Pipe::OPEN;
        }
        self.start(state, sender, Driver::Source(Source::new(form)), sender);
        self.go_on(state, sender);
        true
    }

    /// The operator starts `mig-send --resolve`: it looks which migration is open first.
    pub fn start_resolver(&self, state: &mut State, resolver: usize) -> bool {
        let Owner::HandedOver(id) = state.vms[SOURCE].ownership.state() else { return false };
        let asker = RESOLVER + resolver;
        if resolver >= self.bounds.resolvers
            || !state.is_alive(SOURCE)
            || state.askers[asker].is_some()
            || state.connections[asker] != Connection::IDLE
        {
            return false;
        }
        let number = number_of(id);
        let by = state.vms[SOURCE].ownership.taken_by();
        self.start(state, asker, Driver::Resolver(Resolver::new(by, false)), number);
        true
    }

    fn start(&self, state: &mut State, asker: usize, driver: Driver, number: usize) {
        state.connections[asker] = Connection { line: Line::Open, pending: [None; 2] };
        state.askers[asker] = Some(Asker { driver, number: number as u8, asked: false });
    }

    /// mig-send goes on, if what it waits for is there.
    pub fn send(&self, state: &mut State, asker: usize) -> bool {
        let Some(tool) = state.askers[asker] else { return false };
        if state.connections[asker].line == Line::Open
            && state.connections[asker].pending[0].is_some()
        {
            return false;
        }
        if let Some(request) = self.request_of(&tool) {
            return self.ask(state, asker, request);
        }
        match tool.driver.operation() {
            SourceOperation::Step(step) => self.send_step(state, asker, &tool, step),
            SourceOperation::Resolve(ResolveOperation::Query(_)) if tool.asked => {
                self.answer(state, asker)
            }
            SourceOperation::Resolve(ResolveOperation::Query(_)) => {
                self.drop_question(state, asker);
                if !self.question(state, asker, 0) {
                    return false;
                }
                state.askers[asker] = Some(Asker { asked: true, ..tool });
                true
            }
            _ => false,
        }
    }

    fn send_step(&self, state: &mut State, asker: usize, tool: &Asker, step: SourceStep) -> bool {
        let form = self.form(tool.number);
        match step {
            SourceStep::AwaitReady => return self.hear(state, asker, Back::Ready),
            SourceStep::SendEnd => self.write(state, asker, Forward::End),
            SourceStep::AwaitAck => {
                let expected = match state.back[asker].queue[0] {
                    Some(Back::Ack(by)) => Back::Ack(by),
                    _ => Back::Ready,
                };
                return self.hear(state, asker, expected);
            }
            // By mistake.
            SourceStep::Commit => {
                let message = match form.is_answered() {
                    true => Self::go_of(tool),
                    false => Forward::End,
                };
                self.write(state, asker, message);
            }
            SourceStep::SendGo if form == HandoverMode::BothWays => {
                self.write(state, asker, Self::go_of(tool));
            }
            SourceStep::SendGo => {
                if !self.question(state, asker, 0) {
                    return false;
                }
                self.advance_sender(state, asker, SourceStepOutcome::Done);
            }
            SourceStep::AwaitRunning if form == HandoverMode::BothWays => {
                return self.hear(state, asker, Back::Running);
            }
            SourceStep::AwaitRunning => return self.answer(state, asker),
            SourceStep::Close => {
                state.forward[asker] = Pipe::CLOSED;
                state.file = match self.is(Mutation::ConfirmsUnsynced) {
                    true => Saved::Visible,
                    false => Saved::Durable,
                };
                self.advance_sender(state, asker, SourceStepOutcome::Done);
            }
            SourceStep::SendHeader
            | SourceStep::PreCopy
            | SourceStep::StopAndCopy
            | SourceStep::PrepareCommit => return false,
        }
        true
    }

    /// What vmrun is asked for in the present operation.
    fn request_of(&self, tool: &Asker) -> Option<Request> {
        let id = id_of(tool.number);
        Some(match tool.driver.operation() {
            SourceOperation::Step(SourceStep::PreCopy) => Request::Own(Input::Begin(id)),
            SourceOperation::Step(SourceStep::StopAndCopy) => Request::Save,
            SourceOperation::Step(SourceStep::Commit)
                if !self.writes_first(self.form(tool.number)) =>
            {
                Self::commit_of(tool)
            }
            SourceOperation::Release => Request::Own(Input::Release(id)),
            SourceOperation::Resolve(ResolveOperation::Confirm) => Request::Own(Input::Confirm(id)),
            SourceOperation::Resolve(ResolveOperation::TakeBack) => {
                Request::Own(Input::TakeBack(id))
            }
            _ => return None,
        })
    }

    fn writes_first(&self, form: HandoverMode) -> bool {
        match form {
            HandoverMode::BothWays => self.is(Mutation::CommitAfterGo),
            HandoverMode::OneWay | HandoverMode::Saved => self.is(Mutation::EndBeforeCommit),
            HandoverMode::SeparateCommit => false,
        }
    }

    /// What is written before its commit by mistake is committed in its own step.
    fn commits_last(&self, message: Forward) -> bool {
        matches!(message, Forward::Go(_)) && self.is(Mutation::CommitAfterGo)
            || message == Forward::End && self.is(Mutation::EndBeforeCommit)
    }

    fn write(&self, state: &mut State, asker: usize, message: Forward) {
        let Some(tool) = state.askers[asker] else { return };
        let form = self.form(tool.number);
        let committing = Self::is_at(&tool, SourceStep::Commit);
        if self.commits_last(message) && !committing {
            self.ask(state, asker, Self::commit_of(&tool));
            return;
        }
        if matches!(message, Forward::Go(_)) || message == Forward::End && !form.is_answered() {
            self.lets_go(state, tool.number);
        }
        self.say(state, asker, message);
        self.advance_sender(
            state,
            asker,
            match message {
                Forward::End => SourceStepOutcome::Sent(DIGEST),
                _ => SourceStepOutcome::Done,
            },
        );
    }

    fn say(&self, state: &mut State, asker: usize, message: Forward) {
        state.forward[asker].write(message);
        if self.bounds.twice {
            state.forward[1].write(message);
        }
    }

    fn is_at(tool: &Asker, step: SourceStep) -> bool {
        tool.driver.operation() == SourceOperation::Step(step)
    }

    fn lets_go(&self, state: &mut State, number: u8) {
        let number = usize::from(number);
        state.history.released[number] = true;
        if !state.history.committed[number] {
            state.broke(Rule::CommitBeforeGo);
        }
    }

    fn close(&self, state: &mut State, asker: usize) {
        if asker < RESOLVER {
            state.forward[asker].open = false;
            if self.bounds.twice {
                state.forward[1].open = false;
            }
        }
    }

    fn hear(&self, state: &mut State, asker: usize, expected: Back) -> bool {
        let outcome = match state.back[asker].read() {
            Some(message) if message == expected => match message {
                Back::Ack(by) => SourceStepOutcome::Acknowledged(by.told()),
                _ => SourceStepOutcome::Done,
            },
            // With a separate commit nobody has waited for READY.
            Some(Back::Ready) => return true,
            Some(_) => FAILED,
            None if state.back[asker].open => return false,
            None => FAILED,
        };
        self.advance_sender(state, asker, outcome);
        true
    }

    fn go_of(tool: &Asker) -> Forward {
        Forward::Go(tool.driver.taken_by())
    }

    fn commit_of(tool: &Asker) -> Request {
        Request::Own(Input::Commit(id_of(tool.number), tool.driver.taken_by().map(Ack::told)))
    }

    /// Puts a request to vmrun. A client that was not answered once is not answered any more.
    fn ask(&self, state: &mut State, asker: usize, request: Request) -> bool {
        if state.connections[asker].line == Line::TimedOut {
            if state.is_alive(SOURCE) {
                state.connections[asker].ask(request);
            }
            self.answered_sender(state, asker, Served::Lost);
            return true;
        }
        let served = match state.is_alive(SOURCE) {
            true => self.serve(state, SOURCE, asker as u8, request),
            false => Served::Lost,
        };
        self.answered_sender(state, asker, served);
        true
    }

    /// The request that mig-send makes in this step is under way, and mig-send stops waiting.
    pub fn sender_times_out(&self, state: &mut State, asker: usize) -> bool {
        let Some(tool) = state.askers[asker] else { return false };
        let Some(request) = self.request_of(&tool) else { return false };
        if state.connections[asker].line != Line::Open || !state.is_alive(SOURCE) {
            return false;
        }
        state.connections[asker].ask(request);
        state.connections[asker].line = Line::TimedOut;
        self.answered_sender(state, asker, Served::Lost);
        true
    }

    /// vmrun's answer.
    pub fn answered_sender(&self, state: &mut State, asker: usize, served: Served) {
        let Some(tool) = state.askers[asker] else { return };
        let outcome = match served {
            Served::Busy => return,
            Served::Done => SourceStepOutcome::Done,
            // vmrun said no: nothing was recorded.
            Served::Refused if Self::is_at(&tool, SourceStep::Commit) => {
                SourceStepOutcome::Failed(FailureKind::Undone)
            }
            Served::Refused | Served::Lost => FAILED,
        };
        self.advance_sender(state, asker, outcome);
    }

    /// What mig-send sees of its guest by a connection of its own.
    fn guest_state(&self, state: &State, number: u8) -> SourceGuestState {
        let vm = &state.vms[SOURCE];
        match state.is_alive(SOURCE) {
            true => SourceGuestState::of(vm.ownership.state(), vm.running, id_of(number)),
            false => SourceGuestState::Gone,
        }
    }

    /// The second tunnel leads to another host than the first.
    pub fn ask_elsewhere(&self, state: &mut State, asker: usize) -> bool {
        let Some(tool) = state.askers[asker] else { return false };
        let is_go = match tool.driver.operation() {
            SourceOperation::Resolve(ResolveOperation::Query(_)) if !tool.asked => false,
            SourceOperation::Step(SourceStep::SendGo)
                if self.form(tool.number) == HandoverMode::SeparateCommit =>
            {
                true
            }
            _ => return false,
        };
        self.drop_question(state, asker);
        if !self.question(state, asker, 1) {
            return false;
        }
        match is_go {
            true => self.advance_sender(state, asker, SourceStepOutcome::Done),
            false => state.askers[asker] = Some(Asker { asked: true, ..tool }),
        }
        true
    }

    /// Opens a second tunnel and asks what became of the migration, which is GO as well; or says
    /// that its guest was released.
    fn question(&self, state: &mut State, asker: usize, host: u8) -> bool {
        let Some(tool) = state.askers[asker] else { return false };
        let Some(free) = state.questions.iter().position(Option::is_none) else { return false };
        let released = Self::query_of(&tool) == Query::Released;
        if !released {
            self.lets_go(state, tool.number);
        }
        state.questions[free] = Some(Question {
            asker: asker as u8,
            number: tool.number,
            host,
            released,
            taken_by: tool
                .driver
                .taken_by()
                .filter(|_| !released || self.is(Mutation::ReleaseIsGo)),
            phase: Phase::Look,
        });
        true
    }

    fn query_of(tool: &Asker) -> Query {
        match tool.driver.operation() {
            SourceOperation::Resolve(ResolveOperation::Query(query)) => query,
            _ => Query::Committed(tool.driver.taken_by().map(Ack::told)),
        }
    }

    /// Nobody waits for the answer to this tool's question any more.
    pub fn drop_question(&self, state: &mut State, asker: usize) {
        for slot in &mut state.questions {
            if let Some(question) = slot
                && usize::from(question.asker) == asker
            {
                match question.phase {
                    Phase::Answer(_) => *slot = None,
                    _ => question.asker = NOBODY,
                }
            }
        }
    }

    fn answer(&self, state: &mut State, asker: usize) -> bool {
        let Some(tool) = state.askers[asker] else { return false };
        let mine = |slot: &Option<Question>| slot.is_some_and(|it| usize::from(it.asker) == asker);
        let Some(slot) = state.questions.iter().position(mine) else {
            // The tunnel ended without a word.
            self.advance_sender(state, asker, FAILED);
            return true;
        };
        let Some(Question { phase: Phase::Answer(answer), host, .. }) = state.questions[slot]
        else {
            return false;
        };
        state.questions[slot] = None;
        let answer = match answer {
            Answer::Running => Some(DestinationOutcome::Running),
            Answer::Refused => Some(DestinationOutcome::Refused),
            Answer::Unreadable if self.is(Mutation::UnreadableIsRefused) => {
                Some(DestinationOutcome::Refused)
            }
            Answer::MayHaveRun => Some(DestinationOutcome::MayHaveRun { why: String::new() }),
            Answer::OtherHost => Some(DestinationOutcome::OtherHost {
                host: Ack { vm: 0, host, lost: 0 }.told().host,
            }),
            Answer::Unreadable => None,
        };
        let verdict = match answer {
            Some(answer) => Self::query_of(&tool).verdict(&answer),
            None => Err(FailureKind::Failed),
        };
        let outcome = verdict.map_or_else(SourceStepOutcome::Failed, |()| SourceStepOutcome::Done);
        self.advance_sender(state, asker, outcome);
        true
    }

    /// The present step fails or takes too long, or the operator cancels it.
    pub fn sender_stops(&self, state: &mut State, asker: usize, kind: FailureKind) -> bool {
        let Some(tool) = state.askers[asker] else { return false };
        use SourceStep::*;
        let form = self.form(tool.number);
        let may = match tool.driver.operation() {
            SourceOperation::Step(step) => match step {
                AwaitReady | PreCopy | StopAndCopy | SendEnd | AwaitAck | SendGo | AwaitRunning => {
                    true
                }
                // Whether a cancel came is looked at before vmrun is asked.
                Commit => kind == FailureKind::Cancelled,
                // The file has its name, and that may be lost in a power loss.
                Close => form == HandoverMode::Saved,
                SendHeader | PrepareCommit => false,
            },
            SourceOperation::Resolve(ResolveOperation::Query(_)) => true,
            _ => false,
        };
        if !may || asker >= RESOLVER && kind == FailureKind::Cancelled {
            return false;
        }
        if kind == FailureKind::Cancelled && !tool.driver.is_committed() {
            state.history.stays[usize::from(tool.number)] = true;
        }
        if Self::is_at(&tool, SendEnd)
            || Self::is_at(&tool, SendGo) && form == HandoverMode::BothWays
        {
            // A message that was not written whole arrives as the end of the stream.
            self.close(state, asker);
        }
        self.advance_sender(state, asker, SourceStepOutcome::Failed(kind));
        true
    }

    /// A file that has no name yet cannot be finished and is removed: the stream is gone as if it
    /// had never been.
    pub fn abandon(&self, state: &mut State, asker: usize) -> bool {
        let Some(tool) = &mut state.askers[asker] else { return false };
        let unfinished =
            Self::is_at(tool, SourceStep::SendEnd) || Self::is_at(tool, SourceStep::Close);
        if self.form(tool.number) != HandoverMode::Saved || !unfinished {
            return false;
        }
        tool.driver.advance(FAILED);
        assert_eq!(tool.driver.operation(), SourceOperation::RemoveFile);
        state.forward[asker] = Pipe::CLOSED;
        self.advance_sender(state, asker, SourceStepOutcome::Done);
        true
    }

    fn advance_sender(&self, state: &mut State, asker: usize, outcome: SourceStepOutcome) {
        let Some(tool) = &mut state.askers[asker] else { return };
        let number = tool.number;
        let late = tool.driver.is_committed() && matches!(outcome, SourceStepOutcome::Failed(_));
        tool.driver.advance(outcome);
        if let SourceOperation::Finished(ending) = tool.driver.operation() {
            self.check_ending(state, asker, usize::from(number), ending);
            self.end_sender(state, asker);
        }
        if late && self.is(Mutation::ReleasesWhenAskedTwice) && state.is_alive(SOURCE) {
            for _ in 0..2 {
                let release = Request::Own(Input::Release(id_of(number)));
                self.serve(state, SOURCE, asker as u8, release);
            }
        }
        self.go_on(state, asker);
    }

    /// What nobody can tell from a moment later is done at once. What is only written is: nobody can
    /// tell that from a reader who comes to it later, nor a writer who dies before it from a tunnel
    /// that loses it. That is not so for GO and the one-way `End`: a source that is handed-over and
    /// has not let go yet is a moment of its own. Nor is there time for a second attempt: that is
    /// another resolver's.
    fn go_on(&self, state: &mut State, asker: usize) {
        let Some(tool) = state.askers[asker] else { return };
        let form = self.form(tool.number);
        let outcome = match tool.driver.operation() {
            SourceOperation::Step(SourceStep::SendHeader) => {
                let released = state.vms[SOURCE].released;
                return self.write(state, asker, Forward::Header(released));
            }
            SourceOperation::Step(SourceStep::SendEnd) if form.is_answered() => {
                return self.write(state, asker, Forward::End);
            }
            SourceOperation::Step(SourceStep::Close) if form != HandoverMode::Saved => {
                self.close(state, asker);
                SourceStepOutcome::Done
            }
            SourceOperation::LookAtGuest => {
                SourceStepOutcome::Guest(self.guest_state(state, tool.number))
            }
            SourceOperation::AbortStream => {
                self.say(state, asker, Forward::Abort);
                self.close(state, asker);
                SourceStepOutcome::Done
            }
            SourceOperation::Step(SourceStep::PrepareCommit)
            | SourceOperation::Explain(_)
            | SourceOperation::LeaveTunnel => SourceStepOutcome::Done,
            SourceOperation::RemoveFile
            | SourceOperation::Resolve(ResolveOperation::AwaitRetry) => FAILED,
            _ => return,
        };
        self.advance_sender(state, asker, outcome);
    }

    fn check_ending(&self, state: &mut State, asker: usize, number: usize, ending: SourceEnding) {
        let one_way = !self.form(number as u8).is_answered();
        let arrived = state.history.continued[number] > 0;
        match ending {
            SourceEnding::Moved if one_way && asker < RESOLVER => {
                let lost = self.form(number as u8) == HandoverMode::Saved
                    && state.file != Saved::Durable
                    && !arrived;
                if lost || !state.history.committed[number] {
                    state.broke(Rule::MovedMeansMoved);
                }
            }
            SourceEnding::Moved if !arrived => state.broke(Rule::MovedMeansMoved),
            SourceEnding::Stayed | SourceEnding::Cancelled => {
                state.history.stays[number] = true;
                let owner = state.vms[SOURCE].ownership.state();
                if state.is_alive(SOURCE) && owner == Owner::HandedOver(id_of(number as u8)) {
                    state.broke(Rule::StaysMeansStays);
                }
            }
            SourceEnding::Moved | SourceEnding::Unknown | SourceEnding::Forced => {}
        }
    }

    /// The process ends: its connections and its ends of the tunnels close.
    pub fn end_sender(&self, state: &mut State, asker: usize) {
        state.askers[asker] = None;
        self.drop_question(state, asker);
        self.hang_up(state, asker);
        if asker < RESOLVER {
            self.close(state, asker);
            state.back[asker] = Pipe::CLOSED;
        }
    }
}
