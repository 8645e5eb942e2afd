//! The requests of a client that looks how much the guest writes.

use page_bitmap::GuestBitmap;
use tracing::{info, warn};
use vm_control::server::{Answer, ConnectionId};
use vm_control::{Refusal, Reply};

use crate::guest::Inner;
use crate::measurement::Measurement;
use crate::refusal::refusal;

impl Inner {
    /// Starts one for `client`.
    pub fn measure(&mut self, client: ConnectionId) -> Result<Answer, Refusal> {
        if self.migration.is_some() || !self.ownership.may_run() {
            return Err(Refusal::NotRunning { state: self.ownership.state() });
        }
        if self.measurement.is_some() {
            return Err(Refusal::failed("what the guest writes is being measured already"));
        }
        let (log, fd) = GuestBitmap::share(self.described()?.region_pages()).map_err(refusal)?;
        self.machine()?.dirty_log_start().map_err(refusal)?;
        self.measurement = Some(Measurement { client, log });
        info!("the dirty log is on, for a measurement");
        Ok(Answer { reply: Reply::Done, fds: vec![fd] })
    }

    /// The harvest of a measurement, if `client` has one.
    pub fn harvest_measurement(&mut self, client: ConnectionId) -> Option<Result<Reply, Refusal>> {
        let measurement = self.measurement.take_if(|it| it.client == client)?;
        let machine = self.machine();
        let dirty = machine.and_then(|it| it.dirty_log_harvest(&measurement.log).map_err(refusal));
        self.measurement = Some(measurement);
        Some(dirty.map(|dirty| Reply::Harvested { dirty }))
    }

    /// Ends the measurement of a `client` that is gone.
    pub fn end_measurement_of(&mut self, client: ConnectionId) {
        if self.measurement.as_ref().is_some_and(|it| it.client == client) {
            self.end_measurement();
        }
    }

    /// Ends the measurement that there may be: the log is a migration's.
    pub fn end_measurement(&mut self) {
        if self.measurement.take().is_none() {
            return;
        }
        let Ok(machine) = self.machine() else { return };
        match machine.dirty_log_stop() {
            Ok(()) => info!("the dirty log is off: the measurement is over"),
            Err(error) => warn!("cannot stop the dirty log: {error}"),
        }
    }
}
