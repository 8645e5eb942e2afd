//! Two hosts, a guest on one, and a migration of it to the other through a tunnel that is told
//! what to do.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::case::{After, Case, Fault, Form, Party};
use super::expect::{self, Ending};
use super::gate::Gate;
use super::seed::Seed;
use super::watch::Watch;
use super::wire::{Act, Plan, Point};
use crate::console::{Console, wait};
use crate::guest::Guest;
use crate::host::Host;
use crate::{HANG_TIMEOUT, wait_within};

/// Memory that is filled and sent (MiB), and how fast: the first round takes some 0.15 s.
const FILL_MB: u64 = 8;
const SPEED: &str = "60M";

/// A guest that powers itself off does so after so many ticks of 10 ms.
const TICKS: u64 = 300;

/// A timeout that is to come, and one that is not.
const SHORT: f64 = 2.0;
const LONG: f64 = 600.0;

/// A go-timeout where either may come.
const MEDIUM: f64 = 8.0;

/// Less address space than the guest's memory needs (KiB).
const LITTLE: u64 = 65_000;

/// A mig-send that was started.
#[derive(Debug)]
pub struct Sender {
    child: Child,
    said: PathBuf,
}

impl Sender {
    /// Its process.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("a child can be waited for").is_some()
    }

    /// Waits for its end: its status (none if it was killed), and what it said.
    pub fn end(&mut self) -> (Option<i32>, String) {
        let status = wait_within(&mut self.child, HANG_TIMEOUT).code();
        (status, fs::read_to_string(&self.said).unwrap_or_default())
    }
}

/// Everything of one case.
#[derive(Debug)]
pub struct TestBed {
    /// What it is.
    pub case: Case,
    /// The host that the guest leaves.
    pub source: Host,
    /// The host that it goes to.
    pub destination: Host,
    /// Where the tunnels ask.
    pub gate: Gate,
    /// The guest.
    pub a: Guest,
    /// Its console at the destination.
    pub b: Console,
    /// Its console there, if a second mig-send brings it.
    pub c: Console,
    /// Whether anybody runs who should not.
    pub watch: Watch,
    /// The mig-send, once it is started.
    pub sender: Sender,
    to: String,
}

impl TestBed {
    /// Boots the guest and starts to send it.
    pub fn new(case: Case, seed: &mut Seed) -> Self {
        let (source, destination) = (Host::new(), Host::new());
        let times = Times::of(case);
        prepare(case, seed, &source, &destination);
        script(&destination, "recv", &reception(case, &destination, &times));
        script(&destination, "commit", &counted(&destination, "vmctl commit b"));
        let gate = Gate::new(&source.path("gate"));
        let power_off = match case.fault {
            Fault::PowerOff => format!(",run-ticks={TICKS}"),
            _ => String::new(),
        };
        let kernel = format!(
            "builtin:dirty,pages=64,rate=500,fill=random,fill-mb={FILL_MB},tick-ms=10{power_off}"
        );
        let cpus = (1 + seed.below(2)).to_string();
        let a = Guest::boot(&source, "a", &kernel, &["--mem", "64M", "--cpus", &cpus]);
        let b = Console::at(&destination.path("b.console"));
        let c = Console::at(&destination.path("c.console"));
        let watch = Watch::new(&a.console, &b);
        let to = through(&gate, &destination, "recv");
        // What follows the first tunnel: for Mended the network is there.
        gate.set_down(case.after != After::Mended);
        gate.plan(&match (case.form, case.step) {
            (Form::Resolve, _) => vec![Plan::Stop(Point::Go)],
            (Form::Commit, Point::Query | Point::Answer) => {
                vec![Plan::Carry, Plan::Stop(case.step)]
            }
            _ => vec![Plan::Stop(case.step)],
        });
        let mut command = source.command("mig-send");
        command
            .args(["-q", "--classic", "--min-pages", "0", "--max-rounds", "4"])
            .args(["--max-bandwidth", SPEED])
            .args(["--ready-timeout", &times.ready.to_string()])
            .args(["--timeout", &times.send.to_string()])
            .args(["--resolve-for", &times.resolve.to_string(), "a"])
            .arg(if case.form == Form::File { file(&source) } else { to.clone() });
        match case.form {
            Form::OneWay => drop(command.arg("--one-way")),
            Form::Commit => {
                command.args(["--commit", &through(&gate, &destination, "commit")]);
            }
            Form::Both | Form::Resolve | Form::File => {}
        }
        let sender = start(&source, &mut command);
        Self { case, source, destination, gate, a, b, c, watch, sender, to }
    }

