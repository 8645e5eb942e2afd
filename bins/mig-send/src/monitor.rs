//! What goes on beside the migration: progress for whoever watches, orders from whoever steers,
//! and signals.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use mig_channel::{Interrupt, Job};
use mig_engine::report::{Phase, Progress, ProgressEvent, Report};
use migpipe_cli::{JsonLines, LiveLine, Ticker, now, output};
use migpipe_units::BytesPerSec;
use nix::sys::signal::{SigSet, Signal};
use tracing::debug;
use vm_control::{Client, ClientError, Order, Refusal};

use crate::args::Args;
use crate::confinement::SIGNALS;

/// How often orders are taken and progress is shown: an order takes effect within a tenth of a
/// second.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// Neither cancelled nor committed yet.
const UNDECIDED: u8 = 0;
const CANCELLED: u8 = 1;
const COMMITTED: u8 = 2;

/// What the migration and its monitor share.
#[derive(Debug)]
pub struct Shared {
    state: Mutex<State>,
    /// Wakes a migration that waits for its bandwidth.
    changed: Condvar,
    /// Ends a read or write that waits.
    pub interrupt: Interrupt,
    /// One of [`UNDECIDED`], [`CANCELLED`] and [`COMMITTED`]: whichever comes first.
    decision: AtomicU8,
    /// A signal has asked for the end, whether or not it came in time for that.
    signalled: AtomicBool,
    /// The tunnel, as the terminal's.
    job: OnceLock<Job>,
}

#[derive(Debug, Default)]
struct State {
    progress: Progress,
    speed: Option<Option<BytesPerSec>>,
    downtime: Option<Duration>,
    given_up: Option<Refusal>,
}

impl Shared {
    pub fn new() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            state: Mutex::default(),
            changed: Condvar::new(),
            interrupt: Interrupt::new()?,
            decision: AtomicU8::new(UNDECIDED),
            signalled: AtomicBool::new(false),
            job: OnceLock::new(),
        }))
    }

    /// Whose terminal it is depends on this tunnel from now on.
    pub fn set_job(&self, job: &Job) {
        let _ = self.job.set(job.clone());
    }

    /// Whether the terminal is the tunnel's at the moment, or the tunnel is stopped for it.
    fn terminal_is_lent(&self) -> bool {
        self.job.get().is_some_and(|job| job.has_terminal() || job.is_stopped())
    }

    /// How often this program was stopped with its tunnel.
    pub fn stops(&self) -> u32 {
        self.job.get().map_or(0, Job::stops)
    }

    /// Whether a signal has asked for the end, or does so within `limit`.
    pub fn is_signalled_within(&self, limit: Duration) -> bool {
        let is_quiet = |_: &mut State| !self.signalled.load(Ordering::SeqCst);
        let _ = self.changed.wait_timeout_while(self.lock(), limit, is_quiet);
        self.signalled.load(Ordering::SeqCst)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows where the migration is.
    pub fn progress(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut self.lock().progress);
    }

    /// Where the migration is.
    pub fn current_progress(&self) -> Progress {
        self.lock().progress
    }

    /// The bandwidth limit, if it was changed since the last call.
    pub fn take_speed(&self) -> Option<Option<BytesPerSec>> {
        self.lock().speed.take()
    }

    /// The promised downtime, if it was changed since the last call.
    pub fn take_downtime(&self) -> Option<Duration> {
        self.lock().downtime.take()
    }

    /// Waits, but no longer than until an order comes.
    pub fn sleep(&self, time: Duration) {
        let state = self.lock();
        let quiet = |state: &mut State| state.speed.is_none() && !self.is_cancelled();
        let _ = self.changed.wait_timeout_while(state, time, quiet);
    }

    /// Whether the operator wants the migration to end, and it still can.
    pub fn is_cancelled(&self) -> bool {
        self.decision.load(Ordering::SeqCst) == CANCELLED
    }

    /// Cancels, unless it is too late.
    pub fn cancel(&self) {
        if self.decide(CANCELLED) {
            self.interrupt.trigger();
            self.changed.notify_all();
        }
    }

    /// As [`Self::cancel`], and not at the operator's order: vmrun took its guest back.
    fn give_up(&self, why: Refusal) {
        self.lock().given_up = Some(why);
        self.cancel();
    }

    /// Why the guest was taken back, if it was.
    pub fn given_up(&self) -> Option<Refusal> {
        self.lock().given_up.clone()
    }

    /// From here on the migration cannot be cancelled. False if it was cancelled before.
    pub fn commit(&self) -> bool {
        self.decide(COMMITTED)
    }

    fn decide(&self, to: u8) -> bool {
        let order = Ordering::SeqCst;
        self.decision.compare_exchange(UNDECIDED, to, order, order).is_ok()
    }

    /// Teardown after a cancel must not be interrupted by it.
    pub fn disarm(&self) {
        self.decide(COMMITTED);
        self.interrupt.reset();
    }

    fn take(&self, order: Order) {
        match order {
            Order::Cancel => self.cancel(),
            Order::SetSpeed(speed) => self.lock().speed = Some(speed),
            Order::SetDowntime(downtime) => self.lock().downtime = Some(downtime),
        }
        self.changed.notify_all();
    }
}

