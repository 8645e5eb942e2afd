//! mig-recv reads a migration stream and builds the guest in a vmrun that waits for one. It also
//! answers a source that asks what became of a migration.
#![forbid(unsafe_code)]

mod args;
mod inquiry;
mod memory;
mod reception;
mod vmrun;

use std::process::ExitCode;

use anyhow::Context;
use mig_channel::{ChannelReader, ChannelWriter, Interrupt, ReceiverChannel, open_receiver};
use mig_stream::{Kind, Message, ReturnWriter, StreamReader};
use units::MigrationId;

use crate::args::Args;
use crate::reception::Reception;

/// What vmrun's log calls us.
const NAME: &str = "mig-recv";

fn main() -> ExitCode {
    cli::main(run)
}

fn run(args: Args) -> anyhow::Result<u8> {
    let interrupt = Interrupt::new().context("cannot make an eventfd")?;
    let mut channel = open_receiver(&args.source, None, &interrupt)?;
    let mut forward = std::mem::replace(&mut channel.forward, ChannelReader::closed());
    forward.set_stall_limit(Some(args.timeout));
    let reader = match StreamReader::open(forward) {
        Ok(reader) => reader,
        Err(error) => {
            if let Some(id) = error.answer_to {
                refuse(&mut channel, id, &error.to_string());
            }
            return Err(error.into());
        }
    };
    let preamble = *reader.preamble();
    let back = match preamble.flags.return_path {
        true => Some(back(&mut channel, preamble.id)?),
        false => None,
    };
    match preamble.kind {
        Kind::Resolve => inquiry::run(preamble.id, back),
        Kind::Migrate => Reception::new(&args, reader, back)?.run(),
    }
}

fn back(
    channel: &mut ReceiverChannel,
    id: MigrationId,
) -> anyhow::Result<ReturnWriter<ChannelWriter>> {
    let back = channel
        .take_back()
        .context("the source waits for answers, and there is no way back to it")?;
    ReturnWriter::new(back, id).context("cannot answer the source")
}

/// Tells a source why nothing comes of it, if it listens.
fn refuse(channel: &mut ReceiverChannel, id: MigrationId, reason: &str) {
    if let Ok(mut back) = back(channel, id) {
        let _ = back.send(&Message::Refused { reason: reason.to_owned() });
    }
}
