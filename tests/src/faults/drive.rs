//! One case, from the guest's boot to the last look.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use super::case::{After, Case, Fault, Form, Order};
use super::check;
use super::expect::Ending;
use super::inject::{Miss, inject, may_miss};
use super::seed::Seed;
use super::test_bed::{self, TestBed};
use crate::console::wait;
use crate::{Guest, Host};

/// How a case went.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// Which case.
    pub case: Case,
    /// How things stood when mig-send had ended, or why that was wrong.
    pub outcome: Result<Ending, String>,
    /// Whether the fault really happened; if not, what had become of what it was for.
    pub hit: Result<(), Miss>,
    /// How long it took.
    pub took: Duration,
}

/// How often a fault is tried that did not happen, for what it was for had gone.
const TRIES: usize = 5;

/// What is said of a case in which nothing was tried.
const NEVER_REACHED: &str = "the step was never reached";

/// Runs one case. What varies comes from `seed`. Where timeouts are short a machine that stands
/// still for a moment may not come to the step: then there was no fault, and it is begun once more.
pub fn run(case: Case, seed: u64) -> Verdict {
    let started = Instant::now();
    let mut hit = Ok(());
    let mut once = || {
        hit = Ok(());
        let mut seed = Seed::new(seed);
        let outcome = catch_unwind(AssertUnwindSafe(|| go(case, &mut seed, &mut hit)));
        (outcome.map_err(|panic| words(panic.as_ref())), hit)
    };
    let (mut outcome, mut is_hit) = match once() {
        (Err(why), _) if why.starts_with(NEVER_REACHED) => once(),
        first => first,
    };
    // One that can never happen is not tried again.
    let tries = if case.fault == Fault::SourceStateUnwritable { 1 } else { TRIES };
    for _ in 1..tries {
        if outcome.is_err() || is_hit.is_ok() {
            break;
        }
        (outcome, is_hit) = once();
    }
    Verdict { case, outcome, hit: is_hit, took: started.elapsed() }
}

impl Verdict {
    /// What is wrong: how it ended, or that nothing was tried although something can be.
    pub fn failure(&self) -> Option<String> {
        match (&self.outcome, self.hit) {
            (Err(why), _) => Some(why.clone()),
            (Ok(_), Err(miss)) if may_miss(self.case).is_none() => {
                Some(format!("the fault did not happen: {miss}"))
            }
            _ => None,
        }
    }
}

fn go(case: Case, seed: &mut Seed, hit: &mut Result<(), Miss>) -> Ending {
    if case.form == Form::File {
        return save(case);
    }
    let mut bed = TestBed::new(case, seed);
    let outcome = catch_unwind(AssertUnwindSafe(|| play(&mut bed, hit)));
    outcome.unwrap_or_else(|panic| {
        let why = words(panic.as_ref());
        let there = bed.receptions();
        panic!("{why}\n  mig-recv, as far as they ended: {there:?}\n  {}", bed.log())
    })
}

fn words(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()))
        .unwrap_or_else(|| "it panicked".to_owned())
}

fn play(bed: &mut TestBed, hit: &mut Result<(), Miss>) -> Ending {
    let case = bed.case;
    if case.form == Form::Resolve {
        bed.ask();
    }
    let mut stopped = None;
    wait("the step", || {
        // What the tunnel says it said before mig-send can end.
        let ended = bed.sender.has_ended();
        stopped = bed.gate.wait(Duration::from_millis(20));
        stopped.is_some() || ended
    });
    let stopped = stopped.unwrap_or_else(|| {
        let (status, said) = bed.sender.end();
        panic!("{NEVER_REACHED}; mig-send ended with {status:?}: {said}")
    });
    *hit = inject(bed, stopped);

    let (status, said) = bed.sender.end();
    let expected = check::expected(case);
    let outcome = check::outcome(bed, status, &expected);
    assert!(expected.contains(&outcome), "{outcome:?} and not one of {expected:?}: {said}");
    check::sender(case, outcome, status, &said);
    if outcome.is_open() {
        bed.a.assert_stands_still();
    }
    let end = resolve(bed, outcome);
    rest(bed, end);
    outcome
}

