//! vmctl is the monitor: it shows guests and their migrations, and steers them.
#![forbid(unsafe_code)]

mod args;
mod cpu;
mod handover;
mod memory;
mod plot;
mod show;
mod top;
mod wait;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{self, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use mig_engine::ownership::Input;
use migpipe_units::BytesPerSec;
use vm_control::{Client, ClientError, Event, Order, Status};
use vm_paths::PathError;

use crate::args::{Args, Command, CpuCommand};

/// What vmrun's log calls us.
const NAME: &str = "vmctl";

/// How long a vmrun may take to end: the memory of a large guest takes seconds to be freed.
const END_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a guest may take to answer a listing.
const LIST_TIMEOUT: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    migpipe_cli::main(run)
}

fn run(args: Args) -> anyhow::Result<u8> {
    match &args.command {
        Command::List => {
            print(&show::list(&all()?, args.json)?)?;
        }
        Command::Top { interval } => top::run(*interval)?,
        Command::Status { guest } => {
            print(&show::status(&connect(guest)?.status()?, args.json)?)?;
        }
        Command::Info { guest } => {
            print(&show::migration(&connect(guest)?.status()?, args.json)?)?;
        }
        Command::Pause { guest } => {
            connect(guest)?.pause()?;
        }
        Command::Resume { guest } => connect(guest)?.resume()?,
        Command::Quit { guest, force } => quit(guest, *force)?,
        Command::Balloon { guest, size } => connect(guest)?.balloon(*size)?,
        Command::Cancel { guest } => connect(guest)?.order(Order::Cancel)?,
        Command::SetSpeed { guest, rate } => {
            let limit = Some(*rate).filter(|rate| *rate > BytesPerSec(0));
            connect(guest)?.order(Order::SetSpeed(limit))?;
        }
        Command::SetDowntime { guest, downtime } => {
            connect(guest)?.order(Order::SetDowntime(*downtime))?;
        }
        Command::Events { guest, until, timeout } => {
            return events(guest, until.as_deref(), *timeout, args.json);
        }
        Command::Wait { guest, state, timeout } => wait::until(guest, state, *timeout)?,
        Command::Resolve { guest, destination, force } => {
            return handover::resolve(guest, destination.as_deref(), *force);
        }
        Command::Commit { guest, force } => return handover::commit(guest, *force),
        Command::Records { tidy } => {
            print(&memory::records(*tidy, args.json)?)?;
        }
        Command::Forget { what } => memory::forget(what)?,
        Command::Cpu { of: None } => {
            print(&cpu::of_this_host()?)?;
        }
        Command::Cpu { of: Some(CpuCommand::Baseline { hosts }) } => {
            print(&cpu::baseline(hosts)?)?;
        }
        Command::Plot { report, out, format } => {
            let files = plot::draw(report, out.as_deref(), *format)?;
            print(&show::files(&files, args.json))?;
        }
    }
    Ok(0)
}

fn connect(guest: &str) -> anyhow::Result<Client> {
    Ok(Client::connect(&vm_paths::socket_of(guest)?, NAME)?)
}

/// A program beside this one, else in PATH.
fn program(name: &str) -> process::Command {
    let beside = std::env::current_exe().ok().map(|own| own.with_file_name(name));
    let found = beside.filter(|path| path.is_file());
    process::Command::new(found.unwrap_or_else(|| PathBuf::from(name)))
}

/// Ends a guest, and waits until its name and its disks are free.
fn quit(guest: &str, force: bool) -> anyhow::Result<()> {
    let client = connect(guest)?;
    client.own(Input::Quit { force })?;
    if !client.await_end(END_TIMEOUT) {
        bail!(
            "{} is still ending (vmrun {}): its name and its disks are not free yet",
            client.name(),
            client.pid()
        );
    }
    Ok(())
}

/// All guests that answer. A socket that nobody listens on any more is no guest.
fn all() -> Result<Vec<Status>, PathError> {
    let guests = vm_paths::all_sockets()?
        .iter()
        .filter_map(|socket| {
            match Client::connect_within(socket, NAME, LIST_TIMEOUT).and_then(|it| it.status()) {
                Ok(status) => Some(status),
                Err(ClientError::Connect { source, .. }) if is_nobody(&source) => None,
                Err(error) => {
                    migpipe_cli::complain(NAME, &error.into());
                    None
                }
            }
        })
        .collect();
    Ok(guests)
}

/// Whether a connection failed because nobody listens there.
fn is_nobody(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound)
}

fn events(
    guest: &str,
    until: Option<&str>,
    timeout: Option<Duration>,
    json: bool,
) -> anyhow::Result<u8> {
    let started = Instant::now();
    let mut events = connect(guest)?.subscribe()?;
    loop {
        let left = timeout.map(|timeout| timeout.saturating_sub(started.elapsed()));
        if left.is_some_and(|left| left.is_zero()) {
            bail!("nothing more of {guest} within the time given");
        }
        let Some(event) = events.next(left) else {
            if left.is_some_and(|_| timeout.is_some_and(|limit| started.elapsed() >= limit)) {
                continue;
            }
            return match until {
                None | Some("ended") => Ok(0),
                Some(event) => bail!("{guest} ended before it was {event}"),
            };
        };
        if !print(&show::event(&event, json)?)? {
            return Ok(0);
        }
        if until == Some(event.name()) || matches!(event, Event::Ended(_)) && until.is_none() {
            return Ok(0);
        }
    }
}

/// Writes to stdout; a reader that went away (`vmctl list | head -1`) is no failure. False if
/// nobody reads any more.
fn print(text: &str) -> anyhow::Result<bool> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error).context("cannot print the answer"),
    }
}
