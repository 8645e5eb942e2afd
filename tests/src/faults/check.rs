//! What is looked at afterwards: how things stand, whether the programs told the truth, whether
//! the guest's story is one, and whether anything is left over.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use super::case::{After, Case, Fault, Form, Order, Party};
use super::expect::{self, Ending};
use super::party::lives;
use super::test_bed::TestBed;
use super::wire::{Act, Point};
use crate::console::{Console, wait};
use crate::host::Host;

/// What the destination remembers of the one migration.
fn record(host: &Host) -> Option<String> {
    let dir = ["migrations", "migrations.away"]
        .map(|name| host.path("state/vmrun").join(name))
        .into_iter()
        .find(|dir| dir.is_dir())?;
    let records = files(&dir).into_iter().filter(|it| is_record(it));
    let texts: Vec<_> = records.filter_map(|it| fs::read_to_string(it).ok()).collect();
    assert!(texts.len() <= 1, "more than one record: {texts:?}");
    texts.into_iter().next()
}

/// Beside the records is the host's identity, and a killed vmrun may leave a draft.
fn is_record(file: &Path) -> bool {
    file.file_name()
        .is_some_and(|name| name != "host-id" && !name.to_string_lossy().starts_with('.'))
}

fn files(dir: &Path) -> Vec<std::path::PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
}

/// The state of a guest whose vmrun lives.
fn state(host: &Host, name: &str) -> Option<String> {
    let vmruns = host.processes().into_iter().filter(|(_, comm)| comm == "vmrun").count();
    if vmruns == 0 {
        return None;
    }
    host.state(name)
}

/// How long what is on its way may take to arrive, before that counts as how things stand.
const SETTLE: Duration = Duration::from_secs(120);

/// How things stand. Waits until nothing moves that moves by itself: a message that is on its way
/// when mig-send ends is waited for, and what is not `expected` is looked at again and again.
pub fn outcome(bed: &mut TestBed, status: Option<i32>, expected: &BTreeSet<Ending>) -> Ending {
    let started = Instant::now();
    let mut found = None;
    wait("things to come to rest", || {
        // A query that a killed mig-send had asked goes on.
        let asking = bed.source.processes().iter().any(|(_, comm)| comm.starts_with("mig-"));
        let receiving = bed.destination.processes().iter().any(|(_, comm)| comm == "mig-recv");
        let here = if bed.a.lives() { state(&bed.source, "a") } else { None };
        let there = state(&bed.destination, "b");
        found = stand(bed, here.as_deref(), there.as_deref(), status);
        let Some(found) = found else { return false };
        // A mig-recv that waits for the end of a stream, or for another to bring GO, waits on
        // purpose; any other is about to end.
        let waits = match found {
            Ending::Prepared => bed.case.form == Form::Commit,
            _ => here.as_deref() == Some("handed-over"),
        };
        let rests = !asking && (!receiving || waits);
        rests && expected.contains(&found) || started.elapsed() > SETTLE && !asking
    });
    found.expect("waited for")
}

fn stand(
    bed: &TestBed,
    here: Option<&str>,
    there: Option<&str>,
    status: Option<i32>,
) -> Option<Ending> {
    let ran = |console: &Console| !console.ticks().is_empty();
    // The source was told, and is about to end.
    let told = status == Some(0) && bed.case.form != Form::OneWay;
    Some(match (here, there) {
        (Some("running" | "paused"), None | Some("prepared")) if status == Some(3) => {
            Ending::Cancelled
        }
        (Some("running" | "paused"), None | Some("prepared")) => Ending::Stays,
        (Some("handed-over"), Some("prepared")) => Ending::Prepared,
        (Some("handed-over"), Some("running" | "paused")) if told => return None,
        (Some("handed-over"), Some("running" | "paused")) => Ending::Running,
        // Whoever asks makes it refuse.
        (Some("handed-over"), Some("receiving")) => Ending::Refused,
        (Some("handed-over"), None) => match record(&bed.destination) {
            Some(text) if text.contains("\"MayRun\"") => Ending::Doubtful,
            Some(text) if text.contains("\"Ran\"") => Ending::EndedThere,
            _ => Ending::Refused,
        },
        (None, Some("running" | "paused")) => Ending::Moved,
        (None, _) if ran(&bed.c) => Ending::Elsewhere,
        // It may have been killed before its first word.
        (None, None) if ran(&bed.b) || status == Some(0) => Ending::EndedThere,
        (None, None | Some("prepared")) => Ending::EndedHere,
        // It is still at it.
        _ => return None,
    })
}

