//! What a failure of each phase leads to: with a vmrun that has no machine, and a destination that
//! is a thread of the test. None of this needs KVM.

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::{io, thread};

use clap::Parser;
use mig_engine::handover::{
    Failure, FailureKind, Source, SourceEnding, SourceGuestState, run_source,
};
use mig_engine::ownership::{Input, State};
use mig_stream::{
    FormatVersion, Message, Record, ReturnWriter, StreamDigest, StreamReader, Timings,
};
use migpipe_tests::{Fault, HANG_TIMEOUT, REFUSES, Scripted};
use migpipe_units::{Acknowledged, HostId, MigrationId, Nonce};
use vm_control::{Client, Request};

use crate::args::Args;
use crate::error::StepError;
use crate::monitor::Shared;
use crate::report::{self, Draft};
use crate::setup;
use crate::status::StatusConnection;

const BY: Acknowledged =
    Acknowledged { host: HostId::from_bytes([1; 16]), nonce: Nonce::from_bytes([2; 16]) };

/// The destination's end of the channel, behind the header.
struct Destination {
    stream: StreamReader<UnixStream>,
    answers: ReturnWriter<UnixStream>,
}

impl Destination {
    fn accept(listener: &UnixListener) -> Self {
        let (stream, _) = listener.accept().unwrap();
        let answers = stream.try_clone().unwrap();
        let stream = StreamReader::open(stream).unwrap();
        let answers = ReturnWriter::new(answers, stream.preamble().id).unwrap();
        Self { stream, answers }
    }

    /// A source that is gone hears nothing.
    fn say(&mut self, message: &Message) {
        let _ = self.answers.send(message);
    }

    fn ready(&mut self) {
        self.say(&Message::Ready { version: FormatVersion::NEWEST });
    }

    /// Reads up to `End`, and returns its digest; nothing of a source that gives up before.
    fn read(&mut self) -> Option<StreamDigest> {
        loop {
            match self.stream.next_record() {
                Ok(Some(Record::End(totals))) => return Some(totals.digest),
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return None,
            }
        }
    }

    /// Reads up to `End` and acknowledges that; false if the source gives up before.
    fn take(&mut self) -> bool {
        self.read().map(|digest| self.acknowledge(digest)).is_some()
    }

    fn acknowledge(&mut self, digest: StreamDigest) {
        self.say(&Message::Ack { digest, by: BY, timings: Timings::new() });
    }

    /// Whether GO comes.
    fn hears_go(&mut self) -> bool {
        matches!(self.stream.next_record(), Ok(Some(Record::Go { nonce, .. })) if nonce == BY.nonce)
    }

    fn running(&mut self) {
        self.say(&Message::Running { timings: Timings::new() });
    }

    /// All that a destination has to do.
    fn run(mut self) {
        self.ready();
        if self.take() && self.hears_go() {
            self.running();
        }
    }
}

/// What goes wrong at the source's vmrun, from which request on.
type Fails = Option<(Fault, fn(&Request) -> bool)>;

/// How a migration ended.
#[derive(Debug)]
struct End {
    ending: SourceEnding,
    guest: Option<SourceGuestState>,
    /// Of what failed.
    kind: Option<FailureKind>,
    said: String,
    /// What the source's vmrun is then.
    owner: State,
}

/// In place of the resolve helper: this program is the tests. It lives as long as its stdin is open,
/// and nobody asks it anything.
fn helper(_: &Args, _: MigrationId) -> Command {
    Command::new("cat")
}

fn args(guest: &Path, destination: &Path) -> Args {
    let destination = format!("unix:{}", destination.display());
    // Who asks later is a process of its own: that is for other tests.
    let options = ["mig-send", "--quiet", "--progress=none", "--resolve-for=0"];
    Args::parse_from(options.into_iter().chain([guest.to_str().unwrap(), &destination]))
}

