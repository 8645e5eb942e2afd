//! One guest that arrives, step by step.
//!
//! The order of the steps, what a failure of each leads to, and whether the guest runs then, is decided
//! by [`mig_engine::handover::Destination`]; here is what each of its operations does.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use mig_channel::{ChannelReader, ChannelWriter};
use mig_engine::handover::{
    Destination, DestinationEnding, DestinationIo, Failure, FailureKind, HandoverError,
    HandoverMode, run_destination,
};
use mig_engine::ownership::{Authority, Decision, Input, MigrationStatus};
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
pub struct IncomingMigration<'a> {
    args: &'a Args,
    host: &'a mut Host,
    reader: StreamReader<ChannelReader>,
    back: Option<ReturnWriter<ChannelWriter>>,
    id: MigrationId,
    form: HandoverMode,
    version: FormatVersion,
    description: MachineDescription,
    /// What the guest is called on this host.
    name: String,
    vmrun: Option<Vmrun>,
    memory: Option<Incoming>,
    sections: Vec<Vec<u8>>,
    /// What the whole memory was on the source, where that is to be compared.
    memory_digest: Option<MemoryDigest>,
    /// When the stream said that the guest is paused.
    paused: Option<Instant>,
    load: Duration,
    started: Started,
    began: Instant,
}

/// Why an operation did not succeed.
pub struct StepError {
    kind: FailureKind,
    why: anyhow::Error,
}

impl Failure for StepError {
    fn kind(&self) -> FailureKind {
        self.kind
    }
}

