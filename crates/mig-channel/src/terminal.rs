//! Lends the terminal to a tunnel, so that ssh can ask for a password.
//!
//! A tunnel has a process group of its own (it must be possible to end the whole of it), and a
//! group in the background is stopped when it touches the terminal. So the tunnel gets the
//! foreground while it is being set up, as a shell's job does, and hands it back afterwards.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::unistd::{Pid, getpgrp, tcgetpgrp, tcsetpgrp};

/// The controlling terminal, while this program is in its foreground.
#[derive(Debug)]
pub(crate) struct Terminal(File);

impl Terminal {
    /// None where there is no terminal, or it is somebody else's turn.
    pub fn in_foreground() -> Option<Self> {
        let terminal = OpenOptions::new().read(true).write(true).open("/dev/tty").ok()?;
        (tcgetpgrp(&terminal).ok()? == getpgrp()).then_some(Self(terminal))
    }

    /// What [`give_to_self`] wants.
    pub fn number(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Takes the foreground back from `group`, if it still has it.
    pub fn take_back(&self, group: Pid) {
        if tcgetpgrp(&self.0) == Ok(group) {
            give(&self.0, getpgrp());
        }
    }
}

/// Gives the foreground to the calling process, which leads its group. Called between fork and
/// exec; does nothing but system calls.
pub(crate) fn give_to_self(terminal: RawFd) {
    // SAFETY: the parent's Terminal keeps the number open, and a fork copies the table.
    let terminal = unsafe { BorrowedFd::borrow_raw(terminal) };
    give(terminal, Pid::this());
}

/// Changes the foreground from a group in the background, which SIGTTOU would stop for it. A
/// terminal that refuses costs a prompt, not the migration.
fn give(terminal: impl std::os::fd::AsFd, group: Pid) {
    let blocked = SigSet::from(Signal::SIGTTOU).thread_swap_mask(SigmaskHow::SIG_BLOCK);
    let _ = tcsetpgrp(terminal, group);
    if let Ok(before) = blocked {
        let _ = before.thread_set_mask();
    }
}
