//! stdin, stdout and the terminal. Each test starts this program again in a role, with descriptors
//! of the test's choice.
#![allow(
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "what a test says is for whoever runs it"
)]

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use mig_channel::{Endpoint, Interrupt, ReturnPath, open_receiver, open_sender};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::pty::openpty;
use nix::unistd::{getpgrp, setsid, tcgetpgrp};

const ROLE: &str = "MIG_CHANNEL_TEST_ROLE";
/// Ends what hangs, and measures nothing.
const HANG_TIMEOUT: Duration = Duration::from_secs(600);

fn main() {
    if let Ok(role) = std::env::var(ROLE) {
        if let Err(error) = play(&role) {
            eprint!("{error}");
            std::process::exit(1);
        }
        return;
    }
    let tests: [(&str, fn()); 8] = [
        (
            "closing_stdout_ends_the_stream_while_the_program_lives_on",
            closing_stdout_ends_the_stream_while_the_program_lives_on,
        ),
        ("a_stream_from_stdin_is_answered_on_stdout", a_stream_from_stdin_is_answered_on_stdout),
        ("a_one_way_stream_leaves_stdout_alone", a_one_way_stream_leaves_stdout_alone),
        ("answers_come_back_on_stdin", answers_come_back_on_stdin),
        ("a_terminal_is_refused", a_terminal_is_refused),
        ("stdin_cannot_be_taken_twice", stdin_cannot_be_taken_twice),
        ("what_is_closed_or_keeps_nothing_is_refused", what_is_closed_or_keeps_nothing_is_refused),
        (
            "a_tunnel_may_ask_for_a_password_at_the_terminal",
            a_tunnel_may_ask_for_a_password_at_the_terminal,
        ),
    ];
    for (name, test) in tests {
        test();
        println!("test {name} ... ok");
    }
}

/// What the program does when it is started again.
fn play(role: &str) -> Result<(), Box<dyn std::error::Error>> {
    let interrupt = Interrupt::new()?;
    match role {
        "send-and-linger" => {
            let mut channel = open_sender(&Endpoint::Standard, None, false, &interrupt)?;
            channel.forward.write_all(b"stream")?;
            channel.forward.close()?;
            println!("this is no stream");
            // Until the test has seen the end of the stream.
            io::stdin().read_to_end(&mut Vec::new())?;
        }
        "send-with-return" => {
            let back = Some(ReturnPath::Stdin);
            let mut channel = open_sender(&Endpoint::Standard, back, false, &interrupt)?;
            channel.forward.write_all(b"question")?;
            let back = channel.back.as_mut().ok_or("no back half")?;
            back.set_stall_limit(Some(HANG_TIMEOUT));
            let mut answer = [0; 6];
            back.read_exact(&mut answer)?;
            channel.forward.write_all(&answer)?;
        }
        "receive-and-answer" => {
            let mut channel = open_receiver(&Endpoint::Standard, None, &interrupt)?;
            let mut stream = Vec::new();
            channel.forward.read_to_end(&mut stream)?;
            channel.back.take()?.write_all(&stream)?;
        }
        "receive-one-way" => {
            let mut channel = open_receiver(&Endpoint::Standard, None, &interrupt)?;
            channel.forward.read_to_end(&mut Vec::new())?;
            println!("not taken");
        }
        "take-twice" => {
            open_receiver(&Endpoint::Standard, None, &interrupt)?;
            open_receiver(&Endpoint::Fd(0), None, &interrupt)?;
        }
        "ask-for-a-password" => {
            let endpoint = "exec:head -n 1 </dev/tty".parse()?;
            let mut channel = open_sender(&endpoint, None, false, &interrupt)?;
            let back = channel.back.as_mut().ok_or("no back half")?;
            back.set_deadline(Some(HANG_TIMEOUT));
            let mut password = String::new();
            back.read_to_string(&mut password)?;
            let tunnel = channel.tunnel.as_mut().ok_or("no tunnel")?;
            tunnel.release_terminal();
            let terminal = std::fs::File::open("/dev/tty")?;
            if tcgetpgrp(&terminal)? != getpgrp() {
                return Err("the terminal was not given back".into());
            }
            tunnel.wait_for_success(HANG_TIMEOUT)?;
            if password != "secret\n" {
                return Err(format!("read {password:?}").into());
            }
        }
        _ => return Err(format!("no role '{role}'").into()),
    }
    Ok(())
}

fn start(role: &str, stdin: impl Into<Stdio>, stdout: impl Into<Stdio>) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .env(ROLE, role)
        .stdin(stdin)
        .stdout(stdout)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Waits for the end of a role; what it said on stderr where it failed.
fn end(child: Child) -> Result<(), String> {
    let output = child.wait_with_output().unwrap();
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).into_owned())
}

fn is_nonblocking(fd: impl AsFd) -> bool {
    OFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GETFL).unwrap()).contains(OFlag::O_NONBLOCK)
}

