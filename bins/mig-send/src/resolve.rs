//! What became of a guest that was handed over and not heard of again, or whose destination is to be
//! told that it was not.

use std::time::{Duration, Instant};

use anyhow::anyhow;
use mig_channel::Endpoint;
use mig_engine::handover::{Query, ResolveIo, Resolver, SourceEnding, run_resolver};
use mig_engine::ownership::{Input, State};
use mig_engine::report::{Location, Phase, ReportOutcome};
use migpipe_cli::{Milestone, output};
use migpipe_units::MigrationId;
use vm_control::{Client, ClientError, Status};

use crate::NAME;
use crate::args::Args;
use crate::attempts::{self, Attempts};
use crate::error::StepError;
use crate::monitor::Shared;
use crate::outgoing::OutgoingMigration;
use crate::query::QueryProcess;
use crate::query_args::QueryArgs;
use crate::ssh_args;

/// Whether the command line says whom to ask.
pub fn check(args: &Args) -> anyhow::Result<()> {
    if attempts::can_be_asked(args) || args.force {
        return Ok(());
    }
    let why = match args.names_no_destination() {
        true => "none is known here".to_owned(),
        false => format!("that is not {}", args.asked()),
    };
    Err(migpipe_cli::usage(anyhow!(
        "--resolve needs the destination to ask, and {why}: {}",
        resolve_command(args)
    )))
}

/// `mig-send --resolve`. What each answer leads to is decided by [`Resolver`].
pub fn run(args: &Args, client: &Client, status: &Status, shared: &Shared) -> anyhow::Result<u8> {
    let name = client.name();
    let (State::HandedOver(id), Some(handover)) = (status.ownership, &status.handover) else {
        anyhow::bail!("{name} is not handed-over: there is nothing to resolve");
    };
    let mut resolution = Resolution {
        args,
        client,
        shared,
        id,
        age: handover.age,
        known_at: Instant::now(),
        attempts: Attempts::new(args),
    };
    let resolver = Resolver::new(handover.taken_by, args.force);
    let (ending, why) = run_resolver(resolver, &mut resolution);
    let at = match ending {
        SourceEnding::Moved => Some(Location::Destination),
        SourceEnding::Stayed
        | SourceEnding::Snapshot
        | SourceEnding::Forced
        | SourceEnding::Cancelled => Some(Location::Source),
        SourceEnding::Unknown => None,
    };
    migpipe_cli::guest_is_at(name, at.map(Location::word));
    let milestones = args.reporting.milestones();
    if ending == SourceEnding::Moved {
        milestones.reached(Milestone::Running, id);
    }
    milestones.ended(ReportOutcome::from(ending).word(), id);
    match (ending, why) {
        (SourceEnding::Moved, why) => {
            output::say(format!("{NAME}: {name} runs at its destination"));
            if let Some(error) = why {
                let complaint = anyhow::Error::from(error);
                migpipe_cli::complain(
                    NAME,
                    &complaint.context(format!("{name} is still here, handed-over")),
                );
            }
        }
        (SourceEnding::Forced, _) => {
            migpipe_cli::complain(NAME, &anyhow!("{name} runs here, by force"));
        }
        (SourceEnding::Unknown, None | Some(StepError::Cancelled)) => {
            migpipe_cli::complain(NAME, &anyhow!("cancelled; {name} stays handed-over"));
        }
        (SourceEnding::Unknown, Some(why)) => {
            migpipe_cli::complain(NAME, &anyhow!("{name} stays handed-over: {}", why.reason()));
        }
        (SourceEnding::Stayed | SourceEnding::Snapshot | SourceEnding::Cancelled, why) => {
            let reason = match why {
                Some(StepError::Refused(reason)) => reason,
                _ => String::new(),
            };
            migpipe_cli::complain(
                NAME,
                &anyhow!("the destination refused {name} ({reason}); it runs here"),
            );
        }
    }
    Ok(ending.exit_status())
}

/// What can be done for a guest whose mig-send is gone.
struct Resolution<'a> {
    args: &'a Args,
    client: &'a Client,
    shared: &'a Shared,
    id: MigrationId,
    /// How old the migration was when that was looked at.
    age: Duration,
    known_at: Instant,
    attempts: Attempts<'a>,
}

