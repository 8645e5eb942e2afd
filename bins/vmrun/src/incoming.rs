//! The requests of a client that brings a guest: the machine is built and filled, the state loaded,
//! and the guest started.

use std::thread;
use std::time::{Duration, Instant};

use mig_engine::handover::HandoverMode;
use mig_engine::ownership::{Authority, Denied, Input};
use migpipe_units::{Acknowledged, MigrationId, Nonce};
use tracing::info;
use vm_control::server::{Answer, ConnectionId, Peer};
use vm_control::{Loaded, Refusal, Reply, Started};
use vm_machine::{IncomingConfig, Machine, VirtioKind, VirtioSpec};
use vm_state::{DeviceParam, MachineDescription, Section};

use crate::builder::{Builder, Built, NotBuilt};
use crate::descriptors::copies;
use crate::end::End;
use crate::go_timer::GoTimer;
use crate::go_wait;
use crate::guest::{Guest, Inner};
use crate::refusal::refusal;
use crate::run_state::RunState;

/// The kind of device that the serial port is.
const SERIAL: &str = "serial";

/// How long the first entry of a vCPU is waited for; it takes some 50 us.
const FIRST_INSTRUCTION_TIMEOUT: Duration = Duration::from_millis(100);

impl Guest {
    /// Takes a guest up. Its machine is built without the lock: it opens files that a stream has
    /// named, and that may take for ever.
    pub fn receive(
        &self,
        peer: &Peer<'_>,
        id: MigrationId,
        mode: HandoverMode,
        mut description: MachineDescription,
        overrides: Vec<DeviceParam>,
    ) -> Result<Answer, Refusal> {
        let arriving = self.begin_to_receive(id, mode, &mut description, overrides)?;
        let Arriving { here, builder, .. } = &arriving;
        let taken = match builder.build(&description, here.clone(), || peer.is_gone()) {
            Ok(built) => self.take_up(peer.id(), &arriving, built),
            Err(NotBuilt::Refused(why)) => Err(why),
            Err(NotBuilt::Abandoned) => {
                self.end(End::Failed(Refusal::ClientGone.to_string()));
                return Err(Refusal::ClientGone);
            }
        };
        if taken.is_err() {
            // For another guest, or the same once what it lacks is there.
            self.lock().builder = Some(arriving.builder);
        }
        taken
    }

    /// From here on the guest may run here, and its machine is filled.
    fn take_up(
        &self,
        connection: ConnectionId,
        arriving: &Arriving,
        Built { machine, mut notes }: Built,
    ) -> Result<Answer, Refusal> {
        let fds = copies(machine.memory_fds().into_iter().map(|(_, fd)| fd))?;
        notes.extend(placed_elsewhere(&machine.describe(), &arriving.here.overrides));
        let backing = machine.memory_backing();
        // It ends with the machine, if the step is denied.
        self.watch(&machine).map_err(refusal)?;
        let this = self.this().ok_or(Denied::Finished)?;
        let (id, name) = (arriving.id, self.name.clone());
        let go_timer = GoTimer::start(move |events| go_wait::serve(&this, &name, id, events))?;
        let inner = &mut *self.lock();
        self.step(inner, arriving.input())?;
        inner.acknowledged = arriving.mode.is_answered();
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
        id: MigrationId,
        mode: HandoverMode,
        description: &mut MachineDescription,
        overrides: Vec<DeviceParam>,
    ) -> Result<Arriving, Refusal> {
        let inner = &mut *self.lock();
        inner.ownership.step(arrival(id, mode))?;
        let consoles = (inner.console.as_str(), inner.virtio_console.as_deref());
        let here = here(&inner.name, consoles, description, overrides);
        let builder = inner.builder.take().ok_or(Refusal::AlreadyReceiving)?;
        Ok(Arriving { id, mode, here, builder })
    }

    /// Loads the state of the guest, which waits for GO then.
    pub fn prepare(
        &self,
        inner: &mut Inner,
        id: MigrationId,
        sections: &[Vec<u8>],
        paused_for: Option<Duration>,
    ) -> Result<Reply, Refusal> {
        let started = Instant::now();
        let acknowledge = match (inner.acknowledged, self.host) {
            (true, Some(host)) => Some(Acknowledged { host, nonce: Nonce::random() }),
            (true, None) => return Err(Denied::NotIncoming.into()),
            (false, _) => None,
        };
        let prepared = Input::Prepared(id, acknowledge.map(|by| by.nonce));
        let expected = inner.ownership.step(prepared)?;
        let mut sections = sections
            .iter()
            .map(|section| Section::decode(section).map_err(refusal))
            .collect::<Result<Vec<_>, _>>()?;
        inner.wanted = RunState::take(&mut sections).map_err(refusal)?.wanted;
        inner.machine()?.load_after(sections, paused_for).map_err(refusal)?;
        debug_assert_eq!(expected.before, None);
        self.step(inner, prepared)?;
        if let Some(go_timer) = &inner.go_timer {
            go_timer.prepared();
        }
        Ok(Reply::Prepared(Loaded { load: started.elapsed(), acknowledge }))
    }

