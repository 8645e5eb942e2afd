//! Deadlines, stall limits and interrupts.

use std::io::{self, Read, Write};
use std::os::fd::{IntoRawFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use mig_channel::{ChannelError, Endpoint, Interrupt, SenderChannel, open_receiver, open_sender};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

/// Ends what hangs, and measures nothing. Far less than the commands of these tests sleep.
const HANG_TIMEOUT: Duration = Duration::from_secs(300);

fn send(endpoint: &str, interrupt: &Interrupt) -> SenderChannel {
    open_sender(&endpoint.parse().unwrap(), None, false, interrupt).unwrap()
}

/// As if the parent had passed it.
fn passed(fd: impl Into<OwnedFd>) -> Endpoint {
    let fd = fd.into();
    fcntl(&fd, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    Endpoint::Fd(fd.into_raw_fd())
}

fn fill(writer: &mut impl Write) -> io::Error {
    let megabyte = vec![7; 1 << 20];
    loop {
        if let Err(error) = writer.write_all(&megabyte) {
            return error;
        }
    }
}

#[track_caller]
fn assert_timed_out(error: &io::Error, limit: Duration, name: &str) {
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    match ChannelError::of(error) {
        Some(ChannelError::TimedOut { after, doing }) => {
            assert_eq!(*after, limit);
            assert!(doing.contains(name), "{doing}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_reader_that_stalls_is_named_after_the_stall_limit() {
    let interrupt = Interrupt::new().unwrap();
    let mut channel = send("exec:sleep 1000", &interrupt);
    let limit = Duration::from_millis(50);
    channel.forward.set_stall_limit(Some(limit));
    let started = Instant::now();
    let error = fill(&mut channel.forward);
    assert_timed_out(&error, limit, "writing to tunnel command 'sleep 1000'");
    assert!(started.elapsed() >= limit);
}

#[test]
fn a_pipe_that_nobody_empties_is_named_too() {
    let (_reader, writer) = io::pipe().unwrap();
    let interrupt = Interrupt::new().unwrap();
    let mut channel = open_sender(&passed(writer), None, false, &interrupt).unwrap();
    let limit = Duration::from_millis(50);
    channel.forward.set_stall_limit(Some(limit));
    assert_timed_out(&fill(&mut channel.forward), limit, "writing to fd:");
    let waited = channel.forward.wait_writable().unwrap_err();
    assert_timed_out(&waited, limit, "writing to fd:");
}

#[test]
fn an_answer_that_does_not_come_is_given_up_at_the_deadline() {
    let interrupt = Interrupt::new().unwrap();
    let mut channel = send("exec:sleep 1000", &interrupt);
    let back = channel.back.as_mut().unwrap();
    let limit = Duration::from_millis(50);
    back.set_deadline(Some(limit));
    let started = Instant::now();
    let error = back.read(&mut [0; 24]).unwrap_err();
    assert_timed_out(&error, limit, "reading from tunnel command");
    assert!(started.elapsed() >= limit);
}

#[test]
fn a_deadline_holds_also_while_bytes_flow() {
    let interrupt = Interrupt::new().unwrap();
    let mut channel = send("exec:cat /dev/zero", &interrupt);
    let back = channel.back.as_mut().unwrap();
    let limit = Duration::from_millis(100);
    back.set_stall_limit(Some(HANG_TIMEOUT));
    back.set_deadline(Some(limit));
    let mut buffer = vec![0; 1 << 20];
    let error = loop {
        if let Err(error) = back.read(&mut buffer) {
            break error;
        }
    };
    assert_timed_out(&error, limit, "reading from tunnel command");
    back.set_deadline(None);
    assert!(back.read(&mut buffer).unwrap() > 0, "without it bytes flow on");
}

/// Runs `blocked`, interrupts it while it waits, and returns how it ended.
fn interrupted(interrupt: &Interrupt, blocked: impl FnOnce() -> io::Error + Send) -> io::Error {
    thread::scope(|scope| {
        let blocked = scope.spawn(blocked);
        thread::sleep(Duration::from_millis(200));
        assert!(!blocked.is_finished(), "it did not wait");
        interrupt.trigger();
        blocked.join().unwrap()
    })
}

#[test]
fn an_interrupt_ends_a_blocked_write() {
    let (_reader, writer) = io::pipe().unwrap();
    for endpoint in ["exec:sleep 1000".parse().unwrap(), passed(writer)] {
        let interrupt = Interrupt::new().unwrap();
        let mut channel = open_sender(&endpoint, None, false, &interrupt).unwrap();
        let forward = &mut channel.forward;
        forward.set_stall_limit(Some(HANG_TIMEOUT));
        let error = interrupted(&interrupt, || fill(forward));
        assert!(ChannelError::is_interrupted(&error), "{endpoint}: {error}");
    }
}

#[test]
fn an_interrupt_ends_a_blocked_read() {
    let (reader, _writer) = io::pipe().unwrap();
    for endpoint in ["exec:sleep 1000".parse().unwrap(), passed(reader)] {
        let interrupt = Interrupt::new().unwrap();
        let mut channel = open_receiver(&endpoint, None, &interrupt).unwrap();
        let forward = &mut channel.forward;
        forward.set_stall_limit(Some(HANG_TIMEOUT));
        let error = interrupted(&interrupt, || forward.read_exact(&mut [0; 1]).unwrap_err());
        assert!(ChannelError::is_interrupted(&error), "{endpoint}: {error}");
    }
}

#[test]
fn an_interrupt_ends_a_wait_for_a_peer() {
    let dir = tempfile::tempdir().unwrap();
    let endpoint = Endpoint::Unix(dir.path().join("web"));
    let interrupt = Interrupt::new().unwrap();
    let error = interrupted(&interrupt, || {
        io::Error::other(open_receiver(&endpoint, None, &interrupt).unwrap_err())
    });
    assert!(format!("{error:?}").contains("Interrupted"), "{error:?}");
    assert_eq!(dir.path().read_dir().unwrap().count(), 0, "the socket is left");
}

#[test]
fn a_reset_lets_the_channel_go_on_without_loss() {
    let interrupt = Interrupt::new().unwrap();
    let mut channel = send("exec:cat", &interrupt);
    channel.forward.write_all(b"first ").unwrap();
    interrupt.trigger();
    assert!(channel.forward.write(b"lost").is_err());
    interrupt.reset();
    channel.forward.write_all(b"second").unwrap();
    channel.forward.close().unwrap();
    let mut text = String::new();
    channel.back.unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "first second");
}
