//! The answer to a source that asks before it sends: what of its guest this host could not take, and how
//! fast the path is. No guest comes of it, and nothing is kept.

use mig_channel::ChannelReader;
use mig_engine::handover::HandoverMode;
use mig_stream::{FormatVersion, Message, Record, StreamReader};
use migpipe_units::Finding;
use vm_state::MachineDescription;

use crate::answers::Answers;
use crate::args::Args;
use crate::host::Host;
use crate::{overrides, setup};

/// The version of this release.
const RELEASE: &str = env!("CARGO_PKG_VERSION");

/// Answers one, and returns the exit status.
pub fn run(
    args: &Args,
    host: &mut Host,
    mut stream: StreamReader<ChannelReader>,
    mut answers: Answers,
) -> anyhow::Result<u8> {
    let findings = examine(args, host, &stream);
    answers.send(&Message::Examined { findings })?;
    while let Some(record) = stream.next_record()? {
        match record {
            Record::Round(_) => {
                answers.send(&Message::Measured { bytes: stream.bytes_read() })?;
            }
            Record::End(_) | Record::Abort { .. } => break,
            // Its pages are read by the next step, and nobody keeps them.
            _ => {}
        }
    }
    Ok(0)
}

/// What is decided by the header and by this command line, and then by the host.
fn examine(args: &Args, host: &mut Host, stream: &StreamReader<ChannelReader>) -> Vec<Finding> {
    let programs = format!("mig-recv {RELEASE}, stream format {}", FormatVersion::NEWEST);
    let mut findings = vec![Finding::fine("programs", programs)];
    let checked =
        setup::check(args, HandoverMode::BothWays, stream).and_then(|(description, _)| {
            findings.push(Finding::fine("guest", summary(&description)));
            look(args, host, &description)
        });
    match checked {
        Ok(found) => findings.extend(found),
        Err(error) => {
            findings.push(Finding::in_the_way("guest", migpipe_cli::one_line(&error)));
        }
    }
    findings
}

fn look(
    args: &Args,
    host: &mut Host,
    description: &MachineDescription,
) -> anyhow::Result<Vec<Finding>> {
    let overrides = overrides::of(args, description)?;
    let name = args.name.as_ref().unwrap_or(&description.name);
    host.examine(name, description, &overrides)
}

fn summary(description: &MachineDescription) -> String {
    let (memory, vcpus) = (description.pages().bytes(), description.vcpus);
    format!("{memory} of memory, {vcpus} vCPU{}", if vcpus == 1 { "" } else { "s" })
}
