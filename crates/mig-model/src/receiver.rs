//! mig-recv around its machine: `bins/mig-recv/src/reception.rs`.

use mig_engine::handover::{Destination, DestinationEnding, DestinationStep, Form, Outcome};
use mig_engine::ownership::{Authority, Decision, Input, Ownership, Standing};
use migpipe_units::Nonce;

use crate::mutation::Mutation;
use crate::state::{
    ASKERS, Ack, Back, Connection, Forward, Line, Pipe, Reception, Request, Rule, Saved, State, Vm,
    id_of, vm_of,
};
use crate::vmrun::Served;
use crate::world::World;

impl World {
    /// The migration that comes with this stream: the second one is a copy of the first, or
    /// another migration.
    fn number_of_stream(&self, reception: usize) -> u8 {
        if self.bounds.twice || self.is_saved() { 0 } else { reception as u8 }
    }

    /// A mig-recv has read the header. It starts a vmrun for the guest, if none lives that waits.
    pub fn start_reception(&self, state: &mut State, reception: usize) -> bool {
        let nameless = self.is_saved() && state.forward[reception].open;
        self.open_file(state, reception);
        let Some(Forward::Header(released)) = state.forward[reception].queue[0] else {
            return false;
        };
        if nameless && !self.is(Mutation::AbandonsWhatIsRead) {
            return false;
        }
        state.forward[reception].read();
        self.forget(state, self.host_of(vm_of(ASKERS + reception)), released);
        let number = self.number_of_stream(reception);
        let vm = vm_of(ASKERS + reception);
        if !state.is_alive(vm) {
            state.vms[vm] = Vm::new(Ownership::incoming());
            // Whoever asks there is told that this one knows nothing of it.
            for record in state.records.iter_mut().flatten() {
                record.vm = record.vm.filter(|known| usize::from(*known) != vm);
            }
        }
        if self.is_saved() {
            // What an earlier mig-recv said was of its own restore.
            (state.ghost.ran[vm], state.ghost.never[vm]) = (false, false);
        }
        state.connections[ASKERS + reception] = Connection { line: Line::Open, pending: [None; 2] };
        state.receptions[reception] = Some(Reception {
            machine: Destination::new(self.form(number)),
            number,
            received: false,
        });
        true
    }

    /// Whether the guest is sent to a file.
    pub fn is_saved(&self) -> bool {
        self.form(0) == Form::Saved
    }

    /// Whether the file can be read by this reception, as often as it likes.
    pub fn can_open_file(&self, state: &State, reception: usize) -> bool {
        let vm = vm_of(ASKERS + reception);
        // A name that is taken is refused before anything is read.
        let taken = state.is_alive(vm) && state.vms[vm].ownership != Ownership::incoming();
        !taken
            && state.file != Saved::No
            && state.reads > 0
            && state.receptions[reception].is_none()
            && state.connections[ASKERS + reception] == Connection::IDLE
    }

    fn open_file(&self, state: &mut State, reception: usize) {
        if self.can_open_file(state, reception) {
            state.reads -= 1;
            let queue = [Some(Forward::Header([false; 2])), Some(Forward::End), None, None];
            state.forward[reception] = Pipe { queue, open: false };
        }
    }

    /// mig-recv goes on, if what it waits for is there.
    pub fn receive(&self, state: &mut State, reception: usize) -> bool {
        let Some(tool) = state.receptions[reception] else { return false };
        let connection = &state.connections[ASKERS + reception];
        if connection.line == Line::Open && connection.pending[0].is_some() {
            return false;
        }
        let outcome = match tool.machine.step() {
            DestinationStep::Receive
            | DestinationStep::Prepare
            | DestinationStep::Go
            | DestinationStep::Refuse => return self.request(state, reception),
            DestinationStep::Read => match self.read(state, reception) {
                Some(Ok(Forward::End)) => Outcome::Done,
                Some(Ok(Forward::Abort)) => Outcome::Refused,
                Some(Err(())) if self.is(Mutation::RunsAtEof) => Outcome::Done,
                Some(_) => Outcome::Failed,
                None => return false,
            },
            DestinationStep::AwaitEof => match self.read(state, reception) {
                Some(Err(())) => Outcome::Done,
                Some(Ok(_)) => Outcome::Failed,
                None => return false,
            },
            DestinationStep::AwaitGo => match self.read(state, reception) {
                Some(Ok(Forward::Go(by))) if self.is_mine(reception, by) => Outcome::Done,
                // GO is for another copy of the guest.
                Some(Ok(Forward::Go(_))) => Outcome::Refused,
                Some(Ok(Forward::Abort)) => Outcome::Refused,
                Some(_) => self.without_go(state, reception),
                None => return false,
            },
            DestinationStep::AwaitCommit => match self.look(state, reception) {
                Some(outcome) => outcome,
                None => return false,
            },
            DestinationStep::SendReady
            | DestinationStep::SendAck
            | DestinationStep::SendRunning
            | DestinationStep::Finished(_) => return false,
        };
        self.advance_reception(state, reception, outcome);
        true
    }

