//! Each phase of a migration failing, without KVM: the stream was written before, the vmrun answers
//! as it is told to, and the host notes what is done there.

use std::net::Shutdown;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use mig_channel::{Endpoint, Interrupt, ReceiverChannel, prepare_receiver};
use mig_engine::ownership::{Decision, MigrationStatus};
use mig_stream::{
    Flags, Header, MemoryDigest, Message, Preamble, ReturnReader, StreamDigest, StreamReader,
    StreamWriter,
};
use migpipe_units::{Gfn, MigrationId, Nonce, PAGE_SIZE, PageRange, Pages, RegionId};
use vm_control::{Client, ClientError, Reply, Request};
use vm_state::{CpuDescription, KernelKind, MachineDescription, MemoryRegion};

use crate::answers::Answers;
use crate::args::Args;
use crate::host::{LocalHost, Vmrun};
use crate::migration;
use crate::report::Watch;
use crate::scripted_vmrun::{BY, ID, MEMORY, ScriptedVmrun, USELESS, VmrunAnswers, refused};

const RELEASED: MigrationId = MigrationId::from_bytes([4; 16]);
const OTHER_NONCE: Nonce = Nonce::from_bytes([3; 16]);
const FIRST_PAGE: PageRange = PageRange { region: RegionId(0), first: 0, count: Pages(1) };

const BOTH_WAYS: Flags = Flags {
    return_path: true,
    page_sums: true,
    separate_commit: false,
    verify: false,
    saved: false,
    snapshot: false,
};
const SEPARATE_COMMIT: Flags = Flags { separate_commit: true, ..BOTH_WAYS };
const ONE_WAY: Flags = Flags { return_path: false, ..BOTH_WAYS };
const SAVED: Flags = Flags { saved: true, ..ONE_WAY };

type Stream = StreamWriter<UnixStream>;

struct TestHost {
    socket: PathBuf,
    decision: Option<Decision>,
    forgotten: Vec<MigrationId>,
    /// For each vmrun that was waited for, whether it had confirmed that it gave its guest up.
    ended: Vec<bool>,
}

impl LocalHost for TestHost {
    fn vmrun(&mut self, name: &str, _: &str) -> anyhow::Result<Vmrun> {
        let client = Client::connect(&self.socket, "test")?;
        Ok(Vmrun { client, name: name.to_owned(), started: false, unit: None })
    }

    fn explain(&mut self, _: &Vmrun, error: ClientError) -> anyhow::Error {
        error.into()
    }

    fn await_end(&mut self, _: Vmrun, gave_up: bool) {
        self.ended.push(gave_up);
    }

    fn decision(&mut self, id: MigrationId) -> anyhow::Result<Option<Decision>> {
        assert_eq!(id, ID);
        Ok(self.decision)
    }

    fn forget(&mut self, released: &[MigrationId]) -> anyhow::Result<()> {
        self.forgotten.extend(released);
        Ok(())
    }

    fn short_memory(&mut self) -> anyhow::Result<Option<PathBuf>> {
        Ok(None)
    }
}

struct Case {
    options: &'static [&'static str],
    flags: Flags,
    /// Writes what follows the header.
    write: fn(&mut Stream),
    vmrun: VmrunAnswers,
    /// What the host's record says.
    decision: Option<Decision>,
}

/// A migration in which nothing fails.
const fn success(flags: Flags) -> Case {
    let write = match flags.separate_commit || !flags.return_path {
        true => guest as fn(&mut Stream),
        false => guest_and_go,
    };
    Case { options: &[], flags, write, vmrun: |_| None, decision: None }
}

fn guest(stream: &mut Stream) {
    write_guest(stream);
}

fn write_guest(stream: &mut Stream) -> StreamDigest {
    stream.pages(FIRST_PAGE, &[7; PAGE_SIZE as usize]).unwrap();
    stream.blackout().unwrap();
    stream.section(b"state").unwrap();
    stream.end().unwrap().digest
}

fn guest_and_go(stream: &mut Stream) {
    guest(stream);
    stream.go(BY.nonce).unwrap();
}

/// What came of it.
struct Found {
    status: Result<u8, String>,
    /// What the source was told.
    said: Vec<Message>,
    /// What the vmrun was asked.
    asked: Vec<&'static str>,
    ended: Vec<bool>,
    forgotten: Vec<MigrationId>,
    /// The first byte of the guest's memory.
    byte: u8,
}

