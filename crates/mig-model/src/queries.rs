//! The queries of the tools at the source: on their way, and heard.

use mig_engine::handover::{
    FailureKind, HandoverMode, Query, ResolveOperation, SourceOperation, SourceStep,
    SourceStepOutcome,
};
use mig_stream::DestinationOutcome;

use crate::bounds::HandoverModel;
use crate::mutation::Mutation;
use crate::state::{Ack, Answer, NOBODY, PendingQuery, Phase, SourceTool, State};

const FAILED: SourceStepOutcome = SourceStepOutcome::Failed(FailureKind::Failed);

impl HandoverModel {
    /// The second tunnel leads to another host than the first.
    pub fn ask_elsewhere(&self, state: &mut State, source_tool: usize) -> bool {
        let Some(tool) = state.source_tools[source_tool] else { return false };
        let is_go = match tool.driver.operation() {
            SourceOperation::Resolve(ResolveOperation::Query(_)) if !tool.asked => false,
            SourceOperation::Step(SourceStep::SendGo)
                if self.mode_of(tool.number) == HandoverMode::SeparateCommit =>
            {
                true
            }
            _ => return false,
        };
        self.drop_query(state, source_tool);
        if !self.send_query(state, source_tool, 1) {
            return false;
        }
        match is_go {
            true => self.advance_sender(state, source_tool, SourceStepOutcome::Done),
            false => state.source_tools[source_tool] = Some(SourceTool { asked: true, ..tool }),
        }
        true
    }

    /// Opens a second tunnel and asks what became of the migration, which is GO as well; or says
    /// that its guest was released.
    pub(crate) fn send_query(&self, state: &mut State, source_tool: usize, host: u8) -> bool {
        let Some(tool) = state.source_tools[source_tool] else { return false };
        let Some(free) = state.queries.iter().position(Option::is_none) else { return false };
        let released = Self::query_of(&tool) == Query::Released;
        if !released {
            self.lets_go(state, tool.number);
        }
        let taken_by =
            tool.driver.taken_by().filter(|_| !released || self.is(Mutation::ReleaseIsGo));
        state.queries[free] = Some(PendingQuery {
            asked_by: source_tool as u8,
            number: tool.number,
            host,
            released,
            taken_by,
            found: None,
            phase: Phase::Search(self.responder(released, taken_by)),
        });
        true
    }

    fn query_of(tool: &SourceTool) -> Query {
        match tool.driver.operation() {
            SourceOperation::Resolve(ResolveOperation::Query(query)) => query,
            _ => Query::Committed(tool.driver.taken_by().map(Ack::told)),
        }
    }

    /// Nobody waits for the answer to this tool's query any more.
    pub fn drop_query(&self, state: &mut State, source_tool: usize) {
        for slot in &mut state.queries {
            if let Some(query) = slot
                && usize::from(query.asked_by) == source_tool
            {
                match query.phase {
                    Phase::Answer(_) => *slot = None,
                    _ => query.asked_by = NOBODY,
                }
            }
        }
    }

    pub(crate) fn answer(&self, state: &mut State, source_tool: usize) -> bool {
        let Some(tool) = state.source_tools[source_tool] else { return false };
        let mine = |slot: &Option<PendingQuery>| {
            slot.is_some_and(|it| usize::from(it.asked_by) == source_tool)
        };
        let Some(slot) = state.queries.iter().position(mine) else {
            // The tunnel ended without a word.
            self.advance_sender(state, source_tool, FAILED);
            return true;
        };
        let Some(PendingQuery { phase: Phase::Answer(answer), host, .. }) = state.queries[slot]
        else {
            return false;
        };
        state.queries[slot] = None;
        let answer = match answer {
            Answer::Running => Some(DestinationOutcome::Running),
            Answer::Refused => Some(DestinationOutcome::Refused),
            Answer::NotKnownNow if self.is(Mutation::UnreadableIsRefused) => {
                Some(DestinationOutcome::Refused)
            }
            Answer::MayHaveRun => Some(DestinationOutcome::MayHaveRun { why: String::new() }),
            Answer::OtherHost => Some(DestinationOutcome::OtherHost {
                host: Ack { vm: 0, host, lost: 0 }.told().host,
            }),
            Answer::NotKnownNow => None,
        };
        let verdict = match answer {
            Some(answer) => Self::query_of(&tool).verdict(&answer),
            None => Err(FailureKind::Failed),
        };
        let outcome = verdict.map_or_else(SourceStepOutcome::Failed, |()| SourceStepOutcome::Done);
        self.advance_sender(state, source_tool, outcome);
        true
    }
}
