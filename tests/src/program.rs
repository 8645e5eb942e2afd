//! Programs that are run to their end, within a time.

use std::io::Read;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use mig_engine::report::Report;

use crate::HANG_TIMEOUT;

/// How a program ended.
#[derive(Clone, Debug)]
pub struct Done {
    /// Its exit status; `None` if a signal ended it.
    pub status: Option<i32>,
    /// What it wrote.
    pub stdout: String,
    /// What it said.
    pub stderr: String,
    /// How long it took.
    pub took: Duration,
}

impl Done {
    /// Panics with everything that is known unless the status is `expected`.
    #[track_caller]
    pub fn expect(self, expected: i32) -> Self {
        assert_eq!(self.status, Some(expected), "{self:#?}");
        self
    }

    /// Panics unless it failed with status 1 and said one line, with `words` in it.
    #[track_caller]
    pub fn refused_with(self, words: &[&str]) -> Self {
        self.refused_as(1, words)
    }

    /// Panics unless it ended with `status` and said one line, with `words` in it.
    #[track_caller]
    pub fn refused_as(self, status: i32, words: &[&str]) -> Self {
        let done = self.expect(status);
        let lines: Vec<_> = done.stderr.lines().filter(|line| !line.trim().is_empty()).collect();
        assert_eq!(lines.len(), 1, "not one line: {:#?}", done.stderr);
        for word in words {
            assert!(lines[0].contains(word), "'{word}' is not in: {}", lines[0]);
        }
        done
    }
}

/// Runs `command` to its end.
pub fn run(command: &mut Command) -> Done {
    let started = Instant::now();
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    finish(child, started)
}

/// Waits for a child with piped output.
pub fn finish(mut child: Child, started: Instant) -> Done {
    fn reader<R: Read + Send + 'static>(from: Option<R>) -> thread::JoinHandle<String> {
        thread::spawn(move || {
            let mut bytes = Vec::new();
            if let Some(mut from) = from {
                let _ = from.read_to_end(&mut bytes);
            }
            String::from_utf8_lossy(&bytes).into_owned()
        })
    }
    let (stdout, stderr) = (reader(child.stdout.take()), reader(child.stderr.take()));
    let status = wait_within(&mut child, HANG_TIMEOUT);
    let took = started.elapsed();
    Done {
        status: status.code(),
        stdout: stdout.join().unwrap_or_default(),
        stderr: stderr.join().unwrap_or_default(),
        took,
    }
}

/// Waits for a child, and kills it with a panic after `time`.
pub fn wait_within(child: &mut Child, time: Duration) -> ExitStatus {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            return status;
        }
        if started.elapsed() > time {
            let _ = child.kill();
            panic!("process {} did not end within {time:?}", child.id());
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// The report in a file.
pub fn report(path: &std::path::Path) -> Report {
    let text = std::fs::read_to_string(path)
        .unwrap_or_else(|error| panic!("no report {}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("bad report: {error}\n{text}"))
}
