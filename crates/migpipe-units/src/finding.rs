//! What a host found about a guest that was described to it.

use serde::{Deserialize, Serialize};

/// What a host found about one part of a guest that it was asked to take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The part, in a word or two: `processor`, `block disk0`.
    pub subject: String,
    /// What was found; for a person.
    pub text: String,
    /// Whether the host does not take the guest because of it.
    pub in_the_way: bool,
}

impl Finding {
    /// That nothing is in the way of this part.
    pub fn fine(subject: impl Into<String>, text: impl Into<String>) -> Self {
        Self { subject: subject.into(), text: text.into(), in_the_way: false }
    }

    /// That something is in the way of this part.
    pub fn in_the_way(subject: impl Into<String>, text: impl Into<String>) -> Self {
        Self { subject: subject.into(), text: text.into(), in_the_way: true }
    }
}
