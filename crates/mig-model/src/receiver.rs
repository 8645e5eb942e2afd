//! What mig-recv does for its driver: the operations of `handover::DestinationIo`, in this model.

use mig_engine::handover::{
    Destination, DestinationEnding, DestinationOperation, DestinationStep, DestinationStepOutcome,
    FailureKind,
};
use mig_engine::ownership::{Authority, Decision, Input, MigrationStatus, Ownership};

use crate::bounds::HandoverModel;
use crate::mutation::Mutation;
use crate::served::Served;
use crate::state::{
    Ack, Back, Connection, DIGEST, Forward, Line, Pipe, Receiver, Request, Rule, SOURCE_TOOLS,
    Saved, State, Vm, id_of, vm_of,
};

const FAILED: DestinationStepOutcome = DestinationStepOutcome::Failed(FailureKind::Failed);
const REFUSED: DestinationStepOutcome = DestinationStepOutcome::Failed(FailureKind::Refused);

impl HandoverModel {
    /// The migration that comes with this stream: the second one is a copy of the first, or
    /// another migration.
    fn number_of_stream(&self, receiver: usize) -> u8 {
        if self.bounds.twice || self.is_saved() { 0 } else { receiver as u8 }
    }

    /// A snapshot is run as another guest alone, and that one is looked at nowhere here.
    fn is_refused(&self) -> bool {
        self.bounds.snapshot && !self.is(Mutation::RestoresSnapshot)
    }

    /// A mig-recv has read the header. It starts a vmrun for the guest, if none lives that waits.
    pub fn start_receiver(&self, state: &mut State, receiver: usize) -> bool {
        let nameless = self.is_saved() && state.forward[receiver].open;
        self.open_file(state, receiver);
        let Some(Forward::Header(released)) = state.forward[receiver].queue[0] else {
            return false;
        };
        if nameless && !self.is(Mutation::AbandonsWhatIsRead) || self.is_refused() {
            return false;
        }
        state.forward[receiver].read();
        self.forget(state, self.host_of(vm_of(SOURCE_TOOLS + receiver)), released);
        let number = self.number_of_stream(receiver);
        let vm = vm_of(SOURCE_TOOLS + receiver);
        if !state.is_alive(vm) {
            state.vms[vm] = Vm::new(Ownership::incoming());
            // Whoever asks there is told that this one knows nothing of it.
            for record in state.records.iter_mut().flatten() {
                record.vm = record.vm.filter(|known| usize::from(*known) != vm);
            }
        }
        if self.is_saved() {
            // What an earlier mig-recv said was of its own restore.
            (state.history.ran[vm], state.history.never[vm]) = (false, false);
        }
        state.connections[SOURCE_TOOLS + receiver] =
            Connection { line: Line::Open, pending: [None; 2] };
        state.receivers[receiver] =
            Some(Receiver { driver: Destination::new(self.mode_of(number)), number });
        true
    }

    /// Whether the file can be read by this receiver, as often as it likes.
    pub fn can_open_file(&self, state: &State, receiver: usize) -> bool {
        let vm = vm_of(SOURCE_TOOLS + receiver);
        // A name that is taken is refused before anything is read.
        let taken = state.is_alive(vm) && state.vms[vm].ownership != Ownership::incoming();
        !taken
            && !self.is_refused()
            && state.file != Saved::No
            && state.reads > 0
            && state.receivers[receiver].is_none()
            && state.connections[SOURCE_TOOLS + receiver] == Connection::IDLE
    }

    fn open_file(&self, state: &mut State, receiver: usize) {
        if self.can_open_file(state, receiver) {
            state.reads -= 1;
            let queue = [Some(Forward::Header([false; 2])), Some(Forward::End), None, None];
            state.forward[receiver] = Pipe { queue, open: false };
        }
    }

    /// mig-recv goes on, if what it waits for is there.
    pub fn receive(&self, state: &mut State, receiver: usize) -> bool {
        let Some(tool) = state.receivers[receiver] else { return false };
        let connection = &state.connections[SOURCE_TOOLS + receiver];
        if connection.line == Line::Open && connection.pending[0].is_some() {
            return false;
        }
        let step = match tool.driver.operation() {
            DestinationOperation::Step(step) => step,
            DestinationOperation::Refuse => return self.request(state, receiver),
            // Its vmrun was busy.
            DestinationOperation::LookAtGuest => {
                let before = state.receivers[receiver];
                self.go_on_receiving(state, receiver);
                return state.receivers[receiver] != before;
            }
            _ => return false,
        };
        let outcome = match step {
            DestinationStep::Receive | DestinationStep::Prepare | DestinationStep::Run => {
                return self.request(state, receiver);
            }
            DestinationStep::Read => match self.read(state, receiver) {
                Some(Ok(Forward::End)) => DestinationStepOutcome::Read(DIGEST),
                Some(Ok(Forward::Abort)) => REFUSED,
                Some(Err(())) if self.is(Mutation::RunsAtEof) => {
                    DestinationStepOutcome::Read(DIGEST)
                }
                Some(_) => FAILED,
                None => return false,
            },
            DestinationStep::AwaitEof => match self.read(state, receiver) {
                Some(Err(())) => DestinationStepOutcome::Done,
                Some(Ok(_)) => FAILED,
                None => return false,
            },
            DestinationStep::AwaitGo => match self.read(state, receiver) {
                Some(Ok(Forward::Go(by))) if self.is_mine(&tool, by) => {
                    DestinationStepOutcome::Done
                }
                // GO is for another copy of the guest.
                Some(Ok(Forward::Go(_))) => REFUSED,
                Some(Ok(Forward::Abort)) => REFUSED,
                Some(_) => FAILED,
                None => return false,
            },
            DestinationStep::AwaitCommit => match self.migration_status(state, receiver) {
                None | Some(Ok(MigrationStatus::Prepared)) => return false,
                Some(Ok(MigrationStatus::Running)) => DestinationStepOutcome::Done,
                Some(_) => FAILED,
            },
            DestinationStep::SendReady
            | DestinationStep::SendAck
            | DestinationStep::SendRunning => return false,
        };
        self.advance_receiver(state, receiver, outcome);
        true
    }

