//! One migration, step by step.
//!
//! The order of the steps, what a failure of each leads to, and who has the guest then, is decided by
//! [`mig_engine::handover::Source`]; here is what each of its operations does.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use mig_channel::{
    ChannelWriter, Endpoint, ReturnPath, SenderChannel, Tunnel, TunnelError, open_sender,
};
use mig_engine::handover::{
    HandoverMode, Query, ResolveIo, Source, SourceEnding, SourceGuestState, SourceIo, SourceStep,
    run_source,
};
use mig_engine::ownership::Input;
use mig_engine::precopy::{Pacer, Policy, RateMeter, Wws};
use mig_engine::report::{Mode, Phase, Report};
use mig_stream::{Flags, Header, Preamble, Region, StreamDigest, StreamWriter};
use migpipe_cli::output;
use migpipe_units::{Acknowledged, MigrationId};
use page_bitmap::GuestBitmap;
use vm_control::{Client, ClientError};
use vm_mapping::GuestMemory;
use vm_state::MachineDescription;

use crate::answers::Answers;
use crate::args::Args;
use crate::blackout::Blackout;
use crate::disks::Disks;
use crate::error::{StepError, Told, names_what_came};
use crate::fate::Witness;
use crate::monitor::{Monitor, Shared, Watch};
use crate::pages::PageSender;
use crate::question::{About, Asker};
use crate::report::Draft;
use crate::{NAME, confinement, report, resolve};

/// How long a tunnel may take to end by itself after the last word was said.
const TUNNEL_END: Duration = Duration::from_secs(10);

/// How long a failed destination may take to say why.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// A signal that ended the other programs of a pipeline has come within this time.
const SIGNAL: Duration = Duration::from_secs(1);

/// How long a tunnel that broke the stream may take to end, so that its status is known.
const TUNNEL_STATUS: Duration = Duration::from_millis(500);

/// One migration of one guest.
pub struct Migration<'a> {
    pub args: &'a Args,
    pub client: Client,
    pub machine: MachineDescription,
    pub memory: GuestMemory,
    pub id: MigrationId,
    pub shared: Arc<Shared>,
    pub form: HandoverMode,
    pub stream: StreamWriter<ChannelWriter>,
    pub answers: Option<Answers>,
    pub tunnel: Option<Tunnel>,
    /// Who asks the destination, where it can be asked.
    pub asker: Option<Asker>,
    /// What the monitor will need, until it is started.
    watch: Option<Watch>,
    draft: &'a Draft<'a>,
    pub started: Instant,
    pub policy: Policy,
    pub pacer: Pacer,
    pub meter: RateMeter,
    pub wws: Wws,
    pub pages: PageSender,
    pub disks: Disks,
    pub blackout: Blackout,
    pub report: Report,
    /// Who knows what became of the guest at its source.
    witness: &'a mut Witness,
    /// The attempts at an answer of the destination.
    attempts: resolve::Attempts<'a>,
}