    /// Hands the guest over without GO, so that there is something to be asked, and asks.
    pub fn ask(&mut self) {
        let mut stopped = self.gate.wait(HANG_TIMEOUT).expect("GO is reached");
        stopped.tell(Act::Cut);
        let (status, said) = self.sender.end();
        assert_eq!(status, Some(4), "handing over: {said}");
        // The next one has its helpers to itself.
        wait("the mig-recv that got no GO to end", || self.reception_ended());
        self.gate.plan(&[Plan::Stop(self.case.step)]);
        let mut command = self.source.command("mig-send");
        let for_seconds = if self.case.fault == Fault::Kill(Party::Send) { LONG } else { 3.0 };
        command.args(["--resolve", "--resolve-for", &for_seconds.to_string()]);
        command.args(["--timeout", &SHORT.to_string(), "a", &self.to]);
        self.sender = start(&self.source, &mut command);
    }

    /// Takes the destination's records away, and puts a file in their place.
    pub fn lose_records(&self) {
        let records = self.destination.path("state/vmrun/migrations");
        // Its vmrun takes the guest when the record is on the disk, and not before.
        wait("the record", || self.destination.state("b").is_some_and(|it| it != "incoming"));
        fs::rename(&records, records.with_extension("away")).expect("there are records");
        occupy(&self.destination, "state/vmrun/migrations");
    }

    /// Puts them back, if they were taken.
    pub fn restore(&self) {
        let records = self.destination.path("state/vmrun/migrations");
        if records.is_file() {
            fs::remove_file(&records).expect("the file in their place");
            fs::rename(records.with_extension("away"), &records).expect("they are there");
        }
    }

    /// What the operator types to find out what became of the guest; status and words.
    pub fn resolve(&self, options: &[&str]) -> (Option<i32>, String) {
        self.gate.set_down(false);
        let mut args = vec!["--resolve", "--resolve-for", "20"];
        args.extend(options);
        args.extend(["a", &self.to]);
        let done = self.source.run("mig-send", &args);
        (done.status, done.stderr)
    }

    /// A command that receives the guest under another name, without a tunnel.
    pub fn elsewhere(&self) -> String {
        let recv = format!("mig-recv --quiet --name c --console file:{}", self.c.path().display());
        format!("exec:{}", self.destination.remote(&recv))
    }

    /// The exit statuses of the mig-recv and vmctl that ran at the destination, that of the first
    /// one first, with what they said.
    pub fn receptions(&self) -> Vec<(i32, String)> {
        (0..)
            .map_while(|number| {
                let status = self.destination.path(&format!("run.{number}.status"));
                let said = self.destination.path(&format!("run.{number}.err"));
                let status = fs::read_to_string(status).ok()?.trim().parse().ok()?;
                Some((status, fs::read_to_string(said).unwrap_or_default()))
            })
            .collect()
    }

    /// What the destination's vmrun wrote to its log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.destination.path("state/vmrun/log/b.log")).unwrap_or_default()
    }

    /// Whether the first mig-recv has ended.
    pub fn reception_ended(&self) -> bool {
        self.destination.path("run.0.status").exists()
    }
}

/// Starts mig-send.
pub fn start(host: &Host, command: &mut Command) -> Sender {
    let said = host.path("send.err");
    let child = command
        .stdout(Stdio::null())
        .stderr(Stdio::from(File::create(&said).expect("a file")))
        .spawn()
        .expect("mig-send");
    Sender { child, said }
}

/// A destination behind a tunnel.
fn through(gate: &Gate, destination: &Host, name: &str) -> String {
    let script = destination.path(name);
    let command = destination.remote(&script.display().to_string());
    format!("exec:exec lossy-tunnel {} 'exec {command}'", gate.path().display())
}

/// Where the guest is saved to.
pub fn file(source: &Host) -> String {
    format!("file:{}", source.path("disk/a.mig").display())
}

fn script(host: &Host, name: &str, text: &str) {
    let path = host.path(name);
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("a script");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a script");
}

