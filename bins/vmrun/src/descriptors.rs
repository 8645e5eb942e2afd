//! File descriptors that clients get.

use std::os::fd::{BorrowedFd, OwnedFd};

use vm_control::Refusal;

use crate::refusal::refusal;

/// One more of each, to be sent.
pub fn copies<'a>(fds: impl Iterator<Item = BorrowedFd<'a>>) -> Result<Vec<OwnedFd>, Refusal> {
    fds.map(|fd| fd.try_clone_to_owned().map_err(refusal)).collect()
}
