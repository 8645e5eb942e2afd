//! Pre-copy: rounds of pages while the guest runs.

use std::time::{Duration, Instant};

use mig_channel::Endpoint;
use mig_engine::handover::HandoverMode;
use mig_engine::ownership::Input;
use mig_engine::precopy::{Next, Path, RoundStats};
use mig_engine::report::{EndedBy, Phase, ThrottleStep};
use mig_stream::MAX_RUN;
use migpipe_units::{Bytes, BytesPerSec, PageRange, Pages};
use page_bitmap::{GuestBitmap, PageBitmap};

use crate::args::Args;
use crate::attempts;
use crate::disks::DISKS_POLL_INTERVAL;
use crate::error::StepError;
use crate::outgoing::OutgoingMigration;
use crate::pages::{self, Sent};
use crate::ssh_args;

/// What a blackout takes beside the last pages and the harvest: state, round trips, load. Measured
/// with the built-in guest and one or two vCPUs it is 1 to 4 ms.
pub const BLACKOUT_OVERHEAD: Duration = Duration::from_millis(4);

/// The longest sleep for the bandwidth limit, after which orders are looked at again.
const PACE_INTERVAL: Duration = Duration::from_millis(50);

/// Of the promised downtime, what is still in buffers may take this fraction.
const BACKLOG_FRACTION: u32 = 10;

/// How often the buffers are looked at, and when they are taken for stuck.
const DRAIN_POLL_INTERVAL: Duration = Duration::from_millis(1);
const DRAIN_STALL_TIMEOUT: Duration = Duration::from_secs(1);

/// A flush that takes no longer than this fraction of the promised downtime is not repeated before
/// the pause.
const FLUSH_FRACTION: u32 = 10;

/// How often its vmrun is asked meanwhile whether it is there.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);

/// The pages that the destination lacks when pre-copy ends, beside those that the last harvest adds.
pub type Remainder = GuestBitmap;

/// Takes the guest for this migration and sends rounds of pages until one of the rules ends that.
pub fn run(outgoing: &mut OutgoingMigration<'_>) -> Result<Remainder, StepError> {
    outgoing.shared.progress(|progress| progress.phase = Phase::PreCopy);
    if outgoing.channel.mode == HandoverMode::BothWays {
        // The tunnel has asked for its passwords by now.
        outgoing.release_terminal();
    }
    outgoing.guest.client.own(Input::Begin(outgoing.id))?;
    let (to, asked) = (goes_to(outgoing.args), asked_at(outgoing));
    outgoing.guest.client.leaves(outgoing.id, to, asked)?;
    let log = outgoing.guest.client.dirty_log_start(&outgoing.guest.machine)?;
    // The first harvest may show everything as dirty. Whatever is written from here on is in
    // the next one, and so nothing can be missed between looking for memory and logging.
    outgoing.guest.client.dirty_log_harvest()?;
    log.clear();
    let existing = pages::existing(&outgoing.guest.memory, &log)?;
    outgoing.channel.stream.extents(&existing)?;
    let mut waited = Pages(0);
    let mut number = 0;
    // The policy ends it within its hard limit.
    loop {
        outgoing.guest.disks.begin();
        let mut stats = outgoing.send_round(number, &log)?;
        let flush = outgoing.settle_disks()?;
        let harvested = Instant::now();
        outgoing.guest.client.dirty_log_harvest()?;
        let path = outgoing.path(stats.rate, harvested.elapsed(), flush);
        let plan = outgoing.precopy.wws.plan(&log, outgoing.precopy.policy.deferrable(&path));
        stats.dirtied = plan.became_dirty;
        stats.deferred = waited;
        waited = plan.waiting;
        outgoing.finish_round(&stats)?;
        match outgoing.precopy.policy.decide(&stats, &path) {
            Next::Round => {}
            Next::Throttle { percent } => {
                outgoing.guest.client.throttle(percent)?;
                outgoing.report.throttle.push(ThrottleStep { round: number, percent });
                outgoing.shared.progress(|progress| progress.throttle = percent);
            }
            Next::StopAndCopy(rule) => {
                outgoing.report.ended_by = Some(EndedBy::from(rule));
                outgoing.precopy.wws.release(&log);
                return Ok(log);
            }
            Next::GiveUp { needed, rule } => return Err(StepError::GaveUp { needed, rule }),
        }
        number += 1;
    }
}

