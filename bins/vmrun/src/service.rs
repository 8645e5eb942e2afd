//! The requests of the control socket, one by one.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::{Duration, Instant};

use mig_engine::handover::HandoverMode;
use mig_engine::ownership::{Authority, Input, State};
use migpipe_units::{Acknowledged, Bytes, MigrationId, Nonce};
use page_bitmap::GuestBitmap;
use tracing::info;
use vm_control::server::{Answer, ConnectionId, Peer, Service};
use vm_control::{
    Balloon, Event, Loaded, Overrides, PROTOCOL_VERSION, Refusal, Reply, Request, Started, Status,
};
use vm_machine::{DeviceParam, Machine, VirtioKind, VirtioSpec};
use vm_records::departure::Departure;
use vm_state::{MachineDescription, Section};

use crate::builder::{Builder, NotBuilt};
use crate::end::End;
use crate::go_timer::GoTimer;
use crate::go_wait;
use crate::guest::{Guest, Inner, Migration};
use crate::refusal::refusal;
use crate::run_state::RunState;

/// How long the first entry of a vCPU is waited for; it takes some 50 us.
const FIRST_INSTRUCTION_TIMEOUT: Duration = Duration::from_millis(100);

/// Where a guest goes is noted in no more characters than this.
const MAX_PLACE: usize = 1024;

