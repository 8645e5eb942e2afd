//! What the command lines of all programs share: how an error is shown, where the log goes, man
//! pages and shell completions.
//!
//! [`main`] also sets what every process here begins with, before it has a second thread:
//! - SIGXFSZ and SIGXCPU are blocked: a write beyond the file-size limit then fails with EFBIG and
//!   is reported like that of a full disk, and a limit of processor time ends the process only
//!   where it is a hard one. Blocked and not ignored: a program that is started from here begins
//!   with an empty mask and SIGPIPE as it was, which the standard library sees to.
//! - stderr is written by a thread of its own; see [`output`].
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod environment;
pub mod output;

use std::any::Any;
mod complete;
mod fault;
mod json_lines;
mod live_line;
mod manual;
mod milestones;
mod report_file;
mod reporting;
mod ticker;
mod usage;

use std::error::Error;
use std::io::{self, Write};
use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;
use std::{fmt, iter};

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, CommandFactory, Parser};
use clap_complete::Shell;
use migpipe_confine::{Filter, Mode, ViolationAction};
use nix::sys::signal::{SigSet, Signal};
use tracing::level_filters::LevelFilter;

pub use complete::candidates;
pub use fault::{guest_is_at, is_json};
pub use json_lines::{JsonLines, now};
pub use live_line::LiveLine;
pub use manual::Manual;
pub use milestones::{Milestone, Milestones};
pub use report_file::{ReportError, ReportFile, cpu_time};
pub use reporting::{ProgressMode, Reporting};
pub use ticker::Ticker;
pub use usage::{Usage, is_usage, quoted, usage};

/// Exit status for a command line that makes no sense; clap's own.
pub const USAGE: u8 = 2;

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// The options that every program has.
#[derive(Args, Clone, Debug)]
pub struct Common {
    /// How much to say on stderr: off, error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL", default_value = "warn", global = true,
          value_parser = word::<LevelFilter>(&LEVELS), hide_possible_values = true)]
    pub log: LevelFilter,
    /// Print the manual page (roff) and exit
    #[arg(long, global = true, hide = true)]
    pub man: bool,
    /// Print completions for a shell and exit
    #[arg(long, value_name = "SHELL", global = true, hide = true)]
    pub completions: Option<Shell>,
}

/// The options of a program that confines itself.
#[derive(Args, Clone, Debug)]
pub struct Confinement {
    /// What to do about a system call or file that this program has no use for: enforce refuses it,
    /// log has the kernel log such calls, off keeps all rights of the user
    #[arg(long, value_name = "MODE", default_value_t = Mode::Enforce,
          value_parser = word::<Mode>(&["enforce", "log", "off"]), hide_possible_values = true)]
    pub confine: Mode,
    /// Print the system calls that are left to this program and exit
    #[arg(long)]
    pub show_confinement: bool,
}

impl Confinement {
    /// Decides how this process is confined, and confines the threads that write for it. Before any
    /// other thread exists.
    pub fn begin(&self, outside: ViolationAction) {
        migpipe_confine::begin(self.confine, outside);
        output::confine();
    }
}

/// A command line that holds the common options.
pub trait Program: Parser + CommandFactory {
    /// What its threads may call once they are confined; nothing for a program that is not.
    const FILTERS: &'static [Filter] = &[];

    /// What its manual page says beside the command line.
    const MANUAL: Manual = Manual::OF_A_HOST;

    /// Its common options.
    fn common(&self) -> &Common;

    /// Whether a script reads what it says.
    fn json(&self) -> bool {
        false
    }

    /// The guest that its command line names.
    fn guest(&self) -> Option<&str> {
        None
    }
}

