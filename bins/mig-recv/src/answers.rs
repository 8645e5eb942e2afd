//! What the source is told, if it listens.

use anyhow::Context;
use mig_channel::{BackHalf, ChannelWriter};
use mig_stream::{Message, ReturnWriter};
use migpipe_units::MigrationId;

/// The way back to the source.
pub struct Answers(Option<ReturnWriter<ChannelWriter>>);

impl Answers {
    /// One way nobody listens, and nothing is sent.
    pub const NONE: Self = Self(None);

    /// Opens the way back, for a source that waits for answers.
    pub fn open(back: &mut BackHalf, id: MigrationId) -> anyhow::Result<Self> {
        let back =
            back.take().context("the source waits for answers, and there is no way back to it")?;
        Ok(Self(Some(ReturnWriter::new(back, id).context(CANNOT_ANSWER)?)))
    }

    /// Says it to a source that listens.
    pub fn send(&mut self, message: &Message) -> anyhow::Result<()> {
        match &mut self.0 {
            Some(back) => back.send(message).context(CANNOT_ANSWER),
            None => Ok(()),
        }
    }
}

const CANNOT_ANSWER: &str = "cannot answer the source";
