//! The orders that are the business of the migration programs: they are run as they are.

use std::io::{self, IsTerminal};
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, anyhow, bail};
use mig_engine::ownership::{Authority, State};

use crate::{connect, program};

/// `mig-send --resolve`, in place of this process.
pub fn resolve(guest: &str, destination: Option<&str>, force: bool) -> anyhow::Result<u8> {
    let mut command = program("mig-send");
    command.arg("--resolve").args(force.then_some("--force")).arg(guest).args(destination);
    replace(command)
}

/// A query of the source is on stdin, and mig-recv answers those; or the operator's word is GO.
pub fn commit(guest: &str, force: bool) -> anyhow::Result<u8> {
    if !force && io::stdin().is_terminal() {
        return Err(migpipe_cli::usage(anyhow!(
            "mig-send --resolve on the source asks for GO; --force gives it without the source, \
             and if that has not handed {guest} over, two run"
        )));
    }
    if !force {
        return replace(program("mig-recv"));
    }
    let client = connect(guest)?;
    let State::Prepared(id) = client.status()?.ownership else {
        bail!("{guest} does not wait for GO: vmctl status {guest} says how it is");
    };
    client.go(id, Authority::Operator)?;
    Ok(0)
}

fn replace(mut command: Command) -> anyhow::Result<u8> {
    migpipe_cli::output::finish();
    let error = command.exec();
    Err(error).with_context(|| format!("cannot run {}", command.get_program().to_string_lossy()))
}