/// Parses the command line, does what the common options ask for, and runs `body`. An error
/// becomes one line on stderr and exit status 1, or [`USAGE`] if it is a [`Usage`].
pub fn main<P: Program>(body: impl FnOnce(P) -> anyhow::Result<u8>) -> ExitCode {
    let name = P::command().get_name().to_owned();
    ignore_limits();
    // A shell that asks what could come next; before there is a second thread.
    if complete::answer::<P>() {
        return ExitCode::SUCCESS;
    }
    if let Some(done) = documentation::<P>() {
        return finish(&name, done.map(|()| 0).map_err(Into::into));
    }
    let program = match P::command()
        .try_get_matches()
        .and_then(|mut matches| P::from_arg_matches_mut(&mut matches))
    {
        Ok(program) => program,
        Err(error) if error.use_stderr() && asks_for_json() => {
            fault::collect();
            let text = error.to_string();
            let why = text.lines().next().unwrap_or_default();
            fault::take(why.strip_prefix("error: ").unwrap_or(why));
            fault::print(&name, USAGE);
            return ExitCode::from(USAGE);
        }
        Err(error) => error.exit(),
    };
    if program.json() {
        fault::collect();
    }
    if let Some(guest) = program.guest() {
        guest_is_at(guest, None);
    }
    output::start();
    tracing_subscriber::fmt()
        .with_writer(|| output::Stderr)
        .with_max_level(program.common().log)
        .with_target(false)
        .with_ansi(false)
        .init();
    let speaker = name.clone();
    panic::set_hook(Box::new(move |mistake| {
        output::say(format!("{speaker}: {}", printable(&mistake.to_string())));
    }));
    let ended = panic::catch_unwind(AssertUnwindSafe(|| body(program)));
    let status = match ended {
        Ok(result) => finish(&name, result),
        Err(mistake) => end_by(mistake),
    };
    output::finish();
    status
}

/// A mistake of the program was said by the hook; its end is that of the standard library.
fn end_by(mistake: Box<dyn Any + Send>) -> ! {
    output::finish();
    panic::resume_unwind(mistake)
}

/// Whether whoever started this program wants it to ignore `signal`, as nohup(1) does: one that is
/// blocked to be waited for would not be ignored any more.
pub fn is_ignored(signal: Signal) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let set = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let set = set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
    set.is_some_and(|set| set >> (signal as i32 - 1) & 1 == 1)
}

/// Blocks the signals by which a limit of resources would end the process; see the module.
fn ignore_limits() {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGXFSZ);
    signals.add(Signal::SIGXCPU);
    // It cannot fail: the set is a valid one.
    let _ = signals.thread_block();
}

fn finish(name: &str, result: anyhow::Result<u8>) -> ExitCode {
    let status = result.unwrap_or_else(|error| {
        complain(name, &error);
        if is_usage(&error) { USAGE } else { 1 }
    });
    fault::print(name, status);
    ExitCode::from(status)
}

/// Whether a command line that cannot be read asks for JSON all the same.
fn asks_for_json() -> bool {
    std::env::args_os().any(|word| word == "--json")
}

/// Writes `error` and its causes as one line to stderr; a script gets all such lines as one object
/// at the end.
pub fn complain(name: &str, error: &anyhow::Error) {
    let line = one_line(error);
    if !fault::take(&line) {
        output::say(format!("{name}: {line}"));
    }
}

/// `error` and its causes on one line, each said once.
pub fn one_line(error: &anyhow::Error) -> String {
    line_of(error.as_ref())
}

/// As [`one_line`], of an error that has a type.
pub fn line_of(error: &(dyn Error + 'static)) -> String {
    let mut line = String::new();
    for cause in iter::successors(Some(error), |cause: &&dyn Error| Error::source(*cause)) {
        let text = cause.to_string();
        // A transparent error repeats its cause.
        if line.ends_with(&text) {
            continue;
        }
        if !line.is_empty() {
            line.push_str(": ");
        }
        line.push_str(&text);
    }
    printable(&line)
}

/// Whether `error` comes from a wait that took too long.
pub fn is_timeout(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|error| error.kind() == io::ErrorKind::TimedOut)
}

