//! Why there is no figure.

use std::error::Error;

use thiserror::Error as ThisError;

/// A figure that could not be made.
#[derive(Debug, ThisError)]
pub enum PlotError {
    /// The drawing library failed.
    #[error("the figure cannot be drawn")]
    Draw(#[source] Box<dyn Error + Send + Sync>),
    /// The font of this crate was refused.
    #[error("the font of the figures cannot be read")]
    Font,
    /// The pixels could not be written as PNG.
    #[error("the figure cannot be written as PNG")]
    Encode(#[from] png::EncodingError),
}

impl PlotError {
    pub(crate) fn draw(error: impl Error + Send + Sync + 'static) -> Self {
        Self::Draw(Box::new(error))
    }
}
