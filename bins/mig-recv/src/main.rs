//! mig-recv reads a migration stream and builds the guest in a vmrun that waits for one. It also
//! answers a source that asks what became of a migration. See [`migration`] for the steps of the one
//! from top to bottom, and [`resolve`] for the other.
#![forbid(unsafe_code)]

mod answers;
mod args;
mod broker;
mod child;
mod confinement;
mod error;
mod failure;
mod handover;
mod header;
mod host;
mod incoming;
mod last_words;
mod launch;
mod load;
mod memory;
mod migration;
#[cfg(test)]
mod migration_tests;
mod name_use;
mod outcome;
mod overrides;
mod populate;
mod probe;
mod query;
mod receive;
mod report;
mod resolve;
mod responder;
#[cfg(test)]
mod responder_tests;
#[cfg(test)]
mod scripted_vmrun;
mod session;
mod setup;
mod unit;

use std::process::ExitCode;

use anyhow::Context;
use mig_channel::{
    BackHalf, Endpoint, Interrupt, OpenError, ReceiverChannel, activated_endpoint, open_receiver,
};
use mig_stream::{Kind, Message};
use migpipe_confine::ViolationAction;
use migpipe_units::MigrationId;

use crate::answers::Answers;
use crate::args::Args;
use crate::host::Host;
use crate::query::HostQuery;
use crate::report::Reports;

/// What vmrun's log calls us.
const NAME: &str = "mig-recv";

fn main() -> ExitCode {
    migpipe_cli::main(run)
}

fn run(args: Args) -> anyhow::Result<u8> {
    if args.broker {
        return broker::serve(&args);
    }
    args.check()?;
    let source = source(&args)?;
    args.claim_descriptors(&source)?;
    args.confinement.begin(ViolationAction::Killed);
    let mut reports = Reports::open(&args, &source)?;
    let status = serve(&args, &source, &mut reports);
    reports.end(&status);
    status
}

/// Takes what the stream brings, and returns the exit status.
fn serve(args: &Args, source: &Endpoint, reports: &mut Reports) -> anyhow::Result<u8> {
    let interrupt = Interrupt::new().context("cannot make an eventfd")?;
    let ReceiverChannel { mut forward, mut back, tunnel } =
        open_receiver(source, None, &interrupt).map_err(unopened)?;
    forward.set_stall_limit(Some(args.timeout));
    // The broker after the channel: it inherits no end of it. Everything below reads what others
    // have written.
    let mut host = Host::new(args)?;
    confinement::enter(tunnel.as_ref())?;
    if let Some(tunnel) = &tunnel {
        tunnel.job().watch().context("cannot start a thread")?;
    }
    let reader = match header::read(forward, args.timeout)? {
        Ok(reader) => reader,
        Err(error) => {
            if let Some(id) = error.answer_to {
                refuse(&mut back, id, &error.to_string());
            }
            return Err(header::explain(error, args.timeout));
        }
    };
    if let Some(tunnel) = &tunnel {
        // It has asked for its passwords by now.
        tunnel.release_terminal();
    }
    let preamble = *reader.preamble();
    let answers = match preamble.flags.return_path {
        true => Answers::open(&mut back, preamble.id)?,
        false => Answers::NONE,
    };
    if preamble.kind == Kind::Probe {
        reports.no_guest_comes();
        return probe::run(args, &mut host, reader, answers);
    }
    match reader.query() {
        Some(query) => {
            reports.no_guest_comes();
            resolve::run(HostQuery::new(preamble.id, preamble.kind, query), &mut host, answers)
        }
        None => {
            let watch = reports.begin(args, &reader);
            migration::run(args, &mut host, reader, answers, watch)
        }
    }
}

fn unopened(error: OpenError) -> anyhow::Error {
    if error.is_usage() { migpipe_cli::usage(error) } else { error.into() }
}

/// Where the stream comes from: started by a systemd socket, it is what systemd passed.
fn source(args: &Args) -> anyhow::Result<Endpoint> {
    match args.source {
        Endpoint::Standard => Ok(activated_endpoint()?.unwrap_or(Endpoint::Standard)),
        ref named => Ok(named.clone()),
    }
}

/// Tells a source why nothing comes of it, if it listens.
fn refuse(back: &mut BackHalf, id: MigrationId, reason: &str) {
    if let Ok(mut answers) = Answers::open(back, id) {
        let _ = answers.send(&Message::Refused { reason: reason.to_owned() });
    }
}
