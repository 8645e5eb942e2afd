//! The command line of vmctl.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use migpipe_units::{Bytes, BytesPerSec};

/// The monitor of running guests and migrations.
#[derive(Parser, Debug)]
#[command(name = "vmctl", version, after_help = EXAMPLES)]
pub struct Args {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
    /// Print JSON, also what went wrong
    #[arg(long, global = true)]
    pub json: bool,
    #[command(flatten)]
    pub common: migpipe_cli::Common,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Show all guests of this user
    List,
    /// Watch all guests of this user and their migrations on the terminal, until q is pressed
    Top {
        /// Look again after so many seconds
        #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = migpipe_cli::seconds)]
        interval: Duration,
    },
    /// Show how a guest is
    Status {
        /// The guest: its name, or the path of its control socket
        #[arg(value_parser = vm_paths::guest, add = migpipe_cli::candidates(vm_paths::names))]
        guest: String,
    },
    /// Stop the vCPUs of a guest
    Pause {
        /// The guest
        #[arg(value_parser = vm_paths::guest, add = migpipe_cli::candidates(vm_paths::names))]
        guest: String,
    },
    /// Let the vCPUs of a guest run; in the blackout of its migration that cancels it
    Resume {
        /// The guest
        #[arg(value_parser = vm_paths::guest, add = migpipe_cli::candidates(vm_paths::names))]
        guest: String,
    },
    /// End a guest, and wait until its name and its disks are free
    Quit {
        /// The guest
        #[arg(value_parser = vm_paths::guest, add = migpipe_cli::candidates(vm_paths::names))]
        guest: String,
        /// Even if this may be its last copy
        #[arg(long)]
        force: bool,
    },
    /// Ask a guest to do with so much of its memory, such as 256M: the rest goes back to this host
    ///
    /// The guest needs a balloon (vmrun --balloon) and its driver. It does when it can; vmctl status
    /// shows how far it is. Asked for all of its memory it takes everything back.
    Balloon {
        /// The guest
        #[arg(value_parser = vm_paths::guest, add = migpipe_cli::candidates(vm_paths::names))]
        guest: String,
        /// How much of its memory the guest keeps
        size: Bytes,
    },
    /// Print what happens to a guest, a line each, until it ends
    Events {
        /// The guest
        #[arg(value_parser = vm_paths::guest, add = migpipe_cli::candidates(vm_paths::names))]
        guest: String,
        /// Stop after the first event of this name: resumed, paused, ownership or ended
        #[arg(long, value_name = "EVENT",
              value_parser = ["resumed", "paused", "ownership", "ended"])]
        until: Option<String>,
        /// Stop after so many seconds, with status 1
        #[arg(long, value_name = "SECONDS", value_parser = migpipe_cli::seconds)]
        timeout: Option<Duration>,
    },
    /// Wait until a guest is so
    ///
    /// Status 0 says that it was. ended means that no guest of this name is here. A state that a guest
    /// leaves again within milliseconds may be missed.
    Wait {
        /// The guest
        #[arg(value_parser = vm_paths::guest, add = migpipe_cli::candidates(vm_paths::names))]
        guest: String,
        /// running, paused, held, migrating, handed-over, incoming, receiving, prepared or ended
        #[arg(hide_possible_values = true,
              value_parser = ["running", "paused", "held", "migrating", "handed-over", "incoming",
                              "receiving", "prepared", "ended"])]
        state: String,
        /// Stop after so many seconds, with status 1
        #[arg(long, value_name = "SECONDS", value_parser = migpipe_cli::seconds)]
        timeout: Option<Duration>,
    },
    /// Show how the migration of a guest goes
    Info {
        /// The guest
        #[arg(value_parser = vm_paths::guest, add = migpipe_cli::candidates(vm_paths::names))]
        guest: String,
    },
    /// Cancel the migration of a guest: it runs on here
    ///
    /// Its vmrun does it, whether mig-send still runs or not; status 0 means that it is done. Too late
    /// once the guest was handed over.
    Cancel {
        /// The guest
        #[arg(value_parser = vm_paths::guest, add = migpipe_cli::candidates(vm_paths::names))]
        guest: String,
    },
    /// Change how fast a migration may send, such as 200M; 0 is as fast as it goes
    SetSpeed {
        /// The guest
        #[arg(value_parser = vm_paths::guest, add = migpipe_cli::candidates(vm_paths::names))]
        guest: String,
        /// Bytes per second
        rate: BytesPerSec,
    },
    /// Change how long a migration may stop the guest
    SetDowntime {
        /// The guest
        #[arg(value_parser = vm_paths::guest, add = migpipe_cli::candidates(vm_paths::names))]
        guest: String,
        /// Milliseconds
        #[arg(value_parser = migpipe_cli::milliseconds)]
        downtime: Duration,
    },
    /// Finish a migration whose outcome is not known: ask DEST what became of it
    Resolve {
        /// The guest
        #[arg(value_parser = vm_paths::guest, add = migpipe_cli::candidates(vm_paths::names))]
        guest: String,
        /// Where to ask, such as ssh:hostb; without it, where the guest was sent
        #[arg(value_name = "DEST")]
        destination: Option<String>,
        /// Run the guest here though the destination cannot be asked or may have run it
        #[arg(long)]
        force: bool,
    },
    /// On a destination: run the guest that is here, whole, and waits for GO
    ///
    /// mig-send --commit starts it with a query on stdin. On a terminal it needs --force: it takes
    /// the word of whoever types it, and if the source has not handed the guest over, two run.
    Commit {
        /// The guest
        #[arg(value_parser = vm_paths::guest, add = migpipe_cli::candidates(vm_paths::names))]
        guest: String,
        /// GO without a query of the source
        #[arg(long)]
        force: bool,
    },
    /// Show what this host remembers of migrations, and of guests that left it
    ///
    /// A record of a migration answers a source that asks what became of it, and keeps the same
    /// stream from running twice. Records are removed by themselves after 30 days, unless their
    /// vmrun still lives or a saved guest ran, whose file may be read again at any time.
    Records {
        /// Remove what is older than 30 days and can go
        #[arg(long)]
        tidy: bool,
    },
    /// Forget a guest that left this host, so that it is started here again; or a migration
    ///
    /// A migration that was forgotten is unknown: the same stream may run here again, and a source
    /// that asks is told that its guest never arrived.
    Forget {
        /// The guest's name, or the id of a migration
        #[arg(value_name = "GUEST|ID")]
        what: String,
    },
    /// Show what processor this host can give to a guest, as JSON; or what several hosts can
    ///
    /// Keep it in a file for each host (ssh hostb vmctl cpu > hostb.json). A guest that was started
    /// with vmrun --cpu baseline:FILE can run on every host whose file the baseline was made of.
    #[command(args_conflicts_with_subcommands = true)]
    Cpu {
        /// What of several hosts
        #[command(subcommand)]
        of: Option<CpuCommand>,
    },
    /// Draw a report of mig-send: pages per round, how often a page was sent, downtime by phase
    ///
    /// Writes PREFIX-rounds, PREFIX-sent and PREFIX-downtime and prints their names. It needs no
    /// guest and no fonts.
    Plot {
        /// What mig-send --report wrote
        report: PathBuf,
        /// The beginning of the figures' names, instead of the report's without .json
        #[arg(long, value_name = "PREFIX")]
        out: Option<PathBuf>,
        /// What to write
        #[arg(long, value_enum, default_value = "both")]
        format: Format,
    },
}