fn closing_stdout_ends_the_stream_while_the_program_lives_on() {
    let (reader, writer) = io::pipe().unwrap();
    let mut child = start("send-and-linger", Stdio::piped(), writer);
    assert_eq!(io::read_to_string(reader).unwrap(), "stream");
    assert!(child.try_wait().unwrap().is_none(), "it ended too early");
    drop(child.stdin.take());
    end(child).unwrap();
}

fn a_stream_from_stdin_is_answered_on_stdout() {
    let (stdin, mut to_child) = io::pipe().unwrap();
    let (from_child, stdout) = io::pipe().unwrap();
    let shared = stdin.try_clone().unwrap();
    let child = start("receive-and-answer", stdin, stdout.try_clone().unwrap());
    to_child.write_all(b"stream").unwrap();
    drop(to_child);
    end(child).unwrap();
    assert!(!is_nonblocking(&shared), "stdin is shared with the shell");
    assert!(!is_nonblocking(&stdout), "stdout is shared with the shell");
    drop(stdout);
    assert_eq!(io::read_to_string(from_child).unwrap(), "stream");
}

fn a_one_way_stream_leaves_stdout_alone() {
    let (from_child, stdout) = io::pipe().unwrap();
    let (stdin, _) = io::pipe().unwrap();
    let child = start("receive-one-way", stdin, stdout);
    end(child).unwrap();
    assert_eq!(io::read_to_string(from_child).unwrap(), "not taken\n");
}

fn answers_come_back_on_stdin() {
    let (stdin, mut answers) = io::pipe().unwrap();
    let (mut stream, stdout) = io::pipe().unwrap();
    let child = start("send-with-return", stdin, stdout);
    let mut question = [0; 8];
    stream.read_exact(&mut question).unwrap();
    answers.write_all(b"answer").unwrap();
    end(child).unwrap();
    assert_eq!(&question, b"question");
    assert_eq!(io::read_to_string(stream).unwrap(), "answer");
}

fn a_terminal_is_refused() {
    let terminal = || -> (OwnedFd, OwnedFd) {
        let pty = openpty(None, None).unwrap();
        (pty.master, pty.slave)
    };
    let (_master, slave) = terminal();
    let error = end(start("send-and-linger", Stdio::null(), slave)).unwrap_err();
    assert!(error.contains("stdout is a terminal"), "{error}");
    assert!(error.contains("mig-send web | ssh hostb mig-recv"), "{error}");

    let (_master, slave) = terminal();
    let error = end(start("receive-and-answer", slave, Stdio::null())).unwrap_err();
    assert!(error.contains("stdin is a terminal"), "{error}");

    let (_master, slave) = terminal();
    let (stdin, _) = io::pipe().unwrap();
    let error = end(start("receive-and-answer", stdin, slave)).unwrap_err();
    assert!(error.contains("stdout is a terminal"), "{error}");
    assert!(error.contains("--one-way"), "{error}");

    let (_master, slave) = terminal();
    let error = end(start("send-with-return", slave, Stdio::null())).unwrap_err();
    assert!(error.contains("stdin is a terminal"), "{error}");
}

fn stdin_cannot_be_taken_twice() {
    let (stdin, _) = io::pipe().unwrap();
    let error = end(start("take-twice", stdin, Stdio::null())).unwrap_err();
    assert!(error.contains("named twice"), "{error}");
}

/// A program whose parent closed stdin or stdout finds /dev/null there.
fn what_is_closed_or_keeps_nothing_is_refused() {
    let run = |role: &str, script: &str| {
        let program = std::env::current_exe().unwrap();
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(script).arg(program).env(ROLE, role);
        let child = shell.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        end(child).unwrap_err()
    };
    for redirect in [">&-", ">/dev/null", ">/dev/zero"] {
        let error = run("send-and-linger", &format!("exec \"$0\" {redirect}"));
        assert!(error.contains("stdout is closed"), "{redirect}: {error}");
        assert!(error.contains("exec:'cat >/dev/null'"), "{redirect}: {error}");
    }
    for redirect in ["<&-", "</dev/null"] {
        for role in ["receive-one-way", "send-with-return"] {
            let error = run(role, &format!("exec \"$0\" {redirect}"));
            assert!(error.contains("stdin is closed"), "{redirect}: {error}");
        }
    }
    for redirect in [">&-", ">/dev/null"] {
        let error = run("receive-and-answer", &format!("echo stream | \"$0\" {redirect}"));
        assert!(error.contains("stdout is closed"), "{redirect}: {error}");
    }
}

/// A process group in the background is stopped when it reads the terminal; ssh would be.
fn a_tunnel_may_ask_for_a_password_at_the_terminal() {
    let pty = openpty(None, None).unwrap();
    let slave = pty.slave.as_raw_fd();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .env(ROLE, "ask-for-a-password")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    // SAFETY: two system calls between fork and exec; `slave` is open until after the spawn.
    unsafe {
        command.pre_exec(move || {
            setsid()?;
            match libc::ioctl(slave, libc::TIOCSCTTY, 0) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        })
    };
    let child = command.spawn().unwrap();
    let mut master = std::fs::File::from(pty.master);
    master.write_all(b"secret\n").unwrap();
    end(child).unwrap();
}