/// What `vmctl info` shows is no longer than this (bytes).
const MAX_PROGRESS: usize = 64 << 10;

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
            Request::FlushDisks => self.flush_disks(),
            Request::Receive { id, description, overrides, form } => {
                let input = match form {
                    HandoverMode::Saved => Input::Restore(id),
                    _ => Input::Receive(id),
                };
                let received = self.receive(peer, input, description, overrides);
                if received.is_ok() {
                    self.lock().acknowledged = form.is_answered();
                }
                received
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
    /// Flushes the disks without the guest's lock: storage that hangs holds up nobody else.
    ///
    /// Counts for a commit only if it began after the guest was paused, and if that pause still
    /// lasts when it ends: what a device had finished by then is in it, and nothing came since.
    fn flush_disks(&self) -> Result<Answer, Refusal> {
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
        Ok(Reply::Done.into())
    }

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
            Request::DirtyLogHarvest => inner.harvest(connection)?.into(),
            Request::DirtyLogStop => {
                inner.migration_of(connection)?.log = None;
                inner.machine()?.dirty_log_stop().map_err(refusal)?;
                Reply::Done.into()
            }
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
                if percent > 99 {
                    return Err(Refusal::new("a guest is slowed down by 0 to 99 percent"));
                }
                inner.migration_of(connection)?;
                inner.machine()?.throttle(percent);
                inner.throttle = percent;
                self.held_up.notify_all();
                Reply::Done.into()
            }
            Request::Announce => {
                inner.machine()?.announce();
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
            Request::Leaves { id, to } => {
                inner.migration_of(connection)?;
                let State::Migrating(mine) = inner.ownership.state() else {
                    return Err(Refusal::new("no migration is under way"));
                };
                if mine != id {
                    return Err(Refusal::new("another migration is under way"));
                }
                let to: String = migpipe_cli::printable(&to).chars().take(MAX_PLACE).collect();
                self.notes.leaves(Departure::now(id, &to));
                Reply::Done.into()
            }
            Request::Hello { .. }
            | Request::Status
            | Request::FlushDisks
            | Request::Receive { .. } => unreachable!("answered without the lock"),
            // The server turns a subscribed connection into a stream by itself.
            Request::Subscribe => return Err(Refusal::new("subscribe on a greeted connection")),
        })
    }

    fn start_log(&self, inner: &mut Inner, connection: ConnectionId) -> Result<Answer, Refusal> {
        inner.migration_of(connection)?;
        let (log, fd) = GuestBitmap::share(inner.described()?.region_pages()).map_err(refusal)?;
        inner.machine()?.dirty_log_start().map_err(refusal)?;
        inner.migration_of(connection)?.log = Some(log);
        Ok(Answer { reply: Reply::Done, fds: vec![fd] })
    }

    fn own(&self, inner: &mut Inner, from: ConnectionId, input: Input) -> Result<(), Refusal> {
        match input {
            Input::Begin(id) => {
                inner.machine()?;
                if let Some(why) = &inner.held {
                    return Err(Refusal::new(why));
                }
                self.step(inner, input)?;
                // Before the guest can be gone, and where nobody waits for it.
                self.notes.leaves(Departure::now(id, ""));
                inner.migration = Some(Migration {
                    client: from,
                    began: Instant::now(),
                    log: None,
                    paused: false,
                    saved: false,
                    signs: 0,
                    pauses: 0,
                    flushed_in: None,
                    given_out: false,
                    progress: None,
                    orders: Vec::new(),
                });
                Ok(())
            }
            Input::Release(id) if inner.is_withdrawn(id) => Ok(()),
            Input::Release(id) => self.release(inner, id),
            Input::Commit(..) => {
                let State::Migrating(_) = inner.ownership.state() else {
                    return self.step(inner, input);
                };
                if !inner.migration_of(from)?.saved {
                    return Err(Refusal::new(
                        "commit before the state was saved: the destination would run an older \
                         guest",
                    ));
                }
                if !inner.disks_are_flushed()? {
                    return Err(Refusal::new(
                        "commit before the disks were flushed: the destination might read what \
                         was there before",
                    ));
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
            | Input::Quit { .. } => Err(Refusal::new("this step has a request of its own")),
        }
    }

    /// Takes a guest up. Its machine is built without the lock: it opens files that a stream has
    /// named, and that may take for ever.
    fn receive(
        &self,
        peer: &Peer<'_>,
        input: Input,
        mut description: MachineDescription,
        overrides: Overrides,
    ) -> Result<Answer, Refusal> {
        let arriving = self.begin_to_receive(input, &mut description, overrides)?;
        let Arriving { id, here, asked, builder } = arriving;
        let taken = match builder.build(&description, here, || peer.is_gone()) {
            Ok(machine) => self.take_up(peer.id(), id, input, &asked, machine),
            Err(NotBuilt::Refused(why)) => Err(why),
            Err(NotBuilt::Abandoned) => {
                let why = "whoever brought a guest went away while its files were being opened";
                self.end(End::Failed(why.to_owned()));
                return Err(Refusal::new(why));
            }
        };
        if taken.is_err() {
            // For another guest, or the same once what it lacks is there.
            self.lock().builder = Some(builder);
        }
        taken
    }

    /// From here on the guest may run here, and its machine is filled.
    fn take_up(
        &self,
        connection: ConnectionId,
        id: MigrationId,
        input: Input,
        asked: &[DeviceParam],
        machine: Machine,
    ) -> Result<Answer, Refusal> {
        let fds = copies(machine.memory_fds().into_iter().map(|(_, fd)| fd))?;
        let notes = placed_elsewhere(&machine, asked.iter());
        let backing = machine.memory_backing();
        // It ends with the machine, if the step is denied.
        self.watch(&machine).map_err(refusal)?;
        let this = self.this().ok_or_else(|| Refusal::new("this vmrun is ending"))?;
        let name = self.name.clone();
        let go_timer = GoTimer::start(move |events| go_wait::serve(&this, &name, id, events))?;
        let inner = &mut *self.lock();
        self.step(inner, input)?;
        inner.go_timer = Some(go_timer);
        // As it is here: its next destination is told where its files are on this host.
        inner.description = Some(machine.describe());
        inner.machine = Some(machine);
        inner.receiver = Some(connection);
        info!("guest memory: {backing}");
        for note in &notes {
            info!("{note}");
        }
        Ok(Answer { reply: Reply::Received { notes }, fds })
    }

    /// What the guest is here, and who builds its machine: for the one who comes first.
    fn begin_to_receive(
        &self,
        input: Input,
        description: &mut MachineDescription,
        overrides: Overrides,
    ) -> Result<Arriving, Refusal> {
        let inner = &mut *self.lock();
        let State::Receiving(id) = inner.ownership.step(input).map_err(Refusal::new)?.next else {
            return Err(Refusal::new("this is no step by which a guest arrives"));
        };
        description.name.clone_from(&inner.name);
        let console = overrides.console.as_ref().unwrap_or(&inner.console);
        // Whatever else it is to be on this host, as the source's, is among those that follow.
        let mut device_params = virtio_consoles(description, inner.virtio_console.as_deref());
        device_params.extend(overrides.device_params.into_iter().map(device_param));
        let here = vm_machine::Overrides {
            name: Some(inner.name.clone()),
            console: Some(console.parse().map_err(refusal)?),
            device_params: device_params.clone(),
            ..vm_machine::Overrides::default()
        };
        let serial = DeviceParam {
            kind: "serial".to_owned(),
            id: "serial0".to_owned(),
            name: VirtioSpec::CONSOLE_PARAM.to_owned(),
            value: console.clone(),
        };
        device_params.push(serial);
        let builder = inner.builder.take();
        let builder =
            builder.ok_or_else(|| Refusal::new("a guest arrives here, or has arrived"))?;
        Ok(Arriving { id, here, asked: device_params, builder })
    }

    fn prepare(
        &self,
        inner: &mut Inner,
        id: MigrationId,
        sections: &[Vec<u8>],
        paused_for: Option<Duration>,
    ) -> Result<Reply, Refusal> {
        let started = Instant::now();
        let acknowledge = match (inner.acknowledged, self.host) {
            (true, Some(host)) => Some(Acknowledged { host, nonce: Nonce::random() }),
            (true, None) => return Err(Refusal::new("this vmrun waits for no guest")),
            (false, _) => None,
        };
        let prepared = Input::Prepared(id, acknowledge.map(|by| by.nonce));
        let expected = inner.ownership.step(prepared).map_err(Refusal::new)?;
        let mut sections = sections
            .iter()
            .map(|section| Section::decode(section).map_err(refusal))
            .collect::<Result<Vec<_>, _>>()?;
        inner.wanted = RunState::take(&mut sections)?.wanted;
        inner.machine()?.load_after(sections, paused_for).map_err(refusal)?;
        debug_assert_eq!(expected.before, None);
        self.step(inner, prepared)?;
        if let Some(go_timer) = &inner.go_timer {
            go_timer.prepared();
        }
        Ok(Reply::Prepared(Loaded { load: started.elapsed(), acknowledge }))
    }

    fn go(&self, inner: &mut Inner, id: MigrationId, by: Authority) -> Result<Reply, Refusal> {
        let started = Instant::now();
        self.step(inner, Input::Go(id, by))?;
        inner.receiver = None;
        let go = started.elapsed();
        let first_instruction = match inner.machine() {
            Ok(machine) if machine.is_running() => first_instruction(machine),
            _ => Duration::ZERO,
        };
        if let Ok(machine) = inner.machine() {
            machine.announce();
        }
        Ok(Reply::Started(Started { go, first_instruction }))
    }
}

/// A guest whose machine is to be built.
struct Arriving {
    id: MigrationId,
    here: vm_machine::Overrides,
    /// What was asked for otherwise than the description has it.
    asked: Vec<DeviceParam>,
    builder: Builder,
}

impl Inner {
    fn described(&self) -> Result<&MachineDescription, Refusal> {
        self.description.as_ref().ok_or_else(|| Refusal::new("no guest has arrived yet"))
    }

    pub fn migration_of(&mut self, connection: ConnectionId) -> Result<&mut Migration, Refusal> {
        self.migration
            .as_mut()
            .filter(|migration| migration.client == connection)
            .ok_or_else(|| Refusal::new("begin a migration on this connection first"))
    }

    /// Whether all that the paused guest has written is on stable storage.
    fn disks_are_flushed(&mut self) -> Result<bool, Refusal> {
        let flushed = self.migration.as_ref().is_some_and(|migration| {
            migration.flushed_in.is_some() && migration.flushed_in == migration.pause()
        });
        Ok(flushed || self.machine()?.disks().is_empty())
    }

    fn harvest(&mut self, connection: ConnectionId) -> Result<Reply, Refusal> {
        let log = self.migration_of(connection)?.log.take();
        let log = log.ok_or_else(|| Refusal::new("the dirty log is not on"))?;
        let harvested =
            self.machine().and_then(|machine| machine.dirty_log_harvest(&log).map_err(refusal));
        self.migration_of(connection)?.log = Some(log);
        Ok(Reply::Harvested { dirty: harvested? })
    }

    fn save(&mut self, connection: ConnectionId) -> Result<Reply, Refusal> {
        let wanted = self.wanted;
        let machine = self.machine()?;
        if machine.is_running() {
            return Err(Refusal::new("only a paused guest has a state to save: pause it first"));
        }
        let mut sections = machine.save().map_err(refusal)?;
        sections.push(RunState { wanted }.section()?);
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

    fn ask_balloon(&mut self, target: Bytes) -> Result<(), Refusal> {
        // What is asked after the state was saved would be lost with this copy of the guest.
        let blackout = self.migration.as_ref().is_some_and(|migration| migration.paused);
        if blackout || !self.ownership.may_run() {
            let state = self.ownership.state();
            return Err(Refusal::new(format!(
                "the guest cannot be asked for memory while it does not run: it is {state}"
            )));
        }
        self.machine()?.set_balloon(target).map_err(refusal)
    }

    fn post(&mut self, id: MigrationId, progress: String) -> Result<Reply, Refusal> {
        let (State::Migrating(mine) | State::HandedOver(mine)) = self.ownership.state() else {
            return Err(Refusal::new("no migration is under way"));
        };
        let Some(migration) = self.migration.as_mut().filter(|_| mine == id) else {
            return Err(Refusal::new("another migration is under way"));
        };
        if progress.len() > MAX_PROGRESS {
            return Err(Refusal::new("the progress is too long to be shown"));
        }
        migration.progress = Some(progress);
        Ok(Reply::Orders(std::mem::take(&mut migration.orders)))
    }

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
            balloon: self
                .machine
                .as_ref()
                .and_then(Machine::balloon)
                .map(|vm_machine::Balloon { target, actual }| Balloon { target, actual }),
            handover: self.handover(),
            released: self.released.iter().copied().collect(),
        }
    }
}

