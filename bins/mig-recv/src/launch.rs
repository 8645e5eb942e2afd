//! Starting a vmrun for a guest that arrives. Runs in the broker.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, anyhow, bail, ensure};
use migpipe_units::Finding;
use tracing::debug;
use vm_records::known_files;

use crate::args::{Args, StartAs};
use crate::child::{self, StartedChild};
use crate::host::{StartedVmrun, options};
use crate::name_use::{NameUse, give_way, taken};
use crate::unit::{StartedUnit, Unit};

/// A vmrun that we started.
#[derive(Debug)]
pub struct Launched {
    socket: PathBuf,
    vmrun: Started,
}

/// As what it was started.
#[derive(Debug)]
enum Started {
    Unit(StartedUnit),
    Child(StartedChild),
}

impl Launched {
    /// Starts one for a guest that is to be called `name` and is called `guest` on its source; its
    /// control connection is our stdout.
    pub fn start(args: &Args, name: &str, guest: &str) -> anyhow::Result<Self> {
        let socket = vm_paths::socket_of(name)?;
        match NameUse::of(&socket) {
            NameUse::Free => {}
            NameUse::Held(held) => ensure!(give_way(&held), taken(name)),
            NameUse::Taken => bail!(taken(name)),
        }
        let unit = unit(args.start_as, name, &socket)?;
        let known = known(args, guest);
        remember(args, name, &known);
        let control = take_stdout()?;
        let mut words: Vec<OsString> = vec!["--incoming".into(), "--go-timeout".into()];
        words.push(args.go_timeout.to_string().into());
        words.push(format!("--confine={}", args.confinement.confine).into());
        words.push(format!("--log={}", args.common.log).into());
        words.extend(places(args, &known)?);
        let vmrun = match unit {
            Some(unit) => Started::Unit(StartedUnit::start(unit, name, &words, control)?),
            None => Started::Child(StartedChild::start(args.start_as, name, &words, control)?),
        };
        Ok(Self { socket, vmrun })
    }

    /// Where it is.
    pub fn started(&self) -> StartedVmrun {
        let unit = match &self.vmrun {
            Started::Unit(unit) => Some(unit.name().to_owned()),
            Started::Child(_) => None,
        };
        StartedVmrun { socket: self.socket.clone(), unit }
    }

    /// Waits for its end, within [`END_TIMEOUT`](crate::host::END_TIMEOUT).
    pub fn await_end(&mut self) {
        match &mut self.vmrun {
            Started::Unit(unit) => drop(unit.ends()),
            Started::Child(child) => drop(child.ends()),
        }
    }

    /// Why it ended, if it has, and where its log is.
    pub fn last_words(&mut self) -> (Option<String>, String) {
        match &mut self.vmrun {
            Started::Unit(unit) => unit.last_words(),
            Started::Child(child) => child.last_words(),
        }
    }

    /// Nothing more is asked of it: waits until its unit is one of a guest that runs, that waits or that
    /// is not there.
    pub fn settle(&mut self) {
        if let Started::Unit(unit) = &mut self.vmrun {
            unit.settle();
        }
    }
}

/// The unit that the vmrun of the guest is to be; nothing if it is to be none.
fn unit(start_as: StartAs, name: &str, socket: &Path) -> anyhow::Result<Option<Unit>> {
    if !matches!(start_as, StartAs::Auto | StartAs::Unit) {
        return Ok(None);
    }
    match Unit::of(name, socket) {
        Ok(unit) => Ok(Some(unit)),
        Err(why) if start_as == StartAs::Unit => {
            Err(anyhow!("{name} cannot be a unit on this host: {why} (--as)"))
        }
        Err(why) => {
            debug!("{name} is no unit: {why}");
            Ok(None)
        }
    }
}

/// Our stdout, which we hold no more: or nobody would see vmrun end.
fn take_stdout() -> anyhow::Result<OwnedFd> {
    let control = io::stdout().as_fd().try_clone_to_owned().context("cannot take stdout")?;
    let null = File::options().read(true).write(true).open("/dev/null");
    nix::unistd::dup2_stdout(null.context("cannot open /dev/null")?)?;
    Ok(control)
}

/// The files that this user has named for the guest: on this command line, and when it was here
/// before. Where files may be says `--files-in` alone, if it says anything.
fn known(args: &Args, guest: &str) -> Vec<PathBuf> {
    let mut files = args.named();
    if args.files_in.is_empty() && !args.files_anywhere {
        files.extend(known_files::known(guest));
        files.dedup();
    }
    files
}

/// Keeps them under its new name, for when it moves on from here and comes back.
fn remember(args: &Args, name: &str, files: &[PathBuf]) {
    if args.files_in.is_empty()
        && !args.files_anywhere
        && let Err(error) = known_files::remember(name, files)
    {
        debug!("what files {name} has is not remembered: {error}");
    }
}

/// Where the files of the guest may be, as options of its vmrun, which may have another working
/// directory.
fn places(args: &Args, known: &[PathBuf]) -> io::Result<Vec<OsString>> {
    let anywhere = args.files_anywhere.then_some(OsStr::new("--files-anywhere"));
    let files_in: Result<Vec<_>, _> = args.files_in.iter().map(std::path::absolute).collect();
    let files_in = files_in?;
    let words = options("--files-in", &files_in).chain(options("--named", known)).chain(anywhere);
    Ok(words.map(OsStr::to_owned).collect())
}

/// Has a vmrun say what of a guest that is to be called `name` this host could not take: our stdout is
/// what it talks to. Nothing is kept of it. Returns whether the name can be had.
pub fn examine(args: &Args, name: &str, guest: &str) -> anyhow::Result<Finding> {
    let socket = vm_paths::socket_of(name)?;
    let control = take_stdout()?;
    let program = child::program();
    let mut command = Command::new(&program);
    command
        .args(["--name", name, "--incoming", "--examine"])
        .arg(format!("--confine={}", args.confinement.confine))
        .arg(format!("--log={}", args.common.log))
        .args(places(args, &known(args, guest))?)
        .stdin(Stdio::from(control.try_clone().context("cannot take stdout")?))
        .stdout(Stdio::from(control));
    command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
    if let Err(error) = SocketAddr::from_pathname(&socket) {
        let why = format!("its control socket cannot be {}: {error}", socket.display());
        return Ok(Finding::in_the_way("name", why));
    }
    let unit_at_rest = || match unit(args.start_as, name, &socket) {
        Ok(Some(unit)) => unit.await_rest(),
        Ok(None) => Ok(()),
        Err(error) => Err(migpipe_cli::one_line(&error)),
    };
    Ok(match NameUse::of(&socket) {
        NameUse::Free => match unit_at_rest() {
            Ok(()) => Finding::fine("name", format!("{name} is free")),
            Err(why) => Finding::in_the_way("name", why),
        },
        NameUse::Held(_) => {
            Finding::fine("name", format!("the {name} that is held back there gives way"))
        }
        NameUse::Taken => Finding::in_the_way("name", taken(name)),
    })
}
