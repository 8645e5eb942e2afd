//! mig-send around its machine: `bins/mig-send/src/{migration,blackout,resolve}.rs`.

use mig_engine::handover::{Form, Outcome, Source, SourceEnding, SourceStep};
use mig_engine::ownership::{Input, State as Owner};

use crate::mutation::Mutation;
use crate::state::{
    Ack, Answer, Asker, Back, Connection, Forward, Line, NOBODY, Phase, Pipe, Question, RESOLVER,
    Request, Rule, SOURCE, Saved, State, id_of, number_of,
};
use crate::vmrun::Served;
use crate::world::World;

impl World {
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
        self.start(state, sender, Source::new(form), sender, None);
        self.write_on(state, sender);
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
        let form = self.bounds.forms[number].unwrap_or(Form::BothWays);
        let by = state.vms[SOURCE].ownership.taken_by().map(Ack::of);
        self.start(state, asker, Source::resolving(form), number, by);
        true
    }

    fn start(
        &self,
        state: &mut State,
        asker: usize,
        machine: Source,
        number: usize,
        taken_by: Option<Ack>,
    ) {
        state.connections[asker] = Connection { line: Line::Open, pending: [None; 2] };
        state.askers[asker] = Some(Asker { machine, number: number as u8, asked: false, taken_by });
    }

    /// mig-send goes on, if what it waits for is there.
    pub fn send(&self, state: &mut State, asker: usize) -> bool {
        let Some(tool) = state.askers[asker] else { return false };
        if state.connections[asker].line == Line::Open
            && state.connections[asker].pending[0].is_some()
        {
            return false;
        }
        let (id, form) = (id_of(tool.number), self.form(tool.number));
        match tool.machine.step() {
            SourceStep::AwaitReady => return self.hear(state, asker, Back::Ready),
            SourceStep::PreCopy => return self.ask(state, asker, Request::Own(Input::Begin(id))),
            SourceStep::Blackout => return self.ask(state, asker, Request::Save),
            SourceStep::End => self.write(state, asker, Forward::End),
            SourceStep::AwaitAck => {
                let expected = match state.back[asker].queue[0] {
                    Some(Back::Ack(by)) => {
                        state.askers[asker] = Some(Asker { taken_by: Some(by), ..tool });
                        Back::Ack(by)
                    }
                    _ => Back::Ready,
                };
                return self.hear(state, asker, expected);
            }
            SourceStep::Commit if self.writes_first(form) => {
                let message = match form.is_answered() {
                    true => Self::go_of(&tool),
                    false => Forward::End,
                };
                self.write(state, asker, message);
            }
            SourceStep::Commit => return self.ask(state, asker, Self::commit_of(&tool)),
            SourceStep::Go if form == Form::BothWays => {
                self.write(state, asker, Self::go_of(&tool))
            }
            SourceStep::Go => {
                if !self.question(state, asker, 0) {
                    return false;
                }
                self.advance_sender(state, asker, Outcome::Done);
            }
            SourceStep::AwaitRunning if form == Form::BothWays => {
                return self.hear(state, asker, Back::Running);
            }
            SourceStep::AwaitRunning => return self.answer(state, asker),
            SourceStep::Resolve | SourceStep::TellReleased if !tool.asked => {
                self.drop_question(state, asker);
                if !self.question(state, asker, 0) {
                    return false;
                }
                state.askers[asker] = Some(Asker { asked: true, ..tool });
            }
            SourceStep::Resolve | SourceStep::TellReleased => return self.answer(state, asker),
            SourceStep::Confirm => return self.ask(state, asker, Request::Own(Input::Confirm(id))),
            SourceStep::TakeBack => {
                return self.ask(state, asker, Request::Own(Input::TakeBack(id)));
            }
            SourceStep::Release => return self.ask(state, asker, Request::Own(Input::Release(id))),
            SourceStep::Close if form == Form::Saved => {
                state.forward[asker] = Pipe::CLOSED;
                state.file = match self.is(Mutation::ConfirmsUnsynced) {
                    true => Saved::Visible,
                    false => Saved::Durable,
                };
                self.advance_sender(state, asker, Outcome::Done);
            }
            SourceStep::Open | SourceStep::Close | SourceStep::Finished(_) => return false,
        }
        true
    }

    fn writes_first(&self, form: Form) -> bool {
        match form {
            Form::BothWays => self.is(Mutation::CommitAfterGo),
            Form::OneWay | Form::Saved => self.is(Mutation::EndBeforeCommit),
            Form::SeparateCommit => false,
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
        let committing = tool.machine.step() == SourceStep::Commit;
        if self.commits_last(message) && !committing {
            self.ask(state, asker, Self::commit_of(&tool));
            return;
        }
        if matches!(message, Forward::Go(_)) || message == Forward::End && !form.is_answered() {
            self.lets_go(state, tool.number);
        }
        state.forward[asker].write(message);
        if self.bounds.twice {
            state.forward[1].write(message);
        }
        self.advance_sender(state, asker, Outcome::Done);
    }

    fn lets_go(&self, state: &mut State, number: u8) {
        let number = usize::from(number);
        state.ghost.released[number] = true;
        if !state.ghost.committed[number] {
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
            Some(message) if message == expected => Outcome::Done,
            // With a separate commit nobody has waited for READY.
            Some(Back::Ready) => return true,
            Some(_) => Outcome::Failed,
            None if state.back[asker].open => return false,
            None => Outcome::Failed,
        };
        self.advance_sender(state, asker, outcome);
        true
    }

    fn go_of(tool: &Asker) -> Forward {
        Forward::Go(tool.taken_by)
    }

    fn commit_of(tool: &Asker) -> Request {
        Request::Own(Input::Commit(id_of(tool.number), tool.taken_by.map(Ack::told)))
    }

    /// Puts a request to vmrun. A client that was not answered once is not answered any more.
    fn ask(&self, state: &mut State, asker: usize, request: Request) -> bool {
        if state.connections[asker].line == Line::Deaf {
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
        let id = id_of(tool.number);
        let request = match tool.machine.step() {
            SourceStep::PreCopy => Request::Own(Input::Begin(id)),
            SourceStep::Blackout => Request::Save,
            SourceStep::Commit if !self.writes_first(self.form(tool.number)) => {
                Self::commit_of(&tool)
            }
            SourceStep::Confirm => Request::Own(Input::Confirm(id)),
            SourceStep::TakeBack => Request::Own(Input::TakeBack(id)),
            SourceStep::Release => Request::Own(Input::Release(id)),
            _ => return false,
        };
        if state.connections[asker].line != Line::Open || !state.is_alive(SOURCE) {
            return false;
        }
        state.connections[asker].ask(request);
        state.connections[asker].line = Line::Deaf;
        self.answered_sender(state, asker, Served::Lost);
        true
    }

    /// vmrun's answer.
    pub fn answered_sender(&self, state: &mut State, asker: usize, served: Served) {
        let Some(tool) = state.askers[asker] else { return };
        let outcome = match (tool.machine.step(), served) {
            (_, Served::Busy) => return,
            (_, Served::Done) => Outcome::Done,
            // vmrun said no: nothing was recorded.
            (SourceStep::Commit, Served::Refused) => Outcome::Refused,
            // It had not begun: the guest was never touched.
            (SourceStep::Release, Served::Refused) => Outcome::Done,
            (_, Served::Refused | Served::Lost) => Outcome::Failed,
        };
        if tool.machine.step() == SourceStep::Release && asker < RESOLVER {
            state.forward[asker].write(Forward::Abort);
            if self.bounds.twice {
                state.forward[1].write(Forward::Abort);
            }
            self.close(state, asker);
        }
        self.advance_sender(state, asker, outcome);
    }

    /// The second tunnel leads to another host than the first.
    pub fn ask_elsewhere(&self, state: &mut State, asker: usize) -> bool {
        let Some(tool) = state.askers[asker] else { return false };
        let asks = match tool.machine.step() {
            SourceStep::Resolve | SourceStep::TellReleased => !tool.asked,
            SourceStep::Go => self.form(tool.number) == Form::SeparateCommit,
            _ => false,
        };
        if !asks {
            return false;
        }
        self.drop_question(state, asker);
        if !self.question(state, asker, 1) {
            return false;
        }
        match tool.machine.step() {
            SourceStep::Go => self.advance_sender(state, asker, Outcome::Done),
            _ => state.askers[asker] = Some(Asker { asked: true, ..tool }),
        }
        true
    }

    /// Opens a second tunnel and asks what became of the migration, which is GO as well; or says
    /// that its guest was released.
    fn question(&self, state: &mut State, asker: usize, host: u8) -> bool {
        let Some(tool) = state.askers[asker] else { return false };
        let Some(free) = state.questions.iter().position(Option::is_none) else { return false };
        let released = tool.machine.step() == SourceStep::TellReleased;
        if !released {
            self.lets_go(state, tool.number);
        }
        state.questions[free] = Some(Question {
            asker: asker as u8,
            number: tool.number,
            host,
            released,
            taken_by: tool.taken_by.filter(|_| !released || self.is(Mutation::ReleaseIsGo)),
            phase: Phase::Look,
        });
        true
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
        let mine = |slot: &Option<Question>| slot.is_some_and(|it| usize::from(it.asker) == asker);
        let Some(slot) = state.questions.iter().position(mine) else {
            // The tunnel ended without a word.
            self.advance_sender(state, asker, Outcome::Failed);
            return true;
        };
        let Some(Question { phase: Phase::Answer(answer), .. }) = state.questions[slot] else {
            return false;
        };
        state.questions[slot] = None;
        let tool_step = state.askers[asker].map_or(SourceStep::Open, |tool| tool.machine.step());
        let outcome = match answer {
            Answer::Running => Outcome::Done,
            Answer::Refused if tool_step == SourceStep::TellReleased => Outcome::Done,
            Answer::Refused => Outcome::Refused,
            Answer::Unreadable if self.is(Mutation::UnreadableIsRefused) => Outcome::Refused,
            Answer::MayHaveRun | Answer::OtherHost | Answer::Unreadable => Outcome::Failed,
        };
        self.advance_sender(state, asker, outcome);
        true
    }

    /// The present step fails or takes too long, or the operator cancels it.
    pub fn sender_stops(&self, state: &mut State, asker: usize, outcome: Outcome) -> bool {
        let Some(tool) = state.askers[asker] else { return false };
        use SourceStep::*;
        let step = tool.machine.step();
        let may = match step {
            AwaitReady | PreCopy | Blackout | End | AwaitAck | Go | AwaitRunning | Resolve
            | TellReleased => true,
            // Whether a cancel came is looked at before vmrun is asked.
            Commit => outcome == Outcome::Cancelled,
            // The file has its name, and that may be lost in a power loss.
            Close => self.form(tool.number) == Form::Saved,
            Open | Confirm | TakeBack | Release | Finished(_) => false,
        };
        if !may || asker >= RESOLVER && outcome == Outcome::Cancelled {
            return false;
        }
        if outcome == Outcome::Cancelled && !tool.machine.is_committed() {
            state.ghost.stays[usize::from(tool.number)] = true;
        }
        if step == End || step == Go && self.form(tool.number) == Form::BothWays {
            // A message that was not written whole arrives as the end of the stream.
            self.close(state, asker);
        }
        self.advance_sender(state, asker, outcome);
        true
    }

    /// A file that has no name yet is removed: the stream is gone as if it had never been.
    pub fn abandon(&self, state: &mut State, asker: usize) -> bool {
        let Some(tool) = state.askers[asker] else { return false };
        let unfinished = matches!(tool.machine.step(), SourceStep::End | SourceStep::Close);
        if self.form(tool.number) != Form::Saved || !unfinished {
            return false;
        }
        state.forward[asker] = Pipe::CLOSED;
        self.advance_sender(state, asker, Outcome::Refused);
        true
    }

    fn advance_sender(&self, state: &mut State, asker: usize, outcome: Outcome) {
        let Some(tool) = &mut state.askers[asker] else { return };
        tool.machine.advance(outcome);
        let (step, number) = (tool.machine.step(), usize::from(tool.number));
        if let SourceStep::Finished(ending) = step {
            self.check_ending(state, asker, number, ending);
            self.end_sender(state, asker);
        }
        self.write_on(state, asker);
    }

    /// What is only written is written at once: nobody can tell that from a reader who comes to it
    /// later, nor a writer who dies before it from a tunnel that loses it. That is not so for GO
    /// and the one-way `End`: a source that is handed-over and has not let go yet is a moment of
    /// its own.
    fn write_on(&self, state: &mut State, asker: usize) {
        let Some(tool) = state.askers[asker] else { return };
        match tool.machine.step() {
            SourceStep::Open => {
                let released = state.vms[SOURCE].released;
                self.write(state, asker, Forward::Header(released));
            }
            SourceStep::End if self.form(tool.number).is_answered() => {
                self.write(state, asker, Forward::End);
            }
            SourceStep::Close if self.form(tool.number) != Form::Saved => {
                self.close(state, asker);
                self.advance_sender(state, asker, Outcome::Done);
            }
            _ => {}
        }
    }

    fn check_ending(&self, state: &mut State, asker: usize, number: usize, ending: SourceEnding) {
        let one_way = !self.form(number as u8).is_answered();
        let arrived = state.ghost.continued[number] > 0;
        match ending {
            SourceEnding::Moved if one_way && asker < RESOLVER => {
                let lost = self.form(number as u8) == Form::Saved
                    && state.file != Saved::Durable
                    && !arrived;
                if lost || !state.ghost.committed[number] {
                    state.broke(Rule::MovedMeansMoved);
                }
            }
            SourceEnding::Moved if !arrived => state.broke(Rule::MovedMeansMoved),
            SourceEnding::Stayed | SourceEnding::Cancelled => {
                state.ghost.stays[number] = true;
                let owner = state.vms[SOURCE].ownership.state();
                if state.is_alive(SOURCE) && owner == Owner::HandedOver(id_of(number as u8)) {
                    state.broke(Rule::StaysMeansStays);
                }
            }
            SourceEnding::Moved | SourceEnding::Unknown => {}
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