/// Migrates a guest whose vmrun `fails` so, if at all.
fn migrate(
    fails: Fails,
    destination: impl FnOnce(Destination) + Send + 'static,
) -> Result<End, StepError> {
    let dir = tempfile::tempdir().unwrap();
    let vmrun = Scripted::running(dir.path().join("guest.sock"), &[1, 2, 3], |_, _| {});
    let path = dir.path().join("destination");
    let listener = UnixListener::bind(&path).unwrap();
    let args = args(vmrun.socket(), &path);
    let client = Client::connect(vmrun.socket(), "test").unwrap();
    let mut status = StatusConnection::new(vmrun.socket(), args.timeout).unwrap();
    let (draft, shared) = (Draft::new(&args), Shared::new().unwrap());
    if let Some((fault, which)) = fails {
        vmrun.fails(fault, which);
    }
    let (mut outgoing, _watch) = setup::open(&draft, &args, client, &mut status, &shared, helper)?;
    let there = thread::spawn(move || destination(Destination::accept(&listener)));
    let end = run_source(Source::new(outgoing.channel.mode), &mut outgoing);
    let why = end.reason.as_ref();
    let said = report::complaint(end.ending, end.guest, &outgoing, why).unwrap_or_default();
    let kind = why.map(Failure::kind);
    drop(outgoing);
    there.join().unwrap();
    Ok(End { ending: end.ending, guest: end.guest, kind, said, owner: vmrun.state() })
}

/// Migrates a guest that stays at its source in the end, and returns what is said of that.
fn stays(fails: Fails, destination: impl FnOnce(Destination) + Send + 'static) -> String {
    let end = migrate(fails, destination).unwrap();
    assert_eq!(end.ending, SourceEnding::Stayed, "{end:?}");
    assert_eq!(end.owner, State::Owned, "{end:?}");
    assert_eq!(end.guest, Some(SourceGuestState::Runs), "{end:?}");
    end.said.strip_suffix("; scripted runs on here").expect("where it is").to_owned()
}

const fn refuses(which: fn(&Request) -> bool) -> Fails {
    Some((Fault::Refuses, which))
}

#[test]
fn a_setup_that_fails_leaves_the_guest_alone() {
    for which in [
        |request: &Request| *request == Request::Describe,
        |request: &Request| *request == Request::MapMemory,
        |request: &Request| *request == Request::Status,
    ] {
        let error = migrate(refuses(which), |_| {}).unwrap_err();
        assert_eq!(error.kind(), FailureKind::Failed);
        assert_eq!(error.reason(), REFUSES);
        let error = migrate(Some((Fault::Ends, which)), |_| {}).unwrap_err();
        assert!(error.is_end_of_vmrun(), "{error:?}");
    }
}

#[test]
fn a_destination_that_is_not_ready_gets_no_guest() {
    let refused = stays(None, |mut there| {
        there.say(&Message::Refused { reason: "no room".to_owned() });
    });
    assert_eq!(refused, "the destination refused: no room");
    let silent = stays(None, drop);
    assert!(silent.starts_with("the destination did not say that it is ready: "), "{silent}");
    let other = stays(None, |mut there| there.running());
    assert!(other.ends_with("where READY was expected"), "{other}");
}

#[test]
fn a_guest_whose_pre_copy_fails_runs_on() {
    for which in [
        |request: &Request| matches!(request, Request::Own(Input::Begin(_))),
        |request: &Request| *request == Request::DirtyLogStart,
        |request: &Request| *request == Request::DirtyLogHarvest,
        |request: &Request| *request == Request::FlushDisks,
    ] {
        let said = stays(refuses(which), Destination::run);
        assert_eq!(said, format!("pre-copy failed: {REFUSES}"));
    }
}

#[test]
fn a_guest_whose_stop_and_copy_fails_runs_on() {
    for which in [
        |request: &Request| *request == Request::Pause,
        |request: &Request| *request == Request::SaveState,
    ] {
        let said = stays(refuses(which), Destination::run);
        assert_eq!(said, format!("stop-and-copy failed: {REFUSES}"));
    }
}

