//! `tcp:` and `unix:` channels on this machine, and sockets passed by a parent.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use mig_channel::{
    ChannelError, Endpoint, Interrupt, OpenError, PendingReceiver, ReturnPath, open_receiver,
    open_sender, prepare_receiver,
};
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket,
};

/// Ends what hangs, and measures nothing.
const HANG_TIMEOUT: Duration = Duration::from_secs(600);

fn passed(fd: impl Into<OwnedFd>) -> Endpoint {
    let fd = fd.into();
    fcntl(&fd, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    Endpoint::Fd(fd.into_raw_fd())
}

/// Sends, half-closes, and takes an answer afterwards.
fn talk(receiver: PendingReceiver, destination: &Endpoint) {
    let interrupt = Interrupt::new().unwrap();
    let accepting = thread::spawn(move || {
        let mut channel = receiver.accept(Some(HANG_TIMEOUT)).unwrap();
        channel.forward.set_stall_limit(Some(HANG_TIMEOUT));
        let mut stream = Vec::new();
        channel.forward.read_to_end(&mut stream).unwrap();
        channel.back.take().unwrap().write_all(b"running").unwrap();
        stream
    });
    let mut channel = open_sender(destination, None, false, &interrupt).unwrap();
    assert!(channel.is_both_ways());
    let sent: Vec<u8> = (0..5_000_000_u32).map(|n| (n >> 3) as u8).collect();
    channel.forward.write_all(&sent).unwrap();
    channel.forward.close().unwrap();
    let mut answer = String::new();
    let back = channel.back.as_mut().unwrap();
    back.set_stall_limit(Some(HANG_TIMEOUT));
    back.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "running");
    assert!(accepting.join().unwrap() == sent);
}

#[test]
fn tcp_carries_a_stream_and_its_answer() {
    let interrupt = Interrupt::new().unwrap();
    for listen in ["tcp:127.0.0.1:0", "tcp:localhost:0", "tcp:[::1]:0"] {
        let receiver = match prepare_receiver(&listen.parse().unwrap(), &interrupt) {
            Ok(receiver) => receiver,
            Err(error) if listen.contains("::1") => {
                eprintln!("SKIPPED for {listen}: this machine has no IPv6: {error}");
                continue;
            }
            Err(error) => panic!("{error}"),
        };
        let address = receiver.listens_on().unwrap().parse().unwrap();
        talk(receiver, &address);
    }
}

#[test]
fn a_unix_socket_is_for_its_owner_only_and_is_removed_after_use() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("web");
    let endpoint = Endpoint::Unix(path.clone());
    let receiver = prepare_receiver(&endpoint, &Interrupt::new().unwrap()).unwrap();
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    talk(receiver, &endpoint);
    assert!(!path.exists());
}

#[test]
fn a_live_socket_is_refused_and_stays_usable() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("web");
    let endpoint = Endpoint::Unix(path);
    let interrupt = Interrupt::new().unwrap();
    let first = prepare_receiver(&endpoint, &interrupt).unwrap();
    let second = prepare_receiver(&endpoint, &interrupt).unwrap_err();
    let why = std::error::Error::source(&second).expect("what is in the way").to_string();
    assert!(why.contains("another program listens"), "{second}: {why}");
    talk(first, &endpoint);
}

#[test]
fn a_socket_left_behind_is_replaced_and_a_file_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let interrupt = Interrupt::new().unwrap();
    let left: PathBuf = dir.path().join("left");
    drop(UnixListener::bind(&left).unwrap());
    assert!(left.exists());
    prepare_receiver(&Endpoint::Unix(left.clone()), &interrupt).unwrap();

    fs::write(&left, "precious").unwrap();
    let refused = prepare_receiver(&Endpoint::Unix(left.clone()), &interrupt);
    assert!(matches!(refused, Err(OpenError::Taken(_))));
    assert_eq!(fs::read_to_string(&left).unwrap(), "precious");
}

#[test]
fn a_peer_that_leaves_without_a_byte_is_passed_over() {
    let interrupt = Interrupt::new().unwrap();
    let endpoint = "tcp:127.0.0.1:0".parse().unwrap();
    let receiver = prepare_receiver(&endpoint, &interrupt).unwrap();
    let address = receiver.listens_on().unwrap().to_owned();
    let address = address.strip_prefix("tcp:").unwrap();
    drop(TcpStream::connect(address).unwrap());
    let mut real = TcpStream::connect(address).unwrap();
    real.write_all(b"MIG").unwrap();
    let mut channel = receiver.accept(Some(HANG_TIMEOUT)).unwrap();
    let mut magic = [0; 3];
    channel.forward.read_exact(&mut magic).unwrap();
    assert_eq!(&magic, b"MIG");
}