/// What is asked of several hosts.
#[derive(Subcommand, Debug)]
pub enum CpuCommand {
    /// Print what all of these hosts can give to a guest, for vmrun --cpu baseline:FILE
    Baseline {
        /// What vmctl cpu printed on a host, or an earlier baseline; once for each
        #[arg(required = true, value_name = "HOST.json")]
        hosts: Vec<PathBuf>,
    },
}

/// The files that a figure becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Lines and letters, for a page or a slide
    Svg,
    /// 1200 by 675 pixels
    Png,
    /// Each
    Both,
}

const EXAMPLES: &str = "\
Examples:
  vmctl list
  vmctl top
  vmctl info web
  vmctl set-speed web 200M
  vmctl balloon web 256M
  vmctl resolve web                     # or, where the guest was not sent: ... web ssh:hostc
  vmctl events web --until ended
  vmctl wait web running --timeout 60
  vmctl records
  vmctl forget web                      # it did not arrive where it went: vmrun starts it here
  vmctl cpu baseline hosta.json hostb.json > fleet.json
  vmctl plot r.json --format svg        # after: mig-send --report r.json web ...

Exit status:
  0  done
  1  not done, and why is said in one line
  2  wrong usage
  Those of resolve are those of mig-send --resolve, those of commit are mig-recv's.";

impl migpipe_cli::Program for Args {
    fn common(&self) -> &migpipe_cli::Common {
        &self.common
    }

    fn json(&self) -> bool {
        self.json
    }

    fn guest(&self) -> Option<&str> {
        match &self.command {
            Command::Status { guest }
            | Command::Pause { guest }
            | Command::Resume { guest }
            | Command::Quit { guest, .. }
            | Command::Balloon { guest, .. }
            | Command::Events { guest, .. }
            | Command::Wait { guest, .. }
            | Command::Info { guest }
            | Command::Cancel { guest }
            | Command::SetSpeed { guest, .. }
            | Command::SetDowntime { guest, .. }
            | Command::Resolve { guest, .. }
            | Command::Commit { guest, .. } => Some(guest),
            Command::List
            | Command::Top { .. }
            | Command::Records { .. }
            | Command::Forget { .. }
            | Command::Cpu { .. }
            | Command::Plot { .. } => None,
        }
    }
}