    fn is_mine(&self, tool: &Receiver, by: Option<Ack>) -> bool {
        self.is(Mutation::GoForAnyCopy)
            || by.is_some_and(|by| tool.driver.check_go(by.nonce()).is_ok())
    }

    /// The next message, or that none will come.
    fn read(&self, state: &mut State, receiver: usize) -> Option<Result<Forward, ()>> {
        match state.forward[receiver].read() {
            Some(message) => Some(Ok(message)),
            None if state.forward[receiver].open => None,
            None => Some(Err(())),
        }
    }

    /// What nobody can tell from a moment later is done at once, as in the sender.
    fn go_on_receiving(&self, state: &mut State, receiver: usize) {
        let Some(tool) = state.receivers[receiver] else { return };
        let vm = vm_of(SOURCE_TOOLS + receiver);
        let (message, outcome) = match tool.driver.operation() {
            DestinationOperation::Step(DestinationStep::SendReady) => {
                (Some(Back::Ready), DestinationStepOutcome::Done)
            }
            DestinationOperation::Step(DestinationStep::SendAck) => (
                tool.driver.acknowledged().map(Ack::of).map(Back::Ack),
                DestinationStepOutcome::Done,
            ),
            DestinationOperation::Step(DestinationStep::SendRunning) => {
                (Some(Back::Running), DestinationStepOutcome::Done)
            }
            DestinationOperation::SayGivenUp { .. } => {
                (Some(Back::Failed), DestinationStepOutcome::Done)
            }
            DestinationOperation::AwaitEnd { .. } => (None, DestinationStepOutcome::Done),
            DestinationOperation::LookAtGuest => match self.migration_status(state, receiver) {
                None => return,
                Some(Ok(MigrationStatus::Running)) => {
                    (None, DestinationStepOutcome::Status(MigrationStatus::Running))
                }
                Some(_) if self.is(Mutation::SlowIsRefused) => {
                    (None, DestinationStepOutcome::Status(MigrationStatus::Refused))
                }
                Some(Ok(status)) => (None, DestinationStepOutcome::Status(status)),
                Some(Err(())) => (None, FAILED),
            },
            DestinationOperation::ReadRecord => {
                let (host, number) = (self.host_of(vm), usize::from(tool.number));
                let decision = state.records[host][number].visible.filter(|decision| {
                    // A saved guest that is restored no more.
                    *decision != Decision::Restoring || !state.is_free(host, number)
                });
                (None, DestinationStepOutcome::Recorded(decision))
            }
            _ => return,
        };
        if let Some(message) = message {
            state.back[receiver].write(message);
        }
        self.advance_receiver(state, receiver, outcome);
    }

    /// How the guest stands in its vmrun; nothing while that is busy.
    fn migration_status(
        &self,
        state: &State,
        receiver: usize,
    ) -> Option<Result<MigrationStatus, ()>> {
        let (tool, vm) = (state.receivers[receiver]?, vm_of(SOURCE_TOOLS + receiver));
        if !state.is_alive(vm) || state.connections[SOURCE_TOOLS + receiver].line == Line::TimedOut
        {
            return Some(Err(()));
        }
        if state.vms[vm].busy.is_some() {
            return None;
        }
        Some(Ok(state.vms[vm].ownership.migration_status(id_of(tool.number), tool.driver.nonce())))
    }

    fn wanted(&self, state: &State, receiver: usize) -> Option<Request> {
        let tool = state.receivers[receiver]?;
        let id = id_of(tool.number);
        Some(Request::Own(match tool.driver.operation() {
            DestinationOperation::Step(DestinationStep::Receive) if self.is_saved() => {
                Input::Restore(id)
            }
            DestinationOperation::Step(DestinationStep::Receive) => Input::Receive(id),
            DestinationOperation::Step(DestinationStep::Prepare) => {
                Input::Prepared(id, self.ack(state, receiver).map(Ack::nonce))
            }
            DestinationOperation::Step(DestinationStep::Run) => {
                Input::Go(id, Authority::Source(tool.driver.nonce()))
            }
            DestinationOperation::Refuse => Input::Refuse(id),
            _ => return None,
        }))
    }

