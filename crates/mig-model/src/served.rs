//! What vmrun answers, and who hears it.

use crate::bounds::HandoverModel;
use crate::state::{SOURCE_TOOLS, State};

/// What a client hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// It was done.
    Done,
    /// vmrun said no.
    Refused,
    /// The answer comes when the record is written.
    Busy,
    /// There is no answer: vmrun is gone, or took too long.
    Lost,
}

impl HandoverModel {
    pub(crate) fn answered(&self, state: &mut State, tool: usize, served: Served) {
        if tool < SOURCE_TOOLS {
            self.answered_sender(state, tool, served);
        } else {
            self.answered_receiver(state, tool - SOURCE_TOOLS, served);
        }
    }
}
