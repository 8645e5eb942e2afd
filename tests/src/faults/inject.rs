//! The fault itself: what is done while the tunnel stands at its step.

use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::case::{After, Case, Fault, Form, Order, Party};
use super::expect::{self, Ending};
use super::gate::Stopped;
use super::party::{self, find, kill_9, lives, signal, within};
use super::test_bed::TestBed;
use super::wire::{Act, Point};
use crate::console::wait;
use crate::program::Done;

/// How long an event may take that ends a freeze; without it the freeze ends as well, and the rest
/// shows what came of it.
const FREEZE: Duration = Duration::from_secs(20);

/// A freeze that is to be noticed, where no event tells: longer than the short timeouts.
const NOTICED: Duration = Duration::from_secs(3);

/// A freeze that need not be noticed.
const UNNOTICED: Duration = Duration::from_secs(1);

/// Why a fault did not happen: what it was for was not there any more.
pub type Miss = &'static str;

const GONE: Miss = "the process had done its part and was gone";
const DISOBEYED: Miss = "the tunnel did not do it";

/// Does it, tells the tunnel how to go on, and waits until the fault is over. Says whether it
/// really happened.
pub fn inject(bed: &mut TestBed, mut stopped: Stopped) -> Result<(), Miss> {
    match bed.case.fault {
        Fault::Kill(party) => {
            let killed = find(bed, party, stopped.pid).is_some_and(kill_9);
            stopped.tell(Act::Pass);
            killed.then_some(()).ok_or(GONE)
        }
        Fault::Freeze(party) => freeze(bed, party, &mut stopped),
        Fault::Net(Act::Partition) => {
            stopped.tell(Act::Partition);
            let parted = stopped.does(Act::Partition);
            let holder = stopped.holder().expect("the tunnel leaves somebody");
            // Until then the far end cannot know; it has its own patience.
            within(FREEZE, || bed.reception_ended());
            kill_9(holder);
            parted.then_some(()).ok_or(DISOBEYED)
        }
        Fault::Net(act) => {
            stopped.tell(act);
            let obeyed = stopped.does(act);
            if act == Act::Stall {
                bed.sender.end();
                // One way nobody else ends it.
                kill_9(stopped.pid);
            }
            obeyed.then_some(()).ok_or(DISOBEYED)
        }
        Fault::Say(order) => give(bed, order, &mut stopped),
        Fault::PowerOff => {
            let there = matches!(bed.case.step, Point::Running | Point::Answer);
            let (console, party) = match there {
                true => (bed.b.clone(), Party::Destination),
                false => (bed.a.console.clone(), Party::Source),
            };
            let pid = find(bed, party, 0).expect("it is waited for");
            console.wait_for("done");
            wait("the guest's vmrun to end", || !lives(pid));
            stopped.tell(Act::Pass);
            Ok(())
        }
        Fault::StateLost => {
            bed.lose_records();
            stopped.tell(Act::Pass);
            Ok(())
        }
        Fault::NoMoreMemory => {
            let pid = find(bed, Party::Destination, 0).expect("it is waited for");
            let limited = limit_memory(pid, "1000000");
            stopped.tell(Act::Pass);
            // There is memory again when mig-send has given up: it can be asked then.
            bed.sender.end();
            if lives(pid) {
                limit_memory(pid, "unlimited");
            }
            limited.then_some(()).ok_or(GONE)
        }
        Fault::SourceStateUnwritable => {
            stopped.tell(Act::Pass);
            Err("the source has nothing to write there")
        }
        // They were there from the beginning, and end the migration with their name in its last
        // words (`check::sender`); or have no tunnel.
        Fault::StateUnwritable | Fault::LittleMemory | Fault::DiskFull | Fault::NameTaken => {
            stopped.tell(Act::Pass);
            Ok(())
        }
    }
}

/// Why a case may miss its fault, where that is no mistake: the party whose part ends at this step
/// may be a moment faster. Each attempt is a race; one that is lost again and again is reported.
pub fn may_miss(case: Case) -> Option<&'static str> {
    use {Order::*, Party::*};
    match (case.fault, case.step) {
        (Fault::SourceStateUnwritable, _) => Some("the source keeps no records"),
        (
            Fault::Kill(Recv | SendBroker | Source | Tunnel)
            | Fault::Freeze(Recv | SendBroker | Source | Tunnel)
            | Fault::Say(Interrupt | Cancel | Pause | Resume | Quit | QuitForce),
            Point::AfterGo | Point::AfterRunning,
        ) => Some("GO has passed, and whoever has done its part ends"),
        _ => None,
    }
}

/// The soft limit alone: the hard one could not be raised again. Whether it is set.
fn limit_memory(pid: i32, bytes: &str) -> bool {
    let done = Command::new("prlimit")
        .args([&format!("--pid={pid}"), &format!("--as={bytes}:")])
        .stderr(Stdio::null())
        .status()
        .expect("prlimit (util-linux)");
    assert!(done.success() || !lives(pid), "prlimit: {done}");
    done.success()
}

