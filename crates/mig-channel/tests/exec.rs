//! `exec:` channels, with real commands.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::time::Duration;

use mig_channel::{
    ChannelError, Interrupt, SenderChannel, TunnelError, open_receiver, open_sender,
};
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::{SigSet, Signal};

/// Ends what hangs, and measures nothing.
const HANG_TIMEOUT: Duration = Duration::from_secs(600);

fn send(command: &str) -> SenderChannel {
    let endpoint = format!("exec:{command}").parse().unwrap();
    open_sender(&endpoint, None, false, &Interrupt::new().unwrap()).unwrap()
}

/// All that the command says.
fn output(command: &str) -> String {
    let mut channel = send(command);
    channel.forward.close().unwrap();
    let mut text = String::new();
    let back = channel.back.as_mut().unwrap();
    back.set_stall_limit(Some(HANG_TIMEOUT));
    back.read_to_string(&mut text).unwrap();
    channel.tunnel.unwrap().wait_for_success(HANG_TIMEOUT).unwrap();
    text
}

fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    })
    .take(length)
    .collect()
}

#[test]
fn a_prompt_tunnel_answers_each_question() {
    let mut channel = send("cat");
    let back = channel.back.as_mut().unwrap();
    back.set_stall_limit(Some(HANG_TIMEOUT));
    for question in [*b"ready?", *b"steady", *b"go now"] {
        channel.forward.write_all(&question).unwrap();
        let mut answer = [0; 6];
        back.read_exact(&mut answer).unwrap();
        assert_eq!(answer, question);
    }
    channel.forward.close().unwrap();
    assert_eq!(back.read(&mut [0; 1]).unwrap(), 0);
    channel.tunnel.unwrap().wait_for_success(HANG_TIMEOUT).unwrap();
}

#[test]
fn filters_that_hold_data_back_give_it_after_a_half_close() {
    let sent = noise(3 << 20);
    let mut channel = send("gzip -1 | gunzip");
    let mut forward = channel.forward;
    let copy = sent.clone();
    let writer = std::thread::spawn(move || {
        forward.write_all(&copy).unwrap();
        forward.close().unwrap();
    });
    let mut received = Vec::new();
    let back = channel.back.as_mut().unwrap();
    back.set_stall_limit(Some(HANG_TIMEOUT));
    back.read_to_end(&mut received).unwrap();
    writer.join().unwrap();
    assert!(received == sent, "{} bytes came back", received.len());
    channel.tunnel.unwrap().wait_for_success(HANG_TIMEOUT).unwrap();
}

#[test]
fn every_exit_status_of_a_tunnel_surfaces_with_its_command() {
    for (command, text) in [
        ("exit 3", "tunnel command 'exit 3' ended with status 3"),
        ("exit 255", "tunnel command 'exit 255' ended with status 255"),
        ("cat >/dev/null; exit 1", "ended with status 1"),
        ("no-such-program 2>/dev/null", "a command was not found"),
        ("kill -9 $$", "was ended by SIGKILL"),
    ] {
        let mut channel = send(command);
        channel.forward.close().unwrap();
        let error = channel.tunnel.unwrap().wait_for_success(HANG_TIMEOUT).unwrap_err();
        assert!(error.to_string().contains(text), "{error}");
    }
}

#[test]
fn a_tunnel_that_has_not_ended_says_so_and_can_be_waited_for_again() {
    let mut channel = send("cat");
    let mut tunnel = channel.tunnel.take().unwrap();
    assert_eq!(tunnel.status().unwrap(), None);
    let early = tunnel.wait(Duration::from_millis(20));
    assert!(matches!(early, Err(TunnelError::StillRunning { .. })), "{early:?}");
    drop(channel);
    assert!(tunnel.wait(HANG_TIMEOUT).unwrap().success());
    assert!(tunnel.wait(Duration::ZERO).unwrap().success(), "remembered");
}

#[test]
fn an_interrupted_wait_leaves_the_command_running() {
    let interrupt = Interrupt::new().unwrap();
    let endpoint = "exec:cat".parse().unwrap();
    let mut channel = open_sender(&endpoint, None, false, &interrupt).unwrap();
    interrupt.trigger();
    let tunnel = channel.tunnel.as_mut().unwrap();
    let waited = tunnel.wait(HANG_TIMEOUT);
    assert!(matches!(waited, Err(TunnelError::Interrupted { .. })), "{waited:?}");
    assert_eq!(tunnel.status().unwrap(), None);
}