impl Found {
    fn said(&self) -> Vec<&'static str> {
        let name = |message: &Message| match message {
            Message::Ready { .. } => "ready",
            Message::Ack { .. } => "ack",
            Message::Running { .. } => "running",
            Message::Refused { .. } => "refused",
            Message::Failed { .. } => "failed",
            Message::Resolved(_) => "resolved",
            Message::Examined { .. } | Message::Measured { .. } => "probe",
        };
        self.said.iter().map(name).collect()
    }

    /// The guest was given up, and its source told.
    fn given_up(&self, asked: &[&str], said: &[&str]) {
        let why = self.status.as_ref().expect_err("it does not run");
        assert!(why.contains("does not run here"), "{why}");
        assert_eq!(self.asked, asked);
        assert_eq!(self.said(), said);
        assert_eq!(self.ended.len(), 1);
    }

    fn waits(&self, asked: &[&str]) {
        assert_eq!(self.status, Ok(4));
        assert_eq!(self.asked, asked);
        assert!(self.ended.is_empty(), "it may be awaited");
    }
}

fn machine() -> MachineDescription {
    MachineDescription {
        name: "web".to_owned(),
        vcpus: 2,
        memory: vec![MemoryRegion { id: RegionId(0), base: Gfn(0), pages: MEMORY }],
        hugetlb: false,
        cpu: CpuDescription::default(),
        devices: Vec::new(),
        kernel: KernelKind::Builtin,
        boot: None,
    }
}

fn header() -> Header {
    Header {
        guest: "web".to_owned(),
        machine: machine().encode().unwrap(),
        regions: vec![MemoryRegion { id: RegionId(0), base: Gfn(0), pages: MEMORY }],
        released: vec![RELEASED],
    }
}

fn receive(case: &Case) -> Found {
    let dir = tempfile::tempdir().unwrap();
    let interrupt = Interrupt::new().unwrap();
    let channel = dir.path().join("channel");
    let pending = prepare_receiver(&Endpoint::Unix(channel.clone()), &interrupt).unwrap();
    let source = UnixStream::connect(&channel).unwrap();
    let preamble = Preamble::migrate(ID, case.flags);
    let mut stream = StreamWriter::new(source.try_clone().unwrap(), preamble, header()).unwrap();
    (case.write)(&mut stream);
    stream.flush().unwrap();
    source.shutdown(Shutdown::Write).unwrap();
    let ReceiverChannel { forward, mut back, .. } = pending.accept(None).unwrap();
    let reader = StreamReader::open(forward).unwrap();
    let answers = match case.flags.return_path {
        true => Answers::open(&mut back, ID).unwrap(),
        false => Answers::NONE,
    };

    let socket = dir.path().join("web.sock");
    let vmrun = ScriptedVmrun::new(&socket, case.flags.return_path, case.vmrun);
    let mut host =
        TestHost { socket, decision: case.decision, forgotten: Vec::new(), ended: Vec::new() };
    let options = ["mig-recv", "--quiet"].into_iter().chain(case.options.iter().copied());
    let args = Args::try_parse_from(options).unwrap();
    let status = migration::run(&args, &mut host, reader, answers, Watch::default());
    drop(back);

    let mut said = Vec::new();
    if case.flags.return_path {
        let mut answers = ReturnReader::open(source, ID).unwrap();
        while let Ok(Some(message)) = answers.next_message() {
            said.push(message);
        }
    }
    let mut byte = [0];
    vmrun.memory().read_exact_at(&mut byte, 0).unwrap();
    Found {
        status: status.map_err(|error| migpipe_cli::one_line(&error)),
        said,
        asked: vmrun.asked(),
        ended: host.ended,
        forgotten: host.forgotten,
        byte: byte[0],
    }
}

/// All that a vmrun is asked up to its guest being prepared.
const PREPARED: [&str; 2] = ["receive", "prepare"];

fn with<'a>(first: &[&'a str], then: &[&'a str]) -> Vec<&'a str> {
    [first, then].concat()
}

#[test]
fn a_guest_that_comes_both_ways_is_acknowledged_before_it_runs() {
    let found = receive(&success(BOTH_WAYS));
    assert_eq!(found.status, Ok(0));
    assert_eq!(found.asked, with(&PREPARED, &["go"]));
    assert_eq!(found.said(), ["ready", "ack", "running"]);
    let Message::Ack { digest, by, timings } = &found.said[1] else { panic!("an ACK") };
    let (copy, _end) = UnixStream::pair().unwrap();
    let mut copy = StreamWriter::new(copy, Preamble::migrate(ID, BOTH_WAYS), header()).unwrap();
    assert_eq!((*digest, *by), (write_guest(&mut copy), BY));
    assert_eq!(*timings, [("load".to_owned(), Duration::from_millis(7))]);
    let Message::Running { timings } = &found.said[2] else { panic!("RUNNING") };
    let names: Vec<_> = timings.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["go", "first instruction"]);
    assert_eq!(found.byte, 7, "pages go to the guest's memory");
    assert_eq!(found.forgotten, [RELEASED]);
    assert!(found.ended.is_empty());
}

