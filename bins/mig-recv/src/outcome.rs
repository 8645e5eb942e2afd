//! What the user is told of how a migration ended.

use anyhow::anyhow;
use mig_engine::handover::{DestinationEnd, DestinationEnding, HandoverMode};
use migpipe_cli::output;

use crate::NAME;
use crate::error::StepError;
use crate::incoming::{Guest, IncomingMigration};

/// Says it, and returns the exit status; an error if the guest does not run here.
pub fn tell(
    migration: &IncomingMigration<'_>,
    end: DestinationEnd<Guest, StepError>,
) -> anyhow::Result<u8> {
    let name = &migration.name;
    let because = |said: String| match end.reason {
        Some(why) => why.into_reason().context(said),
        None => anyhow!(said),
    };
    match (end.ending, &end.guest) {
        (DestinationEnding::Runs, Some(guest)) if !migration.args.quiet => {
            output::say(format!(
                "{NAME}: {name} runs here ({}); {} in {:.2} s",
                match &guest.vmrun.unit {
                    Some(unit) => unit.clone(),
                    None => format!("vmrun {}", guest.vmrun.client.pid()),
                },
                migration.stream.bytes_read(),
                migration.began.elapsed().as_secs_f64()
            ));
        }
        (DestinationEnding::Runs, _) => {}
        (DestinationEnding::Refused, _) => {
            return Err(because(format!("{name} does not run here")));
        }
        (DestinationEnding::Prepared, _) => {
            let said = match migration.mode {
                HandoverMode::Saved => format!(
                    "{name} may have begun to run here (vmctl status {name}); if it has not, \
                     mig-recv --clone restores it"
                ),
                _ => format!(
                    "{name} is here, paused, and waits for its source to resolve migration {}{}",
                    migration.id,
                    match migration.args.go_timeout.0 {
                        Some(limit) => format!(", for {} s", limit.as_secs_f32()),
                        None => String::new(),
                    }
                ),
            };
            let why = because(said);
            let reason = migpipe_cli::one_line(&why);
            migration.arrival.report(|report| report.reason = Some(reason));
            migpipe_cli::complain(NAME, &why);
        }
    }
    Ok(end.ending.exit_status())
}
