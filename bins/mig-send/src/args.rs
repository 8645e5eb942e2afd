//! The command line of mig-send.

use std::time::Duration;

use anyhow::anyhow;
use clap::Parser;
use mig_channel::{Endpoint, ReturnPath};
use mig_engine::precopy::{Limits, OnStall};
use migpipe_units::{BytesPerSec, MigrationId, Pages};

use crate::NAME;
use crate::query_args::QueryArgs;
use crate::ssh_args::SshArgs;

/// Sends a running guest to another host as a byte stream.
#[derive(Parser, Debug)]
#[command(name = "mig-send", version, after_help = EXAMPLES)]
pub struct Args {
    /// The guest: its name, or the path of its control socket
    #[arg(value_name = "GUEST", value_parser = vm_paths::guest, add = migpipe_cli::candidates(vm_paths::names))]
    pub guest: String,
    /// Where the stream goes: - (stdout), ssh:HOST or ssh:USER@HOST/NAME, exec:CMD, tcp:HOST:PORT,
    /// unix:PATH, file:PATH or fd:N
    ///
    /// ssh: starts mig-recv on HOST, where the guest is called NAME, or as here. It asks for a
    /// password or passphrase on the terminal, and never where there is none.
    ///
    /// ssh:, exec:, tcp:, unix: and a socket have a way back, and with it a handover: one of the two
    /// hosts runs the guest, whatever breaks. - and fd:N go one way: nobody answers, and status 0
    /// says that the stream is complete. file:PATH, or an empty file behind - or fd:N, saves the
    /// guest: its vmrun ends when the file is on the disk.
    ///
    /// A one-way stream and a saved guest can be copied. A host refuses the same one a second
    /// time, but two hosts, or two users of one, do not know of each other: if each is given a
    /// copy, two guests run, and nobody can tell.
    #[arg(value_name = "DEST", default_value = "-")]
    pub destination: Endpoint,

    /// Where the answers come from: stdin, fd:N or none
    #[arg(long = "return", value_name = "PATH")]
    pub return_path: Option<ReturnPath>,
    /// Expect no answers, even where they could come back
    #[arg(long)]
    pub one_way: bool,
    /// For tunnels that hold data back: close the stream after its end, and send GO through this
    /// second way (ssh:HOST or exec:CMD)
    #[arg(long, value_name = "DEST", conflicts_with = "one_way")]
    pub commit: Option<Endpoint>,
    /// What DEST runs saves the guest: its vmrun ends when exec:CMD has taken all of it and ended with
    /// status 0
    ///
    /// That what CMD has written is on the disk then is its own matter (exec:'zstd > web.zst && sync
    /// web.zst'). A file needs no word: file:PATH, or an empty file behind - or fd:N, is one that the
    /// guest is saved to.
    #[arg(long, conflicts_with_all = ["commit", "return_path", "resolve"])]
    pub save: bool,
    /// As --save, and for a file as well; but the guest runs on when its state is written
    ///
    /// Its disks are not in the file and change from then on: a copy of them that belongs to it is for
    /// the user to make, from a guest that was paused before (vmctl pause). A snapshot is run by
    /// mig-recv --clone alone, as another guest.
    #[arg(long, conflicts_with_all = ["commit", "return_path", "resolve", "save", "zero_copy"])]
    pub snapshot: bool,
    /// Finish a migration whose outcome is not known: ask DEST what became of it; without DEST, where
    /// the guest was sent, if that is ssh:HOST, tcp: or unix:
    #[arg(long, conflicts_with_all = ["dry_run", "one_way"])]
    pub resolve: bool,
    /// With --resolve: run the guest here though the destination cannot be asked or may have run
    /// it. Two copies run if you are wrong
    #[arg(long, requires = "resolve")]
    pub force: bool,
    /// Say what would be sent; and, if DEST has a way back, whether it would take the guest, how long
    /// that would take and how long the guest would stand still
    ///
    /// The destination looks and makes no guest, the path is timed with pages that are thrown away
    /// there, and what the guest writes is watched meanwhile, for three seconds in all. With --json
    /// one object goes to stdout. Status 1 says that the guest would not move so.
    #[arg(short = 'n', long)]
    pub dry_run: bool,

