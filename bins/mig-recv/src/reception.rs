//! One guest that arrives, step by step.
//!
//! The order of the steps, and what a failure of each leads to, is decided by
//! [`mig_engine::handover::Destination`]; here is what each step does.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use mig_channel::{ChannelReader, ChannelWriter};
use mig_engine::handover::{Destination, DestinationEnding, DestinationStep, Form, Outcome};
use mig_engine::ownership::{Authority, Decision, Input, Standing};
use mig_stream::{
    FormatVersion, MemoryDigest, Message, Record, ReturnWriter, StreamDigest, StreamReader,
};
use migpipe_cli::output;
use migpipe_units::{Acknowledged, MigrationId, Nonce};
use tracing::{debug, warn};
use vm_control::{Overrides, Started};
use vm_state::MachineDescription;

use crate::NAME;
use crate::args::{Args, TERMINAL};
use crate::host::{Host, Vmrun};
use crate::memory::{Incoming, check_regions};

/// How often a guest whose GO comes another way is looked at.
const COMMIT_POLL: Duration = Duration::from_millis(20);

/// After its timeout the vmrun refuses, and that is known so much later.
const GO_GRACE: Duration = Duration::from_millis(500);

/// Kind, id and parameter of the devices that say where a console goes.
const SERIAL_CONSOLE: (&str, &str, &str) = ("serial", "serial0", "console");
const VIRTIO_CONSOLE: (&str, &str, &str) = ("console", "console0", "console");

/// One guest that arrives.
pub struct Reception<'a> {
    args: &'a Args,
    host: &'a mut Host,
    reader: StreamReader<ChannelReader>,
    back: Option<ReturnWriter<ChannelWriter>>,
    id: MigrationId,
    form: Form,
    version: FormatVersion,
    description: MachineDescription,
    /// What the guest is called on this host.
    name: String,
    vmrun: Option<Vmrun>,
    memory: Option<Incoming>,
    sections: Vec<Vec<u8>>,
    digest: Option<MemoryDigest>,
    stream_digest: Option<StreamDigest>,
    /// When the stream said that the guest is paused.
    paused: Option<Instant>,
    load: Duration,
    /// What the ACK says, once the guest is prepared.
    acknowledge: Option<Acknowledged>,
    started: Started,
    began: Instant,
    /// Whether the vmrun has taken the migration up.
    received: bool,
}

/// Why a step did not succeed.
struct Stop {
    outcome: Outcome,
    why: anyhow::Error,
}

impl<E: Into<anyhow::Error>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self { outcome: Outcome::Failed, why: error.into() }
    }
}

/// What this receiver takes, before anything is made for it.
fn limits(args: &Args, guest: &MachineDescription) -> anyhow::Result<()> {
    let (name, memory, vcpus) = (&guest.name, guest.pages().bytes(), guest.vcpus);
    if let Some(max) = args.max_mem.filter(|max| memory > *max) {
        bail!("{name} has {memory} of memory, and this receiver takes {max} at most (--max-mem)");
    }
    if let Some(max) = args.max_cpus.filter(|max| vcpus > *max) {
        bail!("{name} has {vcpus} vCPUs, and this receiver takes {max} at most (--max-cpus)");
    }
    Ok(())
}

fn refused(why: anyhow::Error) -> Stop {
    Stop { outcome: Outcome::Refused, why }
}