#[test]
fn a_guest_that_comes_one_way_runs_at_the_end_of_the_stream() {
    for flags in [ONE_WAY, SAVED] {
        let found = receive(&success(flags));
        assert_eq!(found.status, Ok(0));
        assert_eq!(found.asked, with(&PREPARED, &["go"]));
    }
}

#[test]
fn a_guest_whose_go_comes_another_way_is_never_started_here() {
    let running = |request: &Request| match request {
        Request::MigrationStatus { .. } => Some(Reply::MigrationStatus(MigrationStatus::Running)),
        _ => None,
    };
    let found = receive(&Case { vmrun: running, ..success(SEPARATE_COMMIT) });
    assert_eq!(found.status, Ok(0));
    assert_eq!(found.asked, with(&PREPARED, &["status"]));
    assert_eq!(found.said(), ["ack"]);
}

#[test]
fn setup_refuses_a_header_that_does_not_fit_before_a_vmrun_is_asked() {
    for (options, words) in [
        (&["--max-mem", "4K"] as &[_], "--max-mem"),
        (&["--max-cpus", "1"], "--max-cpus"),
        (&["--clone"], "--clone is for saved guests"),
    ] {
        let found = receive(&Case { options, ..success(BOTH_WAYS) });
        let why = found.status.expect_err("it is refused");
        assert!(why.contains(words), "{why}");
        let [Message::Refused { reason }] = &found.said[..] else { panic!("{:?}", found.said) };
        assert_eq!(*reason, why);
        assert!(found.asked.is_empty());
    }
}

#[test]
fn setup_fails_where_vmrun_cannot_take_the_guest_and_its_end_is_waited_for() {
    let vmrun = |request: &Request| matches!(request, Request::Receive { .. }).then(refused);
    let found = receive(&Case { vmrun, ..success(BOTH_WAYS) });
    found.given_up(&["receive"], &["refused"]);
    assert_eq!(found.ended, [false]);
    let [Message::Refused { reason }] = &found.said[..] else { panic!("{:?}", found.said) };
    assert!(reason.contains("not on this host"), "{reason}");
}

#[test]
fn receiving_a_stream_that_breaks_off_or_is_aborted_gives_the_guest_up() {
    let breaks_off = |stream: &mut Stream| {
        stream.pages(FIRST_PAGE, &[7; PAGE_SIZE as usize]).unwrap();
    };
    let is_aborted = |stream: &mut Stream| stream.abort("enough").unwrap();
    for write in [breaks_off as fn(&mut Stream), is_aborted] {
        let found = receive(&Case { write, ..success(BOTH_WAYS) });
        found.given_up(&["receive", "refuse"], &["ready", "failed"]);
        assert_eq!(found.ended, [true]);
    }
}

#[test]
fn one_way_something_behind_the_end_gives_the_guest_up() {
    let trailing = |stream: &mut Stream| {
        guest(stream);
        std::io::Write::write_all(stream.get_mut(), b"more").unwrap();
    };
    let found = receive(&Case { write: trailing, ..success(ONE_WAY) });
    found.given_up(&["receive", "refuse"], &[]);
}

#[test]
fn loading_a_state_that_vmrun_refuses_gives_the_guest_up() {
    let vmrun = |request: &Request| matches!(request, Request::Prepare { .. }).then(refused);
    let found = receive(&Case { vmrun, ..success(BOTH_WAYS) });
    found.given_up(&with(&PREPARED, &["refuse"]), &["ready", "failed"]);
}

#[test]
fn loading_memory_that_is_not_what_the_source_had_gives_the_guest_up() {
    fn verified(stream: &mut Stream, byte: u8) {
        stream.pages(FIRST_PAGE, &[7; PAGE_SIZE as usize]).unwrap();
        let digest = MemoryDigest::of(&[(RegionId(0), MEMORY)], &[FIRST_PAGE], |_, buffer| {
            buffer.fill(byte);
        });
        stream.digest(&digest).unwrap();
        stream.end().unwrap();
        stream.go(BY.nonce).unwrap();
    }
    let verify = Flags { verify: true, ..BOTH_WAYS };
    let same = receive(&Case { write: |stream| verified(stream, 7), ..success(verify) });
    assert_eq!(same.status, Ok(0));
    let other = receive(&Case { write: |stream| verified(stream, 8), ..success(verify) });
    other.given_up(&["receive", "refuse"], &["ready", "failed"]);
}

