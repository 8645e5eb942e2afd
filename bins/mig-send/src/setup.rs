//! Setup: everything is opened and the header is written; the guest is not touched.

use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use mig_channel::{SenderChannel, Tunnel, open_sender};
use mig_engine::handover::HandoverMode;
use mig_engine::precopy::{Pacer, Policy, RateMeter, Wws};
use mig_engine::report::Mode;
use mig_stream::{Flags, Header, Preamble, StreamWriter};
use migpipe_units::MigrationId;
use vm_control::Client;
use vm_mapping::PipePages;
use vm_state::MachineDescription;

use crate::answers::Answers;
use crate::args::Args;
use crate::attempts::{self, Attempts};
use crate::disks::Disks;
use crate::error::StepError;
use crate::monitor::{Shared, Watch};
use crate::outgoing::{Channel, Guest, OutgoingMigration, PreCopy};
use crate::pages::PageSender;
use crate::query::ResolveHelper;
use crate::report::Draft;
use crate::status::StatusConnection;
use crate::{NAME, confinement};

/// Looks at the guest, opens the channel and writes the header. The guest is not touched.
///
/// Everything that will be needed is opened or started here, in this order: first what may
/// fail without a trace, then the channel, then the resolve helper (`helper` says what that is), which
/// must inherit no end of it;
/// then the rights are given up, and only after that something is sent that can be answered.
pub fn open<'a>(
    draft: &'a Draft<'a>,
    args: &'a Args,
    client: Client,
    status: &'a mut StatusConnection,
    shared: &Arc<Shared>,
    helper: fn(&Args, MigrationId) -> Command,
) -> Result<(OutgoingMigration<'a>, Watch), StepError> {
    let watch = Client::connect_within(client.path(), NAME, args.timeout)
        .map(|it| Watch::new(it, args, draft.events.clone(), draft.report.clone()))?;
    let for_disks = Client::connect_within(client.path(), NAME, args.timeout)?;
    let machine = client.describe()?;
    let memory = client.map_memory(&machine)?;
    let id = draft.report.migration;
    let one_way = args.one_way || args.saves();
    let channel = open_sender(&args.destination, args.return_path, one_way, &shared.interrupt)?;
    let mode = mode_of(args, &channel)?;
    let SenderChannel { mut forward, back, mut tunnel } = channel;
    forward.set_stall_limit(Some(args.timeout));
    let helper = match attempts::can_be_asked(args) {
        true => Some(ResolveHelper::start(helper(args, id), args)?),
        false => None,
    };
    // It looks at a file of the host.
    let pipe_pages = PipePages::new();
    confinement::enter(tunnel.as_ref(), &args.destination).map_err(StepError::other)?;
    if let Some(tunnel) = &tunnel {
        tunnel.job().watch()?;
        shared.set_job(tunnel.job());
    }
    let flags = Flags {
        return_path: mode.is_answered(),
        page_sums: !args.zero_copy,
        separate_commit: mode == HandoverMode::SeparateCommit,
        verify: args.verify,
        saved: mode == HandoverMode::Saved,
        snapshot: args.snapshot,
    };
    let released = client.status()?.released;
    let header = header_of(&machine, released)?;
    let stream = StreamWriter::new(forward, Preamble::migrate(id, flags), header)
        .map_err(|error| {
            let ended = tunnel.as_mut().and_then(Tunnel::failure);
            ended.map_or_else(|| error.into(), StepError::from)
        })
        .map_err(|error| error.context("cannot send the header"))?;
    let mut report = draft.report.clone();
    report.mode = if mode.is_answered() { Mode::BothWays } else { Mode::OneWay };
    let wws = match args.no_wws || args.classic {
        true => Wws::off(),
        false => Wws::new(machine.memory.iter().map(|region| region.pages)),
    };
    let precopy = PreCopy {
        policy: Policy::new(args.limits()),
        pacer: Pacer::new(args.bandwidth()),
        meter: RateMeter::default(),
        wws,
        pages: PageSender::new(&machine, pipe_pages),
    };
    let channel = Channel {
        mode,
        stream,
        answers: Answers::new(back, id),
        tunnel,
        helper,
        attempts: Attempts::new(args),
    };
    let disks = Disks::new(for_disks)?;
    let outgoing = OutgoingMigration {
        args,
        shared: Arc::clone(shared),
        id,
        started: Instant::now(),
        guest: Guest { client, status, machine, memory, disks },
        channel,
        precopy,
        report,
        milestones: draft.milestones.clone(),
        paused: None,
        acknowledged: None,
    };
    Ok((outgoing, watch))
}

fn mode_of(args: &Args, channel: &SenderChannel) -> Result<HandoverMode, StepError> {
    Ok(match (&args.commit, channel.is_both_ways()) {
        (Some(_), true) => HandoverMode::SeparateCommit,
        (Some(_), false) => {
            return Err(StepError::NoWayBack { channel: channel.describe().to_owned() });
        }
        (None, true) => HandoverMode::BothWays,
        (None, false) if channel.forward.is_file() => HandoverMode::Saved,
        // Its status says whether it has taken all of it.
        (None, false) if args.saves() && channel.tunnel.is_some() => HandoverMode::Saved,
        (None, false) if args.saves() => {
            return Err(StepError::NoPlace { channel: channel.describe().to_owned() });
        }
        (None, false) => HandoverMode::OneWay,
    })
}

pub fn header_of(
    machine: &MachineDescription,
    released: Vec<MigrationId>,
) -> Result<Header, StepError> {
    vm_paths::check_name(&machine.name).map_err(StepError::other)?;
    Ok(Header {
        guest: machine.name.clone(),
        machine: machine.encode().map_err(StepError::other)?,
        regions: machine.memory.clone(),
        released,
    })
}
