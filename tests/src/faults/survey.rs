//! Many cases, several at once, and the table of what came of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::case::{Case, Fault, Form, Step};
use super::drive::{Verdict, run};
use super::expect::Ending;
use super::inject::may_miss;
use super::seed::Seed;
use super::test_bed::try_mount;

/// Cases in an order that `seed` gives: every case comes once before any comes again.
pub fn choose(seed: u64, count: usize) -> Vec<Case> {
    let mut seed = Seed::new(seed);
    let mut chosen = Vec::with_capacity(count);
    while chosen.len() < count {
        let mut all = Case::all();
        seed.shuffle(&mut all);
        all.truncate(count - chosen.len());
        chosen.extend(all);
    }
    chosen
}

/// As few cases as `seed` finds that have every fault, and every step of every form, at least once.
pub fn cover(seed: u64) -> Vec<Case> {
    let mut all = Case::all();
    Seed::new(seed).shuffle(&mut all);
    let mut missing: BTreeSet<Part> = all.iter().flat_map(parts).collect();
    let mut chosen = Vec::new();
    while !missing.is_empty() {
        let best = all
            .iter()
            .max_by_key(|case| parts(case).iter().filter(|part| missing.contains(*part)).count())
            .copied()
            .expect("there are cases");
        for part in parts(&best) {
            missing.remove(&part);
        }
        chosen.push(best);
    }
    chosen
}

/// Takes out what cannot be done on this machine, and says so.
pub fn possible(mut cases: Vec<Case>) -> Vec<Case> {
    let needs_mount = |case: &Case| case.fault == Fault::DiskFull;
    if cases.iter().any(needs_mount)
        && let Err(error) = try_mount()
    {
        println!("SKIPPED the full disk: no tmpfs can be mounted ({error})");
        cases.retain(|case| !needs_mount(case));
    }
    cases
}

/// What a case is there to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Fault(Fault),
    Step(Form, Step),
}

fn parts(case: &Case) -> [Part; 2] {
    [Part::Fault(case.fault), Part::Step(case.form, case.step)]
}

/// What came of many cases.
#[derive(Debug)]
pub struct Survey {
    /// One for each.
    pub verdicts: Vec<Verdict>,
    /// How long all of them took.
    pub took: Duration,
}

impl Survey {
    /// Runs `cases`, so many at once; `seen` hears of each when it is done.
    pub fn of(cases: &[Case], seed: u64, at_once: usize, seen: impl Fn(&Verdict) + Sync) -> Self {
        let started = Instant::now();
        let next = AtomicUsize::new(0);
        let verdicts = Mutex::new(Vec::new());
        thread::scope(|scope| {
            for _ in 0..at_once {
                scope.spawn(|| {
                    while let Some(case) = cases.get(next.fetch_add(1, Ordering::SeqCst)) {
                        let verdict = run(*case, seed);
                        seen(&verdict);
                        verdicts.lock().expect("no panic with it").push(verdict);
                    }
                });
            }
        });
        let verdicts = verdicts.into_inner().expect("no panic with it");
        Self { verdicts, took: started.elapsed() }
    }

    /// Those that went wrong.
    pub fn failures(&self) -> Vec<&Verdict> {
        self.verdicts.iter().filter(|verdict| verdict.failure().is_some()).collect()
    }

    /// How many faults really happened, and those that did not.
    pub fn hits(&self) -> (usize, Vec<&Verdict>) {
        let missed: Vec<_> = self.verdicts.iter().filter(|verdict| verdict.hit.is_err()).collect();
        (self.verdicts.len() - missed.len(), missed)
    }

    /// The hits in a line, and a line for each fault that did not happen, with the reason why it may.
    pub fn hit_lines(&self) -> String {
        let (hits, missed) = self.hits();
        let mut text = format!("{hits} of {} faults hit\n", self.verdicts.len());
        for Verdict { case, hit, .. } in missed {
            let miss = hit.err().unwrap_or_default();
            let reason = may_miss(*case).unwrap_or("this may not be");
            let _ = writeln!(text, "not hit: {case}: {miss} ({reason})");
        }
        text
    }

    /// The table: a part for each form, a line for each fault, a column for each step; how things
    /// stood when mig-send had ended. Of those that went wrong it says how many.
    pub fn table(&self) -> String {
        let mut text = String::new();
        for form in Form::ALL {
            let mut cells: BTreeMap<(Fault, usize), BTreeMap<Option<Ending>, u32>> =
                BTreeMap::new();
            for verdict in self.verdicts.iter().filter(|verdict| verdict.case.form == form) {
                let step = form.steps().iter().position(|step| *step == verdict.case.step);
                let cell = cells.entry((verdict.case.fault, step.unwrap_or(0))).or_default();
                *cell.entry(verdict.outcome.as_ref().ok().copied()).or_default() += 1;
            }
            if !cells.is_empty() {
                part(&mut text, form, &cells);
            }
        }
        text
    }
}

type Cells = BTreeMap<(Fault, usize), BTreeMap<Option<Ending>, u32>>;

fn part(text: &mut String, form: Form, cells: &Cells) {
    let steps = form.steps();
    let shown: BTreeMap<_, _> =
        cells.iter().map(|(place, counts)| (*place, cell(counts))).collect();
    let width = |step: usize| {
        let name = steps[step].to_string().len();
        let cells = shown.iter().filter(|((_, at), _)| *at == step);
        cells.map(|(_, text)| text.len()).max().unwrap_or(0).max(name)
    };
    let widths: Vec<_> = (0..steps.len()).map(width).collect();
    let faults: BTreeSet<_> = cells.keys().map(|(fault, _)| *fault).collect();
    let first = faults.iter().map(|fault| fault.to_string().len()).max().unwrap_or(0);
    let first = first.max(form.to_string().len());
    let _ = write!(text, "{form:first$}");
    for (step, width) in steps.iter().zip(&widths) {
        let _ = write!(text, "  {step:width$}");
    }
    trim(text);
    for fault in faults {
        let _ = write!(text, "{fault:first$}");
        for (step, width) in widths.iter().enumerate() {
            let cell = shown.get(&(fault, step)).map_or("", String::as_str);
            let _ = write!(text, "  {cell:width$}");
        }
        trim(text);
    }
    text.push('\n');
}

fn cell(counts: &BTreeMap<Option<Ending>, u32>) -> String {
    let words = counts.iter().map(|(outcome, count)| match outcome {
        Some(outcome) => outcome.word().to_owned(),
        None => format!("FAILED {count}"),
    });
    words.collect::<Vec<_>>().join(", ")
}

fn trim(text: &mut String) {
    text.truncate(text.trim_end_matches(' ').len());
    text.push('\n');
}
