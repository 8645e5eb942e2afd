//! One migration, step by step.
//!
//! The order of the steps, and what a failure of each leads to, is decided by
//! [`mig_engine::handover::Source`]; here is what each step does.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use mig_channel::{
    ChannelWriter, Endpoint, ReturnPath, SenderChannel, Tunnel, TunnelError, open_sender,
};
use mig_engine::handover::{Form, Outcome, Source, SourceEnding, SourceStep};
use mig_engine::ownership::Input;
use mig_engine::precopy::{Pacer, Policy, RateMeter, Wws};
use mig_engine::report::{Mode, Phase, Report};
use mig_stream::{Flags, Header, Preamble, Region, StreamWriter};
use migpipe_cli::output;
use migpipe_units::MigrationId;
use vm_control::{Client, ClientError};
use vm_mapping::GuestMemory;
use vm_state::MachineDescription;

use crate::answers::Answers;
use crate::args::Args;
use crate::blackout::Blackout;
use crate::disks::Disks;
use crate::fate::{Fate, Witness};
use crate::monitor::{Monitor, Shared, Watch};
use crate::pages::PageSender;
use crate::question::{About, Asker};
use crate::report::Draft;
use crate::stop::{Stop, Told, names_what_came};
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
    pub form: Form,
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
    /// What became of it, where that was looked at.
    pub fate: Fate,
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
    ) -> Result<Self, Stop> {
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
            separate_commit: form == Form::SeparateCommit,
            verify: args.verify,
            saved: form == Form::Saved,
        };
        let released = client.status()?.released;
        let header = header_of(&machine, released)?;
        let stream = StreamWriter::new(forward, Preamble::migrate(id, flags), header)
            .map_err(|error| failed_tunnel(&mut tunnel).map_or_else(|| error.into(), Stop::from))
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
            fate: Fate::RunsOn,
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
        let mut source = Source::new(self.form);
        let mut why = None;
        let ending = loop {
            if let SourceStep::Finished(ending) = source.step() {
                break ending;
            }
            let done = self.step(source.step()).map_err(|stop| self.judge(stop));
            let outcome = match done {
                Ok(()) => Outcome::Done,
                Err(stop) => {
                    let step = source.step();
                    // Not known yet, or given back already.
                    let later = matches!(step, SourceStep::Commit | SourceStep::TellReleased);
                    if !source.is_committed() && !later {
                        // The guest may stand still: it runs before anything is found out.
                        self.give_back();
                    }
                    let stop = self.explain(&source, stop);
                    if let (SourceStep::Confirm, Stop::Failed(error)) = (step, &stop) {
                        // The status says what became of the guest, and that alone.
                        let (name, error) = (&self.machine.name, migpipe_cli::one_line(error));
                        migpipe_cli::complain(
                            NAME,
                            &anyhow!("{name} is still here, handed-over: {error}"),
                        );
                    }
                    if step == SourceStep::Commit {
                        self.fate = self.witness.fate(self.id);
                    }
                    let outcome = stop.outcome();
                    match &stop {
                        Stop::Failed(error)
                            if step == SourceStep::Resolve && resolve::says_more(error) =>
                        {
                            why = Some(stop);
                        }
                        _ => drop(why.get_or_insert(stop)),
                    }
                    outcome
                }
            };
            source.advance(outcome);
        };
        self.shared.progress(|progress| progress.phase = Phase::Done);
        drop(monitor);
        self.leave(ending, why)
    }

    fn step(&mut self, step: SourceStep) -> Result<(), Stop> {
        match step {
            SourceStep::Open => Ok(self.stream.flush()?),
            SourceStep::AwaitReady => self.await_ready(),
            SourceStep::PreCopy => self.precopy(),
            SourceStep::Blackout => self.stop_and_copy(),
            SourceStep::End => self.end().map_err(|stop| self.undo(stop)),
            SourceStep::Close => self.close().map_err(|stop| self.undo(stop)),
            SourceStep::AwaitAck => self.await_ack(),
            SourceStep::Commit => self.commit(),
            SourceStep::Go => self.go(),
            SourceStep::AwaitRunning => self.await_running(),
            SourceStep::Resolve => self.resolve(),
            SourceStep::Confirm => Ok(resolve::confirm(&self.client, self.id, self.args)?),
            SourceStep::TakeBack => Ok(self.client.own(Input::TakeBack(self.id))?),
            SourceStep::Release => self.release(),
            SourceStep::TellReleased => self.tell_released(),
            SourceStep::Finished(_) => Ok(()),
        }
    }

    /// What interrupts a step may be something else than the operator.
    fn judge(&self, stop: Stop) -> Stop {
        match (stop, self.shared.given_up()) {
            (Stop::Cancelled, Some(why)) => Stop::Failed(ClientError::Refused(why).into()),
            (stop, _) => stop,
        }
    }

    fn resolve(&mut self) -> Result<(), Stop> {
        self.shared.progress(|progress| progress.phase = Phase::Resolve);
        let destination = self.args.commit.as_ref().unwrap_or(&self.args.destination);
        let (asker, started) = (&mut self.asker, self.started);
        let taken_by = self.blackout.taken_by;
        resolve::until_known(destination, taken_by, self.args.resolve_for, || {
            let asker = asker.as_mut().ok_or_else(|| anyhow!("nobody can ask"))?;
            asker.ask(&About::committed(taken_by, started.elapsed()))?;
            asker.answer()
        })
    }

    /// Has the destination forget a guest that may wait there for GO: the guest runs here again. If
    /// nobody there hears it, it is said again in the header of the guest's next migration.
    fn tell_released(&mut self) -> Result<(), Stop> {
        if self.answers.as_ref().is_some_and(|answers| answers.gave_up) {
            return Ok(());
        }
        let destination = self.args.commit.as_ref().unwrap_or(&self.args.destination);
        let (asker, started) = (&mut self.asker, self.started);
        resolve::until_forgotten(destination, self.args.resolve_for, || {
            let asker = asker.as_mut().ok_or_else(|| anyhow!("nobody can tell it"))?;
            asker.ask(&About::released(started.elapsed()))?;
            asker.answer()
        })
    }

    /// Closes the forward path. One way nobody else can say whether the end of the stream got
    /// through, so the tunnel is waited for, and its status is the answer.
    fn close(&mut self) -> Result<(), Stop> {
        self.stream.get_mut().close()?;
        match (&mut self.tunnel, self.form) {
            (Some(tunnel), Form::OneWay) => {
                tunnel.wait_for_success(self.args.timeout).map_err(still_open)?;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// A file that could not be finished is removed, or has no end: the guest cannot be in it then.
    fn undo(&mut self, stop: Stop) -> Stop {
        let Stop::Failed(error) = stop else { return stop };
        if self.form != Form::Saved {
            return Stop::Failed(error);
        }
        match self.stream.get_mut().abandon() {
            Ok(true) => Stop::Undone(error),
            Ok(false) | Err(_) => Stop::Failed(error),
        }
    }

    /// The guest goes on at the source.
    fn give_back(&mut self) {
        self.shared.disarm();
        let released = self.client.own(Input::Release(self.id));
        self.fate = match (self.witness.fate(self.id), released) {
            // It has said that it did.
            (Fate::Silent, Ok(())) => Fate::RunsOn,
            (fate, Ok(())) => fate,
            (fate, Err(error)) => {
                tracing::debug!("{}", migpipe_cli::one_line(&error.into()));
                fate
            }
        };
    }

    /// Where the guest goes, for whoever looks for it on this host later.
    pub fn goes_to(&self) -> String {
        match &self.args.destination {
            Endpoint::Standard => "wherever the stdout of mig-send led".to_owned(),
            other => other.to_string(),
        }
    }

    /// Tells the destination that the guest stays, which it would find out by itself when the
    /// stream ends.
    fn release(&mut self) -> Result<(), Stop> {
        self.give_back();
        self.stream.get_mut().set_deadline(Some(LAST_WORDS));
        let _ = self.stream.abort("the source gave the migration up");
        if let Some(tunnel) = &mut self.tunnel {
            tunnel.kill();
        }
        match self.fate {
            Fate::RunsOn => Ok(()),
            // The destination may have the last whole copy.
            _ => Err(anyhow!("the source's vmrun did not take the guest back").into()),
        }
    }

    /// The destination knows best why a step failed: its last words, or the status of the tunnel.
    fn explain(&mut self, source: &Source, stop: Stop) -> Stop {
        let Stop::Failed(error) = stop else { return stop };
        let step = source.step();
        // A question has a tunnel of its own.
        let asked = matches!(step, SourceStep::Resolve | SourceStep::TellReleased);
        if error.is::<Told>() {
            return Stop::Failed(error);
        }
        if asked
            || migpipe_cli::is_timeout(&error)
            || error.is::<ClientError>()
            || names_what_came(&error)
        {
            // It has had its time to say something, or has nothing to do with it, or something
            // else speaks in its place.
            return Stop::Failed(error).context(report::doing(step));
        }
        let committed = step == SourceStep::Commit || source.is_committed();
        if !committed && self.is_in_a_pipeline() && self.shared.is_signalled_within(SIGNAL) {
            // Ctrl-C is for all of a pipeline, and the reader may be gone before we hear of it.
            return Stop::Cancelled;
        }
        if let Some(answers) = &mut self.answers
            && let Some(reason) = answers.last_words(LAST_WORDS)
        {
            return Stop::Failed(Told(reason).into());
        }
        match failed_tunnel(&mut self.tunnel) {
            Some(ended) if committed => Stop::Failed(ended.into()),
            Some(ended) => ended.into(),
            None => Stop::Failed(error).context(report::doing(step)),
        }
    }

    /// Whether a shell has put this program beside the one that it talks to.
    fn is_in_a_pipeline(&self) -> bool {
        matches!(self.args.destination, Endpoint::Standard | Endpoint::Fd(_))
            || matches!(self.args.return_path, Some(ReturnPath::Stdin | ReturnPath::Fd(_)))
    }

    fn leave(mut self, ending: SourceEnding, why: Option<Stop>) -> u8 {
        let mut why = why;
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
        if ending == SourceEnding::Unknown
            && self.form == Form::OneWay
            && let Some(tunnel) = self.tunnel.take()
        {
            // What it still holds may be the end of the stream.
            tunnel.leave();
        }
        if ending == SourceEnding::Moved {
            why = None;
        }
        let complaint = report::complaint(ending, &self, why.as_ref());
        report::finish(&mut self, ending, why);
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

fn form_of(args: &Args, channel: &SenderChannel) -> anyhow::Result<Form> {
    Ok(match (&args.commit, channel.is_both_ways()) {
        (Some(_), true) => Form::SeparateCommit,
        (Some(_), false) => {
            return Err(migpipe_cli::usage(anyhow!(
                "--commit needs the destination's answer, and {} has no way back: use exec:, or \
                 give --return",
                channel.describe()
            )));
        }
        (None, true) => Form::BothWays,
        (None, false) if channel.forward.is_file() => Form::Saved,
        (None, false) => Form::OneWay,
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
