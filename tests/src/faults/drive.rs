//! One case, from the guest's boot to the last look.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use super::case::{After, Case, Fault, Form, Order};
use super::check;
use super::expect::Outcome;
use super::inject::{Miss, inject, may_miss};
use super::scene::{self, Scene};
use super::seed::Seed;
use crate::console::wait;
use crate::{Guest, Host};

/// How a case went.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// Which case.
    pub case: Case,
    /// How things stood when mig-send had ended, or why that was wrong.
    pub outcome: Result<Outcome, String>,
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

fn go(case: Case, seed: &mut Seed, hit: &mut Result<(), Miss>) -> Outcome {
    if case.form == Form::File {
        return save(case);
    }
    let mut scene = Scene::new(case, seed);
    let outcome = catch_unwind(AssertUnwindSafe(|| play(&mut scene, hit)));
    outcome.unwrap_or_else(|panic| {
        let why = words(panic.as_ref());
        let there = scene.receptions();
        panic!("{why}\n  mig-recv, as far as they ended: {there:?}\n  {}", scene.log())
    })
}

fn words(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()))
        .unwrap_or_else(|| "it panicked".to_owned())
}

fn play(scene: &mut Scene, hit: &mut Result<(), Miss>) -> Outcome {
    let case = scene.case;
    if case.form == Form::Resolve {
        scene.ask();
    }
    let mut stopped = None;
    wait("the step", || {
        // What the tunnel says it said before mig-send can end.
        let ended = scene.sender.has_ended();
        stopped = scene.gate.wait(Duration::from_millis(20));
        stopped.is_some() || ended
    });
    let stopped = stopped.unwrap_or_else(|| {
        let (status, said) = scene.sender.end();
        panic!("{NEVER_REACHED}; mig-send ended with {status:?}: {said}")
    });
    *hit = inject(scene, stopped);

    let (status, said) = scene.sender.end();
    let expected = check::expected(case);
    let outcome = check::outcome(scene, status, &expected);
    assert!(expected.contains(&outcome), "{outcome:?} and not one of {expected:?}: {said}");
    check::sender(case, outcome, status, &said);
    if outcome.is_open() {
        scene.a.assert_stands_still();
    }
    let end = resolve(scene, outcome);
    rest(scene, end);
    outcome
}

/// The operator finds out what became of a guest that was handed over. Returns how it ends.
fn resolve(scene: &mut Scene, outcome: Outcome) -> Outcome {
    if !outcome.is_open() {
        return outcome;
    }
    let mut outcome = outcome;
    scene.restore();
    if scene.case.after == After::AskedLate && outcome == Outcome::Prepared {
        wait("the destination to give up", || scene.destination.state("b").is_none());
        outcome = Outcome::Refused;
        scene.a.assert_stands_still();
    }
    let (status, said) = scene.resolve(&[]);
    let right = match outcome {
        Outcome::Prepared | Outcome::Running => 0,
        Outcome::Refused => 1,
        _ => 4,
    };
    assert_eq!(status, Some(right), "mig-send --resolve, {outcome:?}: {said}");
    if outcome != Outcome::Doubtful {
        return outcome.resolved();
    }
    assert!(said.contains("may have run"), "mig-send --resolve: {said}");
    scene.a.assert_stands_still();
    if !scene.b.ticks().is_empty() {
        // It did run. Whoever forces now has two.
        return outcome;
    }
    let (status, said) = scene.resolve(&["--force"]);
    assert_eq!(status, Some(1), "mig-send --resolve --force: {said}");
    Outcome::Stays
}

/// The guest runs where it should, and nowhere else, and nothing is left over.
fn rest(scene: &mut Scene, end: Outcome) {
    let paused = scene.case.fault == Fault::Say(Order::Pause);
    match end {
        Outcome::Stays | Outcome::Cancelled => {
            if paused {
                scene.source.run("vmctl", &["resume", "a"]).expect(0);
            }
            scene.a.assert_runs();
        }
        Outcome::Moved => {
            if paused {
                scene.destination.run("vmctl", &["resume", "b"]).expect(0);
            }
            scene.a.ended();
            scene.b.wait_ticks(3);
        }
        Outcome::Elsewhere => {
            scene.a.ended();
            scene.c.wait_ticks(3);
        }
        Outcome::EndedHere => drop(scene.a.ended()),
        Outcome::EndedThere => {
            // The source ends when it is told, or when it asks.
            if scene.a.lives() {
                let (status, said) = scene.resolve(&[]);
                // It may have been about to end.
                let told = status == Some(0) || !scene.a.lives();
                assert!(told, "mig-send --resolve, {status:?}: {said}");
            }
            scene.a.ended();
        }
        _ => scene.a.assert_stands_still(),
    }
    check::leftovers(scene, end);
    check::receptions(scene, paused);
    check::story(scene);
    // Dropped with the scene otherwise: here it has its say.
    let idle = super::watch::Watch::new(&scene.a.console, &scene.b);
    std::mem::replace(&mut scene.watch, idle).assert_never_two();
}

/// A guest that is saved to a file has no tunnel that could stop; the faults last instead.
fn save(case: Case) -> Outcome {
    let source = Host::new();
    let disk = source.path("disk");
    std::fs::create_dir(&disk).expect("a directory");
    let _mount = (case.fault == Fault::DiskFull)
        .then(|| scene::small_disk(&disk).expect("needs the right to mount a tmpfs"));
    let kernel = "builtin:dirty,pages=64,rate=500,fill=random,fill-mb=8,tick-ms=10";
    let mut a = Guest::boot(&source, "a", kernel, &["--mem", "64M"]);
    let file = scene::file(&source);
    let mut command = source.command("mig-send");
    command.args(["-q", "--max-bandwidth", "60M", "a", &file]);
    let mut sender = scene::start(&source, &mut command);
    if case.fault == Fault::NameTaken {
        wait("the file to be begun", || disk.join("a.mig.part").exists());
        std::fs::create_dir(disk.join("a.mig")).expect("a directory");
    }
    let (status, said) = sender.end();
    assert_eq!(status, Some(1), "mig-send: {said}");
    a.assert_runs();
    check::sender(case, Outcome::Stays, status, &said);
    assert!(!disk.join("a.mig.part").exists(), "the half file is left over");
    crate::assert_one_story(&[&a.console]);
    Outcome::Stays
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
