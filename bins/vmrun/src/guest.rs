//! The guest and who owns it: everything that the control socket's threads share.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockResult, Weak};
use std::time::Duration;

use mig_engine::ownership::{Decision, Denied, Effect, Input, Ownership, State, Transition};
use migpipe_units::limits::MAX_RELEASED;
use migpipe_units::{HostId, MigrationId};
use tracing::{info, warn};
use vm_control::server::ConnectionId;
use vm_control::{Event, Handover, Refusal, Status};
use vm_machine::Machine;
use vm_records::record::{Claim, Record, Records};
use vm_state::MachineDescription;

use crate::builder::Builder;
use crate::departure_writer::DepartureWriter;
use crate::end::{End, Ending};
use crate::go_timer::{GoTimer, Recording};
use crate::measurement::Measurement;
use crate::migration::Migration;
use crate::refusal::refusal;
use crate::withdrawn::Withdrawn;

/// Events that a subscriber may be behind before it is dropped.
const EVENT_BACKLOG: usize = 64;

/// One guest and everything that is known of it.
pub struct Guest {
    inner: Mutex<Inner>,
    /// Tells that a migration slows the guest down, or has paused it.
    pub held_up: Condvar,
    /// How the guest was when the lock was last free; see [`crate::lock_timeout`].
    pub shown: Mutex<Status>,
    /// The guest's name.
    pub name: String,
    subscribers: Mutex<Vec<SyncSender<Event>>>,
    records: Records,
    pub notes: Arc<DepartureWriter>,
    /// Whose records they are, for a guest that may arrive.
    pub host: Option<HostId>,
    pub ending: Ending,
    pub socket: PathBuf,
    /// How long a prepared guest waits for GO; without it, until somebody decides.
    pub go_timeout: Option<Duration>,
    /// For threads that outlive a request.
    this: Weak<Self>,
}

/// What the lock protects.
pub struct Inner {
    pub name: String,
    pub ownership: Ownership,
    pub machine: Option<Machine>,
    /// Builds the machine of a guest that is to arrive.
    pub builder: Option<Builder>,
    pub description: Option<MachineDescription>,
    /// Whether the operator wants the guest to run. A migration pauses it without changing that.
    pub wanted: bool,
    pub throttle: u8,
    pub console: String,
    pub virtio_console: Option<String>,
    pub migration: Option<Migration>,
    /// Somebody looks how much the guest writes.
    pub measurement: Option<Measurement>,
    /// Migrations that were ended here, of clients that are connected still.
    pub withdrawn: Vec<Withdrawn>,
    /// Migrations that ended before their commit and whose destination may be prepared, the oldest
    /// first.
    pub released: VecDeque<MigrationId>,
    /// The connection that brings a guest.
    pub receiver: Option<ConnectionId>,
    /// Whether its source is told when it is prepared.
    pub acknowledged: bool,
    /// What waits for the GO of that guest.
    pub go_timer: Option<GoTimer>,
    /// What became of that guest, while it is being recorded.
    pub recording: Option<Recording>,
    /// The record of a saved guest that is being restored.
    pub claim: Option<Claim>,
    /// Why the guest is held back: one of its name has left this host.
    pub held: Option<String>,
    /// The connection without which an incoming vmrun has no purpose.
    pub parent: Option<ConnectionId>,
}

