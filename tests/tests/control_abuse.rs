//! A client of the control socket that stalls, floods or sends garbage blocks neither the guest nor
//! other clients.

use std::io::{ErrorKind, IoSlice, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{fs, thread};

use migpipe_tests::{Done, Guest, HANG_TIMEOUT, Host, needs_kvm, run};
use migpipe_units::MigrationId;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::unistd::geteuid;
use vm_control::{PROTOCOL_VERSION, Refusal, Reply, Request};

/// A client that behaves is answered, whatever the others do, in no more than so many times what it
/// takes to start its program, which other work on this machine slows as well. Who waits for a client
/// that stalls waits for thousands of that.
const PROMPT: u32 = 100;

/// How often a client that behaves may be late.
const TRIES: u32 = 10;

/// The number of [`Request::Prepare`] among the requests, which is the first byte of one.
const PREPARE: u8 = 13;

/// What an abused vmrun may hold beside its guest (KiB).
const MOST_KIB: u64 = 160 << 10;

struct Abused {
    host: Host,
    guest: Guest,
}

impl Abused {
    fn new() -> Self {
        let host = Host::new();
        let guest = Guest::boot(&host, "web", "builtin:idle,tick-ms=20", &["--mem", "16M"]);
        Self { host, guest }
    }

    fn socket(&self) -> PathBuf {
        self.host.runtime_dir().join("web.sock")
    }

    fn connect(&self) -> UnixStream {
        UnixStream::connect(self.socket()).unwrap()
    }

    /// A client that is known.
    fn client(&self) -> UnixStream {
        let mut stream = self.connect();
        stream.write_all(&hello()).unwrap();
        assert!(matches!(answer(&mut stream), Some(Reply::Hello { .. })));
        stream
    }

    /// The guest ticks on, and a client that behaves gets its answer.
    fn is_unharmed(&mut self, what: &str) {
        self.guest.assert_runs();
        let done = self.asks(what).expect(0);
        let worst = self.guest.console.last_tick().unwrap().gap_us;
        println!("{what}: answered after {:.1?}, gap of the guest {worst} us", done.took);
    }

    /// A client that behaves asks while the others go on, and is answered promptly. Other work on
    /// this machine may hold it up as well, but not [`TRIES`] times one after another.
    fn asks(&self, what: &str) -> Done {
        let start = || self.host.run("vmctl", &["--version"]).expect(0).took;
        let mut late = Vec::new();
        for _ in 0..TRIES {
            let before = start();
            let done = self.host.run("vmctl", &["status", "web"]);
            let start = before.max(start());
            if done.took < start * PROMPT {
                return done;
            }
            late.push((start, done.took));
        }
        panic!("{what}: vmctl, started in the first of these, waits for the second: {late:?}");
    }

    fn status_of_process(&self, field: &str) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/status", self.guest.pid())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        line.trim_start_matches(':').split_whitespace().next().unwrap().parse().unwrap()
    }

    fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.guest.pid())).unwrap().count()
    }
}

fn frame(request: &Request) -> Vec<u8> {
    framed(&postcard::to_stdvec(request).unwrap())
}

fn framed(body: &[u8]) -> Vec<u8> {
    [&(body.len() as u32).to_le_bytes()[..], body].concat()
}

fn hello() -> Vec<u8> {
    frame(&Request::Hello { version: PROTOCOL_VERSION, client: "test".to_owned() })
}

/// The next answer; nothing if the connection is closed instead.
fn answer(stream: &mut UnixStream) -> Option<Reply> {
    stream.set_read_timeout(Some(HANG_TIMEOUT)).unwrap();
    let mut length = [0; 4];
    stream.read_exact(&mut length).ok()?;
    let mut body = vec![0; u32::from_le_bytes(length) as usize];
    stream.read_exact(&mut body).ok()?;
    Some(postcard::from_bytes(&body).unwrap())
}

/// The reason that is given, if one is before the connection closes.
fn refusal(stream: &mut UnixStream) -> String {
    match answer(stream) {
        Some(Reply::Refused(refusal)) => refusal.to_string(),
        other => panic!("no refusal, but {other:?}"),
    }
}