impl<'a> Reception<'a> {
    /// A stream whose header was read; a header that is of no use is answered at once.
    pub fn new(
        args: &'a Args,
        host: &'a mut Host,
        reader: StreamReader<ChannelReader>,
        mut back: Option<ReturnWriter<ChannelWriter>>,
    ) -> anyhow::Result<Self> {
        let preamble = *reader.preamble();
        let form = match (preamble.flags.return_path, preamble.flags.separate_commit) {
            (false, _) if preamble.flags.saved => Form::Saved,
            (false, _) => Form::OneWay,
            (true, true) => Form::SeparateCommit,
            (true, false) => Form::BothWays,
        };
        let read = || -> anyhow::Result<_> {
            let description = MachineDescription::decode(&reader.header().machine)?;
            check_regions(&reader.header().regions, &description.memory)?;
            vm_paths::check_name(&description.name)
                .context("the guest's name cannot be used on this host")?;
            limits(args, &description)?;
            if args.clone && form.is_answered() {
                bail!("--clone is for saved guests; the source of this one waits for an answer");
            }
            Ok((description, preamble.negotiate()?))
        };
        let (description, version) = match read() {
            Ok(good) => good,
            Err(error) => {
                if let Some(back) = &mut back {
                    let _ = back.send(&Message::Refused { reason: migpipe_cli::one_line(&error) });
                }
                return Err(error);
            }
        };
        let mut id = preamble.id;
        if args.clone {
            id = MigrationId::random();
            output::say(format!(
                "{NAME}: a copy of {}, as migration {id}: if the first one still runs, the two \
                 share every address and disk",
                description.name
            ));
        }
        Ok(Self {
            args,
            host,
            reader,
            back,
            id,
            form,
            version,
            name: args.name.clone().unwrap_or_else(|| description.name.clone()),
            description,
            vmrun: None,
            memory: None,
            sections: Vec::new(),
            digest: None,
            stream_digest: None,
            paused: None,
            load: Duration::ZERO,
            acknowledge: None,
            started: Started::default(),
            began: Instant::now(),
            received: false,
        })
    }

    /// Runs it to its end and returns the exit status.
    pub fn run(mut self) -> anyhow::Result<u8> {
        let mut destination = Destination::new(self.form);
        let mut why: Option<anyhow::Error> = None;
        let ending = loop {
            let step = destination.step();
            if let DestinationStep::Finished(ending) = step {
                break ending;
            }
            let outcome = match self.step(step, why.as_ref()) {
                Ok(()) => Outcome::Done,
                Err(stop) => {
                    debug!("{step:?}: {:#}", stop.why);
                    why.get_or_insert(stop.why);
                    stop.outcome
                }
            };
            destination.advance(outcome);
        };
        self.leave(ending, why)
    }

    fn step(&mut self, step: DestinationStep, why: Option<&anyhow::Error>) -> Result<(), Stop> {
        match step {
            DestinationStep::Receive => self.receive(),
            DestinationStep::SendReady => self.say(&Message::Ready { version: self.version }),
            DestinationStep::Read => self.read(),
            DestinationStep::AwaitEof => self.await_eof(),
            DestinationStep::Prepare => self.prepare(),
            DestinationStep::SendAck => {
                let digest = self.stream_digest.ok_or_else(|| anyhow!("no End"))?;
                let by = self.acknowledge.ok_or_else(|| anyhow!("nothing to acknowledge with"))?;
                self.say(&Message::Ack { digest, by, timings: vec![("load".into(), self.load)] })
            }
            DestinationStep::AwaitGo => self.await_go(),
            DestinationStep::AwaitCommit => self.await_commit(),
            DestinationStep::Go => self.go(),
            DestinationStep::SendRunning => {
                let timings = vec![
                    ("go".into(), self.started.go),
                    ("first instruction".into(), self.started.first_instruction),
                ];
                self.say(&Message::Running { timings })
            }
            DestinationStep::Refuse => self.refuse(why),
            DestinationStep::Finished(_) => Ok(()),
        }
    }

    fn say(&mut self, message: &Message) -> Result<(), Stop> {
        let back = self.back.as_mut().ok_or_else(|| anyhow!("no return path"))?;
        Ok(back.send(message).context("cannot answer the source")?)
    }

    fn vmrun(&mut self) -> anyhow::Result<&mut Vmrun> {
        self.vmrun.as_mut().ok_or_else(|| anyhow!("no vmrun"))
    }