impl<'a> Migration<'a> {
    /// Looks at the guest, opens the channel and writes the header. The guest is not touched.
    ///
    /// Everything that will be needed is opened or started here, in this order: first what may
    /// fail without a trace, then the channel, then the broker, which must inherit no end of it;
    /// then the rights are given up, and only after that something is sent that can be answered.
    pub fn new(
        draft: &'a Draft<'a>,
        args: &'a Args,
        client: Client,
        witness: &'a mut Witness,
        shared: &Arc<Shared>,
    ) -> Result<Self, StepError> {
        let watch = Client::connect_within(client.path(), NAME, args.timeout)
            .map(|it| Watch::new(it, args))?;
        let for_disks = Client::connect_within(client.path(), NAME, args.timeout)?;
        let machine = client.describe()?;
        let memory = client.map_memory(&machine)?;
        let id = draft.report.migration;
        let channel =
            open_sender(&args.destination, args.return_path, args.one_way, &shared.interrupt)?;
        let form = form_of(args, &channel)?;
        let SenderChannel { mut forward, back, mut tunnel } = channel;
        forward.set_stall_limit(Some(args.timeout));
        let asker = match resolve::can_be_asked(args) {
            true => Some(Asker::start(args, id)?),
            false => None,
        };
        confinement::enter(tunnel.as_ref(), &args.destination)?;
        if let Some(tunnel) = &tunnel {
            tunnel.job().watch()?;
            shared.set_job(tunnel.job());
        }
        let flags = Flags {
            return_path: form.is_answered(),
            page_sums: !args.zero_copy,
            separate_commit: form == HandoverMode::SeparateCommit,
            verify: args.verify,
            saved: form == HandoverMode::Saved,
        };
        let released = client.status()?.released;
        let header = header_of(&machine, released)?;
        let stream = StreamWriter::new(forward, Preamble::migrate(id, flags), header)
            .map_err(|error| {
                failed_tunnel(&mut tunnel).map_or_else(|| error.into(), StepError::from)
            })
            .map_err(|stop| stop.context("cannot send the header"))?;
        let limits = args.limits();
        let mut report = draft.report.clone();
        report.mode = if form.is_answered() { Mode::BothWays } else { Mode::OneWay };
        Ok(Self {
            report,
            answers: back.map(|back| Answers::new(back, id)),
            policy: Policy::new(limits),
            pacer: Pacer::new(args.bandwidth()),
            meter: RateMeter::default(),
            wws: if args.no_wws || args.classic {
                Wws::off()
            } else {
                Wws::new(machine.memory.iter().map(|region| region.pages))
            },
            pages: PageSender::new(&machine),
            disks: Disks::new(for_disks)?,
            attempts: resolve::Attempts::new(args),
            blackout: Blackout::default(),
            started: Instant::now(),
            args,
            client,
            machine,
            memory,
            id,
            shared: Arc::clone(shared),
            form,
            stream,
            tunnel,
            asker,
            witness,
            watch: Some(watch),
            draft,
        })
    }

    /// Runs it to its end and returns the exit status.
    pub fn run(mut self) -> u8 {
        let monitor = self.watch.take().map(|watch| Monitor::start(watch, self.id, &self.shared));
        let end = run_source(Source::new(self.form), &mut self);
        self.shared.progress(|progress| progress.phase = Phase::Done);
        drop(monitor);
        self.leave(end.ending, end.guest.unwrap_or(SourceGuestState::Runs), end.reason)
    }

    /// Where the guest goes, for whoever looks for it on this host later.
    pub fn goes_to(&self) -> String {
        match &self.args.destination {
            Endpoint::Standard => "wherever the stdout of mig-send led".to_owned(),
            other => other.to_string(),
        }
    }

    fn ask(&mut self, query: Query) -> Result<(), StepError> {
        self.attempts.begin()?;
        let asker = self.asker.as_mut().ok_or_else(|| anyhow!("nobody can ask"))?;
        asker.ask(&About::new(query, self.started.elapsed()))?;
        resolve::verdict(query, asker.answer()?)
    }

    /// Whether a shell has put this program beside the one that it talks to.
    fn is_in_a_pipeline(&self) -> bool {
        matches!(self.args.destination, Endpoint::Standard | Endpoint::Fd(_))
            || matches!(self.args.return_path, Some(ReturnPath::Stdin | ReturnPath::Fd(_)))
    }

    fn leave(
        mut self,
        ending: SourceEnding,
        guest: SourceGuestState,
        mut why: Option<StepError>,
    ) -> u8 {
        if ending == SourceEnding::Moved {
            // What copies its input (cat, pv, tee) ends when that ends.
            let _ = self.stream.get_mut().close();
        }
        if ending == SourceEnding::Moved
            && let Some(tunnel) = &mut self.tunnel
            && let Err(error) = tunnel.wait_for_success(TUNNEL_END.min(self.args.timeout))
        {
            // The guest has arrived; what the tunnel says now cannot change that.
            tracing::warn!("{}", migpipe_cli::one_line(&error.into()));
        }
        if ending == SourceEnding::Moved {
            why = None;
        }
        let complaint = report::complaint(ending, guest, &self, why.as_ref());
        report::finish(&mut self, ending, guest, why);
        if let Err(error) = self.draft.write(&self.report) {
            // The status says what became of the guest, and that alone.
            migpipe_cli::complain(NAME, &error);
        }
        if !self.args.quiet && !self.report.rounds.is_empty() {
            output::say(self.report.table().trim_end());
        }
        if let Some(complaint) = complaint {
            migpipe_cli::complain(NAME, &complaint);
        }
        ending.exit_status()
    }
}