impl Guest {
    pub fn new(
        inner: Inner,
        records: Records,
        notes: Arc<DepartureWriter>,
        host: Option<HostId>,
        socket: PathBuf,
        go_timeout: Option<Duration>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            shown: Mutex::new(inner.status()),
            name: inner.name.clone(),
            inner: Mutex::new(inner),
            held_up: Condvar::new(),
            subscribers: Mutex::default(),
            records,
            notes,
            host,
            ending: Ending::default(),
            socket,
            go_timeout,
            this: this.clone(),
        })
    }

    /// A panic in one request leaves the guest to the others: every change of ownership is one
    /// assignment, so that nothing is ever half done.
    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn try_lock(&self) -> TryLockResult<MutexGuard<'_, Inner>> {
        self.inner.try_lock()
    }

    pub fn this(&self) -> Option<Arc<Self>> {
        self.this.upgrade()
    }

    pub fn subscribe(&self) -> Receiver<Event> {
        let (sender, receiver) = sync_channel(EVENT_BACKLOG);
        self.subscribers.lock().unwrap_or_else(PoisonError::into_inner).push(sender);
        receiver
    }

    /// Tells all subscribers; one that is too far behind hears nothing more.
    pub fn publish(&self, event: &Event) {
        self.subscribers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|subscriber| subscriber.try_send(event.clone()).is_ok());
    }

    /// Ends the process once the requests under way are answered.
    pub fn end(&self, end: End) {
        self.publish(&Event::Ended(end.to_string()));
        info!("{end}");
        self.ending.give(end);
    }

    /// Takes one step of the ownership machine. The order of what belongs to it, and why:
    /// 1. Of running the guest all that can fail. If the guest cannot run here, this vmrun does not
    ///    become its owner: one that is prepared stays so, its source is not told that it runs, and
    ///    either may still decide otherwise. And a saved guest whose image another has locked has
    ///    not run, and must not be recorded as one that may have.
    /// 2. The record that must be there first. If it cannot be written nothing changes.
    /// 3. The state.
    /// 4. What follows from it, which cannot fail.
    pub fn step(&self, inner: &mut Inner, input: Input) -> Result<(), Refusal> {
        let transition = inner.ownership.step(input)?;
        let before = inner.ownership.state();
        let runs = transition.after == Some(Effect::Run);
        let ready = if runs { inner.make_ready() } else { Ok(()) };
        if let Err(refusal) = ready.and_then(|()| self.before(inner, transition.before)) {
            if runs && !matches!(before, State::Migrating(_)) {
                // They are for whoever runs the guest.
                give_disks_back(inner);
            }
            return Err(refusal);
        }
        inner.ownership.enter(input, &transition);
        self.show(inner);
        if let State::HandedOver(_) = transition.next {
            // From here on the images are the destination's.
            give_disks_back(inner);
        }
        if let (Input::Confirm(_), State::Finished) = (input, transition.next) {
            self.notes.arrived();
        }
        if before != transition.next {
            self.publish(&Event::Ownership(transition.next));
            info!("{before} -> {}", transition.next);
        }
        match transition.after {
            Some(Effect::Run) => self.start(inner),
            Some(Effect::Exit) => self.end(end_of(input, &transition)),
            Some(Effect::Record(..) | Effect::Forget(_)) | None => {}
        }
        if let Some(Effect::Record(_, decision)) = transition.later
            && let Some(go_timer) = inner.go_timer.take()
        {
            inner.recording = Some(go_timer.record(decision));
        }
        Ok(())
    }

    /// What must be on the disk before a state holds.
    fn before(&self, inner: &mut Inner, effect: Option<Effect>) -> Result<(), Refusal> {
        let saved = inner.ownership.is_saved();
        match effect {
            Some(Effect::Record(id, Decision::Restoring)) => {
                let record = Record::new(Decision::Restoring, &inner.name, &self.socket, true);
                inner.claim = Some(self.records.claim(id, &record).map_err(refusal)?);
                Ok(())
            }
            Some(Effect::Record(_, decision @ Decision::MayRun)) if saved => {
                let record = Record::new(decision, &inner.name, &self.socket, true);
                let claim = inner.claim.as_ref();
                let claim =
                    claim.ok_or_else(|| Refusal::failed("nothing is being restored here"))?;
                claim.may_run(&record).map_err(refusal)?;
                inner.claim = None;
                Ok(())
            }
            Some(Effect::Record(id, decision)) => self.record(&inner.name, id, decision, saved),
            Some(Effect::Forget(_)) => {
                if let Some(claim) = inner.claim.take()
                    && let Err(error) = claim.give_up()
                {
                    // It ends with this process.
                    warn!("{}", migpipe_cli::one_line(&error.into()));
                }
                Ok(())
            }
            Some(Effect::Run | Effect::Exit) | None => Ok(()),
        }
    }

    /// Writes down what is decided of a migration, by which a guest called `name` comes or goes.
    pub fn record(
        &self,
        name: &str,
        id: MigrationId,
        decision: Decision,
        saved: bool,
    ) -> Result<(), Refusal> {
        let record = Record::new(decision, name, &self.socket, saved);
        let written = match decision {
            Decision::MayRun | Decision::Restoring => self.records.create(id, &record),
            Decision::Ran | Decision::Refused => self.records.replace(id, &record),
        };
        written.map_err(refusal)
    }

    /// Lets the vCPUs run if the operator wants that.
    fn run(&self, inner: &mut Inner) -> Result<(), Refusal> {
        if inner.wanted && inner.ownership.may_run() {
            inner.make_ready()?;
            self.start(inner);
        }
        Ok(())
    }

    /// Starts a guest that is ready, if the operator wants it to run.
    fn start(&self, inner: &mut Inner) {
        let wanted = inner.wanted;
        if let Ok(machine) = inner.machine()
            && wanted
            && !machine.is_running()
        {
            machine.start();
            self.publish(&Event::Resumed);
        }
    }

    pub fn pause(&self, inner: &mut Inner) -> Result<(), Refusal> {
        let machine = inner.machine()?;
        if machine.is_running() {
            machine.pause().map_err(refusal)?;
            self.publish(&Event::Paused);
        }
        Ok(())
    }

    /// The operator wants the guest to run.
    pub fn resume(&self, inner: &mut Inner) -> Result<(), Refusal> {
        if let State::HandedOver(id) = inner.ownership.state() {
            return Err(Denied::HandedOver(id).into());
        }
        if !inner.ownership.may_run() {
            return Err(Refusal::MayNotRun { state: inner.ownership.state() });
        }
        inner.wanted = true;
        if inner.held.take().is_some() {
            self.notes.stays();
        }
        self.run(inner)
    }

    /// Gives the guest back after a migration that was not committed.
    pub fn release(&self, inner: &mut Inner, id: MigrationId) -> Result<(), Refusal> {
        let ran = self.step(inner, Input::Release(id));
        if inner.ownership.state() == State::Owned {
            if inner.migration.as_ref().is_some_and(|migration| migration.given_out) {
                if inner.released.len() == MAX_RELEASED {
                    inner.released.pop_front();
                }
                inner.released.push_back(id);
            }
            self.end_migration(inner);
        }
        ran
    }

    /// Takes down what a migration set up. The guest runs already: none of this is in its way.
    pub fn end_migration(&self, inner: &mut Inner) {
        let Some(migration) = inner.migration.take() else { return };
        self.notes.stays();
        let Ok(machine) = inner.machine() else { return };
        if migration.log.is_some()
            && let Err(error) = machine.dirty_log_stop()
        {
            warn!("cannot stop the dirty log: {error}");
        }
        inner.lift_throttle();
    }

    /// A connection is gone: what it had begun and nobody can finish is undone.
    pub fn connection_closed(&self, connection: ConnectionId) {
        let mut inner = self.lock();
        inner.end_measurement_of(connection);
        inner.withdrawn.retain(|known| known.client != connection);
        match inner.ownership.state() {
            State::Migrating(id)
                if inner.migration.as_ref().is_some_and(|known| known.client == connection) =>
            {
                let ran = self.release(&mut inner, id);
                warn!("the sender of the guest went away before its commit: the guest runs on");
                if let Err(refusal) = ran {
                    warn!("cannot run the guest on: {refusal}");
                }
            }
            State::HandedOver(_) => {
                if let Some(migration) = &mut inner.migration
                    && migration.client == connection
                {
                    // Nobody works on it now, whatever was said last.
                    migration.progress = None;
                }
            }
            State::Receiving(id) if inner.receiver == Some(connection) => {
                if let Err(refusal) = self.step(&mut inner, Input::Refuse(id)) {
                    // Whoever asks finds "may have run", which is safe.
                    self.end(End::Failed(refusal.to_string()));
                }
            }
            State::Prepared(id)
                if inner.receiver == Some(connection) && inner.ownership.is_saved() =>
            {
                // Its GO was to come from there, and nobody else has one.
                if let Err(refusal) = self.step(&mut inner, Input::Refuse(id)) {
                    self.end(End::Failed(refusal.to_string()));
                }
            }
            State::Incoming if inner.parent == Some(connection) => self.end(End::NothingCame),
            _ => {}
        }
    }
}

