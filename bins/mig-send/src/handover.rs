//! The handover: from READY to RUNNING.
//!
//! In which order, and what a failure leads to, is in [`mig_engine::handover`].

use std::time::{Duration, Instant};

use mig_channel::TunnelError;
use mig_engine::handover::{HandoverMode, Query};
use mig_engine::ownership::Input;
use mig_engine::report::Phase;
use mig_stream::StreamDigest;
use migpipe_units::Acknowledged;
use vm_control::{ClientError, Refusal};

use crate::answers::phase;
use crate::attempts;
use crate::disks::DISKS_POLL_INTERVAL;
use crate::error::StepError;
use crate::outgoing::OutgoingMigration;
use crate::query::ResolveHelper;
use crate::query_args::QueryArgs;

/// How long the destination may take to run the guest after GO; the outcome is asked for then.
const RUNNING_TIMEOUT: Duration = Duration::from_secs(20);

/// Waits for READY. A tunnel that holds data back is named here, before the guest is touched.
pub fn await_ready(outgoing: &mut OutgoingMigration<'_>) -> Result<(), StepError> {
    let timeout = outgoing.args.ready_timeout;
    // Somebody may have stopped both while the tunnel asked on the terminal (Ctrl-Z).
    let (shared, mut stops) = (&outgoing.shared, outgoing.shared.stops());
    let stopped = || std::mem::replace(&mut stops, shared.stops()) != shared.stops();
    outgoing.channel.answers.ready(timeout, stopped).map_err(|error| match error.is_timeout() {
        true => StepError::NoReady { within: timeout },
        false => error,
    })
}

/// Waits until the destination has loaded everything.
pub fn await_ack(
    outgoing: &mut OutgoingMigration<'_>,
) -> Result<(StreamDigest, Acknowledged), StepError> {
    let timeout = outgoing.left_of_blackout();
    let (digest, by, timings) = outgoing.channel.answers.ack(timeout)?;
    outgoing.acknowledged = Some(Instant::now());
    outgoing.report.downtime.state_load = phase(&timings, "load");
    if let (Some(save_to_end), Some(ack)) = (sent_at(outgoing), outgoing.acknowledged) {
        let load = outgoing.report.downtime.state_load.unwrap_or_default();
        outgoing.report.downtime.transfer = Some((ack - save_to_end).saturating_sub(load));
    }
    Ok((digest, by))
}

/// Waits until the guest runs at the destination.
pub fn await_running(
    outgoing: &mut OutgoingMigration<'_>,
    taken_by: Acknowledged,
) -> Result<(), StepError> {
    let timeout = RUNNING_TIMEOUT.min(outgoing.args.timeout);
    let timings = match (outgoing.channel.mode, &mut outgoing.channel.helper) {
        (HandoverMode::SeparateCommit, Some(helper)) => {
            attempts::verdict(Query::Committed(Some(taken_by)), helper.result()?)?;
            Vec::new()
        }
        _ => outgoing.channel.answers.running(timeout)?,
    };
    let now = Instant::now();
    let downtime = &mut outgoing.report.downtime;
    downtime.first_instruction = phase(&timings, "first instruction");
    let others = [downtime.disk_flush, downtime.first_instruction].into_iter().flatten().sum();
    downtime.go = outgoing.acknowledged.map(|ack| (now - ack).saturating_sub(others));
    downtime.total = outgoing.paused.map(|paused| now - paused);
    Ok(())
}

/// When the last page was written.
fn sent_at(outgoing: &OutgoingMigration<'_>) -> Option<Instant> {
    let downtime = &outgoing.report.downtime;
    Some(outgoing.paused? + downtime.state_save? + downtime.last_harvest? + downtime.last_pages?)
}

/// Gives the guest of a snapshot back: it runs on, whatever becomes of the file.
pub fn resume(outgoing: &mut OutgoingMigration<'_>) -> Result<(), StepError> {
    // Refused if vmrun took the guest back by itself: it may have run before the last page was read.
    outgoing.guest.client.dirty_log_harvest()?;
    outgoing.guest.client.own(Input::Release(outgoing.id))?;
    outgoing.channel.stream.get_mut().set_deadline(None);
    outgoing.report.downtime.total = outgoing.paused.map(|paused| paused.elapsed());
    Ok(())
}

/// One way nobody else can say whether the end of the stream got through, so the tunnel is
/// waited for, and its status is the answer.
pub fn close(outgoing: &mut OutgoingMigration<'_>) -> Result<(), StepError> {
    outgoing.channel.stream.get_mut().close()?;
    match (&mut outgoing.channel.tunnel, outgoing.channel.mode) {
        (Some(tunnel), HandoverMode::OneWay | HandoverMode::Saved) => {
            tunnel.wait_for_success(outgoing.args.timeout).map_err(|error| match error {
                TunnelError::StillRunning { .. } => StepError::StillOpen(error),
                error => StepError::Tunnel(error),
            })
        }
        _ => Ok(()),
    }
}

/// Waits for the disks, and sees that somebody will bring GO.
pub fn prepare_commit(outgoing: &mut OutgoingMigration<'_>) -> Result<(), StepError> {
    await_disks(outgoing)?;
    // Before the commit this costs nothing yet.
    if outgoing.channel.mode == HandoverMode::SeparateCommit
        && outgoing.channel.helper.as_mut().is_none_or(ResolveHelper::has_ended)
    {
        return Err(StepError::Helper("the helper process that would bring the commit has ended"));
    }
    Ok(())
}

/// The point of no return: recorded in the source's vmrun before GO can reach anybody.
pub fn commit(
    outgoing: &mut OutgoingMigration<'_>,
    taken_by: Option<Acknowledged>,
) -> Result<(), StepError> {
    outgoing.shared.progress(|progress| progress.phase = Phase::Handover);
    if !outgoing.shared.commit() {
        return Err(StepError::Cancelled);
    }
    match outgoing.guest.client.own(Input::Commit(outgoing.id, taken_by)) {
        Ok(()) => {
            outgoing.channel.stream.get_mut().set_deadline(None);
            Ok(())
        }
        Err(ClientError::Refused(Refusal::Cancelled)) => Err(StepError::Cancelled),
        Err(ClientError::Refused(why)) => Err(StepError::Undone(why)),
        Err(error) => Err(error.into()),
    }
}

/// Through the stream, or through the second command: a query is GO as well.
pub fn send_go(
    outgoing: &mut OutgoingMigration<'_>,
    taken_by: Acknowledged,
) -> Result<(), StepError> {
    match (outgoing.channel.mode, &mut outgoing.channel.helper) {
        (HandoverMode::SeparateCommit, Some(helper)) => {
            let (query, age) = (Query::Committed(Some(taken_by)), outgoing.started.elapsed());
            helper.query(&QueryArgs { query, age })
        }
        _ => Ok(outgoing.channel.stream.go(taken_by.nonce)?),
    }
}

/// Waits for the flush that began with the pause, and notes how long the blackout had to wait.
fn await_disks(outgoing: &mut OutgoingMigration<'_>) -> Result<(), StepError> {
    let began = Instant::now();
    let timeout = outgoing.left_of_blackout();
    while outgoing.guest.disks.wait(DISKS_POLL_INTERVAL.min(timeout))?.is_none() {
        if outgoing.shared.is_cancelled() {
            return Err(StepError::Cancelled);
        }
        if began.elapsed() >= timeout {
            return Err(StepError::SlowDisks { within: timeout });
        }
    }
    outgoing.report.downtime.disk_flush = Some(began.elapsed());
    Ok(())
}