impl ResolveIo for Migration<'_> {
    type Error = StepError;

    fn query(&mut self, query: Query) -> Result<(), StepError> {
        if let Query::Committed(_) = query {
            self.shared.progress(|progress| progress.phase = Phase::Resolve);
        } else if self.answers.as_ref().is_some_and(|answers| answers.gave_up) {
            return Ok(());
        }
        self.ask(query).map_err(|error| {
            tracing::info!("{}", error.reason());
            error.context("the destination could not be asked")
        })
    }

    fn await_retry(&mut self) -> bool {
        self.attempts.await_next()
    }

    fn confirm(&mut self) -> Result<(), StepError> {
        resolve::confirm(&self.client, self.id, self.args).map_err(|error| {
            // The status says what became of the guest, and that alone.
            let (name, error) = (&self.machine.name, untold(error));
            migpipe_cli::complain(
                NAME,
                &anyhow!("{name} is still here, handed-over: {}", error.reason()),
            );
            error
        })
    }

    fn take_back(&mut self) -> Result<(), StepError> {
        self.client.own(Input::TakeBack(self.id)).map_err(untold)
    }
}

impl SourceIo for Migration<'_> {
    type Remainder = GuestBitmap;

    fn send_header(&mut self) -> Result<(), StepError> {
        Ok(self.stream.flush()?)
    }

    fn await_ready(&mut self) -> Result<(), StepError> {
        self.hear_ready()
    }

    fn precopy(&mut self) -> Result<GuestBitmap, StepError> {
        self.send_rounds()
    }

    fn stop_and_copy(&mut self, remainder: GuestBitmap) -> Result<(), StepError> {
        self.send_the_rest(remainder)
    }

    fn send_end(&mut self) -> Result<StreamDigest, StepError> {
        Ok(self.stream.end()?.digest)
    }

    /// One way nobody else can say whether the end of the stream got through, so the tunnel is
    /// waited for, and its status is the answer.
    fn close(&mut self) -> Result<(), StepError> {
        self.stream.get_mut().close()?;
        match (&mut self.tunnel, self.form) {
            (Some(tunnel), HandoverMode::OneWay) => {
                tunnel.wait_for_success(self.args.timeout).map_err(still_open)?;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn await_ack(&mut self) -> Result<(StreamDigest, Acknowledged), StepError> {
        self.hear_ack()
    }

    fn prepare_commit(&mut self) -> Result<(), StepError> {
        self.await_disks()?;
        // Before the commit this costs nothing yet.
        if self.form == HandoverMode::SeparateCommit
            && self.asker.as_mut().is_none_or(Asker::has_ended)
        {
            return Err(anyhow!("the helper process that would bring the commit has ended").into());
        }
        Ok(())
    }

    fn commit(&mut self, taken_by: Option<Acknowledged>) -> Result<(), StepError> {
        self.shared.progress(|progress| progress.phase = Phase::Handover);
        if !self.shared.commit() {
            return Err(StepError::Cancelled);
        }
        match self.client.own(Input::Commit(self.id, taken_by)) {
            Ok(()) => {
                self.stream.get_mut().set_deadline(None);
                Ok(())
            }
            Err(ClientError::Refused(why)) if why.is_cancelled() => Err(StepError::Cancelled),
            Err(ClientError::Refused(why)) => Err(StepError::Undone(anyhow!("{why}"))),
            Err(error) => Err(error.into()),
        }
    }

    /// Through the stream, or through the second command: a query is GO as well.
    fn send_go(&mut self, taken_by: Option<Acknowledged>) -> Result<(), StepError> {
        if self.form != HandoverMode::SeparateCommit {
            let by = taken_by.ok_or_else(|| anyhow!("nobody acknowledged it"))?;
            return Ok(self.stream.go(by.nonce)?);
        }
        let about = About::new(Query::Committed(taken_by), self.started.elapsed());
        self.asker.as_mut().ok_or_else(|| anyhow!("no --commit"))?.ask(&about)
    }

    fn await_running(&mut self, taken_by: Option<Acknowledged>) -> Result<(), StepError> {
        self.hear_running(taken_by)
    }

    /// A file that could not be finished is removed, or has no end: the guest cannot be in it then.
    fn remove_file(&mut self) -> bool {
        matches!(self.stream.get_mut().abandon(), Ok(true))
    }

    fn release(&mut self) -> Result<(), StepError> {
        self.shared.disarm();
        self.client.own(Input::Release(self.id)).map_err(|error| {
            let error = StepError::from(error);
            tracing::debug!("{}", error.reason());
            error
        })
    }

    fn guest_state(&mut self) -> SourceGuestState {
        self.witness.guest_state(self.id)
    }

    /// The destination knows best why a step failed: its last words, or the status of the tunnel.
    fn explain(&mut self, step: SourceStep, error: StepError, may_be_cancelled: bool) -> StepError {
        let error = match (error, self.shared.given_up()) {
            // Not the operator has interrupted the step: vmrun took the guest back.
            (StepError::Cancelled, Some(why)) => anyhow::Error::from(ClientError::Refused(why)),
            (StepError::Failed(error), _) => error,
            (other, _) => return other,
        };
        if error.is::<Told>() {
            return StepError::Failed(error);
        }
        let doing = report::doing(step, self.form);
        if migpipe_cli::is_timeout(&error) || error.is::<ClientError>() || names_what_came(&error) {
            // It has had its time to say something, or has nothing to do with it, or something
            // else speaks in its place.
            return StepError::Failed(error).context(doing);
        }
        if may_be_cancelled && self.is_in_a_pipeline() && self.shared.is_signalled_within(SIGNAL) {
            // Ctrl-C is for all of a pipeline, and the reader may be gone before we hear of it.
            return StepError::Cancelled;
        }
        if let Some(answers) = &mut self.answers
            && let Some(reason) = answers.last_words(LAST_WORDS)
        {
            return StepError::Failed(Told(reason).into());
        }
        match failed_tunnel(&mut self.tunnel) {
            Some(ended) if may_be_cancelled => ended.into(),
            Some(ended) => StepError::Failed(ended.into()),
            None => StepError::Failed(error).context(doing),
        }
    }

    /// The destination would find out by itself when the stream ends.
    fn abort_stream(&mut self) {
        self.stream.get_mut().set_deadline(Some(LAST_WORDS));
        let _ = self.stream.abort("the source gave the migration up");
        if let Some(tunnel) = &mut self.tunnel {
            tunnel.kill();
        }
    }

    fn leave_tunnel(&mut self) {
        if let Some(tunnel) = self.tunnel.take() {
            tunnel.leave();
        }
    }
}

fn untold(error: ClientError) -> StepError {
    StepError::Failed(anyhow::Error::from(error).context("the source's vmrun could not be told"))
}

/// How the tunnel ended, if that is what broke the stream: its status says more than the broken
/// pipe it leaves behind.
fn failed_tunnel(tunnel: &mut Option<Tunnel>) -> Option<TunnelError> {
    let ended = tunnel.as_mut()?.wait_for_success(TUNNEL_STATUS).err()?;
    matches!(ended, TunnelError::Ended { .. } | TunnelError::Cancelled { .. }).then_some(ended)
}

/// One way the end of the stream is the end of the tunnel, and not every program ends with its
/// input.
fn still_open(error: TunnelError) -> anyhow::Error {
    match error {
        TunnelError::StillRunning { .. } => {
            anyhow!("{error}, though the stream has ended: nc ends with its input only as nc -N")
        }
        error => error.into(),
    }
}

fn form_of(args: &Args, channel: &SenderChannel) -> anyhow::Result<HandoverMode> {
    Ok(match (&args.commit, channel.is_both_ways()) {
        (Some(_), true) => HandoverMode::SeparateCommit,
        (Some(_), false) => {
            return Err(migpipe_cli::usage(anyhow!(
                "--commit needs the destination's answer, and {} has no way back: use exec:, or \
                 give --return",
                channel.describe()
            )));
        }
        (None, true) => HandoverMode::BothWays,
        (None, false) if channel.forward.is_file() => HandoverMode::Saved,
        (None, false) => HandoverMode::OneWay,
    })
}

fn header_of(machine: &MachineDescription, released: Vec<MigrationId>) -> anyhow::Result<Header> {
    vm_paths::check_name(&machine.name)?;
    Ok(Header {
        guest: machine.name.clone(),
        machine: machine.encode()?,
        regions: machine
            .memory
            .iter()
            .map(|region| Region { id: region.id, base: region.base, pages: region.pages })
            .collect(),
        released,
    })
}
