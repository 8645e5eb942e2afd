//! The command line of mig-recv.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::anyhow;
use clap::{Parser, ValueEnum};
use mig_channel::Endpoint;
use migpipe_units::Bytes;

/// As what a vmrun is started for a guest that arrives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum StartAs {
    /// As a unit if it is root's and the host has such, else in a scope where it would end with the
    /// session that brought it, else as a child
    #[default]
    Auto,
    /// As vmrun@NAME.service
    Unit,
    /// In a scope of its own of the service manager
    Scope,
    /// As a child of mig-recv, which lives on when that ends
    Child,
}

/// The console that is the vmrun's own terminal.
pub const TERMINAL: &str = "stdio";

/// Receives a guest from a byte stream and runs it.
#[derive(Parser, Debug)]
#[command(name = "mig-recv", version, after_help = EXAMPLES)]
pub struct Args {
    /// Where the stream comes from: - (stdin), tcp:HOST:PORT and unix:PATH (listen there), exec:CMD,
    /// file:PATH or fd:N
    ///
    /// A saved guest can be restored again until it has run. The same stream, or the same saved
    /// guest, is refused a second time on this host and for this user; another host, or another
    /// user, that is given a copy runs it too.
    #[arg(value_name = "SOURCE", default_value = "-")]
    pub source: Endpoint,

    /// Build the guest in this vmrun, which runs with --incoming; without it one is started
    #[arg(long, value_name = "GUEST", value_parser = vm_paths::guest,
          add = migpipe_cli::candidates(vm_paths::names))]
    pub vm: Option<String>,
    /// Call the guest so on this host
    #[arg(long, value_name = "NAME", conflicts_with = "vm", value_parser = vm_paths::name)]
    pub name: Option<String>,
    /// As what the guest's vmrun is started
    #[arg(long = "as", value_name = "WHAT", value_enum, default_value_t, conflicts_with = "vm")]
    pub start_as: StartAs,
    /// Where the guest's serial console goes: stdio is not possible here; file:PATH, unix:PATH or
    /// null. Without it, as on the source
    #[arg(long, value_name = "CONSOLE")]
    pub console: Option<String>,
    /// Where the guest's virtio console goes, if it has one; likewise
    #[arg(long, value_name = "CONSOLE")]
    pub virtio_console: Option<String>,
    /// Where the image of a disk is on this host; without it, where it is on the source
    #[arg(long = "disk", value_name = "ID=PATH", value_parser = named)]
    pub disks: Vec<(String, String)>,
    /// Which tap of this host a network card uses; without it, one of the same name as on the source
    #[arg(long = "net", value_name = "ID=TAP", value_parser = named)]
    pub nets: Vec<(String, String)>,
    /// Where the console and the disk images may be that the stream names, beside those that are
    /// named here: a directory and what is below it, or one file; once for each. Without it, guests
    /// in the state directory (/var/lib/vmrun or ~/.local/state/vmrun), and where a guest of the same
    /// name had them on this host before; a console that is elsewhere goes to a file there
    #[arg(long, value_name = "PATH", conflicts_with = "vm")]
    pub files_in: Vec<PathBuf>,
    /// Let the stream name any file that this user may open. Whoever can send a guest here can then
    /// have any file of this user
    #[arg(long, conflicts_with_all = ["vm", "files_in"])]
    pub files_anywhere: bool,
    /// A file that the command line of the mig-recv names which started this one
    #[arg(long, value_name = "PATH", hide = true)]
    pub named: Vec<PathBuf>,
    /// Run a saved guest a second time, or a snapshot, under a new migration id. If the first copy
    /// still runs, the two share every address and disk
    #[arg(long)]
    pub clone: bool,
    /// Refuse a guest that is here, whole, and has waited for GO this long, in seconds; or never:
    /// it waits until its source or vmctl decides. If its source has committed and its host
    /// crashed, a time limit throws the only whole copy away
    #[arg(long, value_name = "SECONDS", default_value = "never")]
    pub go_timeout: migpipe_cli::Limit,
    /// Give up when nothing arrives for so long, in seconds. The header of a stream is there within
    /// 30 s, or within this time if that is less
    #[arg(long, value_name = "SECONDS", default_value = "300", value_parser = migpipe_cli::seconds)]
    pub timeout: Duration,
    /// Refuse a guest that has more memory
    #[arg(long, value_name = "SIZE")]
    pub max_mem: Option<Bytes>,
    /// Refuse a guest that has more vCPUs
    #[arg(long, value_name = "N")]
    pub max_cpus: Option<u32>,
    #[command(flatten)]
    pub reporting: migpipe_cli::Reporting,
    /// Say nothing when all went well
    #[arg(short, long)]
    pub quiet: bool,
    /// Say what went wrong as one JSON object on stderr
    #[arg(long)]
    pub json: bool,
    /// Serve the mig-recv that started this one; see the module host
    #[arg(long, hide = true)]
    pub broker: bool,
    #[command(flatten)]
    pub confinement: migpipe_cli::Confinement,
    #[command(flatten)]
    pub common: migpipe_cli::Common,
}