/// `text` on one line and without control characters: what a peer wrote cannot drive the terminal
/// or the log that shows it.
pub fn printable(text: &str) -> String {
    let plain = |c: char| match c {
        '\n' | '\t' => ' ',
        c if c.is_control() => char::REPLACEMENT_CHARACTER,
        c => c,
    };
    text.chars().map(plain).collect()
}

/// The man page, the completions and the filters need no argument that the program itself insists on.
fn documentation<P: Program>() -> Option<io::Result<()>> {
    let mut arguments = std::env::args().skip(1);
    match (arguments.next().as_deref(), arguments.next()) {
        (Some("--man"), None) => {
            let page = manual::page(P::command(), &P::MANUAL);
            Some(page.and_then(|page| io::stdout().write_all(&page)))
        }
        (Some("--show-confinement"), None) if !P::FILTERS.is_empty() => {
            let all = [P::FILTERS, &[output::FILTER]].concat();
            Some(io::stdout().write_all(migpipe_confine::show(&all).as_bytes()))
        }
        (Some("--completions"), Some(shell)) => {
            let Ok(shell) = shell.parse::<Shell>() else {
                return Some(Err(io::Error::other(format!(
                    "no completions for '{shell}': name bash, zsh, fish, elvish or powershell"
                ))));
            };
            let script = complete::script::<P>(shell);
            Some(script.and_then(|script| io::stdout().write_all(&script)))
        }
        _ => None,
    }
}

/// Reads one of a few words, which the shell completes.
pub fn word<T>(words: &'static [&'static str]) -> impl TypedValueParser<Value = T>
where
    T: FromStr + Clone + Send + Sync + 'static,
    T::Err: fmt::Display,
{
    PossibleValuesParser::new(words)
        .try_map(|word| word.parse::<T>().map_err(|error| Usage::new(&error)))
}

/// A number of seconds, as an option takes it: `30`, `0.5`.
///
/// # Errors
/// What to write instead.
pub fn seconds(text: &str) -> Result<Duration, String> {
    duration(text, 1.0, "seconds")
}

/// A time limit in seconds, or `never`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit(pub Option<Duration>);

impl FromStr for Limit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "never" => Ok(Self(None)),
            text => seconds(text).map(|limit| Self(Some(limit))).map_err(|why| why + ", or never"),
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("never"),
            Some(limit) => limit.as_secs_f64().fmt(f),
        }
    }
}

/// A number of milliseconds, as an option takes it.
///
/// # Errors
/// What to write instead.
pub fn milliseconds(text: &str) -> Result<Duration, String> {
    duration(text, 1000.0, "milliseconds")
}

fn duration(text: &str, per_second: f64, unit: &str) -> Result<Duration, String> {
    let number: f64 = text.parse().map_err(|_| format!("give a number of {unit}"))?;
    Duration::try_from_secs_f64(number / per_second)
        .map_err(|_| format!("give a number of {unit}, not less than 0"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::{Context, anyhow};

    #[test]
    fn times_are_read_in_their_unit() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        assert_eq!(milliseconds("100"), Ok(Duration::from_millis(100)));
        for text in ["", "-1", "1s", "nan", "inf"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_limit_is_a_time_or_never() {
        for text in ["never", "0.5", "60"] {
            assert_eq!(text.parse::<Limit>().unwrap().to_string(), text);
        }
        assert!("soon".parse::<Limit>().is_err());
    }

    #[test]
    fn an_error_is_one_line_with_each_cause_once() {
        let error = anyhow!("disk\nfull").context("cannot write").context("cannot save web");
        assert_eq!(one_line(&error), "cannot save web: cannot write: disk full");
        let hostile = anyhow!("no device \x1b[2J\u{9b}1mgone");
        assert_eq!(one_line(&hostile), "no device \u{fffd}[2J\u{fffd}1mgone");
        let repeated: anyhow::Result<()> = Err(anyhow!("same")).context("same");
        assert_eq!(one_line(&repeated.unwrap_err()), "same");
    }
}
