//! The command of an `exec:` channel, and the ssh of an `ssh:` channel.

use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{fmt, io, thread};

use nix::libc;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use thiserror::Error;

use crate::error::OpenError;
use crate::interrupt::{Interrupt, Waited};
use crate::ssh::Ssh;
use crate::terminal::{Job, Terminal, give_to_self};

/// How often a running command is looked at. Nothing in the blackout waits for it.
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// How long a command may take to end after a signal.
const KILL_TIMEOUT: Duration = Duration::from_millis(500);

/// How long a command that broke the channel may take to end, so that its status is known.
const STATUS_TIMEOUT: Duration = Duration::from_millis(500);

/// How long the rest of a pipeline may take after its shell has ended: the shell dies of SIGTERM
/// at once, ssh first puts the terminal right.
const PIPELINE_TIMEOUT: Duration = Duration::from_millis(50);

/// What a tunnel runs.
#[derive(Clone, Debug)]
pub(crate) enum TunnelCommand {
    /// By `sh -c`.
    Shell(String),
    /// By ssh, on another host.
    Ssh(Ssh),
}

impl TunnelCommand {
    fn process(&self, has_terminal: bool) -> Command {
        match self {
            Self::Shell(command) => {
                let mut shell = Command::new("sh");
                shell.arg("-c").arg(command);
                shell
            }
            Self::Ssh(ssh) => ssh.command(has_terminal),
        }
    }

    fn how_it_ended(&self, status: ExitStatus, proved: bool) -> String {
        let meaning = match self {
            Self::Shell(_) => None,
            Self::Ssh(ssh) => ssh.meaning(status, proved),
        };
        meaning.unwrap_or_else(|| how_it_ended(status))
    }
}

/// What messages call it.
impl fmt::Display for TunnelCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shell(command) => write!(f, "tunnel command '{command}'"),
            Self::Ssh(ssh) => write!(f, "ssh to {}", ssh.host),
        }
    }
}

/// The command of an `exec:` or `ssh:` channel: `sh -c CMD`, or ssh, in a process group of its own.
///
/// Its exit status counts always: [`wait`](Self::wait) for it after the last byte. A tunnel that
/// is dropped while its command runs is killed, with everything in its process group.
#[derive(Debug)]
pub struct Tunnel {
    command: TunnelCommand,
    child: Child,
    job: Job,
    /// It has led to the other side.
    proved: AtomicBool,
    status: Option<ExitStatus>,
    /// It was ended by what was typed while it had the terminal.
    cancelled: bool,
    interrupt: Interrupt,
    /// It is to run on.
    left: bool,
}

/// What became of a tunnel, where it is not success.
#[derive(Debug, Error)]
pub enum TunnelError {
    /// It ended, and not with status 0.
    #[error("{tunnel} {how}")]
    Ended {
        /// What messages call it, such as `tunnel command 'exit 1'` or `ssh to hostb`.
        tunnel: String,
        /// Its status.
        status: ExitStatus,
        /// What that means.
        how: String,
    },
    /// It was ended by Ctrl-C while it had the terminal: whoever was asked there does not want it.
    #[error("{tunnel} was cancelled at the terminal")]
    Cancelled {
        /// What messages call it.
        tunnel: String,
    },
    /// It has not ended.
    #[error("{tunnel} still runs after {after:?}")]
    StillRunning {
        /// What messages call it.
        tunnel: String,
        /// How long it was waited for.
        after: Duration,
    },
    /// The wait was interrupted; the command runs on.
    #[error("waiting for {tunnel}: interrupted")]
    Interrupted {
        /// What messages call it.
        tunnel: String,
    },
    /// The system does not tell.
    #[error("cannot wait for {tunnel}")]
    Wait {
        /// What messages call it.
        tunnel: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

fn how_it_ended(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(127), _) => "ended with status 127 (a command was not found)".to_owned(),
        (Some(code), _) => format!("ended with status {code}"),
        (None, Some(number)) => match Signal::try_from(number) {
            Ok(signal) => format!("was ended by {signal}"),
            Err(_) => format!("was ended by signal {number}"),
        },
        (None, None) => format!("ended: {status}"),
    }
}

