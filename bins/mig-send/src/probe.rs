//! Asking a destination beforehand: would it take this guest, and how fast is the way there? It makes no
//! guest for that, and throws away what is sent.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mig_channel::{ChannelWriter, SenderChannel, Tunnel, open_sender};
use mig_engine::precopy::{HARVESTS, Pacer};
use mig_stream::{Preamble, RoundStats, StreamWriter};
use migpipe_units::{Bytes, BytesPerSec, Finding, MigrationId, PageRange, Pages, RegionId};
use vm_mapping::{GuestMemory, PipePages};
use vm_state::MachineDescription;

use crate::answers::Answers;
use crate::args::Args;
use crate::error::StepError;
use crate::monitor::Shared;
use crate::pages::PageSender;
use crate::{confinement, setup};

/// The first piece that is timed; each further one is as long as shows the rate, up to some times the
/// one before.
const FIRST_PIECE: Bytes = Bytes(128 << 10);
const GROWTH: u64 = 4;

/// A piece that took less says little of the rate.
const TELLING: Duration = Duration::from_millis(100);

/// How long a piece is to take, and the longest sleep for the bandwidth limit.
const PIECE_TIME: Duration = Duration::from_millis(400);
const PACE_INTERVAL: Duration = Duration::from_millis(50);

/// The way there and back is timed so often without any load.
const ROUND_TRIPS: u32 = 5;

/// The blackout is tried with no more than this.
const MOST_OF_BLACKOUT: Bytes = Bytes(64 << 20);

/// A destination that is asked.
pub struct Probe<'a> {
    args: &'a Args,
    shared: Arc<Shared>,
    stream: StreamWriter<ChannelWriter>,
    answers: Answers,
    tunnel: Option<Tunnel>,
    pages: PageSender,
    /// What the destination finds.
    pub findings: Vec<Finding>,
    /// How long it took until that was known.
    pub setup: Duration,
}

/// How the path was.
#[derive(Clone, Copy, Debug)]
pub struct MeasuredPath {
    /// The rate of a stream that obeys the bandwidth limit.
    pub rate: BytesPerSec,
    /// The rate without it.
    pub blackout_rate: BytesPerSec,
    /// There and back, without load.
    pub round_trip: Duration,
}

impl<'a> Probe<'a> {
    /// Opens the channel, as for a migration, and asks.
    pub fn open(
        args: &'a Args,
        machine: &MachineDescription,
        shared: &Arc<Shared>,
    ) -> Result<Self, StepError> {
        let began = Instant::now();
        let channel = open_sender(&args.destination, args.return_path, false, &shared.interrupt)?;
        let SenderChannel { mut forward, back, mut tunnel } = channel;
        forward.set_stall_limit(Some(args.timeout));
        let pipe_pages = PipePages::new();
        confinement::enter(tunnel.as_ref(), &args.destination).map_err(StepError::other)?;
        if let Some(tunnel) = &tunnel {
            tunnel.job().watch()?;
            shared.set_job(tunnel.job());
        }
        let id = MigrationId::random();
        let header = setup::header_of(machine, Vec::new())?;
        let stream = StreamWriter::new(forward, Preamble::probe(id), header).map_err(|error| {
            let ended = tunnel.as_mut().and_then(Tunnel::failure);
            ended.map_or_else(|| error.into(), StepError::from).context("cannot ask")
        })?;
        let mut probe = Self {
            args,
            shared: Arc::clone(shared),
            stream,
            answers: Answers::new(back, id),
            tunnel,
            pages: PageSender::new(machine, pipe_pages),
            findings: Vec::new(),
            setup: Duration::ZERO,
        };
        let findings = probe.ask().map_err(|error| probe.explain(error))?;
        (probe.findings, probe.setup) = (findings, began.elapsed());
        Ok(probe)
    }

    fn ask(&mut self) -> Result<Vec<Finding>, StepError> {
        self.stream.flush()?;
        let (within, shared) = (self.args.ready_timeout, &self.shared);
        let mut stops = shared.stops();
        let stopped = || std::mem::replace(&mut stops, shared.stops()) != shared.stops();
        let findings =
            self.answers.findings(within, stopped).map_err(|error| match error.is_timeout() {
                true => StepError::NoReady { within },
                false => error,
            })?;
        if let Some(tunnel) = &self.tunnel {
            tunnel.release_terminal();
        }
        Ok(findings)
    }

    /// A tunnel that has ended says more than that nothing came.
    fn explain(&mut self, error: StepError) -> StepError {
        if self.shared.is_cancelled() {
            return StepError::Cancelled;
        }
        let said_why = matches!(error, StepError::Refused(_) | StepError::NoReady { .. });
        match self.tunnel.as_mut().filter(|_| !said_why && !error.names_what_came()) {
            Some(tunnel) => tunnel.failure().map_or(error, StepError::from),
            None => error,
        }
    }

