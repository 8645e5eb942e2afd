//! What would be sent, and, where the destination can be asked, what would come of it.

use std::io::{self, Write};
use std::sync::Arc;
use std::thread;

use anyhow::{Context, anyhow};
use migpipe_cli::output;
use vm_control::Client;
use vm_mapping::GuestMemory;
use vm_state::MachineDescription;

use crate::NAME;
use crate::args::Args;
use crate::content::Content;
use crate::dirtying;
use crate::error::StepError;
use crate::estimate::{Estimate, Measured};
use crate::monitor::Shared;
use crate::probe::Probe;

/// The exit status of a migration that was cancelled.
const CANCELLED: u8 = 3;

/// `mig-send -n`: says what a migration would send and come to, and changes nothing.
pub fn run(args: &Args, client: Client, shared: &Arc<Shared>) -> anyhow::Result<u8> {
    let machine = client.describe()?;
    let memory = client.map_memory(&machine)?;
    let content = Content::of(&machine, &memory)?;
    let mut estimate = Estimate::new(args, &machine, &content);
    if args.can_ask_before() {
        let asked = ask(args, client, &machine, &memory, &content, shared, &mut estimate);
        if let Err(StepError::Cancelled) = asked {
            migpipe_cli::complain(NAME, &anyhow!("cancelled; nothing was sent"));
            return Ok(CANCELLED);
        }
        asked?;
    }
    if args.json {
        let mut line = serde_json::to_vec(&estimate)?;
        line.push(b'\n');
        io::stdout().write_all(&line).context("cannot print the estimate")?;
        migpipe_cli::guest_is_at(&machine.name, Some("source"));
        if let Some(why) = estimate.in_the_way() {
            migpipe_cli::complain(NAME, &anyhow!("{} would not move: {why}", machine.name));
        }
    } else {
        output::say(estimate.text().trim_end());
    }
    Ok(if estimate.possible == Some(false) { 1 } else { 0 })
}

/// Asks the destination; where nothing is in the way, times the path and watches the guest at once.
fn ask(
    args: &Args,
    client: Client,
    machine: &MachineDescription,
    memory: &GuestMemory,
    content: &Content,
    shared: &Arc<Shared>,
    estimate: &mut Estimate,
) -> Result<(), StepError> {
    let mut probe = Probe::open(args, machine, shared)?;
    estimate.found(&probe.findings);
    if estimate.possible == Some(false) {
        return Ok(());
    }
    let (watched, path) = thread::scope(|scope| {
        let watched = scope.spawn(|| dirtying::watch(client, machine, shared));
        let path = probe.measure(memory, &content.sample, args.max_downtime);
        let watched = watched
            .join()
            .unwrap_or(Err(StepError::Helper("the thread that watches the guest has ended")));
        (watched, path)
    });
    let setup = probe.setup;
    estimate.measured(args, content, Measured { path: path?, watched: watched?, setup });
    Ok(())
}
