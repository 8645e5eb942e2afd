//! What a script waits for: single words on a descriptor of its own, as things happen.

use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::json_lines::passed;
use crate::output::Output;

/// What happens to a migration on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Milestone {
    /// The destination can take the guest.
    Ready = 1 << 0,
    /// The guest is not the source's any more.
    Committed = 1 << 1,
    /// The guest runs at the destination.
    Running = 1 << 2,
}

impl Milestone {
    const fn word(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Committed => "committed",
            Self::Running => "running",
        }
    }
}

/// The lines of `--status-fd`, if anybody wants them: a word, a blank and the id of the migration.
/// Whoever reads them holds nothing up.
#[derive(Clone, Debug, Default)]
pub struct Milestones {
    output: Option<Output>,
    /// Those that were said.
    said: Arc<AtomicU8>,
}

impl Milestones {
    /// Lines on a descriptor that the caller passed.
    pub fn to(fd: Option<i32>) -> Self {
        Self { output: fd.and_then(passed), said: Arc::default() }
    }

    /// Says that a milestone was reached, once.
    pub fn reached(&self, milestone: Milestone, migration: impl Display) {
        let bit = milestone as u8;
        if self.said.fetch_or(bit, Ordering::SeqCst) & bit == 0 {
            self.say(milestone.word(), migration);
        }
    }

    /// Says how the migration ended; the last line.
    pub fn ended(&self, outcome: &str, migration: impl Display) {
        self.say(outcome, migration);
    }

    fn say(&self, word: &str, migration: impl Display) {
        if let Some(output) = &self.output {
            output.push(format!("{word} {migration}\n").as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Read};

    use super::*;
    use crate::output::{DRAIN_TIMEOUT, Loss};

    #[test]
    fn each_milestone_is_said_once_whoever_reaches_it_again() {
        let (mut reader, writer) = io::pipe().unwrap();
        let output = Output::start(writer, Loss::Silent).unwrap();
        let milestones = Milestones { output: Some(output.clone()), said: Arc::default() };
        for milestone in [Milestone::Ready, Milestone::Running, Milestone::Running] {
            milestones.clone().reached(milestone, 7);
        }
        milestones.ended("completed", 7);
        assert_eq!(output.drain(DRAIN_TIMEOUT), 0);
        let mut text = [0; 30];
        reader.read_exact(&mut text).unwrap();
        assert_eq!(text, *b"ready 7\nrunning 7\ncompleted 7\n");
    }
}