#[test]
fn a_peer_that_never_comes_or_says_nothing_is_given_up() {
    let interrupt = Interrupt::new().unwrap();
    let endpoint = "tcp:127.0.0.1:0".parse().unwrap();
    for knock in [false, true] {
        let receiver = prepare_receiver(&endpoint, &interrupt).unwrap();
        let address = receiver.listens_on().unwrap().to_owned();
        let _silent = knock.then(|| TcpStream::connect(&address[4..]).unwrap());
        let limit = Duration::from_millis(50);
        match receiver.accept(Some(limit)) {
            Err(OpenError::Wait(ChannelError::TimedOut { after, doing })) => {
                assert_eq!(after, limit);
                assert!(doing.contains(&address), "{doing}");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_destination_that_does_not_answer_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = nobody.local_addr().unwrap().port();
    drop(nobody);
    let interrupt = Interrupt::new().unwrap();
    for endpoint in [
        format!("tcp:127.0.0.1:{port}"),
        format!("unix:{}/nobody", dir.path().display()),
        format!("unix:/{}", "long".repeat(40)),
    ] {
        let error = open_sender(&endpoint.parse().unwrap(), None, false, &interrupt).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(&endpoint), "{text}");
        assert!(std::error::Error::source(&error).is_some());
    }
}

#[test]
fn a_full_backlog_is_waited_for_and_can_be_interrupted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("full");
    let flags = SockFlag::SOCK_CLOEXEC;
    let listener = socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
    bind(listener.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
    listen(&listener, Backlog::new(1).unwrap()).unwrap();
    let interrupt = Interrupt::new().unwrap();
    let trigger = interrupt.clone();
    let triggering = thread::spawn(move || {
        thread::sleep(Duration::from_millis(200));
        trigger.trigger();
    });
    let mut waiting = Vec::new();
    let error = loop {
        match open_sender(&Endpoint::Unix(path.clone()), None, false, &interrupt) {
            Ok(channel) => waiting.push(channel),
            Err(error) => break error,
        }
        assert!(waiting.len() < 10, "the backlog takes them all");
    };
    triggering.join().unwrap();
    assert!(matches!(error, OpenError::Wait(ChannelError::Interrupted { .. })), "{error:?}");
}

#[test]
fn a_listening_socket_from_systemd_is_accepted_from() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("activated");
    let listener = UnixListener::bind(&path).unwrap();
    let shared = listener.try_clone().unwrap();
    let receiver = prepare_receiver(&passed(listener), &Interrupt::new().unwrap()).unwrap();
    talk(receiver, &Endpoint::Unix(path));
    let flags = OFlag::from_bits_truncate(fcntl(&shared, FcntlArg::F_GETFL).unwrap());
    assert!(!flags.contains(OFlag::O_NONBLOCK), "systemd shares it");
}

#[test]
fn a_connection_passed_by_a_parent_goes_both_ways_and_keeps_its_flags() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let shared = ours.try_clone().unwrap();
    let interrupt = Interrupt::new().unwrap();
    let mut sender = open_sender(&passed(ours), None, false, &interrupt).unwrap();
    let mut receiver = open_receiver(&passed(theirs), None, &interrupt).unwrap();
    sender.forward.write_all(b"stream").unwrap();
    sender.forward.close().unwrap();
    let mut text = String::new();
    receiver.forward.read_to_string(&mut text).unwrap();
    assert_eq!(text, "stream");
    let mut back = receiver.back.take().unwrap();
    back.write_all(b"ack").unwrap();
    back.close().unwrap();
    text.clear();
    sender.back.unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "ack");
    let flags = OFlag::from_bits_truncate(fcntl(&shared, FcntlArg::F_GETFL).unwrap());
    assert!(!flags.contains(OFlag::O_NONBLOCK));
}

#[test]
fn one_way_leaves_a_socket_without_a_back_half() {
    let interrupt = Interrupt::new().unwrap();
    for (return_path, one_way) in [(None, true), (Some(ReturnPath::None), false)] {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let channel = open_sender(&passed(ours), return_path, one_way, &interrupt).unwrap();
        assert!(!channel.is_both_ways());
    }
    let contradiction =
        open_sender(&"exec:cat".parse().unwrap(), Some(ReturnPath::Stdin), true, &interrupt);
    assert!(matches!(contradiction, Err(OpenError::Contradiction(_))));
}

#[test]
fn a_sender_refuses_a_listening_or_a_datagram_socket() {
    let dir = tempfile::tempdir().unwrap();
    let interrupt = Interrupt::new().unwrap();
    let listening = UnixListener::bind(dir.path().join("l")).unwrap();
    let datagram = std::os::unix::net::UnixDatagram::unbound().unwrap();
    for endpoint in [passed(listening), passed(datagram)] {
        let refused = open_sender(&endpoint, None, false, &interrupt);
        assert!(matches!(refused, Err(OpenError::Unsuitable { .. })), "{refused:?}");
    }
}