/// Whether a command ended as Ctrl-C or Ctrl-\\ end it, by itself or through a shell.
fn was_cancelled(status: ExitStatus) -> bool {
    let signals = [Signal::SIGINT, Signal::SIGQUIT].map(|signal| signal as i32);
    let by_shell = status.code().map(|code| code - 128);
    status.signal().or(by_shell).is_some_and(|signal| signals.contains(&signal))
}

/// A started tunnel, and our ends of its stdin and its stdout.
pub(crate) type BothWays = (Tunnel, OwnedFd, OwnedFd);

impl Tunnel {
    /// Starts `command` between two channels of ours, the first to its stdin and the second from
    /// its stdout.
    ///
    /// They are two pipes: through one socket the end of the answers would come only when nobody
    /// holds stdin any more either.
    pub(crate) fn start_both_ways(
        command: TunnelCommand,
        interrupt: &Interrupt,
    ) -> Result<BothWays, OpenError> {
        let (from_stdout, theirs) = pipe(&command)?;
        let (tunnel, to_stdin) = Self::start(command, Some(theirs), interrupt)?;
        Ok((tunnel, to_stdin, from_stdout))
    }

    /// Starts `command` behind a channel to its stdin; its stdout is the stdout of this program.
    pub(crate) fn start_one_way(
        command: TunnelCommand,
        interrupt: &Interrupt,
    ) -> Result<(Self, OwnedFd), OpenError> {
        Self::start(command, None, interrupt)
    }

    fn start(
        command: TunnelCommand,
        stdout: Option<OwnedFd>,
        interrupt: &Interrupt,
    ) -> Result<(Self, OwnedFd), OpenError> {
        let (stdin, to_stdin) = pipe(&command)?;
        let terminal = Terminal::in_foreground();
        let number = terminal.as_ref().map(Terminal::number);
        let mut process = command.process(terminal.is_some());
        // A group of its own makes it possible to end a whole pipeline, and keeps a Ctrl-C at
        // the terminal from cutting the tunnel in the middle of a handover. std resets SIGPIPE
        // and the signal mask in the child.
        process.process_group(0).stdin(stdin);
        if let Some(stdout) = stdout {
            process.stdout(stdout);
        }
        // SAFETY: the closure does nothing but system calls on numbers: no allocation, no lock.
        unsafe {
            process.pre_exec(move || {
                before_exec(number);
                Ok(())
            })
        };
        let child = process.spawn().map_err(|error| cannot_start(&command, error))?;
        let job = Job::new(terminal, Pid::from_raw(child.id() as i32));
        let tunnel = Self {
            command,
            child,
            job,
            proved: AtomicBool::new(false),
            status: None,
            cancelled: false,
            interrupt: interrupt.clone(),
            left: false,
        };
        Ok((tunnel, to_stdin))
    }

    /// What messages call it.
    fn name(&self) -> String {
        self.command.to_string()
    }

    /// The id of its process group, which [`Self::kill`] signals.
    pub fn process_group(&self) -> i32 {
        self.group().as_raw()
    }

