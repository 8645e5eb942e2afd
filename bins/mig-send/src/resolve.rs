//! What became of a guest that was handed over and not heard of again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use mig_channel::Endpoint;
use mig_engine::ownership::{Input, State};
use mig_stream::Outcome;
use vm_control::Client;

use crate::NAME;
use crate::args::Args;
use crate::monitor::Shared;
use crate::question::{Asked, Question};
use crate::stop::Stop;

/// How long to wait between two attempts.
const PAUSE: Duration = Duration::from_millis(500);

/// Exit statuses, as in the table of `--help`.
const RUNS_THERE: u8 = 0;
const RUNS_HERE: u8 = 1;
const UNKNOWN: u8 = 4;

/// `mig-send --resolve`.
pub fn run(args: &Args, client: &Client, shared: &Arc<Shared>) -> anyhow::Result<u8> {
    let name = client.name();
    let State::HandedOver(id) = client.status()?.ownership else {
        anyhow::bail!("{name} is not handed-over: there is nothing to resolve");
    };
    let destination = args.commit.as_ref().unwrap_or(&args.destination);
    let ask = || Question::start(args, id).map_err(Stop::from)?.answer_or_cancel(shared);
    match until_known(destination, args.resolve_for, ask) {
        Ok(()) => {
            client.own(Input::Confirm(id))?;
            eprintln!("{NAME}: {name} runs at its destination");
            Ok(RUNS_THERE)
        }
        Err(Stop::Refused(why)) => {
            client.own(Input::TakeBack(id))?;
            eprintln!("{NAME}: the destination refused {name} ({why}); it runs here");
            Ok(RUNS_HERE)
        }
        Err(_) if args.force => {
            client.own(Input::TakeBack(id))?;
            eprintln!("{NAME}: {name} runs here, by force");
            Ok(RUNS_HERE)
        }
        Err(Stop::Failed(error)) => {
            cli::complain(NAME, &error.context(format!("{name} stays handed-over")));
            Ok(UNKNOWN)
        }
        Err(Stop::Cancelled | Stop::GaveUp { .. }) => Ok(UNKNOWN),
    }
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
    limit: Duration,
    mut ask: impl FnMut() -> Result<Asked, Stop>,
) -> Result<(), Stop> {
    if limit.is_zero() {
        return Err(anyhow!("it was not asked: --resolve-for is 0").into());
    }
    if !can_be_opened_again(destination) {
        return Err(anyhow!(
            "{destination} can be opened only once: ask with mig-send --resolve GUEST \
             exec:'ssh HOST mig-recv'"
        )
        .into());
    }
    let started = Instant::now();
    loop {
        match ask().and_then(verdict) {
            // Asking again does not change what the destination cannot know.
            Err(Stop::Failed(error)) if error.is::<Unknowable>() => return Err(error.into()),
            Err(Stop::Failed(error)) if started.elapsed() >= limit => return Err(error.into()),
            Err(Stop::Failed(error)) => {
                tracing::info!("{}", cli::one_line(&error));
                std::thread::sleep(PAUSE);
            }
            known => return known,
        }
    }
}

/// What an answer means for the source: it is gone there, or refused there.
pub fn verdict(asked: Asked) -> Result<(), Stop> {
    match asked {
        Asked::Known(Outcome::Running) => Ok(()),
        Asked::Known(Outcome::Refused) => Err(Stop::Refused("for ever".into())),
        Asked::Known(Outcome::Prepared) => {
            Err(anyhow!("the destination has the guest, paused").into())
        }
        Asked::Known(Outcome::MayHaveRun { why }) => Err(Stop::Failed(Unknowable(why).into())),
        Asked::Failed(why) => Err(anyhow!("{why}").into()),
    }
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