    /// Send at most this much per second, such as 200M
    #[arg(long, value_name = "RATE")]
    pub max_bandwidth: Option<BytesPerSec>,
    /// Stop the guest for at most this many milliseconds
    #[arg(long, value_name = "MS", default_value = "100", value_parser = migpipe_cli::milliseconds)]
    pub max_downtime: Duration,
    /// Few enough: this many dirty pages end pre-copy
    #[arg(long, value_name = "PAGES", default_value = "50", value_parser = pages)]
    pub min_pages: Pages,
    /// So many rounds in a row without progress are a stall
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub stall_rounds: u32,
    /// No more rounds than this
    #[arg(long, value_name = "N", default_value_t = 30)]
    pub max_rounds: u32,
    /// What a stall leads to: throttle the guest, stop it and send the rest, or abort
    #[arg(long, value_name = "POLICY", default_value_t = OnStall::Throttle,
          value_parser = migpipe_cli::word::<OnStall>(&["throttle", "stop", "abort"]),
          hide_possible_values = true)]
    pub on_stall: OnStall,
    /// The three rules of the KVM Forum 2007 talk alone, whatever downtime comes of it
    #[arg(long)]
    pub classic: bool,
    /// Give a blackout up that overruns --max-downtime, while nothing is committed yet
    #[arg(long, conflicts_with = "classic")]
    pub enforce_downtime: bool,
    /// Send pages that are dirty in every round again and again, instead of leaving them for the
    /// blackout
    #[arg(long)]
    pub no_wws: bool,
    /// Pass pages on without a copy, where the channel is a pipe and the kernel still does that.
    /// They carry no checksums then
    #[arg(long)]
    pub zero_copy: bool,
    /// Compare digests of the whole memory during the blackout
    #[arg(long)]
    pub verify: bool,

    /// How long the destination may take to answer the header, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = migpipe_cli::seconds)]
    pub ready_timeout: Duration,
    /// Give up when nothing moves for so long, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = migpipe_cli::seconds)]
    pub timeout: Duration,
    /// How long to go on asking for the outcome after the commit, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = migpipe_cli::seconds)]
    pub resolve_for: Duration,

    #[command(flatten)]
    pub reporting: migpipe_cli::Reporting,
    /// No table at the end
    #[arg(short, long)]
    pub quiet: bool,
    /// Say what went wrong as one JSON object on stderr, and print no table
    #[arg(long)]
    pub json: bool,
    /// Make queries about this migration for the mig-send that started this one; see the module
    /// query
    #[arg(long, value_name = "ID", hide = true)]
    pub broker: Option<MigrationId>,
    /// Ask DEST once what became of this migration, and print the answer for the mig-send that
    /// started this one
    #[arg(long, value_name = "ID", hide = true)]
    pub ask: Option<MigrationId>,
    /// What else --ask has to say
    #[arg(long, value_name = "JSON", hide = true)]
    pub about: Option<QueryArgs>,
    #[command(flatten)]
    pub ssh: SshArgs,
    #[command(flatten)]
    pub confinement: migpipe_cli::Confinement,
    #[command(flatten)]
    pub common: migpipe_cli::Common,
}

const EXAMPLES: &str = "\
Examples:
  mig-send web ssh:hostb                          with a handover; recommended
  mig-send web ssh:root@hostb/w2 -- --files-in /srv/guests
  mig-send web exec:'pv | ssh hostb mig-recv'     through any program
  mig-send web | ssh hostb mig-recv               one way
  mig-send web file:web.mig                       save; restore with mig-recv file:web.mig
  mig-send --save web exec:'zstd > web.zst'       ... through a program
  mig-send --snapshot web file:web.mig            the guest runs on; mig-recv --clone runs a copy
  mig-send web tcp:hostb:4444                     trusted networks only
  mig-send web exec:'gzip | ssh hostb \"gunzip | mig-recv\"' --commit ssh:hostb
  mig-send -n web ssh:hostb                       would it work, and how long would it take
  mig-send --resolve web                          ask where it was sent
  mig-send --resolve web ssh:hostb

Signals:
  SIGUSR1  a line of progress on stderr
  SIGINT, SIGTERM, SIGHUP  cancel: the guest runs on here

Exit status:
  0  the destination runs the guest, the stream is complete (one way), or the snapshot is
  1  failed; the guest runs on here
  2  wrong usage
  3  cancelled; the guest runs on here
  4  outcome not known: the guest is handed-over here; run mig-send --resolve";

impl migpipe_cli::Program for Args {
    const FILTERS: &'static [migpipe_confine::Filter] =
        &[crate::confinement::MAIN, crate::confinement::SIGNALS];

    fn common(&self) -> &migpipe_cli::Common {
        &self.common
    }

    fn json(&self) -> bool {
        self.json
    }

    fn guest(&self) -> Option<&str> {
        Some(&self.guest)
    }
}

impl Args {
    /// Completes the destinations by what stands beside them.
    ///
    /// # Errors
    /// Wrong usage.
    pub fn complete(mut self) -> anyhow::Result<Self> {
        self.ssh.apply([Some(&mut self.destination), self.commit.as_mut()])?;
        if self.saves()
            && matches!(
                self.destination,
                Endpoint::Ssh(_) | Endpoint::Tcp { .. } | Endpoint::Unix(_)
            )
        {
            return Err(migpipe_cli::usage(anyhow!(
                "{} is no place to save a guest: write file:PATH or exec:CMD",
                self.destination
            )));
        }
        Ok(self)
    }

    /// Whether the command line says that DEST saves the guest.
    pub fn saves(&self) -> bool {
        self.save || self.snapshot
    }

    /// Whether DEST can be asked before anything is sent.
    pub fn can_ask_before(&self) -> bool {
        let leads_back = match (&self.destination, self.return_path) {
            (_, Some(ReturnPath::None)) | (Endpoint::File(_), _) => false,
            (_, Some(ReturnPath::Stdin | ReturnPath::Fd(_))) => true,
            (Endpoint::Standard | Endpoint::Fd(_), None) => false,
            (
                Endpoint::Ssh(_) | Endpoint::Exec(_) | Endpoint::Tcp { .. } | Endpoint::Unix(_),
                None,
            ) => true,
        };
        leads_back && !self.one_way && !self.saves() && self.commit.is_none()
    }