    fn group(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    /// Takes the terminal back, which the command has until then so that it can ask for a
    /// password. Call it when the tunnel has proved that it works, before the blackout at the
    /// latest: from then on Ctrl-C comes to this program and no longer to the command.
    pub fn release_terminal(&self) {
        self.proved.store(true, Ordering::Relaxed);
        self.job.take_back();
    }

    /// It as a job of the terminal.
    pub fn job(&self) -> &Job {
        &self.job
    }

    /// The status if the command has ended; does not wait.
    ///
    /// # Errors
    /// [`TunnelError::Wait`].
    pub fn status(&mut self) -> Result<Option<ExitStatus>, TunnelError> {
        if self.status.is_none() {
            self.status = self
                .child
                .try_wait()
                .map_err(|source| TunnelError::Wait { tunnel: self.name(), source })?;
            if let Some(status) = self.status {
                self.cancelled = self.job.has_terminal() && was_cancelled(status);
                self.job.end();
            }
        }
        Ok(self.status)
    }

    /// Waits for the end of the command, which comes when both halves of the channel are closed,
    /// and says how it ended, success or not.
    ///
    /// # Errors
    /// [`TunnelError::StillRunning`] after `timeout`, [`TunnelError::Interrupted`],
    /// [`TunnelError::Wait`]. The command runs on then.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus, TunnelError> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.status()? {
                return Ok(status);
            }
            let left = timeout.saturating_sub(started.elapsed());
            if left.is_zero() {
                return Err(TunnelError::StillRunning { tunnel: self.name(), after: timeout });
            }
            match self.interrupt.wait(None, Some(left.min(POLL_INTERVAL))) {
                Ok(Waited::Interrupted) => {
                    return Err(TunnelError::Interrupted { tunnel: self.name() });
                }
                Ok(_) => {}
                Err(source) => {
                    return Err(TunnelError::Wait { tunnel: self.name(), source });
                }
            }
        }
    }

    /// As [`wait`](Self::wait), where only status 0 is good enough.
    ///
    /// # Errors
    /// [`TunnelError::Cancelled`], [`TunnelError::Ended`] for any other status, and those of
    /// [`wait`](Self::wait).
    pub fn wait_for_success(&mut self, timeout: Duration) -> Result<(), TunnelError> {
        let status = self.wait(timeout)?;
        if status.success() {
            return Ok(());
        }
        if self.cancelled {
            return Err(TunnelError::Cancelled { tunnel: self.name() });
        }
        let how = self.command.how_it_ended(status, self.proved.load(Ordering::Relaxed));
        Err(TunnelError::Ended { tunnel: self.name(), status, how })
    }

    /// How it ended, if that is what broke the channel: its status says more than the broken pipe
    /// that it leaves behind, and is waited for a moment.
    pub fn failure(&mut self) -> Option<TunnelError> {
        let ended = self.wait_for_success(STATUS_TIMEOUT).err()?;
        matches!(ended, TunnelError::Ended { .. } | TunnelError::Cancelled { .. }).then_some(ended)
    }

    /// Ends the command and everything in its process group: SIGTERM, after half a second
    /// SIGKILL. Does nothing when it has ended already; what it left running in the background
    /// is its own affair.
    pub fn kill(&mut self) {
        if !matches!(self.status(), Ok(None)) {
            return;
        }
        let group = self.group();
        // The shell is not reaped before the last signal is sent: until then nobody else can
        // have its number. A group that is empty already (ESRCH) is what we want.
        let _ = killpg(group, Signal::SIGTERM);
        wait_for_shell(group);
        if !shell_runs(group) {
            thread::sleep(PIPELINE_TIMEOUT);
        }
        let _ = killpg(group, Signal::SIGKILL);
        // A command that runs as another user (sudo) may be out of reach; it ends by the closed
        // channel, and must not hold this program until then.
        wait_for_shell(group);
        let _ = self.status();
        self.job.end();
    }

    /// Leaves the command alone, so that it can pass on what it still holds.
    pub fn leave(mut self) {
        self.job.end();
        self.left = true;
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        if !self.left {
            self.kill();
        }
    }
}

/// Waits for the end of the shell, in vain after [`KILL_TIMEOUT`]; does not reap it.
fn wait_for_shell(shell: Pid) {
    let started = Instant::now();
    while started.elapsed() < KILL_TIMEOUT && shell_runs(shell) {
        thread::sleep(POLL_INTERVAL);
    }
}

fn cannot_start(command: &TunnelCommand, error: io::Error) -> OpenError {
    OpenError::system(format!("start {command}"), error)
}

fn pipe(command: &TunnelCommand) -> Result<(OwnedFd, OwnedFd), OpenError> {
    let (from, into) = io::pipe().map_err(|error| cannot_start(command, error))?;
    Ok((from.into(), into.into()))
}

fn shell_runs(shell: Pid) -> bool {
    let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    matches!(waitid(Id::Pid(shell), look), Ok(WaitStatus::StillAlive))
}

/// In the child, between fork and exec: nothing but stdin, stdout and stderr survives the exec,
/// since a descriptor left open in a tunnel (the other end of a FIFO, say) would keep an end of
/// file from ever coming.
fn before_exec(terminal: Option<RawFd>) {
    // SAFETY: sets a flag on descriptors and touches no memory. Kernels before 5.11 refuse; then
    // only what this program opened by itself is close-on-exec.
    unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3 as libc::c_uint,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    if let Some(terminal) = terminal {
        give_to_self(terminal);
    }
}
