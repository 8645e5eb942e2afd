//! Migrations that vmrun ends by itself before their commit: at the operator's word, or because the
//! client does nothing while the guest stands still.
//!
//! Both are decided under the guest's lock, as the commit is, so that exactly one of them wins. The
//! guest runs first. The client is connected still, and perhaps stopped in the middle of something:
//! whatever it asks when it goes on is refused, and says what became of its migration. It must not
//! pause the guest in the operator's name, nor commit.

use mig_engine::ownership::{Input, State};
use migpipe_units::MigrationId;
use vm_control::server::ConnectionId;
use vm_control::{Order, Refusal, Request};

use crate::guest::{Guest, Inner};
use crate::withdrawn::{Withdrawal, Withdrawn};

/// Orders that wait for a sender; more are refused.
const MAX_ORDERS: usize = 64;

impl Guest {
    /// Ends the migration `id`: the guest runs on here, if the operator wants it to.
    pub fn withdraw(
        &self,
        inner: &mut Inner,
        id: MigrationId,
        why: Withdrawal,
    ) -> Result<(), Refusal> {
        let client = inner.migration.as_ref().map(|migration| migration.client);
        let ran = self.release(inner, id);
        if let (State::Owned, Some(client)) = (inner.ownership.state(), client) {
            inner.withdrawn.push(Withdrawn { client, id, why });
        }
        ran
    }

    /// Carries out the operator's order, or leaves it for whoever sends the guest away.
    pub fn order(&self, inner: &mut Inner, order: Order) -> Result<(), Refusal> {
        match (inner.ownership.state(), &mut inner.migration) {
            (State::Migrating(id), _) if order == Order::Cancel => {
                self.withdraw(inner, id, Withdrawal::Cancelled)
            }
            (State::Migrating(_), Some(migration)) if migration.orders.len() < MAX_ORDERS => {
                migration.orders.push(order);
                Ok(())
            }
            (State::Migrating(_), Some(_)) => {
                Err(Refusal::OrdersPending { most: MAX_ORDERS as u32 })
            }
            (State::HandedOver(id), _) => Err(Refusal::TooLateForOrders { id }),
            _ => Err(Refusal::NoMigration),
        }
    }

    /// What the operator's order that the guest run means in the blackout: the destination would get
    /// an older guest, so that the migration is over.
    pub fn resume_in_blackout(
        &self,
        inner: &mut Inner,
        connection: ConnectionId,
    ) -> Result<(), Refusal> {
        let State::Migrating(id) = inner.ownership.state() else { return Ok(()) };
        if !inner.is_in_blackout() || inner.migration_of(connection).is_ok() {
            return Ok(());
        }
        inner.wanted = true;
        self.withdraw(inner, id, Withdrawal::Cancelled)
    }
}

impl Inner {
    /// The migration that slows the guest down or has paused it, and how many signs of life its
    /// client has given.
    pub fn held_up(&self) -> Option<(MigrationId, u64)> {
        let (State::Migrating(id), Some(migration)) = (self.ownership.state(), &self.migration)
        else {
            return None;
        };
        (migration.paused || self.throttle > 0).then_some((id, migration.signs))
    }

    /// Whether a migration has paused the guest.
    pub fn is_in_blackout(&self) -> bool {
        self.migration.as_ref().is_some_and(|migration| migration.paused)
    }

    /// The client of the migration lives.
    pub fn note_sign(&mut self, connection: ConnectionId, request: &Request) {
        let State::Migrating(mine) = self.ownership.state() else { return };
        let Some(migration) = &mut self.migration else { return };
        let posts = matches!(request, Request::PostProgress { id, .. } if *id == mine);
        if posts || migration.client == connection {
            migration.signs += 1;
        }
    }

    /// The guest is slowed down no more.
    pub fn lift_throttle(&mut self) {
        if self.throttle > 0
            && let Ok(machine) = self.machine()
        {
            machine.throttle(0);
            self.throttle = 0;
        }
    }

    /// What a client hears whose migration was ended here: to everything that does not only ask, and the
    /// beginning of another.
    ///
    /// # Errors
    /// What became of it.
    pub fn refuse_withdrawn(
        &self,
        connection: ConnectionId,
        request: &Request,
    ) -> Result<(), Refusal> {
        let concerns = |known: &&Withdrawn| match request {
            Request::PostProgress { id, .. } | Request::Own(Input::Commit(id, _)) => {
                known.id == *id
            }
            Request::Hello { .. }
            | Request::Describe
            | Request::Status
            | Request::MigrationStatus { .. }
            | Request::Own(_) => false,
            _ => known.client == connection,
        };
        match self.withdrawn.iter().find(concerns) {
            Some(known) => Err(known.why.refusal()),
            None => Ok(()),
        }
    }

    /// Whether `id` was ended here: a client that gives it up too has what it wants.
    pub fn is_withdrawn(&self, id: MigrationId) -> bool {
        self.withdrawn.iter().any(|known| known.id == id)
    }
}