#[test]
fn a_guest_that_nobody_acknowledges_runs_on() {
    let failed = stays(None, |mut there| {
        there.ready();
        there.read().unwrap();
        there.say(&Message::Failed { reason: "a section does not fit".to_owned() });
    });
    assert_eq!(failed, "the destination: a section does not fit");
    let other = stays(None, |mut there| {
        there.ready();
        there.read().unwrap();
        there.acknowledge(StreamDigest(7));
    });
    assert!(other.ends_with("the destination acknowledged another stream"), "{other}");
    let silent = stays(None, |mut there| {
        there.ready();
        there.read().unwrap();
    });
    assert!(silent.starts_with("the destination did not acknowledge the guest: "), "{silent}");
}

#[test]
fn a_guest_whose_commit_is_refused_runs_on() {
    let commit = |request: &Request| matches!(request, Request::Own(Input::Commit(..)));
    assert_eq!(stays(refuses(commit), Destination::run), REFUSES);
}

#[test]
fn a_guest_whose_vmrun_ends_with_its_commit_may_be_at_the_destination() {
    let commit = |request: &Request| matches!(request, Request::Own(Input::Commit(..)));
    let end = migrate(Some((Fault::Ends, commit)), Destination::run).unwrap();
    assert_eq!(end.ending, SourceEnding::Unknown);
    assert_eq!(end.guest, Some(SourceGuestState::Gone));
    assert!(end.said.contains("vmctl commit --force there runs it"), "{end:?}");
}

#[test]
fn a_guest_whose_vmrun_ends_before_its_commit_is_gone() {
    let save = |request: &Request| *request == Request::SaveState;
    let end = migrate(Some((Fault::Ends, save)), Destination::run).unwrap();
    assert_eq!(end.ending, SourceEnding::Stayed);
    assert_eq!(end.guest, Some(SourceGuestState::Gone));
    assert!(end.said.starts_with("scripted ended while it was being sent: "), "{end:?}");
}

#[test]
fn a_guest_that_is_not_heard_of_after_go_stays_handed_over() {
    let goes_without_a_word: fn(Destination) = |mut there| {
        there.ready();
        assert!(there.take() && there.hears_go());
    };
    let gives_up: fn(Destination) = |mut there| {
        there.ready();
        assert!(there.take() && there.hears_go());
        there.say(&Message::Failed { reason: "no vCPU".to_owned() });
    };
    for destination in [goes_without_a_word, gives_up] {
        let end = migrate(None, destination).unwrap();
        assert_eq!(end.ending, SourceEnding::Unknown, "{end:?}");
        assert!(matches!(end.owner, State::HandedOver(_)), "{end:?}");
        assert!(end.said.contains("mig-send --resolve "), "{end:?}");
    }
}

#[test]
fn a_guest_that_runs_there_has_moved_whatever_its_old_vmrun_says() {
    let confirm = |request: &Request| matches!(request, Request::Own(Input::Confirm(_)));
    let end = migrate(refuses(confirm), Destination::run).unwrap();
    assert_eq!((end.ending, end.kind), (SourceEnding::Moved, None), "{end:?}");
    assert!(matches!(end.owner, State::HandedOver(_)), "{end:?}");
    assert_eq!(end.said, "");
}

#[test]
fn a_guest_whose_release_is_not_confirmed_is_looked_at() {
    let release =
        |request: &Request| matches!(request, Request::SaveState | Request::Own(Input::Release(_)));
    // Its vmrun takes it back when its client goes away, and has not said so yet.
    let end = migrate(refuses(release), Destination::run).unwrap();
    assert_eq!(end.ending, SourceEnding::Stayed, "{end:?}");
    assert_eq!(end.guest, Some(SourceGuestState::Runs), "{end:?}");
}