    /// Has a vmrun build the machine. It checks that this host can run the guest, and remembers
    /// on disk that it may have run here, before the first page is taken.
    fn receive(&mut self) -> Result<(), Stop> {
        let overrides = Overrides {
            name: None,
            console: self.console(&self.args.console, SERIAL_CONSOLE)?,
            device_params: self.device_params()?,
        };
        // Before a vmrun is started: one of them may have the name.
        let released = &self.reader.header().released;
        if !released.is_empty() {
            self.host.forget(released)?;
        }
        let vmrun = self.host.vmrun(&self.name, &self.description.name)?;
        let vmrun = self.vmrun.insert(vmrun);
        self.name.clone_from(&vmrun.name);
        let (id, description) = (self.id, self.description.clone());
        let received = vmrun.client.receive(id, description, overrides, self.form);
        let (memory, notes) = match received {
            Ok(received) => received,
            Err(error) => return Err(refused(self.host.explain(vmrun, error))),
        };
        for note in notes.iter().filter(|_| !self.args.quiet) {
            output::say(format_args!("{NAME}: {}", migpipe_cli::printable(note)));
        }
        self.received = true;
        if let Ok(Some(dir)) = self.host.short_memory() {
            warn!(
                "{} is in memory and gone when this host starts again: after a crash of it, what \
                 became of a guest cannot be told to its source",
                dir.display()
            );
        }
        self.memory = Some(Incoming::new(memory));
        Ok(())
    }

    /// What belongs to this host in the guest's devices, beside its serial console. Paths are those
    /// of this process, not of the vmrun, which may have another working directory.
    fn device_params(&self) -> anyhow::Result<Vec<(String, String, String, String)>> {
        let disk = |(id, path): &(String, String)| {
            let path =
                std::path::absolute(path).with_context(|| format!("no such path: {path}"))?;
            let path = path.to_str().context("a path that is no UTF-8 text")?.to_owned();
            Ok(("block".to_owned(), id.clone(), "path".to_owned(), path))
        };
        let tap = |(id, tap): &(String, String)| {
            Ok(("net".to_owned(), id.clone(), "tap".to_owned(), tap.clone()))
        };
        let console = self.console(&self.args.virtio_console, VIRTIO_CONSOLE)?;
        let console = console.map(|to| {
            let (kind, id, param) = VIRTIO_CONSOLE;
            Ok((kind.to_owned(), id.to_owned(), param.to_owned(), to))
        });
        let (disks, nets) = (self.args.disks.iter(), self.args.nets.iter());
        disks.map(disk).chain(nets.map(tap)).chain(console).collect()
    }

    /// Where a console goes that is the parameter of a device: as the command line says, or as on
    /// the source, unless that makes no sense here: a terminal stays behind.
    fn console(
        &self,
        named: &Option<String>,
        (kind, id, param): (&str, &str, &str),
    ) -> anyhow::Result<Option<String>> {
        if self.args.vm.is_some() {
            return Ok(named.clone());
        }
        let mut devices = self.description.devices.iter();
        let device = devices.find(|device| device.kind == kind && device.id == id);
        let there = device.and_then(|device| device.params.get(param));
        Ok(named.clone().or_else(|| there.filter(|there| *there != TERMINAL).cloned()))
    }

    /// Reads records up to `End`.
    fn read(&mut self) -> Result<(), Stop> {
        let memory = self.memory.as_mut().ok_or_else(|| anyhow!("no memory"))?;
        while let Some(record) = self.reader.next_record()? {
            match record {
                Record::Pages(range) => memory.receive(range, &mut self.reader)?,
                Record::Fill { range, pattern } => memory.fill(range, pattern),
                Record::Extents(extents) => memory.expect(extents),
                Record::Round(round) => debug!("{round:?}"),
                Record::Blackout => self.paused = Some(Instant::now()),
                Record::Section(section) => self.sections.push(section),
                Record::Digest(digest) => self.digest = Some(digest),
                Record::End(totals) => {
                    self.stream_digest = Some(totals.digest);
                    return Ok(());
                }
                Record::Go { .. } => return Err(anyhow!("GO before the end of the guest").into()),
                Record::Abort { reason } => return Err(refused(anyhow!("{reason}"))),
            }
        }
        Err(anyhow!("the stream ends before the guest is complete").into())
    }

