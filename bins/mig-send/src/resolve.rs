//! What became of a guest that was handed over and not heard of again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use mig_channel::Endpoint;
use mig_engine::handover::{Query, ResolveIo, Resolver, SourceEnding, run_resolver};
use mig_engine::ownership::{Input, State};
use mig_stream::DestinationOutcome;
use migpipe_cli::output;
use migpipe_units::{Acknowledged, HostId, MigrationId};
use vm_control::{Client, ClientError};

use crate::NAME;
use crate::args::Args;
use crate::error::StepError;
use crate::monitor::Shared;
use crate::question::{About, Asked, Question};
use crate::report;

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

/// `mig-send --resolve`. What each answer leads to is decided by [`Resolver`].
pub fn run(args: &Args, client: &Client, shared: &Arc<Shared>) -> anyhow::Result<u8> {
    let name = client.name();
    let status = client.status()?;
    let (State::HandedOver(id), Some(handover)) = (status.ownership, status.handover) else {
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
    match (ending, why) {
        (SourceEnding::Moved, why) => {
            output::say(format!("{NAME}: {name} runs at its destination"));
            if let Some(StepError::Failed(error)) = why {
                migpipe_cli::complain(
                    NAME,
                    &error.context(format!("{name} is still here, handed-over")),
                );
            }
        }
        (SourceEnding::Forced, _) => {
            output::say(format!("{NAME}: {name} runs here, by force"));
        }
        (SourceEnding::Unknown, None | Some(StepError::Cancelled)) => {
            output::say(format!("{NAME}: cancelled; {name} stays handed-over"));
        }
        (SourceEnding::Unknown, Some(why)) => {
            migpipe_cli::complain(NAME, &anyhow!("{name} stays handed-over: {}", why.reason()));
        }
        (SourceEnding::Stayed | SourceEnding::Cancelled, why) => {
            let reason = match why {
                Some(StepError::Refused(reason)) => reason,
                _ => String::new(),
            };
            output::say(format!("{NAME}: the destination refused {name} ({reason}); it runs here"));
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
        let about = About::new(query, self.age.saturating_add(self.known_at.elapsed()));
        let question = Question::start(self.args, self.id, &about)?;
        let answered = question.answer_or_cancel(self.shared);
        answered.and_then(|asked| verdict(query, asked)).inspect_err(|error| {
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

/// Whether what became of a migration can be found out.
pub fn can_be_asked(args: &Args) -> bool {
    can_be_opened_again(args.commit.as_ref().unwrap_or(&args.destination))
}

fn can_be_opened_again(destination: &Endpoint) -> bool {
    !matches!(destination, Endpoint::Standard | Endpoint::Fd(_) | Endpoint::File(_))
}

/// The attempts at one answer of a destination.
pub struct Attempts<'a> {
    destination: &'a Endpoint,
    limit: Duration,
    began: Option<Instant>,
}

impl<'a> Attempts<'a> {
    /// As the command line says: whom, and for how long.
    pub fn new(args: &'a Args) -> Self {
        let destination = args.commit.as_ref().unwrap_or(&args.destination);
        Self { destination, limit: args.resolve_for, began: None }
    }

    /// Before each attempt: whether there can be one.
    pub fn begin(&mut self) -> Result<(), StepError> {
        self.began.get_or_insert_with(Instant::now);
        if self.limit.is_zero() {
            return Err(StepError::CannotAsk(anyhow!("it was not asked: --resolve-for is 0")));
        }
        if !can_be_opened_again(self.destination) {
            return Err(StepError::CannotAsk(anyhow!(
                "{} can be opened only once: the destination must be asked another way",
                self.destination
            )));
        }
        Ok(())
    }

    /// Waits for the next one; false if there is no time left.
    pub fn await_next(&self) -> bool {
        let goes_on = self.began.is_none_or(|began| began.elapsed() < self.limit);
        if goes_on {
            std::thread::sleep(PAUSE);
        }
        goes_on
    }
}

/// What came of a query, in words where it is not what was hoped for.
pub fn verdict(query: Query, asked: Asked) -> Result<(), StepError> {
    let answer = match asked {
        Asked::Known(answer) => answer,
        Asked::Failed(why) => return Err(anyhow!("{why}").into()),
        Asked::Cancelled => return Err(StepError::Cancelled),
    };
    query.verdict(&answer).map_err(|kind| {
        let error = match (query, answer) {
            (Query::Committed(_), DestinationOutcome::Refused) => {
                return StepError::Refused("for ever".into());
            }
            (Query::Committed(_), DestinationOutcome::Prepared) => {
                anyhow!("the destination has the guest, paused")
            }
            (Query::Committed(taken_by), DestinationOutcome::OtherHost { host }) => {
                other_host(taken_by, host)
            }
            (_, DestinationOutcome::MayHaveRun { why }) => may_have_run(&why),
            (_, other) => may_have_run(&format!("{other:?}")),
        };
        StepError::of_answer(kind, error)
    })
}

fn may_have_run(why: &str) -> anyhow::Error {
    anyhow!(
        "the guest may have run at the destination ({why}): look there; only --force runs it here"
    )
}

fn other_host(taken_by: Option<Acknowledged>, asked: HostId) -> anyhow::Error {
    match taken_by {
        Some(by) => anyhow!(
            "host {asked} has answered, and the guest was acknowledged by host {}: DEST leads \
             elsewhere now, or that host has lost its state directory; look for the guest there",
            by.host
        ),
        None => anyhow!("host {asked} answered for another one"),
    }
}