#[test]
fn clients_that_stall_disturb_nobody() {
    needs_kvm!();
    let mut abused = Abused::new();
    let idle: Vec<_> = (0..20).map(|_| abused.connect()).collect();
    let known: Vec<_> = (0..20).map(|_| abused.client()).collect();
    abused.is_unharmed("40 idle clients");

    let mut half_a_length = abused.connect();
    half_a_length.write_all(&[9, 0]).unwrap();
    let mut half_a_request = abused.client();
    half_a_request.write_all(&frame(&Request::Pause)[..4]).unwrap();
    abused.is_unharmed("half a request");

    // It asks and asks, and never takes an answer: both buffers fill.
    let mut deaf = abused.client();
    deaf.set_nonblocking(true).unwrap();
    while deaf.write(&frame(&Request::Describe)).is_ok() {}
    abused.is_unharmed("a client that takes no answers");

    // Those who have not said who they are lose their place to others.
    let began = Instant::now();
    for mut stream in idle.into_iter().chain([half_a_length, half_a_request]) {
        stream.set_read_timeout(Some(HANG_TIMEOUT)).unwrap();
        let end = stream.read(&mut [0; 64]);
        assert!(!matches!(&end, Err(error) if error.kind() == ErrorKind::WouldBlock), "{end:?}");
    }
    println!("unknown clients are closed after {:.1?}", began.elapsed());
    abused.is_unharmed("known clients that are silent");
    drop((known, deaf));
}

#[test]
fn all_places_taken_is_said_at_once_and_a_place_that_is_free_is_given() {
    needs_kvm!();
    let mut abused = Abused::new();
    let mut clients: Vec<_> = (0..64).map(|_| abused.client()).collect();
    abused.asks("all places taken").refused_with(&["64 clients are connected already"]);
    abused.guest.assert_runs();
    clients.truncate(60);
    thread::sleep(Duration::from_millis(100));
    abused.is_unharmed("60 clients");
}

/// Tells the threads of a flood to end.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn a_flood_of_requests_leaves_the_guest_and_the_others_their_turn() {
    needs_kvm!();
    let mut abused = Abused::new();
    let mut flood: Vec<_> = (0..4).map(|_| abused.client()).collect();
    // Longer than all that is asked meanwhile.
    let stop = AtomicBool::new(false);
    let stopped = &stop;
    thread::scope(|scope| {
        let counts: Vec<_> = flood
            .iter_mut()
            .map(|stream| {
                scope.spawn(move || {
                    let mut count = 0;
                    while !stopped.load(Ordering::SeqCst) {
                        stream.write_all(&frame(&Request::Status)).unwrap();
                        answer(stream).unwrap();
                        count += 1;
                    }
                    count
                })
            })
            .collect();
        // Also if one of these finds something wrong.
        let stop = StopOnDrop(stopped);
        for _ in 0..3 {
            abused.is_unharmed("four floods");
        }
        drop(stop);
        let all: u32 = counts.into_iter().map(|count| count.join().unwrap()).sum();
        println!("{all} requests were answered meanwhile");
    });
    // The same with a connection for each.
    let stop = AtomicBool::new(false);
    let (stopped, socket) = (&stop, abused.socket());
    thread::scope(|scope| {
        scope.spawn(move || {
            while !stopped.load(Ordering::SeqCst) {
                // Refused while the queue of those that wait is full.
                drop(UnixStream::connect(&socket));
            }
        });
        let _stop = StopOnDrop(stopped);
        thread::sleep(Duration::from_millis(500));
        abused.is_unharmed("a flood of connections");
    });
}