/// The operator finds out what became of a guest that was handed over. Returns how it ends.
fn resolve(bed: &mut TestBed, outcome: Ending) -> Ending {
    if !outcome.is_open() {
        return outcome;
    }
    let mut outcome = outcome;
    bed.restore();
    if bed.case.after == After::AskedLate && outcome == Ending::Prepared {
        wait("the destination to give up", || bed.destination.state("b").is_none());
        outcome = Ending::Refused;
        bed.a.assert_stands_still();
    }
    let (status, said) = bed.resolve(&[]);
    let right = match outcome {
        Ending::Prepared | Ending::Running => 0,
        Ending::Refused => 1,
        _ => 4,
    };
    assert_eq!(status, Some(right), "mig-send --resolve, {outcome:?}: {said}");
    if outcome != Ending::Doubtful {
        return outcome.resolved();
    }
    assert!(said.contains("may have run"), "mig-send --resolve: {said}");
    bed.a.assert_stands_still();
    if !bed.b.ticks().is_empty() {
        // It did run. Whoever forces now has two.
        return outcome;
    }
    let (status, said) = bed.resolve(&["--force"]);
    assert_eq!(status, Some(1), "mig-send --resolve --force: {said}");
    Ending::Stays
}

/// The guest runs where it should, and nowhere else, and nothing is left over.
fn rest(bed: &mut TestBed, end: Ending) {
    let paused = bed.case.fault == Fault::Say(Order::Pause);
    match end {
        Ending::Stays | Ending::Cancelled => {
            if paused {
                bed.source.run("vmctl", &["resume", "a"]).expect(0);
            }
            bed.a.assert_runs();
        }
        Ending::Moved => {
            if paused {
                bed.destination.run("vmctl", &["resume", "b"]).expect(0);
            }
            bed.a.ended();
            bed.b.wait_ticks(3);
        }
        Ending::Elsewhere => {
            bed.a.ended();
            bed.c.wait_ticks(3);
        }
        Ending::EndedHere => drop(bed.a.ended()),
        Ending::EndedThere => {
            // The source ends when it is told, or when it asks.
            if bed.a.lives() {
                let (status, said) = bed.resolve(&[]);
                // It may have been about to end.
                let told = status == Some(0) || !bed.a.lives();
                assert!(told, "mig-send --resolve, {status:?}: {said}");
            }
            bed.a.ended();
        }
        _ => bed.a.assert_stands_still(),
    }
    check::leftovers(bed, end);
    check::receptions(bed, paused);
    check::story(bed);
    // Dropped with the bed otherwise: here it has its say.
    let idle = super::watch::Watch::new(&bed.a.console, &bed.b);
    std::mem::replace(&mut bed.watch, idle).assert_never_two();
}

/// A guest that is saved to a file has no tunnel that could stop; the faults last instead.
fn save(case: Case) -> Ending {
    let source = Host::new();
    let disk = source.path("disk");
    std::fs::create_dir(&disk).expect("a directory");
    let _mount = (case.fault == Fault::DiskFull)
        .then(|| test_bed::small_disk(&disk).expect("needs the right to mount a tmpfs"));
    let kernel = "builtin:dirty,pages=64,rate=500,fill=random,fill-mb=8,tick-ms=10";
    let mut a = Guest::boot(&source, "a", kernel, &["--mem", "64M"]);
    let file = test_bed::file(&source);
    let mut command = source.command("mig-send");
    command.args(["-q", "--max-bandwidth", "60M", "a", &file]);
    let mut sender = test_bed::start(&source, &mut command);
    if case.fault == Fault::NameTaken {
        wait("the file to be begun", || disk.join("a.mig.part").exists());
        std::fs::create_dir(disk.join("a.mig")).expect("a directory");
    }
    let (status, said) = sender.end();
    assert_eq!(status, Some(1), "mig-send: {said}");
    a.assert_runs();
    check::sender(case, Ending::Stays, status, &said);
    assert!(!disk.join("a.mig.part").exists(), "the half file is left over");
    crate::assert_one_story(&[&a.console]);
    Ending::Stays
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::wire::{Act, Point};
    use super::*;

    #[test]
    fn every_step_and_every_fault_has_a_case() {
        let all = Case::all();
        let faults: BTreeSet<_> = all.iter().map(|case| case.fault).collect();
        assert_eq!(faults.len(), Fault::all().len());
        for form in Form::ALL {
            for step in form.steps() {
                assert!(all.iter().any(|case| (case.form, case.step) == (form, *step)));
            }
        }
        let names: BTreeSet<_> = all.iter().map(Case::to_string).collect();
        assert_eq!(names.len(), all.len());
        println!("{} cases", all.len());
    }

    #[test]
    fn a_case_is_found_by_its_name() {
        let case = Case {
            form: Form::Both,
            step: Point::Go,
            fault: Fault::Net(Act::Cut),
            after: After::AskedLate,
        };
        assert_eq!(Case::named("both/go/cut/asked-late"), Some(case));
        assert_eq!(Case::named("both/go/cut"), None);
    }
}
