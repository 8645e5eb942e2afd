//! A guest with a network card, from one tap to another, and what the network hears of it.
//!
//! Each test makes a network of its own; the built-in guest has no driver for its card, and what is
//! said in its name is said by its host.

use std::fs::File;
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use migpipe_tests::{Guest, HANG_TIMEOUT, Host, assert_one_story, needs_kvm, run, spec};
use nix::cmsg_space;
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::sockopt::{ReceiveTimeout, ReceiveTimestampns};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockProtocol, SockType, recvmsg,
    setsockopt, socket,
};
use nix::sys::time::{TimeSpec, TimeVal};

const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

/// How often a guest that has arrived is announced.
const ANNOUNCEMENTS: usize = 5;

/// A network with two taps, in which this thread is, and what it starts; until this is dropped.
struct Network {
    before: File,
}

fn network(host: &Host) -> Result<Network, String> {
    let before = File::open("/proc/thread-self/ns/net").map_err(|error| error.to_string())?;
    unshare(CloneFlags::CLONE_NEWNET).map_err(|error| format!("no network of its own: {error}"))?;
    let network = Network { before };
    for tap in ["tap0", "tap1"] {
        let line = format!("ip tuntap add {tap} mode tap && ip link set {tap} up");
        let done = run(&mut host.shell(&line));
        if done.status != Some(0) {
            return Err(done.stderr.trim().to_owned());
        }
    }
    Ok(network)
}

impl Drop for Network {
    fn drop(&mut self) {
        setns(&self.before, CloneFlags::CLONE_NEWNET).expect("the network of the other tests");
    }
}

macro_rules! needs_network {
    ($host:expr) => {
        match network($host) {
            Ok(network) => network,
            Err(why) => {
                println!("SKIPPED a guest with a network card: {why}");
                return;
            }
        }
    };
}

/// Hears every frame of this thread's network, with the time at which the kernel had it.
fn listener() -> OwnedFd {
    let all = socket(AddressFamily::Packet, SockType::Raw, SockFlag::empty(), SockProtocol::EthAll);
    let all = all.unwrap();
    setsockopt(&all, ReceiveTimeout, &TimeVal::new(0, 100_000)).unwrap();
    setsockopt(&all, ReceiveTimestampns, &true).unwrap();
    all
}

/// When RARP requests for [`MAC`] were sent (RFC 903; time since 1970), until there were as many as
/// there should be or `within` is over.
fn announcements(listener: &OwnedFd, within: Duration) -> Vec<Duration> {
    let mut expected = [0xff; 12];
    expected[6..].copy_from_slice(&MAC);
    let (mut came, began) = (Vec::new(), Instant::now());
    while came.len() < ANNOUNCEMENTS && began.elapsed() < within {
        let (mut bytes, mut control) = ([0; 2048], cmsg_space!(TimeSpec));
        let mut into = [IoSliceMut::new(&mut bytes)];
        let listener = listener.as_raw_fd();
        let (length, sent) =
            match recvmsg::<()>(listener, &mut into, Some(&mut control), MsgFlags::empty()) {
                Ok(message) => (message.bytes, message.cmsgs().unwrap().next()),
                Err(Errno::EAGAIN) => continue,
                Err(error) => panic!("the network cannot be heard: {error}"),
            };
        let frame = &bytes[..length];
        let is_rarp = frame.len() >= 42 && frame[12..14] == [0x80, 0x35];
        // Sender and target are both the guest.
        if is_rarp && frame.starts_with(&expected) && frame[22..28] == MAC {
            assert_eq!(frame[32..38], MAC);
            let Some(ControlMessageOwned::ScmTimestampns(sent)) = sent else { panic!("no time") };
            came.push(sent.into());
        }
    }
    came
}

fn booted(host: &Host) -> Guest {
    let card = ["--mem", "64M", "--net", "tap=tap0,mac=52:54:00:12:34:56"];
    Guest::boot(host, "a", &spec(64, "2000", 8), &card)
}

#[test]
fn a_guest_that_arrives_is_announced_five_times_with_growing_gaps() {
    needs_kvm!();
    let host = Host::new();
    let _network = needs_network!(&host);
    let mut a = booted(&host);
    let heard = listener();
    assert_eq!(announcements(&heard, Duration::from_millis(500)), [], "it has not arrived yet");
    let b = a.console_of("b");
    let destination = b.as_destination("b") + " --net net0=tap1";
    host.run("mig-send", &["-q", "a", &destination]).expect(0);
    let came = announcements(&heard, HANG_TIMEOUT);
    assert_eq!(came.len(), ANNOUNCEMENTS);
    assert_eq!(a.ended(), Some(0));
    b.wait_ticks(10);
    assert_one_story(&[&a.console, &b]);
    let gaps: Vec<_> = came.windows(2).map(|pair| pair[1] - pair[0]).collect();
    println!("gaps of {gaps:?}");
    // Less than is slept: the two clocks may differ by a little.
    for (gap, least) in gaps.iter().zip([45, 145, 245, 345]) {
        assert!(*gap >= Duration::from_millis(least), "{gaps:?}");
    }
}

#[test]
fn a_tap_that_the_destination_has_not_is_refused_by_name_and_the_guest_runs_on() {
    needs_kvm!();
    let host = Host::new();
    let _network = needs_network!(&host);
    let mut a = booted(&host);
    // Its own tap is in use here, as long as it runs here.
    for (card, words) in [
        ("--net net0=tap7", ["tap7", "ip tuntap add tap7"]),
        ("--net net0=tap0", ["tap0", "busy"]),
        ("--net net7=tap1", ["net7", "net"]),
    ] {
        let destination = format!("exec:mig-recv --quiet --console null --name b {card}");
        let done = host.run("mig-send", &["-q", "a", &destination]).expect(1);
        for word in words {
            assert!(done.stderr.contains(word), "'{word}' is not in {}", done.stderr);
        }
        a.assert_runs();
    }
    assert!(!run(&mut host.shell("ip link")).stdout.contains("tap7"), "a tap was made");
}
