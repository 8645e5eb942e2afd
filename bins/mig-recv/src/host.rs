//! What mig-recv does to its host, as seen from the confined process that reads the stream.
//!
//! A stream says what its guest is called, which migration it is, and what is to become of it; so
//! something must start a vmrun and look into the host's memory of migrations after the first
//! hostile byte was read. The process that reads does neither: a [`broker`] does it,
//! which is started before and stays outside. It takes a [`Request`], whose parameters are a guest's
//! name, checked once more there, and ids. Everything else about the vmrun that it starts - the
//! program, the timeout, where its log is - comes from mig-recv's own command line, and the control
//! connection is one end of a socket pair that exists already.
//!
//! The other ways would be worse. A vmrun that is started before the first byte has no name yet, and
//! is started for every query and every port scan too. One that the confined process may
//! execute inherits its landlock and its filter, and with those it could open no /dev/kvm, no tap
//! and no disk. That a program may start nothing at all is also the easier thing to check.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use mig_engine::ownership::Decision;
use mig_stream::DestinationOutcome;
use migpipe_confine::broker::{self, Broker};
use migpipe_units::{Finding, MigrationId};
use serde::{Deserialize, Serialize};
use vm_control::{Client, ClientError};
use vm_state::{DeviceParam, MachineDescription};

use crate::NAME;
use crate::args::Args;
use crate::query::HostQuery;

/// A vmrun that was just started answers within this time: it has nothing to do before.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// A vmrun that gave its guest up ends within this time, unless the disk is slow.
pub const END_TIMEOUT: Duration = Duration::from_secs(5);

/// What a vmrun says of this host is no longer (bytes).
const MAX_FINDINGS_BYTES: u64 = 1 << 20;

/// The broker has answered within this time: it waits some seconds for the end of a vmrun, and longer
/// for a service manager.
const BROKER_TIMEOUT: Duration = Duration::from_secs(60);

/// All that the broker can be asked.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Start the vmrun of a guest that is to be called `name` and is called `guest` on its source.
    /// Answered with a [`StartedVmrun`]; once.
    Start { name: String, guest: String },
    /// Start a vmrun that says what of such a guest this host could not take, and ends. Answered with
    /// what is to be said of the name.
    Examine { name: String, guest: String },
    /// Wait until that vmrun has ended, for a while.
    AwaitEnd,
    /// Wait as long for its end, and say what it said last and where its log is.
    LastWords,
    /// What this host remembers of a migration; nothing, of a saved guest that is restored no more.
    Decision(MigrationId),
    /// Finish a migration whose source asks what became of it, or took the guest back.
    Resolve(HostQuery),
    /// Give up what waits for the GO of migrations whose source took the guest back.
    Forget(Vec<MigrationId>),
    /// Say where the host's memory is, if it does not outlive the boot.
    ShortMemory,
}

/// A vmrun that was started.
#[derive(Debug, Serialize, Deserialize)]
pub struct StartedVmrun {
    /// Its control socket.
    pub socket: PathBuf,
    /// The unit that it is, if it is one.
    pub unit: Option<String>,
}

/// What was done, or why not.
pub type Answer<T> = Result<T, String>;

/// What the phases of a migration need of this host.
pub trait LocalHost {
    /// The vmrun of `--vm`, or a new one for a guest that is to be called `name` and is called
    /// `guest` on its source.
    fn vmrun(&mut self, name: &str, guest: &str) -> anyhow::Result<Vmrun>;

    /// What went wrong, if `error` is that the vmrun that we started is gone (its log knows) or
    /// does not answer.
    fn explain(&mut self, vmrun: &Vmrun, error: ClientError) -> anyhow::Error;

    /// Waits until a vmrun that gave its guest up, or that we started, has ended: nothing is left
    /// over when we end, and its name is free.
    fn await_end(&mut self, vmrun: Vmrun, gave_up: bool);

    /// What this host remembers of a migration; nothing, of a saved guest that is restored no more.
    fn decision(&mut self, id: MigrationId) -> anyhow::Result<Option<Decision>>;

    /// Has what waits for the GO of these migrations give their guest up, where it can be reached.
    fn forget(&mut self, released: &[MigrationId]) -> anyhow::Result<()>;

    /// Where the host's memory of migrations is, if it does not outlive the boot.
    fn short_memory(&mut self) -> anyhow::Result<Option<PathBuf>>;
}

/// The broker, and what else was opened before the first byte was read.
#[derive(Debug)]
pub struct Host {
    broker: Broker,
    /// Where the vmrun of the guest comes from, until it is there.
    vmrun: Option<VmrunSource>,
}

/// Where the vmrun that takes the guest comes from.
#[derive(Debug)]
enum VmrunSource {
    /// It is that of `--vm`. A query needs none, so that only a guest fails if it is not there.
    Named(Result<Client, ClientError>),
    /// It is to be started; our end of its control connection.
    Start(UnixStream),
}

