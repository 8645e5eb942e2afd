//! vmrun runs one KVM guest and owns it: its memory, its state, and the right to run it. Other
//! programs reach it through its control socket.
#![forbid(unsafe_code)]

mod args;
mod arrival;
mod boot;
mod builder;
mod client_watchdog;
mod confinement;
mod definition;
mod departure_writer;
mod descriptors;
mod devices;
mod end;
mod examine;
mod go_timer;
mod go_wait;
mod guest;
mod incoming;
mod lock_timeout;
mod measurement;
mod measuring;
mod migration;
mod outgoing;
mod refusal;
mod run_state;
mod service;
mod service_manager;
mod signals;
mod watch;
mod withdrawal;
mod withdrawn;

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use mig_engine::ownership::State;
use migpipe_confine::ViolationAction;
use tracing::{info, warn};
use vm_control::server::{Server, Service};
use vm_machine::{Host, Machine};
use vm_records::departure::Departures;
use vm_records::record::Records;

use crate::args::Args;
use crate::arrival::Arrival;
use crate::departure_writer::DepartureWriter;
use crate::guest::Guest;
use crate::service_manager::ServiceManager;
use crate::signals::Signals;

/// Requests that are being answered when the guest ends get their answers within this time.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// The machine is given back within this time; what a disk that hangs holds of it is the kernel's to
/// take back.
const TEARDOWN_TIMEOUT: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    migpipe_cli::main(run)
}

fn run(args: Args) -> anyhow::Result<u8> {
    vm_paths::check_name(&args.name)?;
    if args.host_cpu {
        let offer = Host::probe()?.offer();
        io::stdout().write_all(offer.to_json().as_bytes()).context("cannot print the answer")?;
        return Ok(0);
    }
    if args.examine {
        return examine::run(&args);
    }
    let socket = match &args.socket {
        Some(path) => path.clone(),
        None => vm_paths::socket_of(&args.name)?,
    };
    let arrival = args.arrival.then(|| Arrival::begin(&args.name, &socket)).transpose()?;
    let (arriving, draft) = match arrival {
        Some(Arrival { connection, draft }) => (Some(connection), Some(draft)),
        None => (None, None),
    };
    let definition = draft.as_ref().map(|draft| draft.path.clone());
    let records = Records::of_this_host();
    // For a guest that may arrive: its records are kept from now on, and whose they are is known.
    let host = args.incoming.then(|| records.identity()).transpose()?.map(|host| host.id);
    let departures = Departures::of_this_host();
    if let Err(error) = departures.make_dir() {
        // A guest that never leaves needs none.
        warn!("{}", migpipe_cli::one_line(&error.into()));
    }
    let held = boot::held(&args, &departures)?;
    args.confinement.begin(ViolationAction::NoSuchCall);
    let signals = Signals::take()?;
    let manager = Arc::new(ServiceManager::of_environment());
    let server = Server::bind(&socket)?;
    // With the threads of the machine, each of which confines itself.
    let first = boot::inner(&args, held, draft)?;
    // Until here it may hang in storage, and ends with the session that started it.
    let parent = match arriving {
        Some(connection) => Some(connection),
        None => args.control_stdin.then(boot::adopted).transpose()?,
    };
    // All that is opened is open, no client is served yet and nothing of the guest has run. Only a
    // guest that arrived has records.
    confinement::service(&socket, args.incoming.then_some(&records), &departures)?;
    let notes = DepartureWriter::new(departures);
    notes.start(args.name.clone()).context("cannot start a thread")?;
    let guest = Guest::new(first, records, Arc::clone(&notes), host, socket, args.go_timeout.0);
    signals.end(&guest)?;
    client_watchdog::start(&guest).context("cannot start a thread")?;
    let service: Arc<dyn Service> = Arc::<Guest>::clone(&guest);
    if let Some(parent) = parent {
        // With the lock held, so that it is known before its end can be noticed.
        let mut inner = guest.lock();
        inner.parent = Some(server.serve_connection(parent, Arc::clone(&service))?);
    }
    server.serve(service)?;
    if !args.incoming {
        // One that is to arrive may be arriving already: its mig-recv is served since above.
        boot::start(&guest, &args).context("cannot start the guest")?;
    }
    info!("{} listens on {}", args.name, server.path().display());
    manager.begin(&guest, args.arrival).context("cannot start a thread")?;

    let end = guest.ending.wait();
    manager.stopping(&end);
    // Whoever waits for the end of this vmrun waits for the end of its connection: whatever it may
    // want next must be free by then. So the order is:
    // 1. The machine: the locks of its disks, its taps, its memory.
    // 2. The answers to requests under way, one of which ended the guest.
    // 3. The record of a guest that arrived and the note of one that left, if the disk takes them in
    //    time: a guest that ends at once after it arrived is known to have run.
    // 4. The socket, and with it the name.
    // 5. The connections.
    // 6. What KVM has left of the machine, which is nobody else's.
    // Storage that hangs is waited for in none of them.
    let (machine, recording) = guest
        .lock_within(TEARDOWN_TIMEOUT)
        .map(|mut inner| (inner.machine.take(), inner.recording.take()))
        .unwrap_or_default();
    let rest = within(TEARDOWN_TIMEOUT, move || machine.map(Machine::release));
    server.drain(DRAIN_TIMEOUT);
    if let State::Migrating(_) = guest.status().ownership {
        // It ended here, on its way.
        notes.stays();
    }
    if let Some(recording) = recording {
        recording.settle(DRAIN_TIMEOUT);
    }
    notes.settle(DRAIN_TIMEOUT);
    if let Some(definition) = &definition {
        // Of a guest that has not run here: that of any other is its unit's by now.
        let _ = arrival::remove(definition);
    }
    server.close();
    drop(rest);
    if end.exit_status() == 1 {
        anyhow::bail!("{}: {end}", args.name);
    }
    if end.exit_status() != 0 && migpipe_cli::is_json() {
        // For people that is no failure.
        migpipe_cli::complain("vmrun", &anyhow::anyhow!("{}: {end}", args.name));
    }
    Ok(end.exit_status())
}

/// Does `work` and waits for what comes of it, but no longer than that.
fn within<T: Send + 'static>(
    time: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (done, is_done) = sync_channel(1);
    let body = move || {
        let _ = done.send(work());
    };
    thread::Builder::new().name("teardown".into()).spawn(body).ok()?;
    is_done.recv_timeout(time).ok()
}