/// The exit status and the words of mig-send.
pub fn sender(case: Case, outcome: Ending, status: Option<i32>, said: &str) {
    let lines: Vec<_> = said.lines().filter(|line| !line.trim().is_empty()).collect();
    if case.fault == Fault::Kill(Party::Send) {
        assert_eq!(status, None, "mig-send was killed");
        return;
    }
    let allowed: &[i32] = match (outcome, case.form) {
        (Ending::Stays | Ending::Elsewhere, _) => &[1],
        (Ending::Cancelled, _) => &[3],
        // A source that dies when it is asked to commit leaves open whether it did.
        (Ending::EndedHere, _) => &[1, 4],
        // It cannot know more than that its part is done, and that its tunnel was content.
        (_, Form::OneWay) => one_way(case),
        (Ending::Moved | Ending::EndedThere, _) => &[0],
        (_, _) => &[4],
    };
    assert!(
        status.is_some_and(|status| allowed.contains(&status)),
        "mig-send ended with {status:?} and not with {allowed:?}: {said}"
    );
    if status == Some(0) {
        return;
    }
    assert_eq!(lines.len(), 1, "mig-send does not say one line: {said}");
    assert!(lines[0].starts_with("mig-send: "), "{said}");
    let fate: &[&str] = match (status, outcome) {
        (Some(1), Ending::EndedHere | Ending::Elsewhere) => &["a ended while it was being sent"],
        (Some(1), _) if case.form == Form::Resolve => &["runs here"],
        (Some(1), _) => &["a runs on here", "took a back"],
        (Some(3), _) => &["cancelled; a runs on here"],
        (Some(4), Ending::EndedHere) => &["vmctl commit"],
        _ => &["--resolve", "--force", "stays handed-over"],
    };
    assert!(fate.iter().any(|words| said.contains(words)), "none of {fate:?}: {said}");
    if let Some(thing) = thing(case, outcome) {
        assert!(thing.iter().any(|words| said.contains(words)), "none of {thing:?}: {said}");
    }
}

fn one_way(case: Case) -> &'static [i32] {
    use Act::{Cut, Delay, ExitLate};
    match (case.fault, case.step) {
        (Fault::Net(Delay) | Fault::SourceStateUnwritable | Fault::StateLost, _) => &[0],
        (Fault::Net(ExitLate), _) => &[4],
        (Fault::Kill(Party::Tunnel) | Fault::Net(Cut), Point::End) => &[4],
        _ => &[0, 4],
    }
}

/// What the one line must name.
fn thing(case: Case, outcome: Ending) -> Option<&'static [&'static str]> {
    if outcome != Ending::Stays || !matches!(case.form, Form::Both | Form::File) {
        return None;
    }
    Some(match case.fault {
        Fault::Kill(Party::Tunnel) => &["tunnel command", "SIGKILL"],
        Fault::Net(Act::Cut | Act::Partition) => &["ended with status 1"],
        Fault::StateUnwritable => &["state/vmrun"],
        Fault::LittleMemory => &["memory"],
        Fault::DiskFull => &["No space left"],
        Fault::NameTaken => &["a.mig"],
        Fault::Freeze(Party::Source) => &["does not answer"],
        _ => return None,
    })
}

/// That no program at the destination lied: 0, the guest runs (ran) here; 1, it has not run and
/// never will.
pub fn receptions(bed: &TestBed, paused: bool) {
    let ran = !bed.b.ticks().is_empty();
    let killed = bed.case.fault == Fault::Kill(Party::Recv);
    // A vmrun that is killed takes its guest's last words with it.
    let silent = paused || bed.case.fault == Fault::Kill(Party::Destination);
    for (number, (status, said)) in bed.receptions().into_iter().enumerate() {
        let lines = said.lines().filter(|line| !line.trim().is_empty()).count();
        // One that answers a query may not even have read it.
        if number > 0 {
            continue;
        }
        match status {
            0 => assert!(ran || silent, "mig-recv says that the guest runs: {said}"),
            1 => assert!(!ran, "mig-recv says that the guest never runs here: {said}"),
            4 => {}
            137 if killed => continue,
            other => panic!("mig-recv ended with {other}: {said}"),
        }
        if status != 0 {
            assert_eq!(lines, 1, "mig-recv does not say one line: {said}");
            assert!(said.starts_with("mig-recv: "), "{said}");
        }
    }
}

