//! What `--show-confinement` prints.
#![forbid(unsafe_code)]

use std::fmt::Write;

use crate::call::{Call, Check};
use crate::filter::{ABSENT, Filter};

/// The tables of `filters`, one call to a line: its name, what is checked, and why it is there; and
/// the calls that are answered without being done.
pub fn show(filters: &[Filter]) -> String {
    let mut text = String::new();
    for filter in filters {
        let _ = writeln!(text, "{}", filter.thread);
        for call in filter.calls() {
            let _ = writeln!(text, "{}", line(call).trim_end());
        }
    }
    let _ = writeln!(text, "answered with ENOSYS");
    for call in ABSENT {
        let _ = writeln!(text, "{}", line(call).trim_end());
    }
    text
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
        Check::Bits { arg, mask, set: 0 } => format!("arg {arg} without {mask:#x}"),
        Check::Bits { arg, mask, set } => format!("arg {arg} of {mask:#x} has {set:#x}"),
        Check::ThisProcess(arg) => format!("arg {arg} is this process"),
    }
}