#[test]
fn writing_to_a_tunnel_that_has_ended_says_that_the_reader_went_away() {
    let mut channel = send("exit 0");
    channel.tunnel.as_mut().unwrap().wait(HANG_TIMEOUT).unwrap();
    let error = channel.forward.write_all(b"page").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
    let text = "writing to tunnel command 'exit 0': the reader of the stream went away";
    assert_eq!(error.to_string(), text);
    assert!(matches!(ChannelError::of(&error), Some(ChannelError::PeerClosed { .. })));
}

#[test]
fn the_end_of_the_answers_is_seen_while_the_command_reads_on() {
    let mut channel = send("exec >&-; cat >/dev/null");
    let back = channel.back.as_mut().unwrap();
    back.set_stall_limit(Some(HANG_TIMEOUT));
    assert_eq!(back.read(&mut [0; 8]).unwrap(), 0);
    channel.forward.write_all(b"more").unwrap();
    channel.forward.close().unwrap();
    channel.tunnel.unwrap().wait_for_success(HANG_TIMEOUT).unwrap();
}

/// The processes of a group that have not ended; zombies may stay where init reaps nobody.
fn alive(group: &str) -> usize {
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| fs::read_to_string(entry.ok()?.path().join("stat")).ok())
        .filter(|stat| {
            let after_name = stat.rsplit(')').next().unwrap_or_default();
            let fields: Vec<_> = after_name.split_whitespace().collect();
            fields[0] != "Z" && fields[2] == group
        })
        .count()
}

#[test]
fn killing_a_tunnel_ends_the_whole_pipeline() {
    for command in
        ["echo $$; sleep 1000 | sleep 1000", "trap '' TERM; echo $$; sleep 1000 | sleep 1000"]
    {
        let mut channel = send(command);
        let mut group = [0; 32];
        let length = channel.back.as_mut().unwrap().read(&mut group).unwrap();
        let group = String::from_utf8_lossy(&group[..length]).trim().to_owned();
        assert!(alive(&group) > 0);
        channel.tunnel.as_mut().unwrap().kill();
        assert_eq!(alive(&group), 0, "{command}");
    }
}

#[test]
fn a_dropped_tunnel_is_killed() {
    let mut channel = send("echo $$; exec sleep 1000");
    let mut group = [0; 32];
    let length = channel.back.as_mut().unwrap().read(&mut group).unwrap();
    let group = String::from_utf8_lossy(&group[..length]).trim().to_owned();
    drop(channel);
    assert_eq!(alive(&group), 0);
}

#[test]
fn a_tunnel_inherits_no_other_descriptor() {
    let leaky = std::io::pipe().unwrap().1;
    let number = fcntl(leaky.as_fd(), FcntlArg::F_DUPFD(100)).unwrap();
    let open = output("echo /proc/$$/fd/*; true");
    assert!(open.contains("/fd/1 "), "{open}");
    assert!(!open.contains(&format!("/fd/{number}")), "{open}");
}

#[test]
fn a_tunnel_starts_with_default_signals() {
    let mut blocked = SigSet::empty();
    blocked.add(Signal::SIGUSR2);
    blocked.thread_block().unwrap();
    let status = output("cat /proc/self/status");
    let mask = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        u64::from_str_radix(line.split_whitespace().nth(1).unwrap(), 16).unwrap()
    };
    assert_eq!(mask("SigBlk:"), 0);
    assert_eq!(mask("SigIgn:") & (1 << (Signal::SIGPIPE as u32 - 1)), 0);
}

#[test]
fn a_one_way_tunnel_carries_no_answers() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("copy");
    let endpoint = format!("exec:cat >{}", path.display()).parse().unwrap();
    let interrupt = Interrupt::new().unwrap();
    let mut channel = open_sender(&endpoint, None, true, &interrupt).unwrap();
    assert!(!channel.is_both_ways());
    channel.forward.write_all(b"stream").unwrap();
    channel.forward.close().unwrap();
    channel.tunnel.unwrap().wait_for_success(HANG_TIMEOUT).unwrap();
    assert_eq!(fs::read(path).unwrap(), b"stream");
}

#[test]
fn a_receiver_reads_what_a_command_says_and_answers_to_its_stdin() {
    let endpoint = "exec:printf header; cat".parse().unwrap();
    let interrupt = Interrupt::new().unwrap();
    let mut channel = open_receiver(&endpoint, None, &interrupt).unwrap();
    channel.forward.set_stall_limit(Some(HANG_TIMEOUT));
    let mut header = [0; 6];
    channel.forward.read_exact(&mut header).unwrap();
    assert_eq!(&header, b"header");
    let mut back = channel.back.take().unwrap();
    back.write_all(b"ready").unwrap();
    back.close().unwrap();
    let mut echo = String::new();
    channel.forward.read_to_string(&mut echo).unwrap();
    assert_eq!(echo, "ready");
    channel.tunnel.unwrap().wait_for_success(HANG_TIMEOUT).unwrap();
}