/// That every tick is there once, in one order, and none is missing. A vmrun that is killed may
/// take the last lines of its console with it.
pub fn story(bed: &TestBed) {
    let case = bed.case;
    let killed = matches!(case.fault, Fault::Kill(Party::Source | Party::Destination))
        || case.fault == Fault::NoMoreMemory
        || case.fault == Fault::Say(Order::QuitForce);
    let ticks: Vec<_> = [&bed.a.console, &bed.b, &bed.c].iter().flat_map(|it| it.ticks()).collect();
    let numbers: BTreeSet<_> = ticks.iter().map(|tick| tick.number).collect();
    assert_eq!(numbers.len(), ticks.len(), "a tick is there twice: the guest ran twice");
    for pair in ticks.windows(2) {
        assert!(pair[1].number > pair[0].number, "the guest went back: {pair:?}");
        assert!(killed || pair[1].number == pair[0].number + 1, "a tick is lost: {pair:?}");
        assert!(pair[1].writes >= pair[0].writes, "writes went back: {pair:?}");
    }
}

/// That nothing is there but what the outcome leaves, once the destination had its time.
pub fn leftovers(bed: &mut TestBed, end: Ending) {
    let here = bed.a.lives().then(|| bed.a.pid());
    let stays_here = matches!(end, Ending::Stays | Ending::Cancelled) || end.is_open();
    assert_eq!(here.is_some(), stays_here, "the source's vmrun, at the end: {end:?}");
    wait("the source's other processes to go", || {
        bed.source.processes().iter().all(|(pid, _)| Some(*pid) == here || !lives(*pid))
    });
    let vmruns = usize::from(matches!(end, Ending::Moved | Ending::Elsewhere));
    let mut left = Vec::new();
    wait("the destination's other processes to go", || {
        left = bed.destination.processes();
        left.retain(|(pid, _)| lives(*pid));
        left.len() == vmruns && left.iter().all(|(_, comm)| comm == "vmrun")
    });
    // What a killed vmrun leaves is taken by the next one.
    let killed = |party| bed.case.fault == Fault::Kill(party);
    let dies = bed.case.fault == Fault::NoMoreMemory;
    if !killed(Party::Source) {
        // One that ends removes its own last of all.
        let expected = usize::from(stays_here);
        wait("the right sockets here", || bed.source.sockets().len() == expected);
    }
    if !killed(Party::Destination) && !dies {
        // When its mig-recv is killed, the kernel ends a vmrun that is stopped by SIGHUP, and one
        // that was still starting leaves its socket to the next.
        let may_leave_one = matches!(bed.case.fault, Fault::Freeze(_));
        wait("the right sockets there", || {
            let mut sockets = bed.destination.sockets();
            sockets.retain(|path| !may_leave_one || UnixStream::connect(path).is_ok());
            sockets.len() == vmruns
        });
        // One that runs may be writing one now, and one that was killed may have been.
        let may_leave_one = matches!(bed.case.fault, Fault::Kill(_));
        wait("the drafts of records to be gone", || {
            let left = files(&bed.destination.path("state/vmrun/migrations"));
            let mut drafts = left.iter().filter(|path| is_draft(path));
            drafts.all(|path| may_leave_one && !draft_writer(path).is_some_and(lives))
        });
    }
    if let Some(pid) = here
        && !end.is_open()
    {
        // The teardown is behind the guest's back, and not behind ours.
        wait("the dirty log to be given back", || bitmaps(pid) == 0);
    }
}

fn is_draft(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'))
}

/// The process that writes the record of which `path` is the draft.
fn draft_writer(path: &Path) -> Option<i32> {
    let name = path.file_name()?.to_string_lossy();
    name.rsplit('.').next()?.parse().ok()
}

fn bitmaps(pid: i32) -> usize {
    files(Path::new(&format!("/proc/{pid}/fd")))
        .into_iter()
        .filter_map(|fd| fs::read_link(fd).ok())
        .filter(|target| target.to_string_lossy().contains("dirty-bitmap"))
        .count()
}

/// The outcomes that are right when mig-send has ended by itself: it has asked, if it could.
pub fn expected(case: Case) -> BTreeSet<Ending> {
    let table = expect::outcomes(case.form, case.step, case.fault);
    let asks = case.after == After::Mended;
    let mut expected: BTreeSet<_> =
        table.iter().map(|&outcome| if asks { outcome.resolved() } else { outcome }).collect();
    if case.after == After::AskedLate {
        // The destination may have given up by now.
        expected.insert(Ending::Refused);
    }
    expected
}