    /// Whom a query about the migration goes to.
    pub fn asked(&self) -> &Endpoint {
        self.commit.as_ref().unwrap_or(&self.destination)
    }

    /// Whether the command line leaves it open where the stream goes, or whom to ask.
    pub fn names_no_destination(&self) -> bool {
        *self.asked() == Endpoint::Standard
    }

    /// Asks where the guest was sent, which its vmrun says by `arguments` of a command line; none if
    /// there are none.
    ///
    /// What a vmrun says may come from whoever took it over, or from a destination that took the
    /// mig-send over which told it. So nothing of it is run here, on this host or on another: a
    /// destination that takes more than a connection is for the operator to name.
    ///
    /// # Errors
    /// Arguments that name none; wrong usage if it is to be named.
    pub fn ask_at(&mut self, arguments: &[String]) -> anyhow::Result<()> {
        let line = [NAME, "--resolve", &self.guest].map(str::to_owned);
        let told = Self::try_parse_from(line.iter().chain(arguments))?.complete()?;
        let takes_a_connection = match &told.destination {
            Endpoint::Standard | Endpoint::Tcp { .. } | Endpoint::Unix(_) => true,
            Endpoint::Ssh(ssh) => ssh.is_plain(),
            Endpoint::Exec(_) | Endpoint::File(_) | Endpoint::Fd(_) => false,
        };
        if !takes_a_connection {
            let words: Vec<_> = line.iter().chain(arguments).collect();
            let words = words.iter().map(|it| migpipe_cli::quoted(&migpipe_cli::printable(it)));
            return Err(migpipe_cli::usage(anyhow!(
                "{}'s vmrun says that it is to be asked for by a command; if that is right, run it: {}",
                self.guest,
                words.collect::<Vec<_>>().join(" ")
            )));
        }
        self.destination = told.destination;
        Ok(())
    }

    /// Takes the descriptors on which something is to be said.
    ///
    /// # Errors
    /// Wrong usage.
    pub fn claim_descriptors(&self) -> anyhow::Result<()> {
        let stream = match self.destination {
            Endpoint::Standard => Some(1),
            Endpoint::Fd(fd) => Some(fd),
            _ => None,
        };
        let back = match self.return_path {
            Some(ReturnPath::Stdin) => Some(0),
            Some(ReturnPath::Fd(fd)) => Some(fd),
            Some(ReturnPath::None) | None => None,
        };
        let taken: Vec<_> = [stream, back].into_iter().flatten().collect();
        self.reporting.claim(&taken, mig_channel::claim)
    }

    /// The limits of pre-copy.
    pub fn limits(&self) -> Limits {
        Limits {
            min_pages: self.min_pages,
            stall_rounds: self.stall_rounds,
            max_rounds: self.max_rounds,
            max_downtime: self.max_downtime,
            classic: self.classic,
            on_stall: self.on_stall,
        }
    }

    /// The bandwidth limit; 0 is none.
    pub fn bandwidth(&self) -> Option<BytesPerSec> {
        self.max_bandwidth.filter(|limit| limit.0 > 0)
    }
}

fn pages(text: &str) -> Result<Pages, String> {
    text.parse().map(Pages).map_err(|_| "give a number of pages".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask_at(words: &[&str]) -> anyhow::Result<Endpoint> {
        let mut args = Args::parse_from(["mig-send", "--resolve", "web"]);
        args.ask_at(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())?;
        Ok(args.destination)
    }

    #[test]
    fn where_a_vmrun_says_that_its_guest_was_sent_is_asked_by_a_connection_alone() {
        assert_eq!(ask_at(&[]).unwrap(), Endpoint::Standard);
        for plain in ["ssh:root@hostb/w2", "tcp:hostb:4444", "unix:/run/x"] {
            assert_eq!(ask_at(&[plain]).unwrap().to_string(), plain);
        }
        for (words, command) in [
            (&["exec:touch /x"][..], "mig-send --resolve web 'exec:touch /x'"),
            (
                &["ssh:hostb", "--ssh-option=ProxyCommand=id"],
                "mig-send --resolve web ssh:hostb --ssh-option=ProxyCommand=id",
            ),
            (
                &["ssh:hostb", "--recv-path=bin/id"],
                "mig-send --resolve web ssh:hostb --recv-path=bin/id",
            ),
            (&["ssh:hostb", "--", "-q"], "mig-send --resolve web ssh:hostb -- -q"),
            (&["file:x"], "mig-send --resolve web file:x"),
        ] {
            let error = ask_at(words).unwrap_err();
            assert!(migpipe_cli::is_usage(&error), "{error}");
            let said = error.to_string();
            let told = said.split("run it: ").nth(1).unwrap();
            assert_eq!(unquoted(told), unquoted(command), "{said}");
        }
    }

    /// Which words are quoted is for the crate that does it.
    fn unquoted(text: &str) -> String {
        text.replace('\'', "")
    }
}
