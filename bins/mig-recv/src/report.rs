//! What is told of a migration while it comes and at its end: progress, and the report.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mig_channel::{ChannelReader, Endpoint};
use mig_engine::precopy::RateMeter;
use mig_engine::report::{
    ArrivalReport, ArrivedRound, Location, Mode, Phase, Progress, ProgressEvent, ReportOutcome,
};
use mig_stream::{Record, StreamReader};
use migpipe_cli::{JsonLines, LiveLine, Milestone, Milestones, ReportFile, Ticker, cpu_time, now};
use migpipe_units::{Bytes, Pages};
use tracing::debug;

use crate::NAME;
use crate::args::Args;

/// How often progress is shown.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// So many rounds are kept for the report, however many the stream has.
const MOST_ROUNDS: usize = 10_000;

/// What is known of a migration that comes.
#[derive(Debug, Default)]
pub struct Arrival {
    state: Mutex<State>,
    milestones: Milestones,
}

#[derive(Debug)]
struct State {
    report: ArrivalReport,
    progress: Progress,
}

impl Default for State {
    fn default() -> Self {
        Self { report: ArrivalReport::begun(), progress: Progress::default() }
    }
}

impl Arrival {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds to the report.
    pub fn report(&self, change: impl FnOnce(&mut ArrivalReport)) {
        change(&mut self.lock().report);
    }

    /// What it is doing now.
    pub fn enter(&self, phase: Phase) {
        self.lock().progress.phase = phase;
    }

    /// Tells whoever waits for it.
    pub fn reached(&self, milestone: Milestone) {
        if let Some(id) = self.lock().report.migration {
            self.milestones.reached(milestone, id);
        }
    }

    /// A record was read, with which the stream is so many bytes long.
    pub fn take(&self, record: &Record, bytes: Bytes) {
        let mut state = self.lock();
        let State { report, progress } = &mut *state;
        match record {
            Record::Extents(extents) => {
                let pages = extents.iter().map(|run| run.count.0);
                progress.dirty.0 = pages.fold(progress.dirty.0, u64::saturating_add);
            }
            Record::Pages(range) | Record::Fill { range, .. } => {
                progress.dirty = Pages(progress.dirty.0.saturating_sub(range.count.0));
            }
            Record::Round(round) => {
                if report.rounds.len() < MOST_ROUNDS {
                    report.rounds.push(ArrivedRound {
                        number: round.number,
                        pages: round.pages,
                        fills: round.filled,
                        bytes: round.bytes,
                        dirty: round.dirty_next,
                        duration: round.duration,
                    });
                }
                progress.round = round.number.saturating_add(1);
                progress.dirty = round.dirty_next;
            }
            Record::Blackout => progress.phase = Phase::Blackout,
            Record::End(_) => progress.phase = Phase::Handover,
            Record::Section(_) | Record::Digest(_) | Record::Go { .. } | Record::Abort { .. } => {}
        }
        progress.sent = bytes;
        progress.total = Bytes(bytes.0.saturating_add(progress.dirty.bytes().0));
    }

    fn event(&self) -> ProgressEvent {
        let state = self.lock();
        ProgressEvent::new(&state.report, state.progress, now())
    }
}

/// Progress is shown until this is dropped.
#[derive(Debug, Default)]
pub struct Watch {
    /// What is shown, and reported at the end.
    pub arrival: Arc<Arrival>,
    _ticker: Option<Ticker>,
}

/// Who is told of the migration.
#[derive(Debug)]
pub struct Reports {
    file: ReportFile,
    events: JsonLines,
    /// Whether a live line is wanted.
    live: bool,
    is_query: bool,
    began: Instant,
    /// What they are told.
    arrival: Arc<Arrival>,
}

impl Reports {
    /// Opens what the command line names. Before the stream is read: later nothing can be opened any
    /// more.
    pub fn open(args: &Args, source: &Endpoint) -> anyhow::Result<Self> {
        let reporting = &args.reporting;
        let reports = Self {
            file: ReportFile::open(reporting.report.as_deref())?,
            events: reporting.progress_lines(),
            // Who writes to stdin may draw on this terminal too.
            live: reporting.wants_live_line() && *source != Endpoint::Standard,
            is_query: false,
            began: Instant::now(),
            arrival: Arc::new(Arrival { milestones: reporting.milestones(), ..Arrival::default() }),
        };
        reports.file.begin(&reports.arrival.lock().report)?;
        Ok(reports)
    }