#[test]
fn a_guest_whose_go_does_not_come_waits_as_long_as_its_vmrun_says_so() {
    for flags in [BOTH_WAYS, SEPARATE_COMMIT] {
        let no_go = Case { write: guest, options: &["--timeout", "0.1"], ..success(flags) };
        let found = receive(&no_go);
        assert_eq!(found.status, Ok(4));
        assert_eq!(found.asked[..2], PREPARED);
        assert!(found.asked[2..].iter().all(|asked| *asked == "status"), "{:?}", found.asked);
        assert_eq!(found.said().last(), Some(&"ack"));
    }
}

#[test]
fn a_guest_whose_go_does_not_come_is_what_its_vmrun_says() {
    let running = |request: &Request| match request {
        Request::MigrationStatus { .. } => Some(Reply::MigrationStatus(MigrationStatus::Running)),
        _ => None,
    };
    let found = receive(&Case { write: guest, vmrun: running, ..success(BOTH_WAYS) });
    assert_eq!(found.status, Ok(0));
    let refused = |request: &Request| match request {
        Request::MigrationStatus { .. } => Some(Reply::MigrationStatus(MigrationStatus::Refused)),
        _ => None,
    };
    let found = receive(&Case { write: guest, vmrun: refused, ..success(BOTH_WAYS) });
    found.given_up(&with(&PREPARED, &["status", "refuse"]), &["ready", "ack", "failed"]);
}

#[test]
fn a_guest_whose_vmrun_says_nothing_is_what_its_record_says() {
    let silent =
        |request: &Request| matches!(request, Request::MigrationStatus { .. }).then_some(USELESS);
    let case = |decision| Case { write: guest, vmrun: silent, decision, ..success(BOTH_WAYS) };
    let asked = with(&PREPARED, &["status"]);
    receive(&case(Some(Decision::MayRun))).waits(&asked);
    receive(&case(None)).waits(&asked);
    assert_eq!(receive(&case(Some(Decision::Ran))).status, Ok(0));
    let refused = receive(&case(Some(Decision::Refused)));
    refused.given_up(&with(&asked, &["refuse"]), &["ready", "ack", "failed"]);
}

#[test]
fn a_source_that_says_that_no_go_comes_has_the_guest_given_up() {
    let aborted = |stream: &mut Stream| {
        guest(stream);
        stream.abort("the source gave the migration up").unwrap();
    };
    let of_another = |stream: &mut Stream| {
        guest(stream);
        stream.go(OTHER_NONCE).unwrap();
    };
    for write in [aborted as fn(&mut Stream), of_another] {
        let found = receive(&Case { write, ..success(BOTH_WAYS) });
        found.given_up(&with(&PREPARED, &["refuse"]), &["ready", "ack", "failed"]);
        assert_eq!(found.ended, [true]);
    }
}

#[test]
fn a_guest_that_cannot_be_run_now_waits() {
    let vmrun = |request: &Request| matches!(request, Request::Go { .. }).then(refused);
    for flags in [BOTH_WAYS, ONE_WAY] {
        let found = receive(&Case { vmrun, ..success(flags) });
        found.waits(&with(&PREPARED, &["go", "status"]));
    }
}

#[test]
fn a_saved_guest_that_cannot_be_run_now_is_given_up_and_its_file_is_left() {
    let vmrun = |request: &Request| matches!(request, Request::Go { .. }).then(refused);
    let found = receive(&Case { vmrun, ..success(SAVED) });
    found.given_up(&with(&PREPARED, &["go", "status", "refuse"]), &[]);
}

#[test]
fn a_refusal_that_vmrun_does_not_confirm_counts_one_way_only_where_the_record_has_it() {
    let unconfirmed = |request: &Request| match request {
        Request::Prepare { .. } | Request::Own(_) => Some(refused()),
        _ => None,
    };
    let case = |flags, decision| Case { vmrun: unconfirmed, decision, ..success(flags) };
    let open = receive(&case(ONE_WAY, Some(Decision::MayRun)));
    assert_eq!((open.status, &open.ended[..]), (Ok(4), &[false][..]));
    let recorded = receive(&case(ONE_WAY, Some(Decision::Refused)));
    recorded.given_up(&with(&PREPARED, &["refuse"]), &[]);
    // Nobody was acknowledged, so that no GO can come.
    let both_ways = receive(&case(BOTH_WAYS, Some(Decision::MayRun)));
    both_ways.given_up(&with(&PREPARED, &["refuse"]), &["ready", "failed"]);
}
