//! Stop-and-copy and the handover: from the guest's last instruction here to its first one there.
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

use std::time::{Duration, Instant};

use anyhow::anyhow;
use mig_engine::handover::{HandoverMode, Query};
use mig_engine::precopy::RoundStats;
use mig_engine::report::Phase;
use mig_stream::StreamDigest;
use migpipe_units::{Acknowledged, Pages};
use page_bitmap::GuestBitmap;

use crate::answers::phase;
use crate::error::StepError;
use crate::migration::Migration;
use crate::{pages, resolve};

/// How long the destination may take to run the guest after GO; the outcome is asked for then.
const ANSWER: Duration = Duration::from_secs(20);

/// When what happened in the blackout.
#[derive(Debug, Default)]
pub struct Blackout {
    /// When the last vCPU had stopped.
    paused: Option<Instant>,
    acknowledged: Option<Instant>,
}

impl Migration<'_> {
    /// Pauses the guest and sends what the destination lacks.
    pub fn send_the_rest(&mut self, log: GuestBitmap) -> Result<(), StepError> {
        self.shared.progress(|progress| progress.phase = Phase::Blackout);
        self.release_terminal();
        self.pacer.begin_blackout();
        self.stream.blackout()?;
        self.client.pause()?;
        let paused = Instant::now();
        self.disks.begin();
        self.blackout.paused = Some(paused);
        if self.args.enforce_downtime {
            self.stream.get_mut().set_deadline(Some(self.policy.limits().max_downtime));
        }

        let sections = self.client.save_state()?;
        let saved = Instant::now();
        self.client.dirty_log_harvest()?;
        let harvested = Instant::now();

        let before = self.stream.bytes_written();
        let sent = self.send_pages(&log)?;
        let sent_at = Instant::now();
        let bytes = self.stream.bytes_written() - before;
        for section in &sections {
            self.stream.section(section)?;
        }
        if self.args.verify {
            let digest = pages::digest(&self.machine, &self.memory).map_err(anyhow::Error::from)?;
            self.stream.digest(&digest)?;
        }
        if self.form == HandoverMode::Saved {
            // A disk that is full is found out here, where the guest can still run on.
            self.stream.get_mut().sync()?;
        }
        let downtime = &mut self.report.downtime;
        downtime.state_save = Some(saved - paused);
        downtime.last_harvest = Some(harvested - saved);
        downtime.last_pages = Some(sent_at - harvested);
        self.report.blackout = Some(RoundStats {
            number: self.report.rounds.len() as u32,
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

    /// How long the next step of the blackout may take.
    pub fn left_of_blackout(&self) -> Duration {
        match (self.args.enforce_downtime, self.blackout.paused) {
            (true, Some(paused)) => {
                self.policy.limits().max_downtime.saturating_sub(paused.elapsed())
            }
            _ => self.args.timeout,
        }
    }

    /// Waits for READY. A tunnel that holds data back is named here, before the guest is touched.
    pub fn hear_ready(&mut self) -> Result<(), StepError> {
        let timeout = self.args.ready_timeout;
        let answers = self.answers.as_mut().ok_or_else(|| anyhow!("no return path"))?;
        // Somebody may have stopped both while the tunnel asked on the terminal (Ctrl-Z).
        let (shared, mut stops) = (&self.shared, self.shared.stops());
        let stopped = || std::mem::replace(&mut stops, shared.stops()) != shared.stops();
        answers.ready(timeout, stopped).map_err(|stop| match stop {
            StepError::Failed(error) if migpipe_cli::is_timeout(&error) => StepError::Failed(anyhow!(
                "no answer to the header within {} s: the destination does not run, or the tunnel \
                 holds data back (gzip, zstd and the like do); use --one-way, or --commit \
                 exec:'ssh HOST vmctl commit GUEST'",
                timeout.as_secs_f32()
            )),
            stop => stop,
        })
    }

    /// Waits until the destination has loaded everything.
    pub fn hear_ack(&mut self) -> Result<(StreamDigest, Acknowledged), StepError> {
        let timeout = self.left_of_blackout();
        let answers = self.answers.as_mut().ok_or_else(|| anyhow!("no return path"))?;
        let (digest, by, timings) = answers.ack(timeout)?;
        self.blackout.acknowledged = Some(Instant::now());
        self.report.downtime.state_load = phase(&timings, "load");
        if let (Some(save_to_end), Some(ack)) = (self.sent_at(), self.blackout.acknowledged) {
            let load = self.report.downtime.state_load.unwrap_or_default();
            self.report.downtime.transfer = Some((ack - save_to_end).saturating_sub(load));
        }
        Ok((digest, by))
    }

    /// Waits until the guest runs at the destination.
    pub fn hear_running(&mut self, taken_by: Option<Acknowledged>) -> Result<(), StepError> {
        let form = self.form;
        let timeout = ANSWER.min(self.args.timeout);
        let timings = match (form, &mut self.asker, &mut self.answers) {
            (HandoverMode::SeparateCommit, Some(asker), _) => {
                resolve::verdict(Query::Committed(taken_by), asker.answer()?)?;
                Vec::new()
            }
            (_, _, Some(answers)) => answers.running(timeout)?,
            _ => return Err(anyhow!("no return path").into()),
        };
        let now = Instant::now();
        let downtime = &mut self.report.downtime;
        downtime.first_instruction = phase(&timings, "first instruction");
        let others = [downtime.disk_flush, downtime.first_instruction].into_iter().flatten().sum();
        downtime.go = self.blackout.acknowledged.map(|ack| (now - ack).saturating_sub(others));
        downtime.total = self.blackout.paused.map(|paused| now - paused);
        Ok(())
    }

    /// When the last page was written.
    fn sent_at(&self) -> Option<Instant> {
        let downtime = &self.report.downtime;
        Some(
            self.blackout.paused?
                + downtime.state_save?
                + downtime.last_harvest?
                + downtime.last_pages?,
        )
    }
}
