//! Asking a destination what became of a migration, in a process of its own.
//!
//! A query needs a new channel: a command is started, a host is connected to. A mig-send that reads
//! answers has given up the right to do either. So each query is made by a process that opens the
//! channel first, confines itself as mig-send does, and only then reads; it prints one line,
//! [`QueryResult`], for the one that started it. A confined mig-send has it started by a [`broker`],
//! the resolve helper, which does nothing else: which migration, and where, is on its command line;
//! what the destination has said of itself is in [`QueryArgs`].

use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use mig_channel::{Endpoint, Interrupt, Job, open_sender};
use mig_engine::handover::{Failure, FailureKind};
use mig_stream::{DestinationOutcome, Header, QueryBody, StreamWriter};
use migpipe_confine::broker::{self, Broker};
use migpipe_units::MigrationId;
use serde::{Deserialize, Serialize};

use crate::answers::Answers;
use crate::args::Args;
use crate::confinement;
use crate::error::StepError;
use crate::monitor::{Shared, block_signals};
use crate::query_args::QueryArgs;
use crate::ssh_args;

/// How long one attempt may take: an ssh connection over a bad network takes seconds.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(15);

/// What a query takes beside its writing and its answer, each of which may take
/// [`ATTEMPT_TIMEOUT`]: a process and a tunnel start and end.
const SETUP_TIMEOUT: Duration = Duration::from_secs(5);

/// How often the end of a query is looked for.
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// A result is no longer (bytes).
const MAX_RESULT: u64 = broker::LONGEST / 2;

/// What came of one query.
#[derive(Debug, Serialize, Deserialize)]
pub enum QueryResult {
    /// The destination's answer.
    Known(DestinationOutcome),
    /// There was none, and why.
    Failed(String),
    /// Whoever the tunnel asked at the terminal does not want it.
    Cancelled,
}

/// How long the query may take to be written, and how long to be answered.
fn timeout_of(args: &Args) -> Duration {
    ATTEMPT_TIMEOUT.min(args.timeout)
}

/// The command line that this process gives on: who asks whom, and how it is confined.
fn this_program(args: &Args, role: &[String]) -> Command {
    let mut command = broker::this_program();
    command
        .args(role)
        .arg(format!("--confine={}", args.confinement.confine))
        .arg(format!("--log={}", args.common.log))
        .arg(format!("--timeout={}", args.timeout.as_secs_f64()))
        .arg(&args.guest)
        .args(ssh_args::arguments(args.asked()));
    command
}

/// Makes queries for a mig-send that must not start anything any more.
#[derive(Debug)]
pub struct ResolveHelper(Broker);

impl ResolveHelper {
    /// What starts it: this program.
    pub fn command(args: &Args, id: MigrationId) -> Command {
        this_program(args, &[format!("--broker={id}")])
    }

    /// Starts it.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(mut command: Command, args: &Args) -> Result<Self, StepError> {
        command.stdout(Stdio::null());
        let started = Broker::start(command, 2 * timeout_of(args) + SETUP_TIMEOUT);
        Ok(Self(started.map_err(StepError::other)?))
    }

    /// Whether it can make none any more.
    pub fn has_ended(&mut self) -> bool {
        self.0.has_ended()
    }

    /// Makes a query; [`Self::result`] has what comes of it.
    pub fn query(&mut self, about: &QueryArgs) -> Result<(), StepError> {
        self.0.send(about).map_err(StepError::other)
    }

    /// What came of it.
    pub fn result(&mut self) -> Result<QueryResult, StepError> {
        self.0.answer().map_err(StepError::other)
    }
}

/// The resolve helper itself.
pub fn serve(args: &Args, id: MigrationId) -> anyhow::Result<u8> {
    // What ps and the kernel's log call it.
    nix::sys::prctl::set_name(c"mig-broker")?;
    // A Ctrl-C is for the mig-send beside it.
    block_signals()?;
    broker::serve(|about: QueryArgs| match QueryProcess::start(args, id, &about) {
        Ok(mut process) => process.result(),
        Err(error) => QueryResult::Failed(error.reason()),
    })?;
    Ok(0)
}

/// A process that makes one query.
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
    pub fn start(args: &Args, id: MigrationId, about: &QueryArgs) -> Result<Self, StepError> {
        let about = serde_json::to_string(about).map_err(StepError::other)?;
        let mut command = this_program(args, &[format!("--ask={id}"), format!("--about={about}")]);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut process = command.spawn().map_err(StepError::other)?;
        let answer = process.stdout.take().ok_or(StepError::Helper("no way back from it"))?;
        Ok(Self { process, answer: BufReader::new(answer) })
    }

    /// Waits for what came of it.
    pub fn result(&mut self) -> QueryResult {
        let mut line = String::new();
        let read = (&mut self.answer).take(MAX_RESULT).read_line(&mut line);
        let status = self.process.wait();
        match read.and_then(|_| Ok(serde_json::from_str(&line)?)) {
            Ok(result) => result,
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
            thread::sleep(POLL_INTERVAL);
        }
        Ok(self.result())
    }
}

/// The process that makes a query: prints what came of it.
pub fn run(args: &Args, id: MigrationId, about: QueryArgs) -> anyhow::Result<u8> {
    // Whoever started it kills it if nobody waits any more.
    block_signals()?;
    let result = match query(&args.destination, id, about, timeout_of(args)) {
        Ok(outcome) => QueryResult::Known(outcome),
        Err(StepError::Cancelled) => QueryResult::Cancelled,
        Err(error) => QueryResult::Failed(error.reason()),
    };
    let mut line = serde_json::to_vec(&result)?;
    line.push(b'\n');
    // Nobody may wait for it any more.
    let _ = io::stdout().write_all(&line);
    Ok(0)
}

/// Asks once. The query is GO as well, unless it says that the guest was released: only a source that
/// has committed asks.
fn query(
    destination: &Endpoint,
    id: MigrationId,
    about: QueryArgs,
    timeout: Duration,
) -> Result<DestinationOutcome, StepError> {
    let began = Instant::now();
    let channel = open_sender(destination, None, false, &Interrupt::new()?)?;
    let mut tunnel = channel.tunnel;
    confinement::enter(tunnel.as_ref(), destination).map_err(StepError::other)?;
    let job = tunnel.as_ref().map(|tunnel| tunnel.job().clone());
    if let Some(job) = &job {
        job.watch()?;
    }
    let stops = || job.as_ref().map_or(0, Job::stops);
    let mut before = stops();
    let stopped = || std::mem::replace(&mut before, stops()) != stops();
    let answer = (|| {
        let mut forward = channel.forward;
        forward.set_deadline(Some(timeout));
        // Opening the channel took its time.
        let age = about.age + began.elapsed();
        let query = QueryBody { to: about.query.taken_by(), age };
        let mut query = StreamWriter::new(forward, about.preamble(id), Header::from(&query))?;
        // The end of the query flushes filters that hold data back.
        query.get_mut().close()?;
        let back = channel.back;
        let back =
            back.ok_or_else(|| StepError::other(format!("{destination} has no way back")))?;
        Answers::new(Some(back), id).outcome(timeout, stopped)
    })();
    if let (Err(error), Some(tunnel)) = (&answer, &mut tunnel)
        && error.kind() == FailureKind::Failed
        && !error.names_what_came()
        && let Some(ended) = tunnel.failure()
    {
        return Err(ended.into());
    }
    answer
}
