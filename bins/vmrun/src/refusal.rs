//! Errors as a client is told them.

use vm_control::Refusal;

/// An error of the machine as one line.
pub fn refusal(error: impl std::error::Error + Send + Sync + 'static) -> Refusal {
    Refusal::failed(migpipe_cli::one_line(&error.into()))
}