impl<E: Into<anyhow::Error>> From<E> for StepError {
    fn from(error: E) -> Self {
        let why = error.into();
        let kind = why.downcast_ref().map_or(FailureKind::Failed, HandoverError::kind);
        Self { kind, why }
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

fn refused(why: anyhow::Error) -> StepError {
    StepError { kind: FailureKind::Refused, why }
}

impl<'a> IncomingMigration<'a> {
    /// A stream whose header was read; a header that is of no use is answered at once.
    pub fn new(
        args: &'a Args,
        host: &'a mut Host,
        reader: StreamReader<ChannelReader>,
        mut back: Option<ReturnWriter<ChannelWriter>>,
    ) -> anyhow::Result<Self> {
        let preamble = *reader.preamble();
        let form = match (preamble.flags.return_path, preamble.flags.separate_commit) {
            (false, _) if preamble.flags.saved => HandoverMode::Saved,
            (false, _) => HandoverMode::OneWay,
            (true, true) => HandoverMode::SeparateCommit,
            (true, false) => HandoverMode::BothWays,
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
            memory_digest: None,
            paused: None,
            load: Duration::ZERO,
            started: Started::default(),
            began: Instant::now(),
        })
    }

    /// Runs it to its end and returns the exit status.
    pub fn run(mut self) -> anyhow::Result<u8> {
        let (ending, why) = run_destination(Destination::new(self.form), &mut self);
        self.leave(ending, why.map(|error| error.why))
    }

    fn say(&mut self, message: &Message) -> Result<(), StepError> {
        let back = self.back.as_mut().ok_or_else(|| anyhow!("no return path"))?;
        Ok(back.send(message).context("cannot answer the source")?)
    }

    fn vmrun(&mut self) -> anyhow::Result<&mut Vmrun> {
        self.vmrun.as_mut().ok_or_else(|| anyhow!("no vmrun"))
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

    /// How long a GO is waited for here; the vmrun may wait longer.
    fn patience(&self) -> Duration {
        let refused = self.args.go_timeout.0.map(|limit| limit + GO_GRACE);
        refused.map_or(self.args.timeout, |refused| refused.min(self.args.timeout))
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
            DestinationEnding::Prepared if self.form == HandoverMode::Saved => {
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

impl DestinationIo for IncomingMigration<'_> {
    type Error = StepError;

    /// Has a vmrun build the machine. It checks that this host can run the guest, and remembers
    /// on disk that it may have run here, before the first page is taken.
    fn receive(&mut self) -> Result<(), StepError> {
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

    fn send_ready(&mut self) -> Result<(), StepError> {
        self.say(&Message::Ready { version: self.version })
    }

    fn read(&mut self) -> Result<StreamDigest, StepError> {
        let memory = self.memory.as_mut().ok_or_else(|| anyhow!("no memory"))?;
        while let Some(record) = self.reader.next_record()? {
            match record {
                Record::Pages(range) => memory.receive(range, &mut self.reader)?,
                Record::Fill { range, pattern } => memory.fill(range, pattern),
                Record::Extents(extents) => memory.expect(extents),
                Record::Round(round) => debug!("{round:?}"),
                Record::Blackout => self.paused = Some(Instant::now()),
                Record::Section(section) => self.sections.push(section),
                Record::Digest(digest) => self.memory_digest = Some(digest),
                Record::End(totals) => return Ok(totals.digest),
                Record::Go { .. } => return Err(anyhow!("GO before the end of the guest").into()),
                Record::Abort { reason } => return Err(refused(anyhow!("{reason}"))),
            }
        }
        Err(anyhow!("the stream ends before the guest is complete").into())
    }

    fn await_eof(&mut self) -> Result<(), StepError> {
        let ended = self.reader.expect_eof().map_err(anyhow::Error::from);
        Ok(ended.map_err(|error| match migpipe_cli::is_timeout(&error) {
            true => error.context(
                "the guest is complete, but the connection stays open behind it (nc closes it only \
                 as nc -N)",
            ),
            false => error,
        })?)
    }

    fn prepare(&mut self) -> Result<Option<Acknowledged>, StepError> {
        if let Some(expected) = self.memory_digest.take() {
            let memory = self.memory.as_ref().ok_or_else(|| anyhow!("no memory"))?;
            memory.verify(&expected)?;
        }
        let sections = std::mem::take(&mut self.sections);
        let id = self.id;
        // A saved guest was paused long ago, whenever that was read.
        let paused_for =
            self.paused.filter(|_| self.form != HandoverMode::Saved).map(|at| at.elapsed());
        let vmrun = self.vmrun.as_ref().ok_or_else(|| anyhow!("no vmrun"))?;
        match vmrun.client.prepare(id, sections, paused_for) {
            Ok(loaded) => {
                self.load = loaded.load;
                Ok(loaded.acknowledge)
            }
            Err(error) => Err(self.host.explain(vmrun, error).into()),
        }
    }

    fn send_ack(&mut self, digest: StreamDigest, by: Acknowledged) -> Result<(), StepError> {
        self.say(&Message::Ack { digest, by, timings: vec![("load".into(), self.load)] })
    }

    fn await_go(&mut self) -> Result<Nonce, StepError> {
        let patience = self.patience();
        self.reader.get_mut().set_deadline(Some(patience));
        match self.reader.next_record()? {
            Some(Record::Go { nonce, .. }) => Ok(nonce),
            Some(Record::Abort { reason }) => Err(refused(anyhow!("{reason}"))),
            Some(other) => Err(anyhow!("{other:?} where GO was expected").into()),
            None => Err(anyhow!("the stream ended before GO came").into()),
        }
    }

    fn await_commit(&mut self, nonce: Option<Nonce>) -> Result<(), StepError> {
        let deadline = Instant::now() + self.patience();
        loop {
            match self.migration_status(nonce) {
                Ok(MigrationStatus::Running) => return Ok(()),
                Ok(MigrationStatus::Prepared) if Instant::now() <= deadline => {
                    thread::sleep(COMMIT_POLL)
                }
                _ => return Err(anyhow!("no GO came in time").into()),
            }
        }
    }

    fn run(&mut self, nonce: Option<Nonce>) -> Result<(), StepError> {
        let id = self.id;
        self.started = self.vmrun()?.client.go(id, Authority::Source(nonce))?;
        Ok(())
    }

    fn send_running(&mut self) -> Result<(), StepError> {
        let timings = vec![
            ("go".into(), self.started.go),
            ("first instruction".into(), self.started.first_instruction),
        ];
        self.say(&Message::Running { timings })
    }

    fn migration_status(&mut self, nonce: Option<Nonce>) -> Result<MigrationStatus, StepError> {
        let id = self.id;
        Ok(self.vmrun()?.client.migration_status(id, nonce)?)
    }

    fn record(&mut self) -> Result<Option<Decision>, StepError> {
        Ok(self.host.decision(self.id)?)
    }

    fn refuse(&mut self) -> Result<(), StepError> {
        let id = self.id;
        Ok(self.vmrun()?.client.own(Input::Refuse(id))?)
    }

    fn await_end(&mut self, gave_up: bool) {
        if let Some(vmrun) = self.vmrun.take() {
            self.host.wait_end(vmrun, gave_up);
        }
    }

    fn say_given_up(&mut self, received: bool, why: Option<&StepError>) {
        let reason = why.map(|error| migpipe_cli::one_line(&error.why)).unwrap_or_default();
        if let Some(back) = &mut self.back {
            let message = match received {
                true => Message::Failed { reason },
                false => Message::Refused { reason },
            };
            let _ = back.send(&message);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_go_for_another_copy_is_a_refusal_and_a_lost_stream_is_none() {
        assert_eq!(StepError::from(HandoverError::OtherCopy).kind(), FailureKind::Refused);
        assert_eq!(StepError::from(anyhow!("the stream ended")).kind(), FailureKind::Failed);
        assert_eq!(refused(anyhow!("the source gave up")).kind(), FailureKind::Refused);
    }
}
