//! Loading: the guest's memory is compared where that was asked for, and its vmrun loads the state.

use migpipe_units::Acknowledged;

use crate::error::StepError;
use crate::incoming::{Content, Guest, IncomingMigration};

/// Has the vmrun load the state; from then on the guest is prepared. Returns what is to be
/// acknowledged.
pub fn run(
    migration: &mut IncomingMigration<'_>,
    guest: &mut Guest,
    content: Content,
) -> Result<Option<Acknowledged>, StepError> {
    if let Some(expected) = &content.digest {
        guest.memory.verify(expected)?;
    }
    let paused_for = migration.paused.map(|at| at.elapsed());
    migration.arrival.report(|report| report.downtime.receive = paused_for);
    match guest.vmrun.client.prepare(migration.id, content.sections, paused_for) {
        Ok(loaded) => {
            guest.timings.push(("load".into(), loaded.load));
            migration.arrival.report(|report| report.downtime.state_load = Some(loaded.load));
            Ok(loaded.acknowledge)
        }
        Err(error) => Err(migration.host.explain(&guest.vmrun, error).into()),
    }
}
