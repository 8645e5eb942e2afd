//! The fault matrix on the command line; `scripts/faults` builds everything and starts it.

#![forbid(unsafe_code)]

use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Parser;
use migpipe_tests::faults::{Case, Survey, choose, possible};

/// Runs real migrations with a fault at every step of the protocol, and prints what came of them.
#[derive(Debug, Parser)]
#[command(name = "scripts/faults")]
struct Args {
    /// So many runs; without it every case comes once
    #[arg(long, value_name = "N")]
    runs: Option<usize>,
    /// Gives the order of the cases and what varies within each; without it the time does
    #[arg(long)]
    seed: Option<u64>,
    /// So many at once: they wait most of the time
    #[arg(long, value_name = "N", default_value = "4")]
    jobs: NonZeroUsize,
    /// Print the names of all cases: form/step/fault/what comes after
    #[arg(long)]
    list: bool,
    /// Only the cases whose names begin so
    #[arg(value_name = "CASE", value_parser = beginning)]
    cases: Vec<String>,
}

fn beginning(text: &str) -> Result<String, String> {
    match Case::all().iter().any(|case| case.to_string().starts_with(text)) {
        true => Ok(text.to_owned()),
        false => Err("no case begins so: --list shows them".to_owned()),
    }
}

/// What is to be run, in order.
fn plan(args: &Args, seed: u64) -> Vec<Case> {
    if args.cases.is_empty() {
        return choose(seed, args.runs.unwrap_or_else(|| Case::all().len()));
    }
    let all = Case::all().into_iter();
    let named: Vec<_> = all
        .filter(|case| args.cases.iter().any(|name| case.to_string().starts_with(name.as_str())))
        .collect();
    let runs = args.runs.unwrap_or(named.len());
    named.into_iter().cycle().take(runs).collect()
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.list {
        Case::all().iter().for_each(|case| println!("{case}"));
        return ExitCode::SUCCESS;
    }
    if !migpipe_tests::kvm_or_skip("faults") {
        return ExitCode::from(1);
    }
    // A case that fails is told below, with its name.
    std::panic::set_hook(Box::new(|_| {}));
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |time| time.as_secs());
    let (seed, jobs) = (args.seed.unwrap_or(clock), args.jobs.get());
    let cases = possible(plan(&args, seed));
    let done = AtomicUsize::new(0);
    let survey = Survey::of(&cases, seed, jobs, |verdict| {
        let number = done.fetch_add(1, Ordering::SeqCst) + 1;
        let took = verdict.took.as_secs_f64();
        match (&verdict.outcome, verdict.failure()) {
            (Ok(outcome), None) => {
                let hit = if verdict.hit.is_ok() { "" } else { ", not hit" };
                println!("{number:>4} {took:>5.1} s  {}: {}{hit}", verdict.case, outcome.word());
            }
            (_, why) => {
                let why = why.unwrap_or_default();
                println!("{number:>4} {took:>5.1} s  {}: FAILED: {why}", verdict.case);
            }
        }
    });
    let failures = survey.failures();
    print!("\n{}{}", survey.table(), survey.hit_lines());
    println!(
        "{} runs, {} of {} cases, {} failed, {:.0} s, {} at once; seed {}",
        survey.verdicts.len(),
        cases.iter().collect::<std::collections::BTreeSet<_>>().len(),
        Case::all().len(),
        failures.len(),
        survey.took.as_secs_f64(),
        jobs,
        seed
    );
    for failure in &failures {
        println!("failed: scripts/faults --seed {seed} {}", failure.case);
    }
    ExitCode::from(u8::from(!failures.is_empty()))
}
