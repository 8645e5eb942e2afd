//! Whether the programs of this process are confined, decided once.
#![forbid(unsafe_code)]

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

use seccompiler::SeccompAction;
use tracing::{info, warn};

use crate::{files, install};

/// What `--confine` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Refuse what is outside.
    #[default]
    Enforce,
    /// Let calls that are outside happen, with a line in the kernel's log. Files, ports and abstract
    /// sockets are not restricted then: landlock has no such mode.
    Log,
    /// Nothing.
    Off,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Enforce => "enforce",
            Self::Log => "log",
            Self::Off => "off",
        })
    }
}

impl FromStr for Mode {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "enforce" => Ok(Self::Enforce),
            "log" => Ok(Self::Log),
            "off" => Ok(Self::Off),
            _ => Err("say enforce, log or off"),
        }
    }
}

/// What becomes of a call that is outside its filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ViolationAction {
    /// The process is killed. For one whose end is harmless at any moment.
    Killed,
    /// The call answers ENOSYS. For one whose end would cost more than it protects.
    NoSuchCall,
}

/// What was decided.
pub(crate) struct Policy {
    pub(crate) files: bool,
    pub(crate) calls: bool,
    pub(crate) action: SeccompAction,
}

static POLICY: OnceLock<Policy> = OnceLock::new();

pub(crate) fn policy() -> Option<&'static Policy> {
    POLICY.get()
}

/// Decides, once and for the whole process, whether [`crate::enter`] and [`crate::thread`] confine;
/// to be called before any thread that uses them. Says what is missing, in one line.
pub fn begin(mode: Mode, outside: ViolationAction) {
    let action = match (mode, outside) {
        (Mode::Off, _) => {
            warn!("--confine off: this program keeps all rights of its user");
            return;
        }
        (Mode::Log, _) => {
            warn!("--confine log: calls outside the filters are logged by the kernel, and happen");
            SeccompAction::Log
        }
        (Mode::Enforce, ViolationAction::Killed) => SeccompAction::KillProcess,
        (Mode::Enforce, ViolationAction::NoSuchCall) => SeccompAction::Errno(libc::ENOSYS as u32),
    };
    let calls = install::is_there();
    let (files, all) = files::is_there();
    match (files, calls) {
        (true, true) if !all => info!("this kernel's landlock is older than the rules"),
        (true, true) => {}
        (false, true) => {
            warn!("this kernel has no landlock: files and ports are not confined, only calls are");
        }
        (true, false) => {
            warn!("this kernel has no seccomp filters: only files and ports are confined")
        }
        (false, false) => {
            warn!("this kernel has neither landlock nor seccomp: nothing is confined")
        }
    }
    let files = files && mode == Mode::Enforce;
    POLICY.get_or_init(|| Policy { files, calls, action });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_is_read_as_it_is_written() {
        for mode in [Mode::Enforce, Mode::Log, Mode::Off] {
            assert_eq!(mode.to_string().parse(), Ok(mode));
        }
        assert!("on".parse::<Mode>().is_err());
    }
}