    /// One way the sender's end of the tunnel says that nothing more comes.
    fn await_eof(&mut self) -> Result<(), Stop> {
        let ended = self.reader.expect_eof().map_err(anyhow::Error::from);
        Ok(ended.map_err(|error| match migpipe_cli::is_timeout(&error) {
            true => error.context(
                "the guest is complete, but the connection stays open behind it (nc closes it only \
                 as nc -N)",
            ),
            false => error,
        })?)
    }

    fn prepare(&mut self) -> Result<(), Stop> {
        if let Some(expected) = self.digest.take() {
            let memory = self.memory.as_ref().ok_or_else(|| anyhow!("no memory"))?;
            memory.verify(&expected)?;
        }
        let sections = std::mem::take(&mut self.sections);
        let id = self.id;
        // A saved guest was paused long ago, whenever that was read.
        let paused_for = self.paused.filter(|_| self.form != Form::Saved).map(|at| at.elapsed());
        let vmrun = self.vmrun.as_ref().ok_or_else(|| anyhow!("no vmrun"))?;
        match vmrun.client.prepare(id, sections, paused_for) {
            Ok(loaded) => {
                self.load = loaded.load;
                self.acknowledge = loaded.acknowledge;
                Ok(())
            }
            Err(error) => Err(self.host.explain(vmrun, error).into()),
        }
    }

    /// That of the ACK; nothing one way.
    fn nonce(&self) -> Option<Nonce> {
        self.acknowledge.map(|by| by.nonce)
    }

    /// How long a GO is waited for here; the vmrun may wait longer.
    fn patience(&self) -> Duration {
        let refused = self.args.go_timeout.0.map(|limit| limit + GO_GRACE);
        refused.map_or(self.args.timeout, |refused| refused.min(self.args.timeout))
    }

    fn await_go(&mut self) -> Result<(), Stop> {
        let patience = self.patience();
        self.reader.get_mut().set_deadline(Some(patience));
        match self.next_word() {
            // The source has said that no GO will come for this copy of the guest.
            Err(stop) if stop.outcome == Outcome::Refused => Err(stop),
            Err(stop) => self.found(stop.why),
            Ok(()) => Ok(()),
        }
    }

    /// What became of the guest after `why`, as far as its vmrun says, or the host's record when
    /// the vmrun is gone. A vmrun that is slow, or cannot run the guest now, says nothing of that.
    fn found(&mut self, why: anyhow::Error) -> Result<(), Stop> {
        let (id, nonce) = (self.id, self.nonce());
        let standing = self.vmrun()?.client.inquire(id, nonce);
        let decision = match standing {
            Ok(_) => None,
            Err(_) => self.host.decision(id)?,
        };
        match (standing, decision) {
            (Ok(Standing::Running), _) | (_, Some(Decision::Ran)) => Ok(()),
            (Ok(Standing::Refused), _) | (_, Some(Decision::Refused)) => Err(refused(why)),
            _ => Err(why.into()),
        }
    }

    fn next_word(&mut self) -> Result<(), Stop> {
        match self.reader.next_record()? {
            Some(Record::Go { nonce, .. }) if Some(nonce) == self.nonce() => Ok(()),
            // A copy of the stream came here, at once (tee) or later. Our ACK reached no source.
            Some(Record::Go { .. }) => Err(refused(anyhow!(
                "GO is for another copy of the guest: this stream was read elsewhere too, and its \
                 source heard of that one"
            ))),
            Some(Record::Abort { reason }) => Err(refused(anyhow!("{reason}"))),
            Some(other) => Err(anyhow!("{other:?} where GO was expected").into()),
            None => Err(anyhow!("the stream ended before GO came").into()),
        }
    }

