//! Waiting for a state of a guest.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::bail;
use vm_control::{Client, ClientError, Subscription};

use crate::{LIST_TIMEOUT, NAME, is_nobody};

/// How often a guest is looked for that is not there.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// How long one look at a guest lasts at most, if nothing happens to it.
const LOOK_TIMEOUT: Duration = Duration::from_secs(1);

/// The state of a guest that is not there.
const ENDED: &str = "ended";

/// Waits until the guest is in this state.
pub fn until(guest: &str, state: &str, timeout: Option<Duration>) -> anyhow::Result<()> {
    let socket = vm_paths::socket_of(guest)?;
    let connect = || Client::connect_within(&socket, NAME, LIST_TIMEOUT);
    let began = Instant::now();
    let mut events: Option<Subscription> = None;
    loop {
        let left = timeout.map(|timeout| timeout.saturating_sub(began.elapsed()));
        let is = match connect().and_then(|client| client.status()) {
            Ok(status) => status.word(),
            Err(ClientError::Connect { source, .. }) if is_nobody(&source) => ENDED,
            Err(error) if error.is_end_of_vmrun() => "ending",
            Err(error) => return Err(error.into()),
        };
        // Of "migrating, paused" the first word is the state.
        if is.split(',').next() == Some(state) {
            return Ok(());
        }
        if left.is_some_and(|left| left.is_zero()) {
            bail!("{guest} is {is} and not {state} after {:.1} s", began.elapsed().as_secs_f64());
        }
        events = match events {
            Some(mut events) => {
                let happened = events.next(Some(left.unwrap_or(LOOK_TIMEOUT).min(LOOK_TIMEOUT)));
                happened.map(|_| events)
            }
            // What happens from here on is an event; what happened meanwhile is seen at once.
            None => connect().and_then(Client::subscribe).ok().or_else(|| {
                thread::sleep(left.unwrap_or(POLL_INTERVAL).min(POLL_INTERVAL));
                None
            }),
        };
    }
}
