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

use vm_control::{Client, ClientError};

use crate::error::StepError;

/// How long a flush in pre-copy may take: as long as it does, for the guest runs, and a vmrun that
/// ends closes the connection.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

/// How often orders are looked for while a flush is waited for.
pub const DISKS_POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Has the disks flushed while something else goes on.
#[derive(Debug)]
pub struct Disks {
    orders: SyncSender<()>,
    flushed: Receiver<Result<Duration, ClientError>>,
}

impl Disks {
    /// By a connection of its own, in a thread that has no more rights than its maker has by now.
    pub fn new(client: Client) -> Result<Self, StepError> {
        client.set_timeout(FLUSH_TIMEOUT)?;
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
        thread::Builder::new()
            .name("disks".into())
            .spawn(serve)
            .map_err(|error| StepError::other(error).context("cannot make a thread"))?;
        Ok(Self { orders, flushed })
    }

    /// Begins a flush. The one before has been waited for.
    pub fn begin(&self) {
        let _ = self.orders.send(());
    }

    /// How long it took, if it is done within `time`.
    pub fn wait(&self, time: Duration) -> Result<Option<Duration>, StepError> {
        match self.flushed.recv_timeout(time) {
            Ok(flushed) => Ok(Some(flushed?)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => {
                Err(StepError::Helper("nobody flushes the disks"))
            }
        }
    }
}