/// Runs `command`, and keeps what it says and its status under the next free number.
fn counted(host: &Host, command: &str) -> String {
    let run = host.path("run");
    let run = run.display();
    format!(
        "n=0; until mkdir {run}.$n 2>/dev/null; do n=$((n+1)); done\n\
         exec 2>{run}.$n.err\n{command}\ns=$?\n\
         echo $s >{run}.$n.tmp; mv {run}.$n.tmp {run}.$n.status; exit $s"
    )
}

fn reception(case: Case, host: &Host, times: &Times) -> String {
    let limit = match case.fault {
        Fault::LittleMemory => format!("ulimit -v {LITTLE}; "),
        _ => String::new(),
    };
    counted(
        host,
        &format!(
            "{limit}mig-recv --quiet --name b --console file:{} --go-timeout {} --timeout {}",
            host.path("b.console").display(),
            times.go,
            times.recv
        ),
    )
}

/// What is broken before anything begins.
fn prepare(case: Case, seed: &mut Seed, source: &Host, destination: &Host) {
    match case.fault {
        // Either nothing can be written, or the records cannot.
        Fault::StateUnwritable if seed.below(2) == 0 => occupy(destination, "state/vmrun"),
        Fault::StateUnwritable => {
            fs::create_dir_all(destination.path("state/vmrun")).expect("a directory");
            occupy(destination, "state/vmrun/migrations");
        }
        Fault::SourceStateUnwritable => occupy(source, "state/vmrun"),
        _ => {}
    }
    if case.form == Form::File {
        fs::create_dir(source.path("disk")).expect("a directory");
    }
}

/// Puts a file where a directory is wanted: nothing can be written below it, not by root either.
fn occupy(host: &Host, name: &str) {
    let path = host.path(name);
    // What a host remembers before it has heard of any migration.
    if path.is_dir() {
        fs::remove_dir_all(&path).expect("a directory can go");
    }
    fs::write(path, "").expect("a file");
}

/// The timeouts of a case, in seconds: short where one is to come, long where one that came would
/// be luck.
struct Times {
    ready: f64,
    send: f64,
    recv: f64,
    go: f64,
    resolve: f64,
}

impl Times {
    fn of(case: Case) -> Self {
        let Case { form, step, fault, after } = case;
        let outcomes = expect::outcomes(form, step, fault);
        let silent = matches!(fault, Fault::Freeze(_) | Fault::Net(Act::Stall | Act::DropTail));
        let unanswered = matches!(step, Point::Connect | Point::Header | Point::Ready);
        let short = |when: bool| if when { SHORT } else { LONG };
        // A destination that waits for a GO that will never come is to give up soon; one that is
        // to be asked is to wait.
        let waits = outcomes
            .iter()
            .any(|it| matches!(it, Ending::Prepared | Ending::Running | Ending::Moved));
        let gives_up = outcomes.iter().any(|it| {
            use Ending::{Cancelled, Doubtful, EndedHere, Stays};
            matches!(it, Stays | Cancelled | EndedHere | Doubtful)
        });
        let go = match (after, waits, gives_up) {
            (After::AskedLate, ..) if form == Form::Resolve => MEDIUM,
            (After::AskedLate, ..) | (_, false, _) => SHORT,
            (_, true, true) => MEDIUM,
            (_, true, false) => LONG,
        };
        Self {
            ready: short(silent && unanswered && fault != Fault::Freeze(Party::Send)),
            send: short(silent && fault != Fault::Freeze(Party::Send)),
            recv: short(matches!(fault, Fault::Freeze(Party::Send) | Fault::Net(Act::Partition))),
            go,
            // The one that is asked for is handed over without asking.
            resolve: if after == After::Mended && form != Form::Resolve { 30.0 } else { 0.0 },
        }
    }
}

/// Whether a disk can be mounted here.
///
/// # Errors
/// Where this process may not mount anything.
pub fn try_mount() -> nix::Result<()> {
    let dir = tempfile::tempdir().expect("a directory");
    small_disk(dir.path()).map(drop)
}

/// A disk that is mounted for one case.
#[derive(Debug)]
pub struct Mount(PathBuf);

/// Mounts a disk at `dir` that is too small for the guest.
///
/// # Errors
/// Where this process may not mount anything.
pub fn small_disk(dir: &Path) -> nix::Result<Mount> {
    let size = Some("size=3m");
    nix::mount::mount(Some("tmpfs"), dir, Some("tmpfs"), nix::mount::MsFlags::empty(), size)?;
    Ok(Mount(dir.to_owned()))
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = nix::mount::umount(&self.0);
    }
}