    /// That of the ACK of this reception; nothing one way.
    fn nonce(&self, reception: usize) -> Option<Nonce> {
        let form = self.form(self.number_of_stream(reception));
        let ack = Ack { vm: vm_of(ASKERS + reception) as u8, host: 0, lost: 0 };
        (form != Form::OneWay).then(|| ack.nonce())
    }

    fn is_mine(&self, reception: usize, by: Option<Ack>) -> bool {
        by.map(Ack::nonce) == self.nonce(reception) || self.is(Mutation::GoForAnyCopy)
    }

    /// The next message, or that none will come.
    fn read(&self, state: &mut State, reception: usize) -> Option<Result<Forward, ()>> {
        match state.forward[reception].read() {
            Some(message) => Some(Ok(message)),
            None if state.forward[reception].open => None,
            None => Some(Err(())),
        }
    }

    /// What is only said is said at once, as in the sender.
    fn say_on(&self, state: &mut State, reception: usize) {
        let Some(tool) = state.receptions[reception] else { return };
        let message = match tool.machine.step() {
            DestinationStep::SendReady => Back::Ready,
            DestinationStep::SendAck => Back::Ack(self.ack_of(state, vm_of(ASKERS + reception))),
            DestinationStep::SendRunning => Back::Running,
            _ => return,
        };
        state.back[reception].write(message);
        self.advance_reception(state, reception, Outcome::Done);
    }

    /// How the guest stands whose GO comes another way. A vmrun that is gone is asked by its
    /// record.
    fn look(&self, state: &State, reception: usize) -> Option<Outcome> {
        let vm = vm_of(ASKERS + reception);
        let number = usize::from(self.number_of_stream(reception));
        if state.is_alive(vm) {
            if state.vms[vm].busy.is_some() {
                return None;
            }
            return match state.vms[vm]
                .ownership
                .standing(id_of(number as u8), self.nonce(reception))
            {
                Standing::Running => Some(Outcome::Done),
                Standing::Prepared => None,
                _ => Some(Outcome::Refused),
            };
        }
        Some(match state.records[self.host_of(vm)][number].visible {
            _ if self.is(Mutation::SlowIsRefused) => Outcome::Refused,
            Some(Decision::Refused) => Outcome::Refused,
            Some(Decision::Ran) => Outcome::Done,
            _ => Outcome::Failed,
        })
    }

    /// No GO comes through the stream: has vmrun refused the guest meanwhile?
    fn without_go(&self, state: &State, reception: usize) -> Outcome {
        match self.look(state, reception) {
            Some(Outcome::Refused) => Outcome::Refused,
            _ if self.is(Mutation::SlowIsRefused) => Outcome::Refused,
            _ => Outcome::Failed,
        }
    }

    fn wanted(&self, state: &State, reception: usize) -> Option<Request> {
        let tool = state.receptions[reception]?;
        let id = id_of(tool.number);
        Some(Request::Own(match tool.machine.step() {
            DestinationStep::Receive if self.is_saved() => Input::Restore(id),
            DestinationStep::Receive => Input::Receive(id),
            DestinationStep::Prepare => Input::Prepared(id, self.nonce(reception)),
            DestinationStep::Go => Input::Go(id, Authority::Source(self.nonce(reception))),
            DestinationStep::Refuse if tool.received => Input::Refuse(id),
            _ => return None,
        }))
    }

    fn request(&self, state: &mut State, reception: usize) -> bool {
        let (tool, vm) = (ASKERS + reception, vm_of(ASKERS + reception));
        let Some(request) = self.wanted(state, reception) else {
            // Nothing was taken up, so there is nothing to refuse.
            self.answered_reception(state, reception, Served::Done);
            return true;
        };
        if !state.is_alive(vm) {
            self.answered_reception(state, reception, Served::Lost);
            return true;
        }
        if state.connections[tool].line == Line::Deaf {
            if !self.is(Mutation::UntoldIsRefused) {
                state.connections[tool].ask(request);
            }
            self.answered_reception(state, reception, Served::Lost);
            return true;
        }
        if state.vms[vm].busy.is_some() {
            return false;
        }
        match self.serve(state, vm, tool as u8, request) {
            Served::Busy => state.connections[tool].ask(request),
            served => self.answered_reception(state, reception, served),
        }
        true
    }

