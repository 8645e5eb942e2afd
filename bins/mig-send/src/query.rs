//! Asking a destination what became of a migration, in a process of its own.
//!
//! A question needs a new channel: a command is started, a host is connected to. A mig-send that
//! reads answers has given up the right to do either. So each question is asked by a process that
//! opens the channel first, confines itself as mig-send does, and only then reads; it prints one
//! line, [`QueryResult`], for the one that started it. A confined mig-send has it started by a
//! [`broker`], which can be asked for nothing else: what is asked, and where, is on
//! the broker's command line; what the destination has said of itself is in the question.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use mig_channel::{Endpoint, Interrupt, Job, TunnelError, open_sender};
use mig_stream::{DestinationOutcome, Header, StreamWriter};
use migpipe_confine::broker::{self, Broker};
use migpipe_units::MigrationId;
use serde::{Deserialize, Serialize};

use crate::answers::Answers;
use crate::args::Args;
use crate::confinement;
use crate::error::{StepError, names_what_came};
use crate::monitor::{Shared, block_signals};
use crate::query_args::QueryArgs;

/// How long one attempt may take: an ssh connection over a bad network takes seconds.
const ATTEMPT: Duration = Duration::from_secs(15);

/// How long a tunnel that brought no answer may take to end, so that its status is known.
const TUNNEL_STATUS: Duration = Duration::from_millis(500);

/// What a question takes beside its writing and its answer, each of which may take an attempt's
/// time: a process and a tunnel start and end.
const SLACK: Duration = Duration::from_secs(5);

/// How often the end of a question is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// An answer is no longer (bytes).
const LONGEST: u64 = broker::LONGEST / 2;

/// What came of one question.
#[derive(Debug, Serialize, Deserialize)]
pub enum QueryResult {
    /// The destination's answer.
    Known(DestinationOutcome),
    /// There was none, and why.
    Failed(String),
    /// Whoever the tunnel asked at the terminal does not want it.
    Cancelled,
}

/// How long the question may take to be written, and how long to be answered.
fn patience(args: &Args) -> Duration {
    ATTEMPT.min(args.timeout)
}

/// The command line that this process gives on: who asks whom, and how it is confined.
fn this_program(args: &Args, role: &[String]) -> Command {
    let destination = args.commit.as_ref().unwrap_or(&args.destination);
    let mut command = broker::this_program();
    command
        .args(role)
        .arg(format!("--confine={}", args.confinement.confine))
        .arg(format!("--log={}", args.common.log))
        .arg(format!("--timeout={}", args.timeout.as_secs_f64()))
        .args(["--", &args.guest, &destination.to_string()]);
    command
}

/// Who asks for a mig-send that must not start anything any more.
#[derive(Debug)]
pub struct ResolveHelper(Broker);

impl ResolveHelper {
    /// Starts it.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(args: &Args, id: MigrationId) -> anyhow::Result<Self> {
        let mut command = this_program(args, &[format!("--broker={id}")]);
        command.stdout(Stdio::null());
        Ok(Self(Broker::start(command, 2 * patience(args) + SLACK)?))
    }

    /// Whether nobody can be asked any more.
    pub fn has_ended(&mut self) -> bool {
        self.0.has_ended()
    }

    /// Asks; [`Self::result`] has the answer.
    pub fn ask(&mut self, about: &QueryArgs) -> Result<(), StepError> {
        self.0.send(about).map_err(|error| anyhow::Error::from(error).into())
    }

    /// What came of it.
    pub fn result(&mut self) -> Result<QueryResult, StepError> {
        self.0.answer().map_err(|error| anyhow::Error::from(error).into())
    }
}

/// The broker itself.
pub fn serve(args: &Args, id: MigrationId) -> anyhow::Result<u8> {
    // What ps and the kernel's log call it.
    nix::sys::prctl::set_name(c"mig-broker")?;
    // A Ctrl-C is for the mig-send beside it.
    block_signals()?;
    broker::serve(|about: QueryArgs| match QueryProcess::start(args, id, &about) {
        Ok(mut question) => question.result(),
        Err(error) => QueryResult::Failed(migpipe_cli::one_line(&error)),
    })?;
    Ok(0)
}

