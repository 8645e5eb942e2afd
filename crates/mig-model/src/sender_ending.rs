//! How the tools at the source go on, fail and end.

use mig_engine::handover::{
    FailureKind, HandoverMode, ResolveOperation, SourceEnding, SourceOperation, SourceStep,
    SourceStepOutcome,
};
use mig_engine::ownership::{Input, State as Owner};

use crate::bounds::HandoverModel;
use crate::mutation::Mutation;
use crate::state::{Pipe, RESOLVER, Request, Rule, SOURCE, Saved, SourceTool, State, id_of};

const FAILED: SourceStepOutcome = SourceStepOutcome::Failed(FailureKind::Failed);

impl HandoverModel {
    /// The present step fails or takes too long, or the operator cancels it.
    pub fn sender_stops(&self, state: &mut State, source_tool: usize, kind: FailureKind) -> bool {
        let Some(tool) = state.source_tools[source_tool] else { return false };
        use SourceStep::*;
        let mode = self.mode_of(tool.number);
        let may = match tool.driver.operation() {
            SourceOperation::Step(step) => match step {
                AwaitReady | PreCopy | StopAndCopy | Resume | SendEnd | AwaitAck | SendGo
                | AwaitRunning => true,
                // Whether a cancel came is looked at before vmrun is asked.
                Commit => kind == FailureKind::Cancelled,
                // The file has its name, and that may be lost in a power loss.
                Close => mode == HandoverMode::Saved,
                SendHeader | PrepareCommit => false,
            },
            SourceOperation::Resolve(ResolveOperation::Query(_)) => true,
            _ => false,
        };
        if !may || source_tool >= RESOLVER && kind == FailureKind::Cancelled {
            return false;
        }
        if kind == FailureKind::Cancelled && !tool.driver.is_committed() {
            state.history.stays[usize::from(tool.number)] = true;
        }
        if Self::is_at(&tool, SendEnd)
            || Self::is_at(&tool, SendGo) && mode == HandoverMode::BothWays
        {
            // A message that was not written whole arrives as the end of the stream.
            self.close(state, source_tool);
        }
        self.advance_sender(state, source_tool, SourceStepOutcome::Failed(kind));
        true
    }

    /// A file that has no name yet cannot be finished and is removed: the stream is gone as if it
    /// had never been.
    pub fn abandon(&self, state: &mut State, source_tool: usize) -> bool {
        let Some(tool) = &mut state.source_tools[source_tool] else { return false };
        let unfinished =
            Self::is_at(tool, SourceStep::SendEnd) || Self::is_at(tool, SourceStep::Close);
        if self.mode_of(tool.number) != HandoverMode::Saved || !unfinished {
            return false;
        }
        tool.driver.advance(FAILED);
        assert_eq!(tool.driver.operation(), SourceOperation::RemoveFile);
        state.forward[source_tool] = Pipe::CLOSED;
        self.advance_sender(state, source_tool, SourceStepOutcome::Done);
        true
    }

    pub(crate) fn advance_sender(
        &self,
        state: &mut State,
        source_tool: usize,
        outcome: SourceStepOutcome,
    ) {
        let Some(tool) = &mut state.source_tools[source_tool] else { return };
        let number = tool.number;
        let late = tool.driver.is_committed() && matches!(outcome, SourceStepOutcome::Failed(_));
        tool.driver.advance(outcome);
        if let SourceOperation::Finished(ending) = tool.driver.operation() {
            self.check_ending(state, source_tool, usize::from(number), ending);
            self.end_sender(state, source_tool);
        }
        if late && self.is(Mutation::ReleasesWhenAskedTwice) && state.is_alive(SOURCE) {
            for _ in 0..2 {
                let release = Request::Own(Input::Release(id_of(number)));
                self.serve(state, SOURCE, source_tool as u8, release);
            }
        }
        self.go_on(state, source_tool);
    }

    pub(crate) fn is_at(tool: &SourceTool, step: SourceStep) -> bool {
        tool.driver.operation() == SourceOperation::Step(step)
    }

    fn check_ending(
        &self,
        state: &mut State,
        source_tool: usize,
        number: usize,
        ending: SourceEnding,
    ) {
        let one_way = !self.mode_of(number as u8).is_answered();
        let arrived = state.history.continued[number] > 0;
        match ending {
            SourceEnding::Moved if one_way && source_tool < RESOLVER => {
                let lost = self.mode_of(number as u8) == HandoverMode::Saved
                    && state.file != Saved::Durable
                    && !arrived;
                if lost || !state.history.committed[number] {
                    state.broke(Rule::MovedMeansMoved);
                }
            }
            SourceEnding::Moved if !arrived => state.broke(Rule::MovedMeansMoved),
            SourceEnding::Snapshot if state.file != Saved::Durable => {
                state.broke(Rule::MovedMeansMoved);
            }
            SourceEnding::Stayed | SourceEnding::Cancelled | SourceEnding::Snapshot => {
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
    pub fn end_sender(&self, state: &mut State, source_tool: usize) {
        state.source_tools[source_tool] = None;
        self.drop_query(state, source_tool);
        self.hang_up(state, source_tool);
        if source_tool < RESOLVER {
            self.close(state, source_tool);
            state.back[source_tool] = Pipe::CLOSED;
        }
    }
}