    fn await_commit(&mut self) -> Result<(), Stop> {
        let deadline = Instant::now() + self.patience();
        let (id, nonce) = (self.id, self.nonce());
        while let Ok(Standing::Prepared) = self.vmrun()?.client.inquire(id, nonce) {
            if Instant::now() > deadline {
                break;
            }
            thread::sleep(COMMIT_POLL);
        }
        self.found(anyhow!("no GO came in time"))
    }

    fn go(&mut self) -> Result<(), Stop> {
        let (id, by) = (self.id, Authority::Source(self.nonce()));
        let vmrun = self.vmrun()?;
        match vmrun.client.go(id, by) {
            Ok(started) => {
                self.started = started;
                Ok(())
            }
            Err(error) => self.found(error.into()),
        }
    }

    /// Has the vmrun forget the guest, then says so to the source: never the other way round.
    fn refuse(&mut self, why: Option<&anyhow::Error>) -> Result<(), Stop> {
        let id = self.id;
        let received = self.received;
        let confirmed = match &self.vmrun {
            Some(vmrun) if received => vmrun.client.own(Input::Refuse(id)),
            _ => Ok(()),
        };
        if let Some(vmrun) = self.vmrun.take() {
            self.host.wait_end(vmrun, received && confirmed.is_ok());
        }
        let reason = why.map(migpipe_cli::one_line).unwrap_or_default();
        if let Some(back) = &mut self.back {
            let message = match received {
                true => Message::Failed { reason },
                false => Message::Refused { reason },
            };
            let _ = back.send(&message);
        }
        match confirmed {
            Ok(()) => Ok(()),
            // Its connection has closed with us, and then it refuses by itself, if it lives.
            Err(error) => match self.host.decision(id)? {
                Some(Decision::Refused) => Ok(()),
                // Nobody restores it any more, and it has not run.
                None if self.form == Form::Saved => Ok(()),
                _ => Err(error.into()),
            },
        }
    }

    fn leave(self, ending: DestinationEnding, why: Option<anyhow::Error>) -> anyhow::Result<u8> {
        let name = &self.name;
        match ending {
            DestinationEnding::Runs => {
                if !self.args.quiet {
                    let pid = self.vmrun.as_ref().map_or(0, |vmrun| vmrun.client.pid());
                    output::say(format!(
                        "{NAME}: {name} runs here (vmrun {pid}); {} in {:.2} s",
                        self.reader.bytes_read(),
                        self.began.elapsed().as_secs_f64()
                    ));
                }
            }
            DestinationEnding::Refused => {
                let why = why.unwrap_or_else(|| anyhow!("the guest was refused"));
                return Err(why.context(format!("{name} does not run here")));
            }
            DestinationEnding::Prepared if self.form == Form::Saved => {
                let why = why.unwrap_or_else(|| anyhow!("its vmrun does not say how it is"));
                migpipe_cli::complain(
                    NAME,
                    &why.context(format!(
                        "{name} may have begun to run here (vmctl status {name}); if it has not, \
                         mig-recv --clone restores it"
                    )),
                );
            }
            DestinationEnding::Prepared => {
                let why = why.unwrap_or_else(|| anyhow!("no GO came"));
                migpipe_cli::complain(
                    NAME,
                    &why.context(format!(
                        "{name} is here, paused, and waits for its source to resolve migration \
                         {}{}",
                        self.id,
                        match self.args.go_timeout.0 {
                            Some(limit) => format!(", for {} s", limit.as_secs_f32()),
                            None => String::new(),
                        }
                    )),
                );
            }
        }
        Ok(ending.exit_status())
    }
}