/// Where the virtio consoles of an arriving guest go if mig-recv does not say so.
fn virtio_consoles(description: &MachineDescription, to: Option<&str>) -> Vec<DeviceParam> {
    let kind = VirtioKind::Console.name();
    let consoles = description.devices.iter().filter(|device| device.kind == kind);
    consoles
        .map(|device| DeviceParam {
            kind: kind.to_owned(),
            id: device.id.clone(),
            name: VirtioSpec::CONSOLE_PARAM.to_owned(),
            value: to.unwrap_or("null").to_owned(),
        })
        .collect()
}

/// What to say of the consoles of `machine` that are not where they were to be.
fn placed_elsewhere<'a>(
    machine: &Machine,
    asked: impl Iterator<Item = &'a DeviceParam>,
) -> Vec<String> {
    let devices = machine.describe().devices;
    let consoles = asked.filter(|param| param.name == VirtioSpec::CONSOLE_PARAM);
    let found = consoles.filter_map(|param| {
        let mut all = devices.iter();
        let device = all.find(|device| device.kind == param.kind && device.id == param.id)?;
        let here = device.params.get(&param.name).filter(|here| **here != param.value)?;
        let (name, asked) = (machine.name(), &param.value);
        Some(format!(
            "the console of {name} goes to {here}: {asked} is where no file of an arriving guest \
             may be (--files-in)"
        ))
    });
    found.collect()
}

fn device_param((kind, id, name, value): (String, String, String, String)) -> DeviceParam {
    DeviceParam { kind, id, name, value }
}

fn copies<'a>(fds: impl Iterator<Item = BorrowedFd<'a>>) -> Result<Vec<OwnedFd>, Refusal> {
    fds.map(|fd| fd.try_clone_to_owned().map_err(refusal)).collect()
}

/// How long it took from the resume until a vCPU entered the guest.
fn first_instruction(machine: &Machine) -> Duration {
    let Some(resumed) = machine.resumed_at() else { return Duration::ZERO };
    let started = Instant::now();
    loop {
        if let Some(entered) = machine.first_instruction_after() {
            return entered.since(resumed);
        }
        if started.elapsed() > FIRST_INSTRUCTION_TIMEOUT {
            return started.elapsed();
        }
        thread::yield_now();
    }
}
