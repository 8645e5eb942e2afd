//! Why and when the process ends.

use std::sync::{Condvar, Mutex, PoisonError};

/// Why a vmrun ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The guest powered off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// The operator ended it.
    Quit,
    /// The destination runs the guest.
    Moved,
    /// The incoming guest was refused.
    Refused(String),
    /// No guest came.
    NothingCame,
    /// The machine cannot go on.
    Failed(String),
}

impl End {
    /// The exit status of vmrun.
    pub const fn exit_status(&self) -> u8 {
        match self {
            Self::PowerOff | Self::Quit | Self::Moved => 0,
            Self::Refused(_) | Self::NothingCame | Self::Failed(_) => 1,
            Self::Reset => 3,
        }
    }
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::PowerOff => f.write_str("the guest powered off"),
            Self::Reset => f.write_str("the guest asked for a reset"),
            Self::Quit => f.write_str("ended by its operator"),
            Self::Moved => f.write_str("the guest runs at its destination"),
            Self::Refused(why) => write!(f, "refused the incoming guest: {why}"),
            Self::NothingCame => f.write_str("whoever wanted to bring a guest went away"),
            Self::Failed(why) => f.write_str(why),
        }
    }
}

/// Where the main thread waits for the end. The first reason given is the one.
#[derive(Debug, Default)]
pub struct Ending {
    reason: Mutex<Option<End>>,
    given: Condvar,
}

impl Ending {
    /// Ends the process for this reason.
    pub fn give(&self, end: End) {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(end);
        self.given.notify_all();
    }

    /// Waits for the end.
    pub fn wait(&self) -> End {
        let mut reason = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match &*reason {
                Some(end) => return end.clone(),
                None => {
                    reason = self.given.wait(reason).unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }
}
