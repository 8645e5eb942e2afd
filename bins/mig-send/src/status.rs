//! What became of a guest at its source, when its vmrun did not confirm it.

use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use mig_engine::handover::SourceGuestState;
use migpipe_units::MigrationId;
use vm_control::{Client, ClientError};

use crate::NAME;

/// How long its vmrun may take to say so; it was waited for already.
const STATUS_TIMEOUT: Duration = Duration::from_millis(500);

/// A connection of its own to the guest's vmrun, for when the one that moves the guest breaks. A
/// mig-send that reads answers can open no other any more.
#[derive(Debug)]
pub struct StatusConnection {
    client: Client,
    silent: bool,
}

impl StatusConnection {
    /// Connects; the vmrun at `path` answers within `timeout`.
    ///
    /// # Errors
    /// As [`Client::connect_within`].
    pub fn new(path: &Path, timeout: Duration) -> Result<Self, ClientError> {
        Ok(Self { client: Client::connect_within(path, NAME, timeout)?, silent: false })
    }

    /// Asks what became of the guest.
    pub fn guest_state(&mut self, id: MigrationId) -> SourceGuestState {
        if self.silent {
            // The connection ended with the first answer that did not come.
            return SourceGuestState::Silent;
        }
        match self.client.set_timeout(STATUS_TIMEOUT).and_then(|()| self.client.status()) {
            Ok(status) => SourceGuestState::of(status.ownership, status.running, id),
            Err(error) if error.is_end_of_vmrun() => SourceGuestState::Gone,
            // It is there and says nothing of the guest.
            Err(_) => {
                self.silent = true;
                SourceGuestState::Silent
            }
        }
    }
}

/// What became of a guest whose vmrun was reached a moment ago, and cannot be reached again.
pub fn without_status(error: &ClientError) -> SourceGuestState {
    match error {
        ClientError::Connect { source, .. } => match source.kind() {
            // The socket of a vmrun that has ended, or none at all.
            ErrorKind::ConnectionRefused | ErrorKind::NotFound => SourceGuestState::Gone,
            _ => SourceGuestState::Silent,
        },
        error if error.is_end_of_vmrun() => SourceGuestState::Gone,
        _ => SourceGuestState::Silent,
    }
}
