//! What the tools at the source ask of its vmrun.

use mig_engine::handover::{
    FailureKind, HandoverMode, ResolveOperation, SourceOperation, SourceStep, SourceStepOutcome,
};
use mig_engine::ownership::Input;

use crate::bounds::HandoverModel;
use crate::mutation::Mutation;
use crate::served::Served;
use crate::state::{Ack, Line, Request, SOURCE, SourceTool, State, id_of};

const FAILED: SourceStepOutcome = SourceStepOutcome::Failed(FailureKind::Failed);

impl HandoverModel {
    /// What vmrun is asked for in the present operation.
    pub(crate) fn request_of(&self, tool: &SourceTool) -> Option<Request> {
        let id = id_of(tool.number);
        Some(match tool.driver.operation() {
            SourceOperation::Step(SourceStep::PreCopy) => Request::Own(Input::Begin(id)),
            SourceOperation::Step(SourceStep::StopAndCopy) => Request::Save,
            SourceOperation::Step(SourceStep::Commit)
                if !self.writes_first(self.mode_of(tool.number)) =>
            {
                Self::commit_of(tool)
            }
            SourceOperation::Step(SourceStep::Resume) | SourceOperation::Release => {
                Request::Own(Input::Release(id))
            }
            SourceOperation::Resolve(ResolveOperation::Confirm) => Request::Own(Input::Confirm(id)),
            SourceOperation::Resolve(ResolveOperation::TakeBack) => {
                Request::Own(Input::TakeBack(id))
            }
            _ => return None,
        })
    }

    fn writes_first(&self, mode: HandoverMode) -> bool {
        match mode {
            HandoverMode::BothWays => self.is(Mutation::CommitAfterGo),
            HandoverMode::OneWay | HandoverMode::Saved => self.is(Mutation::EndBeforeCommit),
            HandoverMode::SeparateCommit => false,
        }
    }

    pub(crate) fn commit_of(tool: &SourceTool) -> Request {
        Request::Own(Input::Commit(id_of(tool.number), tool.driver.taken_by().map(Ack::told)))
    }

    /// Puts a request to vmrun. A client that was not answered once is not answered any more.
    pub(crate) fn ask(&self, state: &mut State, source_tool: usize, request: Request) -> bool {
        if state.connections[source_tool].line == Line::TimedOut {
            if state.is_alive(SOURCE) {
                state.connections[source_tool].ask(request);
            }
            self.answered_sender(state, source_tool, Served::Lost);
            return true;
        }
        let served = match state.is_alive(SOURCE) {
            true => self.serve(state, SOURCE, source_tool as u8, request),
            false => Served::Lost,
        };
        self.answered_sender(state, source_tool, served);
        true
    }

    /// The request that mig-send makes in this step is under way, and mig-send stops waiting.
    pub fn sender_times_out(&self, state: &mut State, source_tool: usize) -> bool {
        let Some(tool) = state.source_tools[source_tool] else { return false };
        let Some(request) = self.request_of(&tool) else { return false };
        if state.connections[source_tool].line != Line::Open || !state.is_alive(SOURCE) {
            return false;
        }
        state.connections[source_tool].ask(request);
        state.connections[source_tool].line = Line::TimedOut;
        self.answered_sender(state, source_tool, Served::Lost);
        true
    }

    /// vmrun's answer.
    pub fn answered_sender(&self, state: &mut State, source_tool: usize, served: Served) {
        let Some(tool) = state.source_tools[source_tool] else { return };
        let outcome = match served {
            Served::Busy => return,
            Served::Done => SourceStepOutcome::Done,
            // vmrun said no: nothing was recorded.
            Served::Refused if Self::is_at(&tool, SourceStep::Commit) => {
                SourceStepOutcome::Failed(FailureKind::Undone)
            }
            Served::Refused | Served::Lost => FAILED,
        };
        self.advance_sender(state, source_tool, outcome);
    }
}