    /// Times the path with pages of the guest, round and round: a tunnel that compresses carries others
    /// at another rate. `sample` has those that would go as they are; `blackout` is what a blackout may
    /// send within the promised downtime, at a rate.
    pub fn measure(
        &mut self,
        memory: &GuestMemory,
        sample: &[PageRange],
        max_downtime: Duration,
    ) -> Result<MeasuredPath, StepError> {
        let began = Instant::now();
        let time = HARVESTS.last().copied().unwrap_or_default();
        let measured = self.measure_within(began, time, memory, sample, max_downtime);
        measured.map_err(|error| self.explain(error))
    }

    fn measure_within(
        &mut self,
        began: Instant,
        time: Duration,
        memory: &GuestMemory,
        sample: &[PageRange],
        max_downtime: Duration,
    ) -> Result<MeasuredPath, StepError> {
        let mut round_trip = Duration::MAX;
        for _ in 0..ROUND_TRIPS {
            round_trip = round_trip.min(self.time_mark()?);
        }
        let mut source = sample.iter().copied().cycle();
        let mut pacer = Pacer::new(self.args.bandwidth());
        let (mut piece, mut best, mut telling) = (FIRST_PIECE, BytesPerSec(0), None::<(u64, f64)>);
        while began.elapsed() < time {
            let (bytes, took) = self.piece(memory, &mut source, piece, began, Some(&mut pacer))?;
            let took = took.saturating_sub(round_trip).max(Duration::from_micros(1));
            best = bytes.per(took);
            if took >= TELLING {
                let (sum, seconds) = telling.unwrap_or_default();
                telling = Some((sum + bytes.0, seconds + took.as_secs_f64()));
            }
            let left = time.saturating_sub(began.elapsed()).min(PIECE_TIME);
            let fits = Bytes((best.0 as f64 * left.as_secs_f64()) as u64);
            piece = fits.min(Bytes(bytes.0.saturating_mul(GROWTH))).max(FIRST_PIECE);
        }
        let rate =
            telling.map_or(best, |(sum, seconds)| BytesPerSec((sum as f64 / seconds) as u64));
        let blackout_rate = match self.args.bandwidth() {
            None => rate,
            Some(limit) => {
                let fits = Bytes((limit.0.min(rate.0) as f64 * max_downtime.as_secs_f64()) as u64);
                let fits = fits.clamp(FIRST_PIECE, MOST_OF_BLACKOUT);
                let (bytes, took) = self.piece(memory, &mut source, fits, began, None)?;
                bytes.per(took.saturating_sub(round_trip).max(Duration::from_micros(1))).max(rate)
            }
        };
        self.stream.end()?;
        let _ = self.stream.get_mut().close();
        Ok(MeasuredPath { rate, blackout_rate, round_trip })
    }

    /// Sends about so many bytes, no faster than `pacer` allows, and returns how many they were and how
    /// long it took until the last had arrived.
    fn piece(
        &mut self,
        memory: &GuestMemory,
        source: &mut impl Iterator<Item = PageRange>,
        length: Bytes,
        began: Instant,
        mut pacer: Option<&mut Pacer>,
    ) -> Result<(Bytes, Duration), StepError> {
        let (started, before) = (Instant::now(), self.stream.bytes_written());
        let longest = pacer.as_ref().map_or(Bytes(u64::MAX), |pacer| pacer.burst()).pages();
        while self.stream.bytes_written() - before < length {
            let range = source.next().unwrap_or(FIRST_PAGE);
            let left = (length - (self.stream.bytes_written() - before)).pages();
            let range =
                PageRange { count: range.count.min(longest.min(left).max(Pages(1))), ..range };
            let at = self.stream.bytes_written();
            self.pages.send_as_they_are(memory, range, &mut self.stream)?;
            if let Some(pacer) = &mut pacer {
                let sent = self.stream.bytes_written() - at;
                self.pace(pacer.take(sent, began.elapsed()))?;
            }
        }
        let bytes = self.stream.bytes_written() - before;
        self.time_mark()?;
        Ok((bytes, started.elapsed()))
    }

    fn pace(&self, mut wait: Duration) -> Result<(), StepError> {
        let until = Instant::now() + wait;
        loop {
            if self.shared.is_cancelled() {
                return Err(StepError::Cancelled);
            }
            if wait.is_zero() {
                return Ok(());
            }
            self.shared.sleep(wait.min(PACE_INTERVAL));
            wait = until.saturating_duration_since(Instant::now());
        }
    }

    /// Has the destination say when all that was sent has come, and returns how long that took.
    fn time_mark(&mut self) -> Result<Duration, StepError> {
        let started = Instant::now();
        self.stream.round(&RoundStats::default())?;
        self.stream.flush()?;
        self.answers.measured(self.args.timeout)?;
        Ok(started.elapsed())
    }
}

/// What is sent of a guest that has nothing to send.
const FIRST_PAGE: PageRange = PageRange { region: RegionId(0), first: 0, count: Pages(1) };