    /// Runs the guest, if it waits for GO.
    pub fn go(&self, inner: &mut Inner, id: MigrationId, by: Authority) -> Result<Reply, Refusal> {
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

/// What this host makes of a guest that is to be called `name`; `consoles` are the serial and the virtio
/// one of the command line.
pub fn here(
    name: &str,
    (serial, virtio): (&str, Option<&str>),
    description: &mut MachineDescription,
    overrides: Vec<DeviceParam>,
) -> IncomingConfig {
    name.clone_into(&mut description.name);
    // Whatever else it is to be on this host, as the source's, is among those that follow.
    let mut wanted = consoles(description, SERIAL, Some(serial));
    wanted.extend(consoles(description, VirtioKind::Console.name(), virtio));
    wanted.extend(overrides);
    IncomingConfig { name: Some(name.to_owned()), overrides: wanted, ..IncomingConfig::default() }
}

/// A guest whose machine is to be built.
struct Arriving {
    id: MigrationId,
    mode: HandoverMode,
    here: IncomingConfig,
    builder: Builder,
}

impl Arriving {
    const fn input(&self) -> Input {
        arrival(self.id, self.mode)
    }
}

/// The step by which a guest begins to arrive in this way.
const fn arrival(id: MigrationId, mode: HandoverMode) -> Input {
    match mode {
        HandoverMode::Saved => Input::Restore(id),
        _ => Input::Receive(id),
    }
}

/// Where the consoles of this kind go, of an arriving guest, if mig-recv does not say so.
fn consoles(description: &MachineDescription, kind: &str, to: Option<&str>) -> Vec<DeviceParam> {
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

/// What to say of the consoles of `machine` that are not where they were wanted.
fn placed_elsewhere(machine: &MachineDescription, wanted: &[DeviceParam]) -> Vec<String> {
    let mut notes = Vec::new();
    for device in &machine.devices {
        let Some(here) = device.params.get(VirtioSpec::CONSOLE_PARAM) else { continue };
        // Of those that name it the last counts.
        let wanted = wanted.iter().rev().find(|param| {
            let names_it = param.kind == device.kind && param.id == device.id;
            names_it && param.name == VirtioSpec::CONSOLE_PARAM
        });
        if let Some(wanted) = wanted.filter(|wanted| wanted.value != *here) {
            notes.push(format!(
                "the console of {} goes to {here}: {} is where no file of an arriving guest may be \
                 (--files-in)",
                machine.name, wanted.value
            ));
        }
    }
    notes
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use vm_state::{CpuDescription, DeviceDescription, KernelKind};

    use super::*;

    fn machine(console: &str) -> MachineDescription {
        let params = BTreeMap::from([("console".to_owned(), console.to_owned())]);
        let device = DeviceDescription {
            kind: SERIAL.to_owned(),
            id: "serial0".to_owned(),
            section_version: 1,
            params,
        };
        MachineDescription {
            name: "web".to_owned(),
            vcpus: 1,
            memory: Vec::new(),
            hugetlb: false,
            cpu: CpuDescription::default(),
            devices: vec![device],
            kernel: KernelKind::Builtin,
            boot: None,
        }
    }

    #[test]
    fn a_console_that_is_not_where_it_was_wanted_last_is_told() {
        let mut wanted = consoles(&machine("stdio"), SERIAL, None);
        assert_eq!(wanted[0].value, "null");
        assert_eq!(placed_elsewhere(&machine("null"), &wanted), [""; 0]);
        wanted.extend(consoles(&machine("stdio"), SERIAL, Some("file:/etc/passwd")));
        assert_eq!(placed_elsewhere(&machine("file:/etc/passwd"), &wanted), [""; 0]);
        let [note] = &placed_elsewhere(&machine("file:/guests/web.log"), &wanted)[..] else {
            panic!("one console")
        };
        assert!(note.contains("goes to file:/guests/web.log: file:/etc/passwd is"), "{note}");
    }
}