impl ResolveIo for Resolution<'_> {
    type Error = StepError;

    fn query(&mut self, query: Query) -> Result<(), StepError> {
        self.attempts.begin()?;
        let age = self.age.saturating_add(self.known_at.elapsed());
        let args = QueryArgs { query, age };
        let process = QueryProcess::start(self.args, self.id, &args)?;
        let result = process.result_or_cancel(self.shared);
        result.and_then(|result| attempts::verdict(query, result)).inspect_err(|error| {
            tracing::info!("{}", error.reason());
        })
    }

    fn await_retry(&mut self) -> bool {
        self.attempts.await_next()
    }

    fn confirm(&mut self) -> Result<(), StepError> {
        Ok(confirm(self.client, self.id, self.args)?)
    }

    fn take_back(&mut self) -> Result<(), StepError> {
        Ok(self.client.own(Input::TakeBack(self.id))?)
    }
}

/// Ends the source's vmrun, whose guest runs elsewhere, and waits until its name and its disks are
/// free.
pub fn confirm(client: &Client, id: MigrationId, args: &Args) -> Result<(), ClientError> {
    client.own(Input::Confirm(id))?;
    if !client.await_end(args.timeout) {
        // The status says what became of the guest.
        let (name, pid) = (client.name(), client.pid());
        let still = anyhow!("its vmrun {pid} is still ending here, and has its name and its disks");
        migpipe_cli::complain(NAME, &still.context(format!("{name} has moved")));
    }
    Ok(())
}

/// The command that finishes a migration whose outcome is not known, as a shell reads it.
pub fn resolve_command(args: &Args) -> String {
    let destination = match args.asked() {
        Endpoint::Standard | Endpoint::File(_) | Endpoint::Fd(_) => "ssh:HOST".to_owned(),
        other => {
            let words = ssh_args::arguments(other);
            words.iter().map(|word| migpipe_cli::quoted(word)).collect::<Vec<_>>().join(" ")
        }
    };
    format!("{NAME} --resolve {} {destination}", migpipe_cli::quoted(&args.guest))
}

impl ResolveIo for OutgoingMigration<'_> {
    type Error = StepError;

    fn query(&mut self, query: Query) -> Result<(), StepError> {
        if let Query::Committed(_) = query {
            self.shared.progress(|progress| progress.phase = Phase::Resolve);
        }
        ask(self, query).map_err(|error| {
            tracing::info!("{}", error.reason());
            error.context("the destination could not be asked")
        })
    }

    fn await_retry(&mut self) -> bool {
        self.channel.attempts.await_next()
    }

    fn confirm(&mut self) -> Result<(), StepError> {
        confirm(&self.guest.client, self.id, self.args).map_err(|error| {
            // The status says what became of the guest, and that alone.
            let (name, error) = (&self.guest.machine.name, not_told(error));
            migpipe_cli::complain(
                NAME,
                &anyhow!("{name} is still here, handed-over: {}", error.reason()),
            );
            error
        })
    }

    fn take_back(&mut self) -> Result<(), StepError> {
        self.guest.client.own(Input::TakeBack(self.id)).map_err(not_told)
    }
}

fn ask(outgoing: &mut OutgoingMigration<'_>, query: Query) -> Result<(), StepError> {
    let (channel, age) = (&mut outgoing.channel, outgoing.started.elapsed());
    channel.attempts.begin()?;
    let helper = channel.helper.as_mut().ok_or(StepError::Helper("nobody can ask"))?;
    helper.query(&QueryArgs { query, age })?;
    attempts::verdict(query, helper.result()?)
}

fn not_told(error: ClientError) -> StepError {
    StepError::Vmrun(error).context("the source's vmrun could not be told")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn a_shell_reads_the_command_that_resolves_as_it_was_meant() {
        let command = |words: &[&str]| {
            let args = Args::parse_from(["mig-send"].iter().chain(words));
            resolve_command(&args.complete().unwrap())
        };
        for (words, told) in [
            (&["web", "tcp:hostb:4444"][..], "mig-send --resolve web tcp:hostb:4444"),
            (
                &["/run/a b.sock", "exec:ssh hostb mig-recv"],
                "mig-send --resolve '/run/a b.sock' exec:'ssh hostb mig-recv'",
            ),
            (
                &["web", "exec:gzip", "--commit", "exec:ssh hostb vmctl commit web"],
                "mig-send --resolve web exec:'ssh hostb vmctl commit web'",
            ),
            (
                &["web", "ssh:hostb/w2", "--ssh-option", "ProxyJump a", "--", "--files-in", "/srv"],
                "mig-send --resolve web ssh:hostb/w2 '--ssh-option=ProxyJump a'",
            ),
            // There is nothing to be opened again.
            (&["web"], "mig-send --resolve web ssh:HOST"),
        ] {
            assert_eq!(command(words), told);
        }
    }
}