#[test]
fn a_cancel_ends_a_migration_until_its_commit() {
    let dir = tempfile::tempdir().unwrap();
    let vmrun = Scripted::running(dir.path().join("guest.sock"), &[1], |_, _| {});
    let path = dir.path().join("destination");
    let listener = UnixListener::bind(&path).unwrap();
    let args = args(vmrun.socket(), &path);
    let client = Client::connect(vmrun.socket(), "test").unwrap();
    let mut status = StatusConnection::new(vmrun.socket(), args.timeout).unwrap();
    let (draft, shared) = (Draft::new(&args), Shared::new().unwrap());
    let (mut outgoing, _watch) =
        setup::open(&draft, &args, client, &mut status, &shared, helper).unwrap();
    let there = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        io::copy(&mut stream, &mut io::sink())
    });
    shared.cancel();
    let end = run_source(Source::new(outgoing.channel.mode), &mut outgoing);
    assert_eq!(end.ending, SourceEnding::Cancelled);
    assert_eq!(vmrun.state(), State::Owned);
    assert!(!shared.commit(), "it was decided");
    drop(outgoing);
    there.join().unwrap().unwrap();
}

/// Takes a snapshot of a guest whose vmrun refuses some requests, and returns how that ended and
/// whether the file is there.
fn snapshot(refused: impl Fn(&Request) -> bool + Send + 'static) -> (SourceEnding, State, bool) {
    let dir = tempfile::tempdir().unwrap();
    let vmrun = Scripted::running(dir.path().join("guest.sock"), &[1, 2, 3], |_, _| {});
    let path = dir.path().join("guest.mig");
    let place = format!("file:{}", path.display());
    let guest = vmrun.socket().to_str().unwrap().to_owned();
    let args = Args::parse_from(["mig-send", "--progress=none", "--snapshot", &guest, &place]);
    let client = Client::connect(vmrun.socket(), "test").unwrap();
    let mut status = StatusConnection::new(vmrun.socket(), args.timeout).unwrap();
    let (draft, shared) = (Draft::new(&args), Shared::new().unwrap());
    vmrun.fails(Fault::Refuses, refused);
    let (mut outgoing, _watch) =
        setup::open(&draft, &args, client, &mut status, &shared, helper).unwrap();
    let end = run_source(Source::snapshot(), &mut outgoing);
    drop(outgoing);
    (end.ending, vmrun.state(), path.exists())
}

#[test]
fn a_snapshot_of_a_guest_that_may_have_run_meanwhile_is_none() {
    assert_eq!(snapshot(|_| false), (SourceEnding::Snapshot, State::Owned, true));
    // A vmrun that took its guest back in the blackout, after the last page was read or before.
    for harvests in 0..2 {
        let (saved, asked) = (AtomicBool::new(false), AtomicU32::new(0));
        let taken_back = move |request: &Request| match request {
            Request::SaveState => {
                saved.store(true, Ordering::SeqCst);
                false
            }
            Request::DirtyLogHarvest if saved.load(Ordering::SeqCst) => {
                asked.fetch_add(1, Ordering::SeqCst) >= harvests
            }
            _ => false,
        };
        assert_eq!(snapshot(taken_back), (SourceEnding::Stayed, State::Owned, false));
    }
}

#[test]
fn a_vmrun_that_has_ended_is_told_from_one_that_does_not_say_how_its_guest_is() {
    for (fault, expected) in
        [(Fault::Refuses, SourceGuestState::Silent), (Fault::Ends, SourceGuestState::Gone)]
    {
        let dir = tempfile::tempdir().unwrap();
        let vmrun = Scripted::running(dir.path().join("guest.sock"), &[1], |_, _| {});
        let mut status = StatusConnection::new(vmrun.socket(), HANG_TIMEOUT).unwrap();
        let id = MigrationId::random();
        assert_eq!(status.guest_state(id), SourceGuestState::Runs);
        vmrun.fails(fault, |request| *request == Request::Status);
        assert_eq!(status.guest_state(id), expected);
    }
}