impl Inner {
    pub fn machine(&mut self) -> Result<&mut Machine, Refusal> {
        self.machine.as_mut().ok_or(Refusal::NoGuest)
    }

    pub fn described(&self) -> Result<&MachineDescription, Refusal> {
        self.description.as_ref().ok_or(Refusal::NoGuest)
    }

    /// Does all of running the guest that can fail. A guest that its operator paused needs its disks
    /// too:
    /// as far as locks reach, two vmruns never write one image, even if both are told that the guest
    /// is theirs.
    fn make_ready(&mut self) -> Result<(), Refusal> {
        let wanted = self.wanted;
        let machine = self.machine()?;
        let ready = if wanted { machine.make_ready() } else { machine.acquire_disks() };
        ready.map_err(refusal)
    }

    /// How the guest is.
    pub fn status(&self) -> Status {
        Status {
            name: self.name.clone(),
            pid: std::process::id(),
            ownership: self.ownership.state(),
            running: self.machine.as_ref().is_some_and(Machine::is_running),
            vcpus: self.description.as_ref().map_or(0, |guest| guest.vcpus),
            memory: self
                .description
                .as_ref()
                .map_or_else(Default::default, |guest| guest.pages().bytes()),
            backing: self.machine.as_ref().map(Machine::memory_backing),
            throttle: self.throttle,
            held: self.held.clone(),
            progress: self.migration.as_ref().and_then(|migration| migration.progress.clone()),
            balloon: self.machine.as_ref().and_then(Machine::balloon),
            handover: self.handover(),
            released: self.released.iter().copied().collect(),
        }
    }

