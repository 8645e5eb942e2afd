//! What became of a guest that was handed over and not heard of again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use mig_channel::{Endpoint, open_sender};
use mig_engine::ownership::{Input, State};
use mig_stream::{Header, Outcome, Preamble, StreamWriter};
use units::MigrationId;
use vm_control::Client;

use crate::NAME;
use crate::answers::Answers;
use crate::args::Args;
use crate::monitor::Shared;
use crate::stop::Stop;

/// How long one attempt may take: an ssh connection over a bad network takes seconds.
const ATTEMPT: Duration = Duration::from_secs(15);

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
    match until_known(destination, id, args.resolve_for, shared) {
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

/// Asks again and again, for `limit` at most. A refusal of the destination is a [`Stop::Refused`].
pub fn until_known(
    destination: &Endpoint,
    id: MigrationId,
    limit: Duration,
    shared: &Arc<Shared>,
) -> Result<(), Stop> {
    if limit.is_zero() {
        return Err(anyhow!("it was not asked: --resolve-for is 0").into());
    }
    if matches!(destination, Endpoint::Standard | Endpoint::Fd(_) | Endpoint::File(_)) {
        return Err(anyhow!(
            "{destination} can be opened only once: ask with mig-send --resolve GUEST \
             exec:'ssh HOST mig-recv'"
        )
        .into());
    }
    let started = Instant::now();
    loop {
        match ask(destination, id, shared) {
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

/// Asks once. The question is GO as well: only a source that has committed asks.
fn ask(destination: &Endpoint, id: MigrationId, shared: &Arc<Shared>) -> Result<(), Stop> {
    let channel =
        open_sender(destination, None, false, &shared.interrupt).map_err(anyhow::Error::from)?;
    let mut tunnel = channel.tunnel;
    let asked = (|| {
        let mut forward = channel.forward;
        forward.set_deadline(Some(ATTEMPT));
        let header = Header { guest: "resolve".into(), ..Header::default() };
        let mut question = StreamWriter::new(forward, Preamble::resolve(id), header)?;
        // The end of the question flushes filters that hold data back.
        question.get_mut().close()?;
        let back = channel.back.ok_or_else(|| anyhow!("{destination} has no way back"))?;
        Answers::new(back, id).resolved(ATTEMPT)
    })();
    if let (Err(Stop::Failed(error)), Some(tunnel)) = (&asked, &mut tunnel)
        && !error.is::<Unknowable>()
        && let Err(ended @ mig_channel::TunnelError::Ended { .. }) =
            tunnel.wait_for_success(Duration::from_millis(500))
    {
        return Err(anyhow::Error::from(ended).into());
    }
    asked
}

impl Answers {
    /// The answer to a question.
    pub fn resolved(&mut self, timeout: Duration) -> Result<(), Stop> {
        match self.outcome(timeout)? {
            Outcome::Running => Ok(()),
            Outcome::Refused => Err(Stop::Refused("for ever".into())),
            Outcome::Prepared => Err(anyhow!("the destination has the guest, paused").into()),
            Outcome::MayHaveRun { why } => Err(Stop::Failed(Unknowable(why).into())),
        }
    }
}
