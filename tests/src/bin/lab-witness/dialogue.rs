//! Question and answer over one connection, such as an ssh session, that lives as long as the guest
//! is watched: it must not break, lose a line or repeat one. The answers carry the guest's clocks.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::clock::{monotonic_ns, realtime_ns};

/// Between two questions.
const PAUSE: Duration = Duration::from_millis(20);

/// Answers each line with itself and both clocks.
pub fn answer() -> Result<(), String> {
    let respond = || -> io::Result<()> {
        for line in io::stdin().lines() {
            println!("{} {} {}", line?, monotonic_ns(), realtime_ns());
        }
        Ok(())
    };
    respond().map_err(|error| format!("the connection broke: {error}"))
}

/// How far apart two clocks are, by exchanges that each bound it: the other clock was read between
/// the question and the answer.
#[derive(Default)]
struct Offset {
    bounds: Option<(i128, i128)>,
}

impl Offset {
    fn exchange(&mut self, asked_ns: u64, told_ns: u64, answered_ns: u64) {
        let low = i128::from(told_ns) - i128::from(answered_ns);
        let high = i128::from(told_ns) - i128::from(asked_ns);
        let (lowest, highest) = self.bounds.unwrap_or((low, high));
        self.bounds = Some((lowest.max(low), highest.min(high)));
    }

    /// How much the two clocks must have strayed from each other.
    fn strayed(&self) -> Duration {
        let strayed = self.bounds.map_or(0, |(low, high)| (low - high).max(0));
        Duration::from_nanos(u64::try_from(strayed).unwrap_or(u64::MAX))
    }
}

/// Starts `command`, asks until `stop` exists, and says what came of it. Each line of `log` has
/// the question's number, this host's CLOCK_REALTIME when it was asked, the nanoseconds until it
/// was answered, and the guest's CLOCK_MONOTONIC and CLOCK_REALTIME.
pub fn ask(command: &[String], stop: &Path, log: &Path, tolerance: Duration) -> Result<(), String> {
    let system = |error: io::Error| error.to_string();
    let mut log = BufWriter::new(File::create(log).map_err(system)?);
    let mut child = Command::new(&command[0])
        .args(&command[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("cannot start {}: {error}", command[0]))?;
    let mut questions = child.stdin.take().expect("a pipe");
    let mut answers = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let (mut offset, mut longest, mut number) = (Offset::default(), Duration::ZERO, 0_u64);
    while !stop.exists() {
        let (asked_real, asked) = (realtime_ns(), monotonic_ns());
        writeln!(questions, "{number}").map_err(|error| broke(number, &error.to_string()))?;
        let answer = match answers.next() {
            Some(Ok(answer)) => answer,
            Some(Err(error)) => return Err(broke(number, &error.to_string())),
            None => return Err(broke(number, "it was closed")),
        };
        let answered = monotonic_ns();
        let words: Vec<u64> = answer.split(' ').filter_map(|word| word.parse().ok()).collect();
        let &[told, guest_monotonic, guest_real] = &words[..] else {
            return Err(format!("'{answer}' is no answer"));
        };
        if told != number {
            return Err(format!("question {number} got the answer to {told}"));
        }
        offset.exchange(asked, guest_monotonic, answered);
        let took = answered - asked;
        longest = longest.max(Duration::from_nanos(took));
        writeln!(log, "{number} {asked_real} {took} {guest_monotonic} {guest_real}")
            .and_then(|()| log.flush())
            .map_err(system)?;
        number += 1;
        std::thread::sleep(PAUSE);
    }
    drop(questions);
    let status = child.wait().map_err(system)?;
    if !status.success() {
        return Err(broke(number, &status.to_string()));
    }
    let strayed = offset.strayed();
    println!(
        "{number} questions answered in order over one connection, the longest in {} ms; the \
         guest's monotonic clock strayed by {} ms",
        longest.as_millis(),
        strayed.as_millis()
    );
    if strayed > tolerance {
        return Err(format!("that is more than {} ms", tolerance.as_millis()));
    }
    Ok(())
}

fn broke(number: u64, how: &str) -> String {
    format!("the connection broke at question {number}: {how}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_that_agree_have_not_strayed_however_long_an_answer_takes() {
        let mut offset = Offset::default();
        offset.exchange(100, 1105, 110);
        offset.exchange(200, 1900, 900);
        offset.exchange(1000, 2009, 1010);
        assert_eq!(offset.strayed(), Duration::ZERO);
    }

    #[test]
    fn a_jump_of_the_guests_clock_shows_whether_forwards_or_back() {
        for told in [1305, 905] {
            let mut offset = Offset::default();
            offset.exchange(100, 1100, 110);
            offset.exchange(200, told, 210);
            assert!(offset.strayed() > Duration::from_nanos(80), "{told}");
        }
    }
}