    /// A request is under way, and mig-recv stops waiting for its answer.
    pub fn reception_times_out(&self, state: &mut State, reception: usize) -> bool {
        let tool = ASKERS + reception;
        if state.connections[tool].line != Line::Open || !state.is_alive(vm_of(tool)) {
            return false;
        }
        let Some(request) = self.wanted(state, reception) else { return false };
        if state.connections[tool].pending[0].is_none() {
            state.connections[tool].ask(request);
        }
        state.connections[tool].line = Line::Deaf;
        self.answered_reception(state, reception, Served::Lost);
        true
    }

    fn not_restored(&self, state: &State, reception: usize) -> bool {
        self.is_saved() && !state.is_alive(vm_of(ASKERS + reception)) && state.is_free(0, 0)
    }

    /// vmrun's answer.
    pub fn answered_reception(&self, state: &mut State, reception: usize, served: Served) {
        let Some(mut tool) = state.receptions[reception] else { return };
        let step = tool.machine.step();
        if step == DestinationStep::Receive && served == Served::Done {
            tool.received = true;
            state.receptions[reception] = Some(tool);
        }
        let outcome = match (step, served) {
            (_, Served::Busy) => return,
            (_, Served::Done) => Outcome::Done,
            (DestinationStep::Receive, _) => Outcome::Refused,
            (DestinationStep::Go, Served::Refused) => Outcome::Refused,
            (DestinationStep::Refuse, _) if self.is(Mutation::UntoldIsRefused) => Outcome::Done,
            // Its vmrun is gone, and the record says that the guest has not run.
            (DestinationStep::Refuse, Served::Lost) if self.not_restored(state, reception) => {
                Outcome::Done
            }
            _ => Outcome::Failed,
        };
        if step == DestinationStep::Refuse {
            state.back[reception].write(Back::Failed);
        }
        self.advance_reception(state, reception, outcome);
    }

    /// The present step fails, or takes too long.
    pub fn reception_stops(&self, state: &mut State, reception: usize) -> bool {
        let Some(tool) = state.receptions[reception] else { return false };
        let connection = &state.connections[ASKERS + reception];
        if connection.line == Line::Open && connection.pending[0].is_some() {
            return false;
        }
        use DestinationStep::*;
        let outcome = match tool.machine.step() {
            AwaitGo => self.without_go(state, reception),
            // Go: the guest's disks are not free, say, and it stays prepared.
            AwaitCommit | Go if self.is(Mutation::SlowIsRefused) => Outcome::Refused,
            // Prepare: the digest is wrong, or a section does not load.
            Receive | Read | AwaitEof | Prepare | AwaitCommit | Go => Outcome::Failed,
            SendReady | SendAck | SendRunning | Refuse | Finished(_) => return false,
        };
        self.advance_reception(state, reception, outcome);
        true
    }

    fn advance_reception(&self, state: &mut State, reception: usize, outcome: Outcome) {
        let Some(tool) = &mut state.receptions[reception] else { return };
        tool.machine.advance(outcome);
        if let DestinationStep::Finished(ending) = tool.machine.step() {
            let vm = vm_of(ASKERS + reception);
            match ending {
                DestinationEnding::Runs if !state.ghost.ran[vm] => {
                    state.broke(Rule::RunsMeansRuns);
                }
                DestinationEnding::Refused => {
                    state.ghost.never[vm] = true;
                    if state.ghost.ran[vm] {
                        state.broke(Rule::RefusedMeansNever);
                    }
                }
                DestinationEnding::Runs | DestinationEnding::Prepared => {}
            }
            self.end_reception(state, reception);
        }
        self.say_on(state, reception);
    }

    /// The process ends: its connections and its ends of the tunnels close.
    pub fn end_reception(&self, state: &mut State, reception: usize) {
        let tool = ASKERS + reception;
        state.receptions[reception] = None;
        self.hang_up(state, tool);
        state.back[reception].open = false;
        state.forward[reception] = Pipe::CLOSED;
    }

    /// Which way the messages of this migration go.
    pub fn form(&self, number: u8) -> Form {
        self.bounds.forms[usize::from(number)].unwrap_or(Form::BothWays)
    }
}
