//! A tunnel that breaks at one message: `lossy-tunnel ready|ack|go|running COMMAND`.
//!
//! It starts COMMAND as a tunnel would and carries bytes both ways, until the named message comes:
//! that one and everything after it is lost, in both directions, as if the network were cut. The
//! command lives on and sees the end of its input.

#![forbid(unsafe_code)]

use std::io::{self, Read, Write};
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// Bytes in front of the first message of the return path.
const OPENING: usize = 32;

/// Bytes of a message's frame: type and sequence (u16 each), length, and two checksums.
const FRAME: usize = 16;

/// Set when nothing may pass any more.
static CUT: AtomicBool = AtomicBool::new(false);

#[expect(clippy::zombie_processes, reason = "a cut network does not wait for the far end")]
fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (Some(lose), Some(command)) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: lossy-tunnel ready|ack|go|running COMMAND");
        return ExitCode::from(2);
    };
    // The type of the message that is lost, or of the last one that gets through.
    let (kind, lost) = match lose.as_str() {
        "ready" => (1, true),
        "ack" => (2, true),
        "go" => (2, false),
        "running" => (3, true),
        other => {
            eprintln!("lossy-tunnel: no message is called {other}");
            return ExitCode::from(2);
        }
    };
    let mut child = Command::new("sh")
        .args(["-c", &command])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("sh");
    let mut to_child = child.stdin.take().expect("piped");
    let from_child = child.stdout.take().expect("piped");
    thread::spawn(move || {
        let mut buffer = vec![0; 1 << 20];
        while let Ok(count @ 1..) = io::stdin().read(&mut buffer) {
            if CUT.load(Ordering::SeqCst) || to_child.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        if CUT.load(Ordering::SeqCst) {
            // The other thread ends the process.
            thread::park();
        }
    });
    let _ = answers(from_child, kind, lost);
    if CUT.load(Ordering::SeqCst) {
        // The far end does not know yet, and lives on.
        return ExitCode::from(1);
    }
    let _ = child.wait();
    ExitCode::SUCCESS
}

/// Carries the answers, up to the message of type `kind`.
fn answers(mut from: impl Read, kind: u16, lost: bool) -> io::Result<()> {
    let mut out = io::stdout();
    let mut opening = [0; OPENING];
    from.read_exact(&mut opening)?;
    out.write_all(&opening)?;
    out.flush()?;
    loop {
        let mut frame = [0; FRAME];
        from.read_exact(&mut frame)?;
        let found = u16::from_le_bytes([frame[0], frame[1]]);
        let length = u32::from_le_bytes([frame[4], frame[5], frame[6], frame[7]]);
        let mut payload = vec![0; length as usize];
        from.read_exact(&mut payload)?;
        if found == kind {
            CUT.store(true, Ordering::SeqCst);
        }
        if found != kind || !lost {
            out.write_all(&frame)?;
            out.write_all(&payload)?;
            out.flush()?;
        }
        if found == kind {
            return Ok(());
        }
    }
}