    /// What vmrun acknowledges the guest with.
    fn ack(&self, state: &State, receiver: usize) -> Option<Ack> {
        let mode = self.mode_of(self.number_of_stream(receiver));
        mode.is_answered().then(|| self.ack_of(state, vm_of(SOURCE_TOOLS + receiver)))
    }

    fn request(&self, state: &mut State, receiver: usize) -> bool {
        let (tool, vm) = (SOURCE_TOOLS + receiver, vm_of(SOURCE_TOOLS + receiver));
        let Some(request) = self.wanted(state, receiver) else { return false };
        if !state.is_alive(vm) {
            self.answered_receiver(state, receiver, Served::Lost);
            return true;
        }
        if state.connections[tool].line == Line::TimedOut {
            if !self.is(Mutation::UntoldIsRefused) {
                state.connections[tool].ask(request);
            }
            self.answered_receiver(state, receiver, Served::Lost);
            return true;
        }
        if state.vms[vm].busy.is_some() {
            return false;
        }
        match self.serve(state, vm, tool as u8, request) {
            Served::Busy => state.connections[tool].ask(request),
            served => self.answered_receiver(state, receiver, served),
        }
        true
    }

    /// A request is under way, and mig-recv stops waiting for its answer.
    pub fn receiver_times_out(&self, state: &mut State, receiver: usize) -> bool {
        let tool = SOURCE_TOOLS + receiver;
        if state.connections[tool].line != Line::Open || !state.is_alive(vm_of(tool)) {
            return false;
        }
        let Some(request) = self.wanted(state, receiver) else { return false };
        if state.connections[tool].pending[0].is_none() {
            state.connections[tool].ask(request);
        }
        state.connections[tool].line = Line::TimedOut;
        self.answered_receiver(state, receiver, Served::Lost);
        true
    }

    /// vmrun's answer.
    pub fn answered_receiver(&self, state: &mut State, receiver: usize, served: Served) {
        let Some(tool) = state.receivers[receiver] else { return };
        let outcome = match (tool.driver.operation(), served) {
            (_, Served::Busy) => return,
            (DestinationOperation::Step(DestinationStep::Prepare), Served::Done) => {
                DestinationStepOutcome::Prepared(self.ack(state, receiver).map(Ack::told))
            }
            (_, Served::Done) => DestinationStepOutcome::Done,
            (DestinationOperation::Refuse, _) if self.is(Mutation::UntoldIsRefused) => {
                DestinationStepOutcome::Done
            }
            _ => FAILED,
        };
        self.advance_receiver(state, receiver, outcome);
    }

    /// The present step fails, or takes too long.
    pub fn receiver_stops(&self, state: &mut State, receiver: usize) -> bool {
        let Some(tool) = state.receivers[receiver] else { return false };
        let connection = &state.connections[SOURCE_TOOLS + receiver];
        if connection.line == Line::Open && connection.pending[0].is_some() {
            return false;
        }
        use DestinationStep::*;
        let outcome = match tool.driver.operation() {
            DestinationOperation::Step(AwaitGo) if self.is(Mutation::LateGoIsRefused) => REFUSED,
            // Prepare: the digest is wrong, or a section does not load. Run: the guest's disks are
            // not free, say, and it stays prepared.
            DestinationOperation::Step(
                Receive | Read | AwaitEof | Prepare | AwaitGo | AwaitCommit | Run,
            )
            | DestinationOperation::LookAtGuest => FAILED,
            _ => return false,
        };
        self.advance_receiver(state, receiver, outcome);
        true
    }

    fn advance_receiver(
        &self,
        state: &mut State,
        receiver: usize,
        outcome: DestinationStepOutcome,
    ) {
        let Some(tool) = &mut state.receivers[receiver] else { return };
        tool.driver.advance(outcome);
        if let DestinationOperation::Finished(ending) = tool.driver.operation() {
            let vm = vm_of(SOURCE_TOOLS + receiver);
            match ending {
                DestinationEnding::Runs if !state.history.ran[vm] => {
                    state.broke(Rule::RunsMeansRuns);
                }
                DestinationEnding::Refused => {
                    state.history.never[vm] = true;
                    if state.history.ran[vm] {
                        state.broke(Rule::RefusedMeansNever);
                    }
                }
                DestinationEnding::Runs | DestinationEnding::Prepared => {}
            }
            self.end_receiver(state, receiver);
        }
        self.go_on_receiving(state, receiver);
    }

    /// The process ends: its connections and its ends of the tunnels close.
    pub fn end_receiver(&self, state: &mut State, receiver: usize) {
        let tool = SOURCE_TOOLS + receiver;
        state.receivers[receiver] = None;
        self.hang_up(state, tool);
        state.back[receiver].open = false;
        state.forward[receiver] = Pipe::CLOSED;
    }
}
