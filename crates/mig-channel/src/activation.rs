//! The socket that systemd passes to a service it activates (sd_listen_fds(3)).
#![forbid(unsafe_code)]

use std::{env, process};

use thiserror::Error;

use crate::endpoint::Endpoint;

/// The first descriptor that systemd passes (SD_LISTEN_FDS_START).
const FIRST: i32 = 3;

/// Why the sockets that systemd passed cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ActivationError {
    /// A stream comes through one socket.
    #[error(
        "systemd passed {0} sockets: a stream comes through one; keep one Listen line in the socket unit"
    )]
    TooMany(u32),
    /// LISTEN_FDS is no number.
    #[error("LISTEN_FDS is '{0}', which is no number of sockets")]
    NotANumber(String),
}

/// The socket that systemd passed to this very process, `fd:3`; none where it passed none. It may
/// be a listening one (`Accept=no`) or a connection (`Accept=yes`).
///
/// # Errors
/// [`ActivationError`] where it passed more than one.
pub fn activated_endpoint() -> Result<Option<Endpoint>, ActivationError> {
    let variable = |name| env::var(name).ok();
    decide(process::id(), variable("LISTEN_PID"), variable("LISTEN_FDS"))
}

fn decide(
    own: u32,
    listen_pid: Option<String>,
    listen_fds: Option<String>,
) -> Result<Option<Endpoint>, ActivationError> {
    let (Some(pid), Some(fds)) = (listen_pid, listen_fds) else {
        return Ok(None);
    };
    // The variables are inherited by the children of the process that they were meant for.
    if pid.parse() != Ok(own) {
        return Ok(None);
    }
    match fds.parse() {
        Ok(0) => Ok(None),
        Ok(1) => Ok(Some(Endpoint::Fd(FIRST))),
        Ok(many) => Err(ActivationError::TooMany(many)),
        Err(_) => Err(ActivationError::NotANumber(fds)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(pid: &str, fds: &str) -> Result<Option<Endpoint>, ActivationError> {
        decide(7, Some(pid.to_owned()), Some(fds.to_owned()))
    }

    #[test]
    fn one_socket_for_this_process_is_descriptor_3() {
        assert_eq!(given("7", "1"), Ok(Some(Endpoint::Fd(3))));
    }

    #[test]
    fn sockets_for_another_process_are_not_ours() {
        assert_eq!(given("8", "1"), Ok(None));
        assert_eq!(given("x", "1"), Ok(None));
        assert_eq!(decide(7, None, Some("1".into())), Ok(None));
        assert_eq!(given("7", "0"), Ok(None));
    }

    #[test]
    fn several_sockets_or_nonsense_are_refused() {
        assert_eq!(given("7", "2"), Err(ActivationError::TooMany(2)));
        assert_eq!(given("7", "one"), Err(ActivationError::NotANumber("one".into())));
    }
}