/// A process that asks.
#[derive(Debug)]
pub struct QueryProcess {
    process: Child,
    answer: BufReader<ChildStdout>,
}

impl QueryProcess {
    /// Starts it.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(args: &Args, id: MigrationId, about: &QueryArgs) -> anyhow::Result<Self> {
        let about = serde_json::to_string(about)?;
        let mut command = this_program(args, &[format!("--ask={id}"), format!("--about={about}")]);
        let mut process = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let answer = process.stdout.take().ok_or_else(|| anyhow!("no way back from it"))?;
        Ok(Self { process, answer: BufReader::new(answer) })
    }

    /// Waits for what came of it.
    pub fn result(&mut self) -> QueryResult {
        let mut line = String::new();
        let read = (&mut self.answer).take(LONGEST).read_line(&mut line);
        let status = self.process.wait();
        match read.and_then(|_| Ok(serde_json::from_str(&line)?)) {
            Ok(asked) => asked,
            Err(_) => QueryResult::Failed(match status {
                Ok(status) => format!("the process that asks has ended: {status}"),
                Err(error) => format!("the process that asks is lost: {error}"),
            }),
        }
    }

    /// As [`Self::result`], unless the operator gives up.
    pub fn result_or_cancel(mut self, shared: &Shared) -> Result<QueryResult, StepError> {
        while let Ok(None) = self.process.try_wait() {
            if shared.is_cancelled() {
                let _ = self.process.kill();
                let _ = self.process.wait();
                return Err(StepError::Cancelled);
            }
            thread::sleep(LOOK_EVERY);
        }
        Ok(self.result())
    }
}

/// The process that asks: prints what came of it.
pub fn run(args: &Args, id: MigrationId, about: QueryArgs) -> anyhow::Result<u8> {
    // Whoever started it kills it if nobody waits any more.
    block_signals()?;
    let asked = match ask(&args.destination, id, about, patience(args)) {
        Ok(outcome) => QueryResult::Known(outcome),
        Err(StepError::Cancelled) => QueryResult::Cancelled,
        Err(stop) => QueryResult::Failed(stop.reason()),
    };
    let mut line = serde_json::to_vec(&asked)?;
    line.push(b'\n');
    // Nobody may wait for it any more.
    let _ = io::stdout().write_all(&line);
    Ok(0)
}

/// Asks once. The question is GO as well, unless it says that the guest was released: only a source
/// that has committed asks.
fn ask(
    destination: &Endpoint,
    id: MigrationId,
    about: QueryArgs,
    patience: Duration,
) -> Result<DestinationOutcome, StepError> {
    let began = Instant::now();
    let channel = open_sender(destination, None, false, &Interrupt::new()?)?;
    let mut tunnel = channel.tunnel;
    confinement::enter(tunnel.as_ref(), destination)?;
    let job = tunnel.as_ref().map(|tunnel| tunnel.job().clone());
    if let Some(job) = &job {
        job.watch()?;
    }
    let stops = || job.as_ref().map_or(0, Job::stops);
    let mut before = stops();
    let stopped = || std::mem::replace(&mut before, stops()) != stops();
    let asked = (|| {
        let mut forward = channel.forward;
        forward.set_deadline(Some(patience));
        // Opening the channel took its time.
        let age = about.age + began.elapsed();
        let question = mig_stream::Question { to: about.taken_by, age };
        let mut question = StreamWriter::new(forward, about.preamble(id), Header::from(&question))?;
        // The end of the question flushes filters that hold data back.
        question.get_mut().close()?;
        let back = channel.back.ok_or_else(|| anyhow!("{destination} has no way back"))?;
        Answers::new(Some(back), id).outcome(patience, stopped)
    })();
    if let (Err(StepError::Failed(error)), Some(tunnel)) = (&asked, &mut tunnel)
        && !names_what_came(error)
        && let Err(ended) = tunnel.wait_for_success(TUNNEL_STATUS)
        && matches!(ended, TunnelError::Ended { .. } | TunnelError::Cancelled { .. })
    {
        return Err(ended.into());
    }
    asked
}
