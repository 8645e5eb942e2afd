//! What follows a failure: the guest is given up, and the source hears why.
//!
//! Whether it may be given up is decided in [`mig_engine::handover`].

use mig_engine::ownership::Input;
use mig_stream::Message;

use crate::error::StepError;
use crate::incoming::{Guest, IncomingMigration};

/// Has the vmrun give the migration up, for ever.
pub fn refuse(migration: &IncomingMigration<'_>, guest: &Guest) -> Result<(), StepError> {
    Ok(guest.vmrun.client.own(Input::Refuse(migration.id))?)
}

/// Tells the source, if it listens still.
pub fn say_given_up(
    migration: &mut IncomingMigration<'_>,
    received: bool,
    why: Option<&StepError>,
) {
    let reason = why.map(StepError::one_line).unwrap_or_default();
    let message = match received {
        true => Message::Failed { reason },
        false => Message::Refused { reason },
    };
    let _ = migration.answers.send(&message);
}
