//! Setup: the header is checked, and a vmrun builds the machine. No page was read.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, bail};
use mig_channel::ChannelReader;
use mig_engine::handover::HandoverMode;
use mig_stream::{Flags, FormatVersion, Message, StreamReader};
use migpipe_cli::output;
use migpipe_units::MigrationId;
use tracing::warn;
use vm_state::MachineDescription;

use crate::NAME;
use crate::answers::Answers;
use crate::args::Args;
use crate::error::StepError;
use crate::host::LocalHost;
use crate::incoming::{Guest, IncomingMigration};
use crate::memory::{Incoming, check_memory};
use crate::overrides;
use crate::report::Arrival;

/// Takes up a migration whose header can be used. One that cannot is answered at once.
pub fn accept<'a>(
    args: &'a Args,
    host: &'a mut dyn LocalHost,
    stream: StreamReader<ChannelReader>,
    mut answers: Answers,
    arrival: Arc<Arrival>,
) -> anyhow::Result<IncomingMigration<'a>> {
    let preamble = *stream.preamble();
    let mode = mode_of(preamble.flags);
    let (description, version) = match check(args, mode, &stream) {
        Ok(good) => good,
        Err(error) => {
            let _ = answers.send(&Message::Refused { reason: migpipe_cli::one_line(&error) });
            return Err(error);
        }
    };
    let mut id = preamble.id;
    if args.clone {
        id = MigrationId::random();
        arrival.report(|report| report.migration = Some(id));
        output::say(format!(
            "{NAME}: a copy of {}, as migration {id}: if the first one still runs, the two share \
             every address and disk",
            description.name
        ));
    }
    let name = args.name.clone().unwrap_or_else(|| description.name.clone());
    let began = Instant::now();
    migpipe_cli::guest_is_at(&name, None);
    Ok(IncomingMigration {
        args,
        host,
        stream,
        answers,
        id,
        mode,
        version,
        description,
        name,
        began,
        arrival,
        paused: None,
        acknowledged: None,
    })
}

pub const fn mode_of(flags: Flags) -> HandoverMode {
    match (flags.return_path, flags.separate_commit) {
        (false, _) if flags.saved => HandoverMode::Saved,
        (false, _) => HandoverMode::OneWay,
        (true, true) => HandoverMode::SeparateCommit,
        (true, false) => HandoverMode::BothWays,
    }
}

/// What can be told from the header alone.
pub fn check(
    args: &Args,
    mode: HandoverMode,
    stream: &StreamReader<ChannelReader>,
) -> anyhow::Result<(MachineDescription, FormatVersion)> {
    let header = stream.header();
    let description = MachineDescription::decode(&header.machine, &header.regions)?;
    check_memory(&header.regions)?;
    vm_paths::check_name(&description.name)
        .context("the guest's name cannot be used on this host")?;
    check_limits(args, &description)?;
    if stream.preamble().flags.snapshot && !args.clone {
        bail!(
            "this is a snapshot of {}, which ran on when it was taken: --clone runs it as a copy, \
             with the same addresses and disks unless --net and --disk say others",
            description.name
        );
    }
    if args.clone && mode.is_answered() {
        bail!("--clone is for saved guests; the source of this one waits for an answer");
    }
    Ok((description, stream.preamble().negotiate()?))
}

/// What this receiver takes, before anything is made for it.
fn check_limits(args: &Args, guest: &MachineDescription) -> anyhow::Result<()> {
    let (name, memory, vcpus) = (&guest.name, guest.pages().bytes(), guest.vcpus);
    if let Some(max) = args.max_mem.filter(|max| memory > *max) {
        bail!("{name} has {memory} of memory, and this receiver takes {max} at most (--max-mem)");
    }
    if let Some(max) = args.max_cpus.filter(|max| vcpus > *max) {
        bail!("{name} has {vcpus} vCPUs, and this receiver takes {max} at most (--max-cpus)");
    }
    Ok(())
}

/// Has a vmrun build the machine. It checks that this host can run the guest, and remembers on disk
/// that it may have run here, before the first page is taken.
pub fn build(migration: &mut IncomingMigration<'_>) -> Result<Guest, StepError> {
    let overrides = overrides::of(migration.args, &migration.description)?;
    // Before a vmrun is started: one of them may have the name.
    let released = &migration.stream.header().released;
    if !released.is_empty() {
        migration.host.forget(released)?;
    }
    let vmrun = migration.host.vmrun(&migration.name, &migration.description.name)?;
    migration.name.clone_from(&vmrun.name);
    migration.arrival.report(|report| report.guest = Some(vmrun.name.clone()));
    let description = migration.description.clone();
    let received = vmrun.client.receive(migration.id, description, overrides, migration.mode);
    let (memory, notes) = match received {
        Ok(received) => received,
        Err(error) => {
            let error = migration.host.explain(&vmrun, error);
            migration.host.await_end(vmrun, false);
            return Err(error.into());
        }
    };
    for note in notes.iter().filter(|_| !migration.args.quiet) {
        output::say(format_args!("{NAME}: {}", migpipe_cli::printable(note)));
    }
    if let Ok(Some(dir)) = migration.host.short_memory() {
        warn!(
            "{} is in memory and gone when this host starts again: after a crash of it, what became \
             of a guest cannot be told to its source",
            dir.display()
        );
    }
    Ok(Guest { vmrun, memory: Incoming::new(memory), timings: Vec::new() })
}

/// Tells a source that waits for it that the guest can come.
pub fn send_ready(migration: &mut IncomingMigration<'_>) -> Result<(), StepError> {
    let version = migration.version;
    Ok(migration.answers.send(&Message::Ready { version })?)
}
