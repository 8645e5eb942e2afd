//! What became of a guest that was handed over and not heard of again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use mig_channel::Endpoint;
use mig_engine::handover::{Form, Outcome, Source, SourceEnding, SourceStep};
use mig_engine::ownership::{Input, State};
use migpipe_cli::output;
use migpipe_units::{Acknowledged, HostId, MigrationId};
use vm_control::{Client, ClientError};

use crate::NAME;
use crate::args::Args;
use crate::monitor::Shared;
use crate::question::{About, Asked, Question};
use crate::report;
use crate::stop::Stop;

/// How long to wait between two attempts.
const PAUSE: Duration = Duration::from_millis(500);

/// Whether the command line says whom to ask.
pub fn check(args: &Args) -> anyhow::Result<()> {
    if can_be_asked(args) || args.force {
        return Ok(());
    }
    Err(migpipe_cli::usage(anyhow!(
        "--resolve needs the destination to ask, and that is not {}: {}",
        args.commit.as_ref().unwrap_or(&args.destination),
        report::resolve_command(args)
    )))
}

/// `mig-send --resolve`. What each answer leads to is decided by
/// [`mig_engine::handover::Source::resolving`].
pub fn run(args: &Args, client: &Client, shared: &Arc<Shared>) -> anyhow::Result<u8> {
    let name = client.name();
    let status = client.status()?;
    let (State::HandedOver(id), Some(handover)) = (status.ownership, status.handover) else {
        anyhow::bail!("{name} is not handed-over: there is nothing to resolve");
    };
    let (taken_by, known_at) = (handover.taken_by, Instant::now());
    let destination = args.commit.as_ref().unwrap_or(&args.destination);
    let ask = || {
        let about = About::committed(taken_by, handover.age.saturating_add(known_at.elapsed()));
        Question::start(args, id, &about).map_err(Stop::from)?.answer_or_cancel(shared)
    };
    // How the guest left makes no difference any more.
    let mut source = Source::resolving(Form::BothWays);
    let mut refusal = None;
    let mut why: Option<anyhow::Error> = None;
    let ending = loop {
        let step = source.step();
        let done = match step {
            SourceStep::Resolve => until_known(destination, taken_by, args.resolve_for, ask),
            SourceStep::Confirm => confirm(client, id, args).map_err(Stop::from),
            SourceStep::TakeBack => client.own(Input::TakeBack(id)).map_err(Stop::from),
            SourceStep::Finished(ending) => break ending,
            other => unreachable!("{other:?} is no step of a question"),
        };
        source.advance(done.as_ref().err().map_or(Outcome::Done, Stop::outcome));
        match done {
            Err(Stop::Refused(reason)) => refusal = Some(reason),
            Err(Stop::Failed(error) | Stop::Undone(error)) => why = Some(error),
            Ok(()) | Err(Stop::Cancelled | Stop::GaveUp { .. }) => {}
        }
    };
    match ending {
        SourceEnding::Moved => {
            output::say(format!("{NAME}: {name} runs at its destination"));
            if let Some(error) = why {
                migpipe_cli::complain(
                    NAME,
                    &error.context(format!("{name} is still here, handed-over")),
                );
            }
        }
        SourceEnding::Unknown => {
            if args.force {
                match client.own(Input::TakeBack(id)) {
                    Ok(()) => {
                        output::say(format!("{NAME}: {name} runs here, by force"));
                        return Ok(SourceEnding::Stayed.exit_status());
                    }
                    Err(error) => why = Some(error.into()),
                }
            }
            match why {
                Some(error) => {
                    migpipe_cli::complain(
                        NAME,
                        &error.context(format!("{name} stays handed-over")),
                    );
                }
                None => output::say(format!("{NAME}: cancelled; {name} stays handed-over")),
            }
        }
        SourceEnding::Stayed | SourceEnding::Cancelled => {
            let reason = refusal.unwrap_or_default();
            output::say(format!("{NAME}: the destination refused {name} ({reason}); it runs here"));
        }
    }
    Ok(ending.exit_status())
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

/// Whether what became of a migration can be found out.
pub fn can_be_asked(args: &Args) -> bool {
    can_be_opened_again(args.commit.as_ref().unwrap_or(&args.destination))
}

fn can_be_opened_again(destination: &Endpoint) -> bool {
    !matches!(destination, Endpoint::Standard | Endpoint::Fd(_) | Endpoint::File(_))
}

/// Asks again and again, for `limit` at most. A refusal of the destination is a [`Stop::Refused`].
pub fn until_known(
    destination: &Endpoint,
    taken_by: Option<Acknowledged>,
    limit: Duration,
    mut ask: impl FnMut() -> Result<Asked, Stop>,
) -> Result<(), Stop> {
    again(destination, limit, || ask().and_then(|asked| verdict(taken_by, asked)))
}

/// Says that a guest was released again and again, for `limit` at most, until the destination does
/// not wait for it any more.
pub fn until_forgotten(
    destination: &Endpoint,
    limit: Duration,
    mut ask: impl FnMut() -> Result<Asked, Stop>,
) -> Result<(), Stop> {
    again(destination, limit, || match ask()? {
        Asked::Known(mig_stream::DestinationOutcome::Refused) => Ok(()),
        Asked::Known(other) => Err(Stop::Failed(Unknowable(format!("{other:?}")).into())),
        Asked::Failed(why) => Err(anyhow!("{why}").into()),
        Asked::Cancelled => Err(Stop::Cancelled),
    })
}

fn again(
    destination: &Endpoint,
    limit: Duration,
    mut ask: impl FnMut() -> Result<(), Stop>,
) -> Result<(), Stop> {
    if limit.is_zero() {
        return Err(anyhow!("it was not asked: --resolve-for is 0").into());
    }
    if !can_be_opened_again(destination) {
        return Err(anyhow!(
            "{destination} can be opened only once: the destination must be asked another way"
        )
        .into());
    }
    let started = Instant::now();
    loop {
        match ask() {
            // Asking again does not change what the destination cannot know.
            Err(Stop::Failed(error)) if error.is::<Unknowable>() => return Err(error.into()),
            Err(Stop::Failed(error)) if started.elapsed() >= limit => return Err(error.into()),
            Err(Stop::Failed(error)) => {
                tracing::info!("{}", migpipe_cli::one_line(&error));
                std::thread::sleep(PAUSE);
            }
            known => return known,
        }
    }
}

/// What an answer means for the source: it is gone there, or refused there.
pub fn verdict(taken_by: Option<Acknowledged>, asked: Asked) -> Result<(), Stop> {
    match asked {
        Asked::Known(mig_stream::DestinationOutcome::Running) => Ok(()),
        Asked::Known(mig_stream::DestinationOutcome::Refused) => {
            Err(Stop::Refused("for ever".into()))
        }
        Asked::Known(mig_stream::DestinationOutcome::Prepared) => {
            Err(anyhow!("the destination has the guest, paused").into())
        }
        Asked::Known(mig_stream::DestinationOutcome::MayHaveRun { why }) => {
            Err(Stop::Failed(Unknowable(why).into()))
        }
        // The next attempt may lead to the right one.
        Asked::Known(mig_stream::DestinationOutcome::OtherHost { host }) => {
            Err(other_host(taken_by, host).into())
        }
        Asked::Failed(why) => Err(anyhow!("{why}").into()),
        Asked::Cancelled => Err(Stop::Cancelled),
    }
}

fn other_host(taken_by: Option<Acknowledged>, asked: HostId) -> anyhow::Error {
    match taken_by {
        Some(by) => OtherHost { asked, acknowledged: by.host }.into(),
        None => anyhow!("host {asked} answered for another one"),
    }
}

/// Another host has answered than the one that took the guest.
#[derive(Debug)]
struct OtherHost {
    asked: HostId,
    acknowledged: HostId,
}

impl std::fmt::Display for OtherHost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "host {} has answered, and the guest was acknowledged by host {}: DEST leads elsewhere \
             now, or that host has lost its state directory; look for the guest there",
            self.asked, self.acknowledged
        )
    }
}

impl std::error::Error for OtherHost {}

/// Whether the operator has to know this of a question, whatever it was that made it necessary.
pub fn says_more(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.is::<OtherHost>() || cause.is::<Unknowable>())
}

/// The destination may have run the guest, and nobody is left there who knows.
#[derive(Debug)]
struct Unknowable(String);

impl std::fmt::Display for Unknowable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "the guest may have run at the destination ({}): look there; only --force runs it here",
            self.0
        )
    }
}

impl std::error::Error for Unknowable {}