    /// The header is here: progress is shown from now on.
    pub fn begin(&mut self, args: &Args, stream: &StreamReader<ChannelReader>) -> Watch {
        self.began = Instant::now();
        let (preamble, guest) = (stream.preamble(), &stream.header().guest);
        self.arrival.report(|report| {
            report.guest = Some(args.name.as_ref().unwrap_or(guest).clone());
            report.migration = Some(preamble.id);
            report.mode = Some(match preamble.flags.return_path {
                true => Mode::BothWays,
                false => Mode::OneWay,
            });
            report.format_version = Some(preamble.written.0);
        });
        let (arrival, events, began) = (Arc::clone(&self.arrival), self.events.clone(), self.began);
        let mut line = LiveLine::new(self.live);
        let (mut meter, mut before) = (RateMeter::default(), Bytes(0));
        meter.start(Duration::ZERO);
        let ticker = Ticker::start(PROGRESS_INTERVAL, move || {
            let progress = {
                let (mut state, elapsed) = (arrival.lock(), began.elapsed());
                let progress = &mut state.progress;
                meter.add(Bytes(progress.sent.0 - before.0), elapsed);
                before = progress.sent;
                progress.rate = meter.rate(elapsed).unwrap_or_default();
                let rate = progress.rate;
                progress.eta = (rate.0 > 0).then(|| rate.time_for(progress.dirty.bytes()));
                *progress
            };
            events.push(|| arrival.event());
            if progress.phase != Phase::Connect {
                line.show(|width| progress.line_within(width));
            }
        });
        Watch { arrival: Arc::clone(&self.arrival), _ticker: Some(ticker) }
    }

    /// The stream has brought a query and no guest.
    pub fn no_guest_comes(&mut self) {
        self.is_query = true;
        let reason = "no guest came: a source has asked what became of a migration";
        let mut state = self.arrival.lock();
        state.report.outcome = ReportOutcome::Failed;
        state.report.reason = Some(reason.to_owned());
        // Whoever has asked may end the tunnel with the answer, and this process with it.
        if let Err(error) = self.file.begin(&state.report) {
            migpipe_cli::complain(NAME, &error.into());
        }
    }

    /// Tells everybody how it ended, which `status` is for the user.
    pub fn end(&self, status: &anyhow::Result<u8>) {
        let (report, progress) = {
            let mut state = self.arrival.lock();
            let report = &mut state.report;
            match status {
                Ok(_) if self.is_query => report.outcome = ReportOutcome::Failed,
                Ok(0) => {
                    report.outcome = ReportOutcome::Completed;
                    report.location = Some(Location::Destination);
                    report.reason = None;
                }
                Ok(_) => report.outcome = ReportOutcome::Unknown,
                // Whether it runs at the source is for that to say.
                Err(error) => {
                    report.outcome = ReportOutcome::Failed;
                    report.reason = Some(migpipe_cli::one_line(error));
                }
            }
            report.totals.duration = self.began.elapsed();
            report.totals.cpu = cpu_time();
            (report.clone(), state.progress)
        };
        // Before anybody is told that it ended, who may look at it then.
        if let Err(error) = self.file.write(&report) {
            // The status says what became of the guest, and that alone.
            migpipe_cli::complain(NAME, &error.into());
        }
        self.events.push(|| ProgressEvent::last(&report, progress, now()));
        if self.events.lost() > 0 {
            debug!("{} lines of progress were not read in time", self.events.lost());
        }
        if report.outcome == ReportOutcome::Completed {
            // Where its vmrun had to be asked for that.
            self.arrival.reached(Milestone::Running);
        }
        if !self.is_query {
            let id = report.migration.map_or("-".to_owned(), |id| id.to_string());
            self.arrival.milestones.ended(report.outcome.word(), id);
        }
    }
}
