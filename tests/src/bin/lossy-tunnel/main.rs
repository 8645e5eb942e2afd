//! A tunnel that fails at one exact place: it carries a migration both ways as ssh would, knows
//! every record and message that passes, and stops at the one it was told.
//!
//! `lossy-tunnel POINT=ACT COMMAND` does ACT there by itself: `lossy-tunnel ack=cut 'mig-recv'`.
//! `lossy-tunnel GATE COMMAND` asks a test at the Unix socket GATE (anything with a `/`): it says
//! `start PID`, is told a plan, says `reached POINT` when it is there, is told an act, says
//! `doing ACT` and does it. So a test knows that its fault happened, and where.
//!
//! COMMAND runs in a process group of its own, as a program on another host does: a signal that
//! ends the tunnel does not reach it. The tunnel ends with COMMAND's status.

#![forbid(unsafe_code)]

mod back;
mod control;
mod far;
mod forward;

use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Arc, mpsc};
use std::thread;

use control::Control;
use far::Far;
use migpipe_tests::faults::Plan;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (Some(how), Some(command)) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: lossy-tunnel POINT=ACT|GATE COMMAND");
        return ExitCode::from(2);
    };
    let control = match Control::new(&how) {
        Ok(control) => Arc::new(control),
        Err(error) => {
            eprintln!("lossy-tunnel: {error}");
            return ExitCode::from(2);
        }
    };
    if control.plan() == Plan::Down {
        return ExitCode::from(1);
    }
    let mut child = Command::new("sh")
        .args(["-c", &command])
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("sh");
    let from = child.stdout.take().expect("piped");
    let far = Arc::new(Far::new(child.stdin.take().expect("piped"), &from));
    let (id, known) = mpsc::channel();
    {
        let (control, far) = (Arc::clone(&control), Arc::clone(&far));
        thread::spawn(move || forward::carry(&control, &far, &id));
    }
    back::carry(from, &known, &control, &far);
    // The way back has ended, and with it the command: what it never read is lost.
    let status = child.wait().expect("a child can be waited for");
    if control.exits_late() {
        return ExitCode::from(1);
    }
    // As a shell says it.
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
