//! The processes that take part, found by the host that they belong to.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::case::Party;
use super::test_bed::TestBed;
use super::wire::Point;
use crate::console::wait;
use crate::host::Host;

/// How long a process may take to be there. One that is not by then has been and gone: a
/// destination that had its time, say, on a machine with much other work.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// The process of `party`, if it has not done its part already; `tunnel` is the one that stopped.
pub fn find(bed: &TestBed, party: Party, tunnel: i32) -> Option<i32> {
    let (host, name) = match party {
        Party::Send => return Some(bed.sender.pid()),
        Party::Source => return Some(bed.a.pid()),
        Party::Tunnel => return Some(tunnel),
        Party::Recv => (&bed.destination, "mig-recv"),
        Party::Destination => (&bed.destination, "vmrun"),
        Party::SendBroker => (&bed.source, "mig-broker"),
        Party::RecvBroker => (&bed.destination, "mig-broker"),
    };
    if matches!(party, Party::Recv | Party::SendBroker) && bed.case.step == Point::AfterGo {
        // It may be done and gone.
        return now(host, name);
    }
    let mut found = None;
    within(START_TIMEOUT, || {
        found = now(host, name);
        found.is_some()
    });
    found
}

/// The process of this name, if it is there now.
fn now(host: &Host, name: &str) -> Option<i32> {
    host.processes().iter().find(|(_, comm)| comm == name).map(|(pid, _)| *pid)
}

/// Sends a signal; to a process that is gone already it means nothing.
pub fn signal(pid: i32, signal: Signal) {
    let _ = kill(Pid::from_raw(pid), signal);
}

/// Kills it, and waits until it is dead. Whether it lived until then.
pub fn kill_9(pid: i32) -> bool {
    let lived = lives(pid);
    signal(pid, Signal::SIGKILL);
    wait(&format!("the death of {pid}"), || !lives(pid));
    lived
}

/// Whether the process is there and no zombie. One whose first thread is dead lives until the last
/// is: before that, its parent cannot know.
pub fn lives(pid: i32) -> bool {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    tasks.flatten().any(|task| {
        let Ok(stat) = fs::read_to_string(task.path().join("stat")) else { return false };
        let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.trim_start().chars().next());
        !matches!(state, Some('Z' | 'X') | None)
    })
}

/// Stops it, and waits until all its threads stand still: the signal takes effect when the first
/// of them has seen it. Whether it is there, and stands still.
pub fn freeze(pid: i32) -> bool {
    signal(pid, Signal::SIGSTOP);
    wait(&format!("{pid} to stand still"), || {
        let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return true };
        tasks.flatten().all(|task| {
            let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            let state =
                stat.rsplit_once(')').and_then(|(_, rest)| rest.trim_start().chars().next());
            matches!(state, Some('T' | 't' | 'Z' | 'X') | None)
        })
    });
    lives(pid)
}

/// Waits for `done`, and says whether it came within `time`.
pub fn within(time: Duration, mut done: impl FnMut() -> bool) -> bool {
    let started = Instant::now();
    loop {
        if done() {
            return true;
        }
        if started.elapsed() > time {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