impl Host {
    /// Connects to the vmrun of `--vm`, and starts the broker.
    pub fn new(args: &Args) -> anyhow::Result<Self> {
        let named = match &args.vm {
            Some(vm) => Some(Client::connect(&vm_paths::socket_of(vm)?, NAME)),
            None => None,
        };
        let (ours, theirs) = UnixStream::pair().context("cannot make a socket pair")?;
        let mut command = broker::this_program();
        command
            .args(["--broker", "--go-timeout"])
            .arg(args.go_timeout.to_string())
            .arg(format!("--confine={}", args.confinement.confine))
            .arg(format!("--log={}", args.common.log))
            .arg(format!("--as={}", args.start_as))
            .args(options("--files-in", &args.files_in))
            .args(options("--named", &args.named()))
            .args(args.files_anywhere.then_some("--files-anywhere"))
            .stdout(Stdio::from(OwnedFd::from(theirs)));
        Ok(Self {
            broker: Broker::start(command, args.timeout.max(BROKER_TIMEOUT))?,
            vmrun: Some(named.map_or(VmrunSource::Start(ours), VmrunSource::Named)),
        })
    }

    fn ask<T: serde::de::DeserializeOwned>(&mut self, request: &Request) -> anyhow::Result<T> {
        self.broker.ask::<Answer<T>>(request)?.map_err(|why| anyhow!("{why}"))
    }

    fn last_words(&mut self, error: ClientError) -> anyhow::Error {
        match self.ask::<(Option<String>, String)>(&Request::LastWords) {
            Ok((Some(words), _)) => anyhow!("{words}"),
            Ok((None, log)) => anyhow::Error::from(error).context(format!("see {log}")),
            Err(_) => error.into(),
        }
    }

    /// What of a guest that is to be called `name` here this host could not take, and what it could.
    /// A vmrun is started for that, which makes no machine, and nothing is kept.
    pub fn examine(
        &mut self,
        name: &str,
        description: &MachineDescription,
        overrides: &[DeviceParam],
    ) -> anyhow::Result<Vec<Finding>> {
        let mut control = match self.vmrun.take().context("a guest is examined once")? {
            VmrunSource::Start(control) => control,
            VmrunSource::Named(_) => bail!(
                "a receiver with --vm cannot say beforehand what its vmrun could not take: ask one \
                 without"
            ),
        };
        let guest = description.name.clone();
        let has_name = self.ask(&Request::Examine { name: name.to_owned(), guest })?;
        let lost = "the vmrun that was to look at this host says nothing";
        control.set_read_timeout(Some(START_TIMEOUT)).context(lost)?;
        control.set_write_timeout(Some(START_TIMEOUT)).context(lost)?;
        let request = serde_json::to_vec(&(description, overrides))?;
        control.write_all(&request).context(lost)?;
        control.shutdown(Shutdown::Write).context(lost)?;
        let mut answer = Vec::new();
        control.take(MAX_FINDINGS_BYTES).read_to_end(&mut answer).context(lost)?;
        let mut findings = vec![has_name];
        findings.extend(serde_json::from_slice::<Vec<Finding>>(&answer).context(lost)?);
        Ok(findings)
    }

    /// Finishes a migration on this host and says how.
    pub fn resolve(&mut self, query: HostQuery) -> anyhow::Result<DestinationOutcome> {
        self.ask(&Request::Resolve(query))
    }
}

impl LocalHost for Host {
    fn vmrun(&mut self, name: &str, guest: &str) -> anyhow::Result<Vmrun> {
        let control = match self.vmrun.take().context("there is one vmrun for one guest")? {
            VmrunSource::Named(connected) => {
                let client = connected?;
                let name = client.name().to_owned();
                return Ok(Vmrun { client, name, started: false, unit: None });
            }
            VmrunSource::Start(control) => control,
        };
        let StartedVmrun { socket, unit } =
            self.ask(&Request::Start { name: name.to_owned(), guest: guest.to_owned() })?;
        match Client::over(control, &socket, NAME, START_TIMEOUT) {
            Ok(client) => Ok(Vmrun { client, name: name.to_owned(), started: true, unit }),
            Err(error) => Err(self.last_words(error)),
        }
    }

    fn explain(&mut self, vmrun: &Vmrun, error: ClientError) -> anyhow::Error {
        match error {
            ClientError::Lost { .. } if vmrun.started => self.last_words(error),
            error => error.into(),
        }
    }

    fn await_end(&mut self, vmrun: Vmrun, gave_up: bool) {
        let Vmrun { client, started, .. } = vmrun;
        if gave_up {
            client.await_end(END_TIMEOUT);
        }
        // Without its parent it has no purpose.
        drop(client);
        if started {
            // At worst it ends a little later than we do.
            let _ = self.ask::<()>(&Request::AwaitEnd);
        }
    }

    fn decision(&mut self, id: MigrationId) -> anyhow::Result<Option<Decision>> {
        self.ask(&Request::Decision(id))
    }

    fn forget(&mut self, released: &[MigrationId]) -> anyhow::Result<()> {
        self.ask(&Request::Forget(released.to_vec()))
    }

    fn short_memory(&mut self) -> anyhow::Result<Option<PathBuf>> {
        self.ask(&Request::ShortMemory)
    }
}

/// An option that is given once for each path.
pub fn options<'a>(option: &'a str, paths: &'a [PathBuf]) -> impl Iterator<Item = &'a OsStr> {
    paths.iter().flat_map(move |path| [OsStr::new(option), path.as_ref()])
}

/// The vmrun that takes the guest: one that waited for it, or one that was started for it.
#[derive(Debug)]
pub struct Vmrun {
    pub client: Client,
    /// The guest's name on this host.
    pub name: String,
    pub started: bool,
    /// The unit that it is, if it was started as one.
    pub unit: Option<String>,
}