/// Blocks the signals that mean something here in this thread and in all that it starts.
pub fn block_signals() -> nix::Result<SigSet> {
    let mut signals = SigSet::empty();
    // SIGINT also where it was ignored: a script's shell does that to all that it starts with '&', and
    // who sends it there means it. SIGHUP is what nohup(1) is for.
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGUSR1] {
        signals.add(signal);
    }
    if !migpipe_cli::is_ignored(Signal::SIGHUP) {
        signals.add(Signal::SIGHUP);
    }
    signals.thread_block()?;
    Ok(signals)
}

/// Cancels on SIGINT, SIGTERM and SIGHUP, prints a line of progress on SIGUSR1.
pub fn watch_signals(signals: SigSet, shared: &Arc<Shared>) {
    let shared = Arc::clone(shared);
    thread::spawn(move || {
        migpipe_confine::thread(&SIGNALS);
        while let Ok(signal) = signals.wait() {
            if signal == Signal::SIGUSR1 {
                let line = shared.lock().progress.line();
                output::say(format!("mig-send: {line}"));
            } else {
                shared.signalled.store(true, Ordering::SeqCst);
                shared.cancel();
                // With the lock, so that nobody is between looking and waiting.
                let _state = shared.lock();
                shared.changed.notify_all();
            }
        }
    });
}

/// What the monitor needs: opened while that is still possible.
pub struct Watch {
    /// A connection of its own, so that nobody waits for the other.
    client: Client,
    line: LiveLine,
    events: JsonLines,
    /// What it is of, as far as that is known.
    report: Report,
}

impl Watch {
    pub fn new(client: Client, args: &Args, events: JsonLines, report: Report) -> Self {
        let line = LiveLine::new(args.reporting.wants_live_line());
        Self { client, line, events, report }
    }

    /// Whoever reads it holds nothing up: not the orders, not the migration.
    fn show(&mut self, progress: Progress, shared: &Shared) {
        self.events.push(|| ProgressEvent::new(&self.report, progress, now()));
        // While the channel is being set up a tunnel may ask its questions on the terminal, and may
        // have asked one before it is known that it wants to.
        if progress.phase != Phase::Connect && !shared.terminal_is_lent() {
            self.line.show(|width| progress.line_within(width));
        }
    }

    fn take_orders(&self, progress: &Progress, shared: &Shared) {
        let Ok(text) = serde_json::to_string(progress) else { return };
        match self.client.post_progress(self.report.migration, text) {
            Ok(orders) => orders.into_iter().for_each(|order| shared.take(order)),
            // vmrun has carried it out already.
            Err(ClientError::Refused(Refusal::Cancelled)) => shared.cancel(),
            Err(ClientError::Refused(why @ Refusal::GivenUp { .. })) => shared.give_up(why),
            // Before the migration has begun vmrun knows of none.
            Err(error) => debug!("no orders: {error}"),
        }
    }
}

/// Starts to show progress and to take orders.
pub fn start(mut watch: Watch, shared: &Arc<Shared>) -> Ticker {
    let shared = Arc::clone(shared);
    Ticker::start(PROGRESS_INTERVAL, move || {
        let progress = shared.current_progress();
        watch.show(progress, &shared);
        watch.take_orders(&progress, &shared);
    })
}
