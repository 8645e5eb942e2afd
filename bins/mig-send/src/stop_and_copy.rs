//! Stop-and-copy: the guest is paused, and the destination gets what it still lacks.
//!
//! Order within the blackout, and why:
//! 1. Pause: from here on the guest changes nothing.
//! 2. The disks' last flush begins: after the last write of a device, and so early that it goes on
//!    beside everything else. It is waited for before the commit.
//! 3. Save the state: a device that writes guest memory while it is saved (a parked request, the
//!    kvm-clock page) has done so after this.
//! 4. The last harvest: after all writers, so that it shows what the pause and the save dirtied.
//! 5. The last pages, then the sections: the destination loads state into complete memory.
//!
//! Nothing else happens here: the dirty log is stopped and the throttle lifted when the guest is
//! gone or runs again.

use std::time::Instant;

use mig_engine::handover::HandoverMode;
use mig_engine::precopy::RoundStats;
use mig_engine::report::Phase;
use migpipe_units::Pages;

use crate::error::StepError;
use crate::outgoing::OutgoingMigration;
use crate::pages;
use crate::precopy::Remainder;

/// Pauses the guest and sends what the destination lacks.
pub fn run(outgoing: &mut OutgoingMigration<'_>, log: Remainder) -> Result<(), StepError> {
    outgoing.shared.progress(|progress| progress.phase = Phase::Blackout);
    outgoing.release_terminal();
    outgoing.precopy.pacer.begin_blackout();
    outgoing.channel.stream.blackout()?;
    outgoing.guest.client.pause()?;
    let paused = Instant::now();
    outgoing.guest.disks.begin();
    outgoing.paused = Some(paused);
    if outgoing.args.enforce_downtime {
        outgoing
            .channel
            .stream
            .get_mut()
            .set_deadline(Some(outgoing.precopy.policy.limits().max_downtime));
    }

    let sections = outgoing.guest.client.save_state()?;
    let saved = Instant::now();
    outgoing.guest.client.dirty_log_harvest()?;
    let harvested = Instant::now();

    let before = outgoing.channel.stream.bytes_written();
    let sent = outgoing.send_pages(&log)?;
    let sent_at = Instant::now();
    let bytes = outgoing.channel.stream.bytes_written() - before;
    for section in &sections {
        outgoing.channel.stream.section(section)?;
    }
    if outgoing.args.verify {
        let digest = pages::digest(&outgoing.guest.machine, &outgoing.guest.memory)?;
        outgoing.channel.stream.digest(&digest)?;
    }
    if outgoing.channel.mode == HandoverMode::Saved && !outgoing.args.snapshot {
        // A disk that is full is found out here, where the guest can still run on.
        outgoing.channel.stream.get_mut().sync()?;
    }
    let downtime = &mut outgoing.report.downtime;
    downtime.state_save = Some(saved - paused);
    downtime.last_harvest = Some(harvested - saved);
    downtime.last_pages = Some(sent_at - harvested);
    outgoing.report.blackout = Some(RoundStats {
        number: outgoing.report.rounds.len() as u32,
        sent: sent.raw,
        fills: sent.fills,
        bytes,
        deferred: Pages(0),
        dirtied: Pages(0),
        duration: sent_at - harvested,
        rate: bytes.per(sent_at - harvested),
    });
    Ok(())
}
