//! What `--show-confinement` prints.
#![forbid(unsafe_code)]

use std::fmt::Write;

use crate::call::{Call, Check};
use crate::filter::{ABSENT, Filter};

/// The tables of `filters`, one call to a line: its name, what is checked, and why it is there; and
/// the calls that are answered without being done. What all threads may is said once.
pub fn show(filters: &[Filter]) -> String {
    let mut text = String::new();
    let every: Vec<Vec<String>> = filters.iter().map(lines).collect();
    let common = |line: &&String| filters.len() > 1 && every.iter().all(|all| all.contains(line));
    if let Some(shared) = every.first().map(|first| first.iter().filter(common).collect::<Vec<_>>())
        && !shared.is_empty()
    {
        put(&mut text, "every thread", shared);
    }
    for (filter, lines) in filters.iter().zip(&every) {
        put(&mut text, filter.thread, lines.iter().filter(|line| !common(line)));
    }
    put(&mut text, "answered with ENOSYS", &ABSENT.iter().map(line).collect::<Vec<_>>());
    text
}

fn put<'a>(text: &mut String, title: &str, lines: impl IntoIterator<Item = &'a String>) {
    let _ = writeln!(text, "{title}");
    for line in lines {
        let _ = writeln!(text, "{}", line.trim_end());
    }
}

/// A filter's lines, each once.
fn lines(filter: &Filter) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for line in filter.calls().map(line) {
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    lines
}

fn line(call: &Call) -> String {
    let checks: Vec<_> = call.checks.iter().map(check).collect();
    let checks = checks.join(" and ");
    let why = if call.why.is_empty() { String::new() } else { format!("# {}", call.why) };
    format!("  {:<20} {checks:<34} {why}", call.name())
}

fn check(check: &Check) -> String {
    match check {
        Check::Is(arg, value) => format!("arg {arg} is {value:#x}"),
        Check::Not(arg, value) => format!("arg {arg} is not {value:#x}"),
        Check::Bits { arg, mask, set: 0 } => format!("arg {arg} without {mask:#x}"),
        Check::Bits { arg, mask, set } => format!("arg {arg} of {mask:#x} has {set:#x}"),
        Check::ThisProcess(arg) => format!("arg {arg} is this process"),
    }
}