impl OutgoingMigration<'_> {
    fn path(&mut self, round: BytesPerSec, harvest: Duration, flush: Duration) -> Path {
        let rate = self.precopy.meter.rate(self.started.elapsed()).unwrap_or(round);
        Path {
            rate: rate.max(round),
            backlog: self.channel.stream.get_mut().backlog(),
            // The disks are flushed beside the rest.
            overhead: harvest + BLACKOUT_OVERHEAD.max(flush),
        }
    }

    fn send_round(&mut self, number: u32, todo: &[PageBitmap]) -> Result<RoundStats, StepError> {
        let started = Instant::now();
        let before = self.channel.stream.bytes_written();
        let total: Pages = todo.iter().map(PageBitmap::count).sum();
        self.shared.progress(|progress| {
            progress.round = number;
            progress.dirty = total;
            progress.total = Bytes(before.0 + total.bytes().0);
        });
        self.precopy.meter.start(self.started.elapsed());
        let sent = self.send_pages(todo)?;
        let bytes = self.channel.stream.bytes_written() - before;
        self.drain(bytes.per(started.elapsed()))?;
        let duration = started.elapsed();
        Ok(RoundStats {
            number,
            sent: sent.raw,
            fills: sent.fills,
            bytes,
            deferred: Pages(0),
            dirtied: Pages(0),
            duration,
            rate: bytes.per(duration),
        })
    }

    /// Takes all pages out of `todo` and sends them, no faster than the limit allows.
    pub fn send_pages(&mut self, todo: &[PageBitmap]) -> Result<Sent, StepError> {
        let mut sent = Sent::default();
        let longest = MAX_RUN
            .min(Pages(self.precopy.pacer.burst().0 / migpipe_units::PAGE_SIZE).max(Pages(1)));
        for bitmap in todo {
            for range in bitmap.take_runs(longest) {
                let piece = self.send_run(range)?;
                sent.raw += piece.raw;
                sent.fills += piece.fills;
            }
        }
        Ok(sent)
    }

    /// Waits until what is still on this host is little beside the promised downtime: a blackout
    /// would have to wait for all of it, and the rate of a round that is still in a buffer is not
    /// the rate of the path.
    fn drain(&mut self, rate: BytesPerSec) -> Result<(), StepError> {
        let promised = self.precopy.policy.limits().max_downtime;
        let started = Instant::now();
        let mut last = Bytes(u64::MAX);
        let mut moved = started;
        loop {
            let backlog = self.channel.stream.get_mut().backlog();
            if rate.time_for(backlog) <= promised / BACKLOG_FRACTION {
                return Ok(());
            }
            if backlog < last {
                (last, moved) = (backlog, Instant::now());
            }
            // The writes that follow find out whether the tunnel is stuck.
            if moved.elapsed() > DRAIN_STALL_TIMEOUT {
                return Ok(());
            }
            self.shared.sleep(DRAIN_POLL_INTERVAL);
            self.take_orders()?;
        }
    }

    /// A tunnel that takes what it is sent has asked for its passwords, where no answer says so.
    fn release_terminal_when_it_flows(&mut self) {
        let asks = self.channel.tunnel.as_ref().is_some_and(|tunnel| tunnel.job().has_terminal());
        if asks && self.channel.stream.get_mut().backlog() < self.channel.stream.bytes_written() {
            self.release_terminal();
        }
    }

    fn send_run(&mut self, range: PageRange) -> Result<Sent, StepError> {
        self.take_orders()?;
        let before = self.channel.stream.bytes_written();
        let sent = match self.args.zero_copy {
            true => self.precopy.pages.send_unsummed(
                &self.guest.memory,
                range,
                &mut self.channel.stream,
            )?,
            false => {
                self.precopy.pages.send(&self.guest.memory, range, &mut self.channel.stream)?
            }
        };
        let bytes = self.channel.stream.bytes_written() - before;
        self.precopy.meter.add(bytes, self.started.elapsed());
        self.release_terminal_when_it_flows();
        self.pace(bytes)?;
        let now = self.started.elapsed();
        let written = self.channel.stream.bytes_written();
        let rate = self.precopy.meter.rate(now).unwrap_or_default();
        self.shared.progress(|progress| {
            progress.sent = written;
            progress.dirty = Pages(progress.dirty.0.saturating_sub(range.count.0));
            // Fills take less than was reckoned with.
            progress.total = Bytes(written.0 + progress.dirty.bytes().0);
            progress.rate = rate;
            progress.eta = (rate.0 > 0).then(|| rate.time_for(progress.total - progress.sent));
        });
        Ok(sent)
    }

    /// Waits until the bandwidth limit allows more. A new limit takes effect at once.
    fn pace(&mut self, bytes: Bytes) -> Result<(), StepError> {
        let mut wait = self.precopy.pacer.take(bytes, self.started.elapsed());
        while !wait.is_zero() {
            self.shared.sleep(wait.min(PACE_INTERVAL));
            self.take_orders()?;
            wait = self.precopy.pacer.wait(self.started.elapsed());
        }
        Ok(())
    }

    /// Waits for the flush that went on beside a round, and returns how long one takes now. One that
    /// took long had much to write, and the next has less; so it is repeated as long as that helps.
    fn settle_disks(&mut self) -> Result<Duration, StepError> {
        let mut last = Duration::MAX;
        let mut asked = Instant::now();
        loop {
            let took = loop {
                if let Some(took) = self.guest.disks.wait(DISKS_POLL_INTERVAL)? {
                    break took;
                }
                self.take_orders()?;
                if asked.elapsed() >= STATUS_INTERVAL {
                    // A disk may be slow; a vmrun that answers nothing at all is given up.
                    self.guest.client.status()?;
                    asked = Instant::now();
                }
            };
            if took <= self.precopy.policy.limits().max_downtime / FLUSH_FRACTION || took > last / 2
            {
                return Ok(took);
            }
            last = took;
            self.guest.disks.begin();
        }
    }

    fn finish_round(&mut self, stats: &RoundStats) -> Result<(), StepError> {
        self.report.rounds.push(*stats);
        self.channel.stream.round(&mig_stream::RoundStats {
            number: stats.number,
            pages: stats.sent,
            filled: stats.fills,
            bytes: stats.bytes,
            dirty_next: stats.left(),
            duration: stats.duration,
        })?;
        self.take_orders()
    }
}

/// How the destination can be asked later what became of the guest: not where nobody answers, and
/// least of all by a command that writes a file.
fn asked_at(outgoing: &OutgoingMigration<'_>) -> Vec<String> {
    match outgoing.channel.mode.is_answered() && attempts::can_be_asked(outgoing.args) {
        true => ssh_args::arguments(outgoing.args.asked()),
        false => Vec::new(),
    }
}

/// Where the guest goes, for whoever looks for it on this host later.
fn goes_to(args: &Args) -> String {
    match &args.destination {
        Endpoint::Standard => "wherever the stdout of mig-send led".to_owned(),
        other => other.to_string(),
    }
}