    /// What is known of the migration by which the guest was handed over.
    fn handover(&self) -> Option<Handover> {
        let State::HandedOver(_) = self.ownership.state() else { return None };
        let migration = self.migration.as_ref();
        Some(Handover {
            taken_by: self.ownership.taken_by(),
            // It lasts as long as the state does.
            age: migration.map_or(Duration::MAX, |migration| migration.began.elapsed()),
            destination: migration.map(|it| it.destination.clone()).unwrap_or_default(),
        })
    }
}

fn end_of(input: Input, transition: &Transition) -> End {
    match (input, transition.next) {
        (Input::Confirm(_), _) => End::Moved,
        (Input::Quit { .. }, State::Refused(_)) => End::Refused("ended by its operator".into()),
        (_, State::Finished) if matches!(transition.before, Some(Effect::Forget(_))) => {
            End::Refused("it has not run, and can be restored again".into())
        }
        (_, State::Refused(id)) => End::Refused(format!("migration {id} is given up, for ever")),
        _ => End::Quit,
    }
}

/// The images of a guest that does not run here are another's.
fn give_disks_back(inner: &mut Inner) {
    if let Ok(machine) = inner.machine()
        && let Err(error) = machine.release_disks()
    {
        warn!("cannot release the disk images: {error}");
    }
}
