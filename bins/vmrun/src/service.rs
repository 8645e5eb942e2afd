//! The requests of the control socket: which of them need the guest's lock, and who answers each.
//!
//! Those of a client that sends the guest away are answered in [`crate::outgoing`], those of one that
//! brings a guest in [`crate::incoming`].

use std::sync::mpsc::Receiver;
use std::time::Instant;

use mig_engine::ownership::Input;
use migpipe_units::Bytes;
use vm_control::server::{Answer, ConnectionId, Peer, Service};
use vm_control::{Event, PROTOCOL_VERSION, Refusal, Reply, Request};

use crate::descriptors::copies;
use crate::guest::{Guest, Inner};
use crate::refusal::refusal;

/// No guest is slowed down by more (percent): it would seem to have stopped.
const MAX_THROTTLE: u8 = 99;

impl Service for Guest {
    /// What may take as long as a disk or a file system, and what must be answered meanwhile, goes
    /// without the guest's lock.
    fn handle(&self, peer: &Peer<'_>, request: Request) -> Answer {
        let answer = match request {
            Request::Hello { .. } => Ok(Reply::Hello {
                version: PROTOCOL_VERSION,
                name: self.name.clone(),
                pid: std::process::id(),
            }
            .into()),
            Request::Status => Ok(Reply::Status(self.status()).into()),
            Request::Own(Input::Quit { force }) => self.quit(force).map(|()| Reply::Done.into()),
            Request::FlushDisks => self.flush_disks().map(|()| Reply::Done.into()),
            Request::Receive { id, description, overrides, mode } => {
                self.receive(peer, id, mode, description, overrides)
            }
            Request::Order(_) => self
                .lock_for_order()
                .and_then(|mut inner| self.answer(&mut inner, peer.id(), request)),
            request => self.answer(&mut self.lock(), peer.id(), request),
        };
        answer.unwrap_or_else(|refusal| Reply::Refused(refusal).into())
    }

    fn closed(&self, connection: ConnectionId) {
        self.connection_closed(connection);
    }

    fn subscribe(&self) -> Receiver<Event> {
        Self::subscribe(self)
    }
}

impl Guest {
    fn answer(
        &self,
        inner: &mut Inner,
        connection: ConnectionId,
        request: Request,
    ) -> Result<Answer, Refusal> {
        inner.refuse_withdrawn(connection, &request)?;
        inner.note_sign(connection, &request);
        Ok(match request {
            Request::Describe => Reply::Description(inner.described()?.clone()).into(),
            Request::MapMemory => {
                let fds = copies(inner.machine()?.memory_readers())?;
                Answer { reply: Reply::Done, fds }
            }
            Request::DirtyLogStart => self.start_log(inner, connection)?,
            Request::MeasureDirtying => inner.measure(connection)?,
            Request::DirtyLogHarvest => inner.harvest(connection)?.into(),
            Request::Pause => {
                let started = Instant::now();
                self.pause(inner)?;
                match inner.migration_of(connection) {
                    Ok(migration) => {
                        migration.paused = true;
                        migration.pauses += 1;
                        self.held_up.notify_all();
                    }
                    Err(_) => inner.wanted = false,
                }
                Reply::Paused { took: started.elapsed() }.into()
            }
            Request::Resume => {
                self.resume_in_blackout(inner, connection)?;
                if let Ok(migration) = inner.migration_of(connection) {
                    (migration.paused, migration.saved) = (false, false);
                }
                self.resume(inner)?;
                Reply::Done.into()
            }
            Request::SaveState => inner.save(connection)?.into(),
            Request::Throttle(percent) => {
                if percent > MAX_THROTTLE {
                    return Err(Refusal::ThrottleTooHigh { most: MAX_THROTTLE });
                }
                inner.migration_of(connection)?;
                inner.machine()?.throttle(percent);
                inner.throttle = percent;
                self.held_up.notify_all();
                Reply::Done.into()
            }
            Request::Balloon(target) => {
                inner.ask_balloon(target)?;
                Reply::Done.into()
            }
            Request::Own(input) => {
                self.own(inner, connection, input)?;
                Reply::Done.into()
            }
            Request::Prepare { id, sections, paused_for } => {
                self.prepare(inner, id, &sections, paused_for)?.into()
            }
            Request::Go { id, by } => self.go(inner, id, by)?.into(),
            Request::MigrationStatus { id, nonce } => {
                Reply::MigrationStatus(inner.ownership.migration_status(id, nonce)).into()
            }
            Request::PostProgress { id, progress } => inner.post(id, progress)?.into(),
            Request::Order(order) => {
                self.order(inner, order)?;
                Reply::Done.into()
            }
            Request::Leaves { id, to, destination } => {
                self.note_destination(inner, connection, id, &to, destination)?;
                Reply::Done.into()
            }
            Request::Hello { .. }
            | Request::Status
            | Request::FlushDisks
            | Request::Receive { .. } => unreachable!("answered without the lock"),
            Request::Subscribe => unreachable!("the server makes it a stream of events by itself"),
        })
    }
}

impl Inner {
    fn ask_balloon(&mut self, target: Bytes) -> Result<(), Refusal> {
        // What is asked after the state was saved would be lost with this copy of the guest.
        let blackout = self.migration.as_ref().is_some_and(|migration| migration.paused);
        if blackout || !self.ownership.may_run() {
            return Err(Refusal::NotRunning { state: self.ownership.state() });
        }
        self.machine()?.set_balloon(target).map_err(refusal)
    }
}
