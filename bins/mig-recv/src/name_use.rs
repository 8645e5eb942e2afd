//! Who has the name of a guest that arrives.

use std::os::unix::net::UnixStream;
use std::path::Path;

use mig_engine::ownership::Input;
use vm_control::Client;

use crate::NAME;
use crate::host::END_TIMEOUT;

/// Whoever it is.
pub enum NameUse {
    Free,
    /// A vmrun that holds its guest back, which has never run, since one of that name left this host:
    /// that one comes home now, or another takes the name.
    Held(Client),
    Taken,
}

impl NameUse {
    pub fn of(socket: &Path) -> Self {
        if UnixStream::connect(socket).is_err() {
            return Self::Free;
        }
        match Client::connect_within(socket, NAME, END_TIMEOUT) {
            Ok(client) if client.status().is_ok_and(|status| status.held.is_some()) => {
                Self::Held(client)
            }
            _ => Self::Taken,
        }
    }
}

/// Why it cannot be had.
pub fn taken(name: &str) -> String {
    format!(
        "a guest named {name} is on this host already: give this one another --name, or end that one \
         (vmctl status {name})"
    )
}

/// Ends a vmrun that holds its guest back.
pub fn give_way(held: &Client) -> bool {
    held.own(Input::Quit { force: false }).is_ok() && held.await_end(END_TIMEOUT)
}
