//! mig-send sends a running guest to another host as a byte stream. All policy of a migration is
//! on this side; see [`migration`] for its steps from top to bottom.
#![forbid(unsafe_code)]

mod answers;
mod args;
mod attempts;
mod confinement;
mod content;
mod dirtying;
mod disks;
mod dry_run;
mod error;
mod estimate;
mod failure;
mod handover;
mod migration;
mod monitor;
mod outgoing;
mod pages;
#[cfg(test)]
mod phase_tests;
mod precopy;
mod probe;
mod query;
mod query_args;
mod report;
mod resolve;
mod setup;
mod ssh_args;
mod status;
mod stop_and_copy;

use std::process::ExitCode;
use std::sync::Arc;

use mig_engine::handover::SourceGuestState;
use migpipe_confine::ViolationAction;
use vm_control::Client;

use crate::args::Args;
use crate::error::StepError;
use crate::monitor::Shared;
use crate::report::Draft;
use crate::status::StatusConnection;

/// What vmrun's log calls us.
const NAME: &str = "mig-send";

fn main() -> ExitCode {
    migpipe_cli::main(run)
}

fn run(args: Args) -> anyhow::Result<u8> {
    let mut args = args.complete()?;
    if let Some(id) = args.broker {
        return query::serve(&args, id);
    }
    args.confinement.begin(ViolationAction::Killed);
    if let (Some(id), Some(about)) = (args.ask, args.about) {
        return query::run(&args, id, about);
    }
    args.claim_descriptors()?;
    // Before any thread exists, so that all of them leave the signals to one.
    let signals = monitor::block_signals()?;
    let shared = Shared::new()?;
    monitor::watch_signals(signals, &shared);
    if args.dry_run {
        return dry_run::run(&args, connect(&args)?, &shared);
    }
    if args.resolve {
        return resolve(&mut args, &shared);
    }
    Ok(migrate(&args, &shared))
}

fn connect(args: &Args) -> Result<Client, StepError> {
    let socket = vm_paths::socket_of(&args.guest).map_err(StepError::other)?;
    Ok(Client::connect_within(&socket, NAME, args.timeout)?)
}

fn resolve(args: &mut Args, shared: &Shared) -> anyhow::Result<u8> {
    // A command line that makes no sense is told whatever the guest is.
    if !args.names_no_destination() {
        resolve::check(args)?;
    }
    let client = connect(args)?;
    let status = client.status()?;
    if let Some(handover) = &status.handover
        && args.names_no_destination()
    {
        args.ask_at(&handover.destination)?;
        resolve::check(args)?;
    }
    resolve::run(args, &client, &status, shared)
}

/// Whatever happens, a report says so, and the guest's whereabouts are told.
fn migrate(args: &Args, shared: &Arc<Shared>) -> u8 {
    let mut draft = Draft::new(args);
    let opened = draft.open();
    let client = match connect(args) {
        Ok(client) => client,
        Err(error) => {
            let gone = error.is_end_of_vmrun().then_some(SourceGuestState::Gone);
            return draft.not_begun(&error, gone);
        }
    };
    draft.report.guest = client.name().to_owned();
    let id = draft.report.migration;
    let mut connection = match StatusConnection::new(client.path(), args.timeout) {
        Ok(connection) => connection,
        Err(error) => {
            let guest = status::without_status(&error);
            return draft.not_begun(&error.into(), Some(guest));
        }
    };
    if let Err(error) = opened {
        return draft.not_begun(&error, Some(connection.guest_state(id)));
    }
    let error = match migration::run(&draft, args, client, &mut connection, shared) {
        Ok(status) => return status,
        Err(error) => error,
    };
    draft.not_begun(&error, Some(connection.guest_state(id)))
}
