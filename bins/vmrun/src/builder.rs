//! The thread that builds the machine of a guest that arrives.
//!
//! It is started before anything from outside is read, and keeps rights that those lack who read
//! it: to open /dev/kvm, disk images, taps, consoles. It is handed a description that was checked
//! as such, and ends when a machine was taken over.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use migpipe_units::Finding;
use vm_control::Refusal;
use vm_machine::{AllowedPaths, Host, IncomingConfig, Machine, MachineError, MemorySource};
use vm_state::MachineDescription;

use crate::arrival::Draft;
use crate::confinement;
use crate::refusal::refusal;

/// How often whoever waits for a machine is looked after.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Why there is no machine.
pub enum NotBuilt {
    /// It cannot be built here.
    Refused(Refusal),
    /// Whoever wanted it went away meanwhile: a file that is opened is on a server that hangs, say.
    Abandoned,
}

struct Order {
    description: MachineDescription,
    here: IncomingConfig,
    task: Task,
}

/// What is to be done with a description, and who waits for it.
enum Task {
    Build(SyncSender<Result<Built, MachineError>>),
    Examine(SyncSender<Vec<Finding>>),
}

/// A machine that was built.
pub struct Built {
    pub machine: Machine,
    /// What is to be said of it: one line each, for a person.
    pub notes: Vec<String>,
}

/// A builder that waits. Dropping it ends its thread.
pub struct Builder(Sender<Order>);

impl Builder {
    /// Starts the thread, and waits until it is confined. The files of what it builds are in
    /// `allowed`, its memory comes from `memory`, and `host` is what is known of this host: what is
    /// in the way now may be gone when somebody wants a machine. How the guest is booted again is
    /// written to `draft`.
    pub fn start(
        allowed: AllowedPaths,
        memory: MemorySource,
        host: Option<Host>,
        mut draft: Option<Draft>,
    ) -> anyhow::Result<Self> {
        let (orders, to_build) = channel();
        let (confined, is_confined) = sync_channel(1);
        let body = move || {
            let entered = confinement::builder(&allowed, &memory);
            let goes_on = entered.is_ok();
            let _ = confined.send(entered);
            if goes_on {
                serve(&to_build, &allowed, &memory, host, draft.as_mut());
            }
        };
        let thread = thread::Builder::new().name("builder".into());
        thread.spawn(body).context("cannot start a thread")?;
        is_confined.recv().context("the builder is gone")??;
        Ok(Self(orders))
    }

    /// Builds the machine of `description`, which may take as long as the storage of its files; as
    /// long as it is not `abandoned`.
    pub fn build(
        &self,
        description: &MachineDescription,
        here: IncomingConfig,
        abandoned: impl Fn() -> bool,
    ) -> Result<Built, NotBuilt> {
        let (built, machine) = sync_channel(1);
        let description = description.clone();
        let gone = || {
            let why = "the thread that builds machines is gone: start another vmrun";
            NotBuilt::Refused(Refusal::failed(why))
        };
        let task = Task::Build(built);
        self.0.send(Order { description, here, task }).map_err(|_| gone())?;
        loop {
            match machine.recv_timeout(POLL_INTERVAL) {
                Ok(built) => return built.map_err(|error| NotBuilt::Refused(refusal(error))),
                Err(RecvTimeoutError::Timeout) if abandoned() => return Err(NotBuilt::Abandoned),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(gone()),
            }
        }
    }

    /// What would be in the way of that machine, and what not. Nothing is built.
    pub fn examine(
        &self,
        description: MachineDescription,
        here: IncomingConfig,
    ) -> anyhow::Result<Vec<Finding>> {
        let (found, findings) = sync_channel(1);
        let order = Order { description, here, task: Task::Examine(found) };
        self.0.send(order).ok().context("the thread that looks is gone")?;
        findings.recv().context("the thread that looks has ended")
    }
}

fn serve(
    orders: &Receiver<Order>,
    allowed: &AllowedPaths,
    memory: &MemorySource,
    mut host: Option<Host>,
    mut draft: Option<&mut Draft>,
) {
    for Order { description, mut here, task } in orders {
        here.allowed_paths = allowed.clone();
        here.memory = memory.clone();
        let known = host.take().map_or_else(Host::probe, Ok).map(|known| &*host.insert(known));
        // What nobody waits for ends here.
        match task {
            Task::Build(built) => {
                let machine = known.and_then(|host| Machine::incoming(&description, &here, host));
                let _ = built.send(machine.map(|machine| {
                    let define = |draft: &mut &mut Draft| define(draft, &machine, allowed);
                    let notes = draft.as_mut().map(define).unwrap_or_default();
                    Built { machine, notes }
                }));
            }
            Task::Examine(found) => {
                let findings = match known {
                    Ok(host) => vm_machine::examine(&description, &here, host),
                    Err(error) => {
                        let why = migpipe_cli::one_line(&error.into());
                        vec![Finding::in_the_way("KVM", why)]
                    }
                };
                let _ = found.send(findings);
            }
        }
    }
}

/// Writes how the guest of `machine` is booted again. It arrives all the same if that fails.
fn define(draft: &mut Draft, machine: &Machine, allowed: &AllowedPaths) -> Vec<String> {
    draft.write(&machine.describe(), allowed).unwrap_or_else(|error| {
        vec![format!("{} cannot be booted here again: no definition: {error}", machine.name())]
    })
}
