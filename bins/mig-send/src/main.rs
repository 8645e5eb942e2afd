//! mig-send sends a running guest to another host as a byte stream. All policy of a migration is
//! on this side; see [`migration`] for its steps from top to bottom.
#![forbid(unsafe_code)]

mod answers;
mod args;
mod blackout;
mod confinement;
mod disks;
mod dry_run;
mod error;
mod fate;
mod live;
mod migration;
mod monitor;
mod pages;
mod precopy;
mod question;
mod report;
mod resolve;

use std::process::ExitCode;
use std::sync::Arc;

use mig_engine::handover::SourceGuestState;
use migpipe_confine::ViolationAction;
use vm_control::{Client, ClientError};

use crate::args::Args;
use crate::fate::Witness;
use crate::migration::Migration;
use crate::monitor::Shared;
use crate::report::Draft;

/// What vmrun's log calls us.
const NAME: &str = "mig-send";

fn main() -> ExitCode {
    migpipe_cli::main(run)
}

fn run(args: Args) -> anyhow::Result<u8> {
    if let Some(id) = args.broker {
        return question::serve(&args, id);
    }
    args.confinement.begin(ViolationAction::Killed);
    if let (Some(id), Some(about)) = (args.ask, args.about) {
        return question::run(&args, id, about);
    }
    args.check_progress()?;
    // Before any thread exists, so that all of them leave the signals to one.
    let signals = monitor::block_signals()?;
    if args.dry_run {
        return dry_run::run(&args, &connect(&args)?);
    }
    let shared = Shared::new()?;
    monitor::watch_signals(signals, &shared);
    if args.resolve {
        resolve::check(&args)?;
        return resolve::run(&args, &connect(&args)?, &shared);
    }
    Ok(migrate(&args, &shared))
}

fn connect(args: &Args) -> anyhow::Result<Client> {
    Ok(Client::connect_within(&vm_paths::socket_of(&args.guest)?, NAME, args.timeout)?)
}

/// Whatever happens, a report says so, and the guest's whereabouts are told.
fn migrate(args: &Args, shared: &Arc<Shared>) -> u8 {
    let mut draft = Draft::new(args);
    let opened = draft.open();
    let client = match connect(args) {
        Ok(client) => client,
        Err(error) => {
            let ended = error.downcast_ref().is_some_and(ClientError::is_end_of_vmrun);
            return draft.not_begun(&error.into(), ended.then_some(SourceGuestState::Gone));
        }
    };
    draft.report.guest = client.name().to_owned();
    let id = draft.report.migration;
    let mut witness = match Witness::new(client.path(), args.timeout) {
        Ok(witness) => witness,
        Err(error) => {
            let fate = fate::without_witness(&error);
            return draft.not_begun(&error.into(), Some(fate));
        }
    };
    if let Err(error) = opened {
        return draft.not_begun(&error.into(), Some(witness.guest_state(id)));
    }
    let stop = match Migration::new(&draft, args, client, &mut witness, shared) {
        Ok(migration) => return migration.run(),
        Err(stop) => stop,
    };
    draft.not_begun(&stop, Some(witness.guest_state(id)))
}
