//! The disks of the guest: what it has written is on stable storage before the commit, for the
//! destination reads them past the cache of this host.
//!
//! A flush takes as long as its storage does, so it begins early: one goes on beside each round, and
//! the guest is not paused before one has shown how long the last will take. That one begins with
//! the pause and goes on beside all that the blackout consists of; it is waited for only before the
//! commit.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use vm_control::{Client, ClientError};

use crate::error::StepError;
use crate::migration::Migration;

/// How long a flush in pre-copy may take: as long as it does, for the guest runs, and a vmrun that
/// ends closes the connection.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

/// How often orders are looked for while a flush is waited for.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// How often its vmrun is asked meanwhile whether it is there.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);

/// A flush that takes no longer than this fraction of the promised downtime is not repeated before
/// the pause.
const SMALL: u32 = 10;

/// Has the disks flushed while something else goes on.
#[derive(Debug)]
pub struct Disks {
    orders: SyncSender<()>,
    flushed: Receiver<Result<Duration, ClientError>>,
}

impl Disks {
    /// By a connection of its own, in a thread that has no more rights than its maker has by now.
    pub fn new(client: Client) -> anyhow::Result<Self> {
        client.set_patience(FLUSH_TIMEOUT)?;
        let (orders, to_flush) = sync_channel(1);
        let (done, flushed) = sync_channel(1);
        let serve = move || {
            for () in to_flush {
                let began = Instant::now();
                if done.send(client.flush_disks().map(|()| began.elapsed())).is_err() {
                    return;
                }
            }
        };
        thread::Builder::new().name("disks".into()).spawn(serve).context("cannot make a thread")?;
        Ok(Self { orders, flushed })
    }

    /// Begins a flush. The one before has been waited for.
    pub fn begin(&self) {
        let _ = self.orders.send(());
    }

    /// How long it took, if it is done within `time`.
    fn wait(&self, time: Duration) -> Result<Option<Duration>, StepError> {
        match self.flushed.recv_timeout(time) {
            Ok(flushed) => Ok(Some(flushed?)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(anyhow!("nobody flushes the disks").into()),
        }
    }
}

impl Migration<'_> {
    /// Waits for the flush that went on beside a round, and returns how long one takes now. One that
    /// took long had much to write, and the next has less; so it is repeated as long as that helps.
    pub fn settle_disks(&mut self) -> Result<Duration, StepError> {
        let mut last = Duration::MAX;
        let mut asked = Instant::now();
        loop {
            let took = loop {
                if let Some(took) = self.disks.wait(POLL_INTERVAL)? {
                    break took;
                }
                self.take_orders()?;
                if asked.elapsed() >= STATUS_INTERVAL {
                    // A disk may be slow; a vmrun that answers nothing at all is given up.
                    self.client.status()?;
                    asked = Instant::now();
                }
            };
            if took <= self.policy.limits().max_downtime / SMALL || took > last / 2 {
                return Ok(took);
            }
            last = took;
            self.disks.begin();
        }
    }

    /// Waits for the flush that began with the pause, and notes how long the blackout had to wait.
    pub fn await_disks(&mut self) -> Result<(), StepError> {
        let began = Instant::now();
        let patience = self.left_of_blackout();
        while self.disks.wait(POLL_INTERVAL.min(patience))?.is_none() {
            if self.shared.is_cancelled() {
                return Err(StepError::Cancelled);
            }
            if began.elapsed() >= patience {
                return Err(anyhow!(
                    "what the guest has written to its disks was not on them within {:.1} s",
                    patience.as_secs_f64()
                )
                .into());
            }
        }
        self.report.downtime.disk_flush = Some(began.elapsed());
        Ok(())
    }
}