#[test]
fn garbage_is_refused_with_a_reason_and_holds_no_memory() {
    needs_kvm!();
    let mut abused = Abused::new();
    let long = |length: u32, first: u8| [&length.to_le_bytes()[..], &[first]].concat();

    let mut stream = abused.connect();
    stream.write_all(&[0xff; 4096]).unwrap();
    assert!(refusal(&mut stream).contains("a message of 4294967295 bytes"));

    // Before hello nothing is long; after it only the state of a machine is.
    let mut stream = abused.connect();
    stream.write_all(&long(1 << 20, PREPARE)).unwrap();
    assert!(refusal(&mut stream).contains("at most 4096"));
    let mut stream = abused.client();
    stream.write_all(&long(64 << 20, PREPARE - 1)).unwrap();
    assert!(refusal(&mut stream).contains("at most 2097152"));

    let mut stream = abused.client();
    stream.write_all(&[3, 0, 0, 0, 200, 200, 200]).unwrap();
    assert!(refusal(&mut stream).contains("damaged"));

    // 60 million sections of nothing; each would be a vector.
    let mut stream = abused.client();
    let head = postcard::to_stdvec(&Request::Prepare {
        id: MigrationId::random(),
        sections: vec![],
        paused_for: None,
    });
    let mut body = head.unwrap();
    body.pop();
    body.extend([0x80, 0x8e, 0xce, 0x1c]);
    let length = body.len() + 60_000_000;
    stream.write_all(&(length as u32).to_le_bytes()).unwrap();
    stream.write_all(&body).unwrap();
    let zeros = vec![0; 1_000_000];
    (0..60).for_each(|_| stream.write_all(&zeros).unwrap());
    assert!(refusal(&mut stream).contains("damaged"));

    abused.is_unharmed("garbage");
    let peak = abused.status_of_process("VmHWM");
    println!("vmrun held {peak} KiB at most");
    assert!(peak < MOST_KIB, "{peak} KiB");
}

#[test]
fn descriptors_that_nobody_asked_for_are_not_kept() {
    needs_kvm!();
    let mut abused = Abused::new();
    let before = abused.descriptors();
    let null = fs::File::open("/dev/null").unwrap();
    let mut clients = Vec::new();
    for count in [1, 64, 65, 200, 253] {
        let stream = abused.client();
        let fds = vec![null.as_raw_fd(); count];
        let request = frame(&Request::Describe);
        // Beside the length, beside the body, and so often that a thousand are under way.
        for part in [&request[..4], &request[4..]] {
            let rights = [ControlMessage::ScmRights(&fds)];
            let flags = MsgFlags::empty();
            sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(part)], &rights, flags, None).unwrap();
        }
        clients.push(stream);
    }
    abused.is_unharmed("a thousand descriptors");
    for stream in &mut clients {
        assert!(matches!(answer(stream), Some(Reply::Description(_))));
    }
    let now = abused.descriptors();
    assert!(now <= before + clients.len() + 1, "{before} descriptors before, {now} now");
}

#[test]
fn another_user_is_refused_by_name() {
    needs_kvm!();
    if !geteuid().is_root() {
        println!("SKIPPED another_user_is_refused_by_name: only root can become somebody else");
        return;
    }
    let mut abused = Abused::new();
    // The modes of the directories and of the socket keep everybody else away. Who gets past them
    // all the same is told who they are.
    let python = "import os,socket,sys
os.setgid(65534); os.setuid(65534)
s = socket.socket(socket.AF_UNIX)
try:
    s.connect(sys.argv[1])
    print(s.recv(4096).hex())
except PermissionError:
    print('no permission')";
    let attempt = || {
        let mut command = abused.host.shell("exec python3 -c \"$0\" \"$1\"");
        run(command.arg(python).arg(abused.socket())).expect(0).stdout
    };
    assert!(attempt().contains("no permission"));
    let socket = abused.socket();
    for path in socket.ancestors().take(4) {
        let mode = if path == socket { 0o666 } else { 0o755 };
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let refusal = Refusal::OtherUser { owner: geteuid().as_raw(), client: 65_534 };
    let told: String = framed(&postcard::to_stdvec(&Reply::Refused(refusal)).unwrap())
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert_eq!(attempt().trim(), told);
    abused.is_unharmed("another user");
}
