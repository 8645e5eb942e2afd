//! Lends the terminal to a tunnel, so that ssh can ask for a password.
//!
//! A tunnel has a process group of its own (it must be possible to end the whole of it), and a
//! group in the background is stopped when it touches the terminal. So the tunnel gets the
//! foreground while it is being set up, as a shell's job does, and hands it back afterwards. What
//! is typed meanwhile is for the tunnel alone, and the shell that started this program waits for
//! this program and knows nothing of the tunnel. So somebody here does for the tunnel what a shell
//! does for its jobs; see [`Job::watch`].

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;
use std::{io, thread};

use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{Pid, getpgrp, tcgetpgrp, tcsetpgrp};

/// How often a tunnel that may use the terminal is looked at: somebody has typed Ctrl-Z then.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// A stop that this process has sent to its own group has come within this time. One that comes
/// later costs nothing but another look: the tunnel is stopped again when it reads the terminal.
const STOP_TIMEOUT: Duration = Duration::from_millis(100);

/// The process group into which [`kill`] sends: that of the caller.
const OWN_GROUP: Pid = Pid::from_raw(0);

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
}

/// A tunnel as a job of this program's terminal. Clones are the same job.
#[derive(Clone, Debug)]
pub struct Job(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// None where the program had no terminal when the tunnel began: nothing is lent then.
    terminal: Option<Terminal>,
    group: Pid,
    lent: AtomicBool,
    stops: AtomicU32,
    over: AtomicBool,
}

impl Job {
    /// The process group `group`, which has taken the terminal if there is one.
    pub(crate) fn new(terminal: Option<Terminal>, group: Pid) -> Self {
        let lent = AtomicBool::new(terminal.is_some());
        Self(Arc::new(Inner {
            terminal,
            group,
            lent,
            stops: AtomicU32::new(0),
            over: AtomicBool::new(false),
        }))
    }

    /// Whether the tunnel has the terminal: what is on it is the tunnel's, and what is typed too.
    pub fn has_terminal(&self) -> bool {
        self.0.lent.load(Ordering::SeqCst)
    }

    /// Whether the tunnel was stopped, as one is that wants the terminal and does not have it yet. What
    /// it has asked there may stand on the screen already.
    pub fn is_stopped(&self) -> bool {
        let look = WaitPidFlag::WSTOPPED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        self.0.terminal.is_some()
            && matches!(waitid(Id::Pid(self.0.group), look), Ok(WaitStatus::Stopped(..)))
    }

    /// How often this program was stopped because the tunnel was. The time that passed meanwhile is
    /// nobody's fault.
    pub fn stops(&self) -> u32 {
        self.0.stops.load(Ordering::SeqCst)
    }

    /// Starts a thread that does for the tunnel what a shell does for its jobs. Call it once the
    /// program is confined, so that the thread is too.
    ///
    /// - Ctrl-Z stops this program as well, or its shell would wait for it for ever. When the
    ///   shell has it go on in the foreground, the tunnel gets the terminal again and goes on.
    /// - A tunnel that is stopped because it wants the terminal (ssh behind a filter asks when the
    ///   filter has taken the first data already) gets it, if it is this program's turn.
    ///
    /// A tunnel that was stopped by anything but the terminal is left alone.
    ///
    /// # Errors
    /// If there is no thread to be had.
    pub fn watch(&self) -> io::Result<()> {
        if self.0.terminal.is_none() {
            return Ok(());
        }
        let job = self.clone();
        let thread = thread::Builder::new().name("terminal".into());
        let watching = thread.spawn(move || {
            while !job.0.over.load(Ordering::SeqCst) {
                job.look();
                thread::sleep(POLL_INTERVAL);
            }
        });
        watching.map(drop)
    }

    fn look(&self) {
        let Some(terminal) = &self.0.terminal else { return };
        let stopped = WaitPidFlag::WSTOPPED | WaitPidFlag::WNOHANG;
        let Ok(WaitStatus::Stopped(_, signal)) = waitid(Id::Pid(self.0.group), stopped) else {
            return;
        };
        let ours = || matches!(tcgetpgrp(&terminal.0), Ok(group) if group == getpgrp());
        match signal {
            Signal::SIGTTIN | Signal::SIGTTOU if ours() => {}
            Signal::SIGTSTP | Signal::SIGTTIN | Signal::SIGTTOU => {
                self.take_back();
                self.0.stops.fetch_add(1, Ordering::SeqCst);
                // All that the shell takes for this job. Where it has no job control the kernel
                // ignores the signal, and everything goes on at once.
                let _ = kill(OWN_GROUP, signal);
                thread::sleep(STOP_TIMEOUT);
            }
            _ => return,
        }
        if ours() {
            give(&terminal.0, self.0.group);
            self.0.lent.store(true, Ordering::SeqCst);
        }
        let _ = killpg(self.0.group, Signal::SIGCONT);
    }

    /// Takes the foreground back, if the tunnel still has it.
    pub(crate) fn take_back(&self) {
        if let Some(Terminal(terminal)) = &self.0.terminal
            && self.0.lent.swap(false, Ordering::SeqCst)
            && tcgetpgrp(terminal) == Ok(self.0.group)
        {
            give(terminal, getpgrp());
        }
    }

    /// The tunnel has ended, or is nobody's affair any more.
    pub(crate) fn end(&self) {
        self.0.over.store(true, Ordering::SeqCst);
        self.take_back();
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
fn give(terminal: impl AsFd, group: Pid) {
    let blocked = SigSet::from(Signal::SIGTTOU).thread_swap_mask(SigmaskHow::SIG_BLOCK);
    let _ = tcsetpgrp(terminal, group);
    if let Ok(before) = blocked {
        let _ = before.thread_set_mask();
    }
}