const EXAMPLES: &str = "\
Examples:
  mig-send web ssh:hostb                       on the source: a handover through ssh
  mig-recv tcp:0.0.0.0:4444                    wait for one guest; trusted networks only
  mig-recv --disk disk0=/dev/vg0/web           its disk is another here
  mig-recv --files-in /srv/guests              its console and disks are there, or it is refused
  mig-recv --max-mem 8G --max-cpus 8           it is no larger than that, or it is refused
  mig-recv file:web.mig                        restore a saved guest
  mig-recv --name web2 --clone file:web.mig    ... once more, as a copy
  mig-recv --report r.json --progress json tcp:0.0.0.0:4444
  mig-recv < web.mig

Exit status:
  0  the guest runs here
  1  failed; the guest has not run and will not run here
  2  wrong usage
  4  the guest is here, paused, and no GO came: the source resolves it; of a saved guest, that
     it may have begun to run and its vmrun does not say";

impl fmt::Display for StartAs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Unit => "unit",
            Self::Scope => "scope",
            Self::Child => "child",
        })
    }
}

impl Args {
    /// What the options say together, and the parser cannot see.
    pub fn check(&self) -> anyhow::Result<()> {
        let terminal = |console: &Option<String>| console.as_deref() == Some(TERMINAL);
        if self.vm.is_none() && (terminal(&self.console) || terminal(&self.virtio_console)) {
            return Err(migpipe_cli::usage(anyhow!(
                "the vmrun that is started here has no terminal: send the console to file:PATH or \
                 unix:PATH"
            )));
        }
        Ok(())
    }

    /// Takes the descriptors on which something is to be said, where `source` brings the stream.
    ///
    /// # Errors
    /// Wrong usage.
    pub fn claim_descriptors(&self, source: &Endpoint) -> anyhow::Result<()> {
        // The answers to what comes through stdin go to stdout.
        let taken = match source {
            Endpoint::Standard => &[0, 1][..],
            Endpoint::Fd(fd) => std::slice::from_ref(fd),
            _ => &[],
        };
        self.reporting.claim(taken, mig_channel::claim)
    }

    /// The files that are named here: they are meant, wherever they are.
    pub fn named(&self) -> Vec<PathBuf> {
        let consoles = [&self.console, &self.virtio_console].into_iter().flatten();
        let consoles = consoles.filter_map(|console| match console.split_once(':') {
            Some(("file" | "unix", path)) => Some(path),
            _ => None,
        });
        let disks = self.disks.iter().map(|(_, path)| path.as_str());
        consoles.chain(disks).map(PathBuf::from).chain(self.named.iter().cloned()).collect()
    }
}

impl migpipe_cli::Program for Args {
    const FILTERS: &'static [migpipe_confine::Filter] = &[crate::confinement::FILTER];

    fn common(&self) -> &migpipe_cli::Common {
        &self.common
    }

    fn json(&self) -> bool {
        self.json
    }
}

fn named(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((id, value)) if !id.is_empty() && !value.is_empty() => {
            Ok((id.to_owned(), value.to_owned()))
        }
        _ => Err("write ID=VALUE, with the id that vmrun gave it: disk0, net0, ...".to_owned()),
    }
}
