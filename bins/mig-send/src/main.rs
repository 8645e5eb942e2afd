//! mig-send sends a running guest to another host as a byte stream. All policy of a migration is
//! on this side; see [`migration`] for its steps from top to bottom.
#![forbid(unsafe_code)]

mod answers;
mod args;
mod blackout;
mod confinement;
mod disks;
mod dry_run;
mod fate;
mod migration;
mod monitor;
mod pages;
mod precopy;
mod question;
mod report;
mod resolve;
mod stop;

use std::process::ExitCode;

use confine::Outside;
use vm_control::{Client, place};

use crate::args::Args;
use crate::migration::Migration;
use crate::monitor::Shared;

/// What vmrun's log calls us.
const NAME: &str = "mig-send";

fn main() -> ExitCode {
    cli::main(run)
}

fn run(args: Args) -> anyhow::Result<u8> {
    if let Some(id) = args.broker {
        return question::serve(&args, id);
    }
    args.confinement.begin(Outside::Killed);
    if let Some(id) = args.ask {
        return question::run(&args, id);
    }
    // Before any thread exists, so that all of them leave the signals to one.
    let signals = monitor::block_signals()?;
    let client = Client::connect_within(&place::socket_of(&args.guest)?, NAME, args.timeout)?;
    if args.dry_run {
        return dry_run::run(&args, &client);
    }
    let shared = Shared::new()?;
    monitor::watch_signals(signals, &shared);
    if args.resolve {
        return resolve::run(&args, &client, &shared);
    }
    Migration::new(&args, client, shared)?.run()
}
