//! Every seed, and every input that once found a mistake, through its target: without a fuzzer, with
//! any compiler. Each is also tried cut short and with single bytes changed.

use std::fs;
use std::path::{Path, PathBuf};

use fuzz_targets::TARGETS;

/// Changed copies of each input. The fuzzer tries millions; these keep the targets honest between.
const CHANGED: usize = 40;

fn inputs(kind: &str, target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz").join(kind).join(target);
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut inputs: Vec<_> = entries
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect();
    inputs.sort();
    inputs
}

/// A row of numbers that is the same every time (Knuth's MMIX generator).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end.max(1)
    }
}

/// One test, since the targets measure the memory of the whole process.
#[test]
fn every_seed_and_every_input_that_found_a_mistake_does_no_harm() {
    let mut numbers = Numbers(1);
    for target in TARGETS {
        let seeds = inputs("corpus", target.name);
        assert!(!seeds.is_empty(), "target {} has no seeds", target.name);
        let found = inputs("regressions", target.name);
        println!("{}: {} seeds, {} found by fuzzing", target.name, seeds.len(), found.len());
        for (path, bytes) in seeds.iter().chain(&found) {
            println!("  {}", path.display());
            (target.run)(bytes);
            for _ in 0..CHANGED {
                let mut changed = bytes.clone();
                changed.truncate(changed.len() - numbers.below(2) * numbers.below(changed.len()));
                if let Some(at) = changed.len().checked_sub(1).map(|last| numbers.below(last + 1)) {
                    changed[at] = numbers.below(256) as u8;
                }
                (target.run)(&changed);
            }
        }
    }
}
