//! Why a vmrun ended, from its exit status and from what it has said.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use nix::sys::signal::Signal;

/// Why a vmrun ended: by a signal, or for the reason with which it ends itself. That is the line
/// with its name in front; a line of its log is no reason, least of all the last one.
pub fn reason(status: ExitStatus, log: &str) -> String {
    if let Some(number) = status.signal() {
        return match Signal::try_from(number) {
            Ok(Signal::SIGKILL) => {
                "its vmrun was killed (SIGKILL; the kernel does that where memory runs out)".into()
            }
            Ok(signal) => format!("its vmrun was ended by {signal}"),
            Err(_) => format!("its vmrun was ended by signal {number}"),
        };
    }
    let own = log.lines().rev().find_map(|line| line.strip_prefix("vmrun: "));
    match (own, status.code()) {
        (Some(why), Some(1..)) => why.to_owned(),
        (_, Some(code)) => format!("its vmrun ended with status {code}"),
        (_, None) => format!("its vmrun ended: {status}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "2026-11-28T10:00:00Z  WARN no huge pages\nvmrun: b: no /dev/kvm\n\
                       2026-11-28T10:00:01Z  WARN something else\n";

    #[test]
    fn a_signal_is_named_and_no_line_of_the_log() {
        let killed = reason(ExitStatus::from_raw(9), LOG);
        assert!(killed.contains("killed (SIGKILL"), "{killed}");
        assert!(!killed.contains("huge"), "{killed}");
        assert!(reason(ExitStatus::from_raw(11), LOG).contains("SIGSEGV"));
    }

    #[test]
    fn the_reason_is_the_line_with_which_a_vmrun_ends_itself() {
        assert_eq!(reason(ExitStatus::from_raw(1 << 8), LOG), "b: no /dev/kvm");
        let silent =
            reason(ExitStatus::from_raw(1 << 8), "2026-11-28T10:00:00Z  WARN no huge pages\n");
        assert_eq!(silent, "its vmrun ended with status 1");
        assert_eq!(reason(ExitStatus::from_raw(0), LOG), "its vmrun ended with status 0");
    }
}
