//! How far a balloon has come.

use migpipe_units::Bytes;
use serde::{Deserialize, Serialize};

/// How much of its memory a guest with a balloon has for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Balloon {
    /// What it was last asked to do with; all that it has, if it never was.
    pub target: Bytes,
    /// What it does with now, by its own word.
    pub actual: Bytes,
}