fn freeze(bed: &mut TestBed, party: Party, stopped: &mut Stopped) -> Result<(), Miss> {
    let Case { form, step, fault, after } = bed.case;
    let Some(pid) = find(bed, party, stopped.pid) else {
        stopped.tell(Act::Pass);
        return Err(GONE);
    };
    let frozen = party::freeze(pid);
    stopped.tell(Act::Pass);
    let stays = expect::outcomes(form, step, fault).contains(&Ending::Stays);
    match party {
        Party::Send if stays => drop(within(FREEZE, || bed.reception_ended())),
        Party::Send => thread::sleep(UNNOTICED),
        // One way mig-send waits for it, and not for ever.
        Party::Destination if form == Form::OneWay => thread::sleep(NOTICED),
        Party::Destination if !stays && after == After::Mended => thread::sleep(NOTICED),
        Party::Recv
        | Party::Source
        | Party::Destination
        | Party::Tunnel
        | Party::SendBroker
        | Party::RecvBroker => {
            within(FREEZE, || bed.sender.has_ended());
        }
    }
    signal(pid, Signal::SIGCONT);
    frozen.then_some(()).ok_or(GONE)
}

/// An order is given if somebody heard it, whether it is done or refused.
fn heard(done: &Done) -> Result<(), Miss> {
    let nobody = done.status != Some(0) && done.stderr.contains("no guest at");
    (!nobody).then_some(()).ok_or("nobody was there to be told")
}

fn give(bed: &mut TestBed, order: Order, stopped: &mut Stopped) -> Result<(), Miss> {
    let Case { form, step, fault, .. } = bed.case;
    let outcomes = expect::outcomes(form, step, fault);
    let vmctl = |words: &[&str]| bed.source.run("vmctl", words);
    let there = |words: &[&str]| bed.destination.run("vmctl", words);
    let given = match order {
        Order::Interrupt | Order::Cancel => {
            let given = if order == Order::Interrupt {
                let there = lives(bed.sender.pid());
                signal(bed.sender.pid(), Signal::SIGINT);
                there.then_some(()).ok_or(GONE)
            } else {
                let done = vmctl(&["cancel", "a"]);
                // After GO the source may have ended.
                let words = if step == Point::AfterGo { "" } else { "too late" };
                expect_order(&done, outcomes == [Ending::Cancelled], words);
                heard(&done)
            };
            if outcomes == [Ending::Cancelled] || form == Form::Resolve {
                // It must have done so before the step goes on.
                within(FREEZE, || bed.sender.has_ended());
            }
            given
        }
        Order::Pause => heard(&vmctl(&["pause", "a"])),
        Order::Resume => heard(&vmctl(&["resume", "a"])),
        Order::ResumeThere => {
            wait("the destination's vmrun", || bed.destination.state("b").is_some());
            let done = there(&["resume", "b"]);
            // GO may be served, or not yet.
            if step != Point::AfterGo {
                let is_done = matches!(step, Point::Running | Point::Answer);
                expect_order(&done, is_done, "may not run here");
            }
            heard(&done)
        }
        Order::Quit | Order::QuitForce => {
            let done = match order {
                Order::QuitForce => vmctl(&["quit", "--force", "a"]),
                _ => vmctl(&["quit", "a"]),
            };
            let ends = order == Order::QuitForce || outcomes.contains(&Ending::EndedHere);
            if outcomes.len() == 1 && step != Point::AfterGo {
                expect_order(&done, ends, "--force");
            }
            if done.status == Some(0) {
                bed.a.ended();
            }
            heard(&done)
        }
        Order::QuitThere => {
            // Its process is there before its socket.
            wait("the destination's vmrun", || bed.destination.state("b").is_some());
            let pid = find(bed, Party::Destination, 0).expect("it is waited for");
            expect_order(&there(&["quit", "b"]), true, "");
            wait("the destination's vmrun to end", || !lives(pid));
            Ok(())
        }
        Order::SecondSend => {
            let to = bed.elsewhere();
            let done = bed.source.run("mig-send", &["-q", "a", &to]);
            let status = if outcomes == [Ending::Elsewhere] { 0 } else { 1 };
            assert_eq!(done.status, Some(status), "the second mig-send: {done:#?}");
            Ok(())
        }
    };
    stopped.tell(Act::Pass);
    given
}

/// An order is done, or refused with these words.
fn expect_order(done: &Done, is_done: bool, words: &str) {
    match is_done {
        true => assert_eq!(done.status, Some(0), "the order: {done:#?}"),
        false => {
            assert_eq!(done.status, Some(1), "the order: {done:#?}");
            assert!(done.stderr.contains(words), "'{words}' is not in: {}", done.stderr);
        }
    }
}
