//! The requests of a client that sends the guest away: the dirty log, the state, its progress, and the
//! steps of ownership up to the end of the handover.

use mig_engine::ownership::{Input, State};
use migpipe_units::MigrationId;
use page_bitmap::GuestBitmap;
use vm_control::server::{Answer, ConnectionId};
use vm_control::{Refusal, Reply};
use vm_records::departure::Departure;

use crate::guest::{Guest, Inner};
use crate::migration::Migration;
use crate::refusal::refusal;
use crate::run_state::RunState;

/// Where a guest goes is noted in no more characters than this.
const MAX_PLACE: usize = 1024;

/// How a destination is asked is remembered if it is no longer than this (bytes).
const MAX_DESTINATION: usize = 16 << 10;

/// What `vmctl info` shows is no longer than this (bytes).
const MAX_PROGRESS: usize = 64 << 10;

impl Guest {
    /// Flushes the disks without the guest's lock: storage that hangs holds up nobody else.
    ///
    /// Counts for a commit only if it began after the guest was paused, and if that pause still
    /// lasts when it ends: what a device had finished by then is in it, and nothing came since.
    pub fn flush_disks(&self) -> Result<(), Refusal> {
        let (disks, began_in) = {
            let mut inner = self.lock();
            (inner.machine()?.disks(), inner.migration.as_ref().and_then(Migration::pause))
        };
        disks.iter().try_for_each(|disk| disk.flush()).map_err(refusal)?;
        if let Some(migration) = &mut self.lock().migration
            && migration.pause() == began_in
        {
            migration.flushed_in = began_in;
        }
        Ok(())
    }

    pub fn start_log(
        &self,
        inner: &mut Inner,
        connection: ConnectionId,
    ) -> Result<Answer, Refusal> {
        inner.migration_of(connection)?;
        let (log, fd) = GuestBitmap::share(inner.described()?.region_pages()).map_err(refusal)?;
        inner.machine()?.dirty_log_start().map_err(refusal)?;
        inner.migration_of(connection)?.log = Some(log);
        Ok(Answer { reply: Reply::Done, fds: vec![fd] })
    }

    /// A step of the ownership machine that needs nothing else.
    pub fn own(&self, inner: &mut Inner, from: ConnectionId, input: Input) -> Result<(), Refusal> {
        match input {
            Input::Begin(id) => {
                inner.machine()?;
                if let Some(why) = &inner.held {
                    return Err(Refusal::Held { why: why.clone() });
                }
                self.step(inner, input)?;
                inner.end_measurement();
                // Before the guest can be gone, and where nobody waits for it.
                self.notes.leaves(Departure::now(id, ""));
                inner.migration = Some(Migration::new(from));
                Ok(())
            }
            Input::Release(id) if inner.is_withdrawn(id) => Ok(()),
            Input::Release(id) => self.release(inner, id),
            Input::Commit(..) => {
                let State::Migrating(_) = inner.ownership.state() else {
                    return self.step(inner, input);
                };
                if !inner.migration_of(from)?.saved {
                    return Err(Refusal::NotSaved);
                }
                if !inner.disks_are_flushed()? {
                    return Err(Refusal::NotFlushed);
                }
                self.step(inner, input)
            }
            Input::TakeBack(_) => {
                self.step(inner, input)?;
                self.end_migration(inner);
                Ok(())
            }
            Input::Confirm(_) | Input::Refuse(_) => self.step(inner, input),
            Input::Receive(_)
            | Input::Restore(_)
            | Input::Prepared(..)
            | Input::Go(..)
            | Input::Quit { .. } => Err(Refusal::OtherRequest),
        }
    }

    /// Has this host note where the guest goes, and remembers how its destination is asked.
    pub fn note_destination(
        &self,
        inner: &mut Inner,
        connection: ConnectionId,
        id: MigrationId,
        to: &str,
        destination: Vec<String>,
    ) -> Result<(), Refusal> {
        inner.migration_of(connection)?;
        let State::Migrating(have) = inner.ownership.state() else {
            return Err(Refusal::NoMigration);
        };
        if have != id {
            return Err(Refusal::WrongMigration { have, asked: id });
        }
        if destination.iter().map(String::len).sum::<usize>() <= MAX_DESTINATION {
            inner.migration_of(connection)?.destination = destination;
        }
        let to: String = migpipe_cli::printable(to).chars().take(MAX_PLACE).collect();
        self.notes.leaves(Departure::now(id, &to));
        Ok(())
    }
}

impl Inner {
    pub fn migration_of(&mut self, connection: ConnectionId) -> Result<&mut Migration, Refusal> {
        self.migration
            .as_mut()
            .filter(|migration| migration.client == connection)
            .ok_or(Refusal::NotBegun)
    }

    /// Whether all that the paused guest has written is on stable storage.
    fn disks_are_flushed(&mut self) -> Result<bool, Refusal> {
        let flushed = self.migration.as_ref().is_some_and(|migration| {
            migration.flushed_in.is_some() && migration.flushed_in == migration.pause()
        });
        Ok(flushed || self.machine()?.disks().is_empty())
    }

    pub fn harvest(&mut self, connection: ConnectionId) -> Result<Reply, Refusal> {
        if let Some(harvested) = self.harvest_measurement(connection) {
            return harvested;
        }
        let log = self.migration_of(connection)?.log.take();
        let log = log.ok_or(Refusal::DirtyLogOff)?;
        let harvested =
            self.machine().and_then(|machine| machine.dirty_log_harvest(&log).map_err(refusal));
        self.migration_of(connection)?.log = Some(log);
        Ok(Reply::Harvested { dirty: harvested? })
    }

    pub fn save(&mut self, connection: ConnectionId) -> Result<Reply, Refusal> {
        let wanted = self.wanted;
        let machine = self.machine()?;
        if machine.is_running() {
            return Err(Refusal::NotPaused);
        }
        let mut sections = machine.save().map_err(refusal)?;
        sections.push(RunState { wanted }.section().map_err(refusal)?);
        if let Ok(migration) = self.migration_of(connection) {
            migration.saved = migration.paused;
            migration.given_out = true;
        }
        let encoded = sections
            .iter()
            .map(|section| section.encode().map_err(refusal))
            .collect::<Result<_, _>>()?;
        Ok(Reply::State(encoded))
    }

    /// Shows what a sender says of its progress, and hands it the orders that wait for it.
    pub fn post(&mut self, id: MigrationId, progress: String) -> Result<Reply, Refusal> {
        let (State::Migrating(have) | State::HandedOver(have)) = self.ownership.state() else {
            return Err(Refusal::NoMigration);
        };
        if have != id {
            return Err(Refusal::WrongMigration { have, asked: id });
        }
        let migration = self.migration.as_mut().ok_or(Refusal::NoMigration)?;
        if progress.len() > MAX_PROGRESS {
            return Err(Refusal::ProgressTooLong { most: MAX_PROGRESS as u32 });
        }
        migration.progress = Some(progress);
        Ok(Reply::Orders(std::mem::take(&mut migration.orders)))
    }
}
