//! What is shown never holds up, and never ends, what is done.
//!
//! stderr may be a pipe that nobody reads, a terminal that Ctrl-S has stopped, a file on a full
//! disk or on a server that hangs: a write to it may fail, and may block for ever. So each
//! descriptor that something is shown on has a thread that writes to it, and everybody else leaves
//! whole lines in a bounded queue. What does not fit and what cannot be written is dropped, and
//! counted; the descriptor's own flags are not touched, for it is shared with other processes.

use std::collections::VecDeque;
use std::fmt::Display;
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use migpipe_confine::sets::RUNTIME;
use migpipe_confine::{Files, Filter};
use nix::sys::signal::SigSet;

/// What waits to be written at most (bytes): the table of a migration many times over.
const MOST: usize = 256 << 10;

/// How long the end of a program waits for a reader that takes nothing.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// A descriptor that was made non-blocking by another process is tried again after so long.
const FULL_POLL_INTERVAL: Duration = Duration::from_millis(20);

/// How long confining a thread is waited for; one that is in the middle of a write does it when
/// the write is over, before anything else.
const CONFINED_TIMEOUT: Duration = Duration::from_secs(1);

/// What the threads that write may call.
pub const FILTER: Filter = Filter { thread: "output", tables: &[RUNTIME] };

/// stderr, once [`start`] was called.
static STDERR: OnceLock<Output> = OnceLock::new();

/// Whether threads that write confine themselves from now on.
static CONFINE: AtomicBool = AtomicBool::new(false);

/// All of them, for the end of the program.
static ALL: Mutex<Vec<Output>> = Mutex::new(Vec::new());

/// What a reader is told of lines that are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// How many, in a line of its own.
    Told,
    /// Nothing: it reads lines of one form.
    Silent,
}

/// A descriptor on which something is shown, by a thread of its own.
#[derive(Clone, Debug)]
pub struct Output {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Vec<u8>>,
    /// How many bytes that is.
    bytes: usize,
    /// What is of interest only until the next of its kind.
    passing: Option<Vec<u8>>,
    /// Whether the thread is writing something.
    writing: bool,
    /// How many pieces were taken care of.
    done: u64,
    lost: u64,
    confined: bool,
}

impl Output {
    /// Starts the thread that writes to `to`.
    ///
    /// # Errors
    /// If there is no thread to be had.
    pub fn start(to: impl Write + Send + 'static, loss: Loss) -> io::Result<Self> {
        let output = Self { shared: Arc::default() };
        let shared = Arc::clone(&output.shared);
        // No signal is for this thread.
        let mask = SigSet::all().thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_BLOCK)?;
        let spawned =
            thread::Builder::new().name("output".into()).spawn(move || shared.serve(to, loss));
        mask.thread_set_mask()?;
        spawned?;
        ALL.lock().unwrap_or_else(PoisonError::into_inner).push(output.clone());
        Ok(output)
    }

    /// Has whole lines written. Never waits.
    pub fn push(&self, text: &[u8]) {
        let mut queue = self.shared.lock();
        if queue.bytes + text.len() > MOST {
            queue.lost += lines(text);
            return;
        }
        queue.bytes += text.len();
        queue.waiting.push_back(text.to_vec());
        self.shared.changed.notify_all();
    }

    /// Has `text` written after all lines, unless another such text takes its place before: for
    /// what is of interest only now. Never waits.
    pub fn show(&self, text: &[u8]) {
        self.shared.lock().passing = Some(text.to_vec());
        self.shared.changed.notify_all();
    }

    /// Takes back what was shown and is not written yet, and has `text` written.
    pub fn replace(&self, text: &[u8]) {
        self.shared.lock().passing = None;
        self.push(text);
    }

    /// How many lines were lost and not told of.
    pub fn lost(&self) -> u64 {
        self.shared.lock().lost
    }

    /// Waits until everything is written, as long as the reader takes something within `stall_timeout`.
    /// Returns how many lines were lost or still wait.
    pub fn drain(&self, stall_timeout: Duration) -> u64 {
        let mut queue = self.shared.lock();
        while !queue.is_idle() {
            let done = queue.done;
            let stuck = |queue: &mut Queue| !queue.is_idle() && queue.done == done;
            let wait = self.shared.changed.wait_timeout_while(queue, stall_timeout, stuck);
            let (now, timeout) = wait.unwrap_or_else(PoisonError::into_inner);
            queue = now;
            if timeout.timed_out() {
                break;
            }
        }
        queue.lost + queue.waiting.iter().map(|text| lines(text)).sum::<u64>()
    }
}

impl Queue {
    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.passing.is_none() && !self.writing
    }

    fn take(&mut self) -> Option<Vec<u8>> {
        if let Some(text) = self.waiting.pop_front() {
            self.bytes -= text.len();
            return Some(text);
        }
        self.passing.take()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, mut to: impl Write, loss: Loss) {
        loop {
            let mut queue = self.lock();
            let text = loop {
                if CONFINE.load(Ordering::SeqCst) && !queue.confined {
                    drop(queue);
                    confine_or_end(&mut to);
                    queue = self.lock();
                    queue.confined = true;
                    self.changed.notify_all();
                }
                match queue.take() {
                    Some(text) => break text,
                    None => {
                        queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
                    }
                }
            };
            queue.writing = true;
            let lost = queue.lost;
            drop(queue);
            let written = write_all(&mut to, &text);
            let told = written.is_ok()
                && lost > 0
                && loss == Loss::Told
                && write_all(&mut to, format!("(lines lost: {lost})\n").as_bytes()).is_ok();
            let mut queue = self.lock();
            match written {
                Ok(()) if told => queue.lost -= lost,
                Ok(()) => {}
                Err(_) => queue.lost += lines(&text),
            }
            queue.writing = false;
            queue.done += 1;
            self.changed.notify_all();
        }
    }
}

fn lines(text: &[u8]) -> u64 {
    text.iter().filter(|byte| **byte == b'\n').count() as u64
}

fn write_all(to: &mut impl Write, mut text: &[u8]) -> io::Result<()> {
    while !text.is_empty() {
        match to.write(text) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => text = &text[written..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                thread::sleep(FULL_POLL_INTERVAL)
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// A thread that cannot be confined must not go on, as [`migpipe_confine::thread`] has it; but here nobody
/// else would write why.
fn confine_or_end(to: &mut impl Write) {
    if let Err(error) = migpipe_confine::enter(&FILTER, &[], &Files::none()) {
        let _ = writeln!(to, "{}", crate::one_line(&error.into()));
        std::process::exit(1);
    }
}

/// Starts the thread that writes to stderr. Where there is none to be had stderr is written to
/// directly.
pub(crate) fn start() {
    // A descriptor of our own, so that a write that blocks holds no lock of the standard library.
    let stderr = io::stderr().as_fd().try_clone_to_owned().map(File::from);
    if let Ok(output) = stderr.and_then(|stderr| Output::start(stderr, Loss::Told)) {
        let _ = STDERR.set(output);
    }
}

/// stderr, for those who share it.
pub fn stderr() -> Option<&'static Output> {
    STDERR.get()
}

/// Confines the threads that write: those that there are and those to come.
pub(crate) fn confine() {
    CONFINE.store(true, Ordering::SeqCst);
    let Some(output) = stderr() else { return };
    let queue = output.shared.lock();
    output.shared.changed.notify_all();
    let _ =
        output.shared.changed.wait_timeout_while(queue, CONFINED_TIMEOUT, |queue| !queue.confined);
}

/// Waits until what was said is written, but not for a reader that takes nothing. For the end of a
/// program, and for when it becomes another.
pub fn finish() {
    let all = ALL.lock().unwrap_or_else(PoisonError::into_inner).clone();
    for output in all {
        output.drain(DRAIN_TIMEOUT);
    }
}

/// Says a line, or more, on stderr. Never waits and never fails.
pub fn say(text: impl Display) {
    let _ = writeln!(Stderr, "{text}");
}

/// stderr as something to write to, by whole lines.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stderr;

impl Write for Stderr {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.write_all(text).map(|()| text.len())
    }

    fn write_all(&mut self, text: &[u8]) -> io::Result<()> {
        match stderr() {
            Some(output) => output.push(text),
            None => {
                let _ = io::stderr().write_all(text);
            }
        }
        Ok(())
    }

    /// One piece, so that lines of two threads do not mix.
    fn write_fmt(&mut self, text: std::fmt::Arguments<'_>) -> io::Result<()> {
        self.write_all(text.to_string().as_bytes())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, PipeReader, Read};

    fn pipe() -> (PipeReader, Output) {
        let (reader, writer) = io::pipe().unwrap();
        (reader, Output::start(writer, Loss::Told).unwrap())
    }

    /// Fills the queue behind a pipe that nobody reads, and returns how many lines that were.
    fn fill(output: &Output) -> u64 {
        let line = [&[b'x'; 1023][..], b"\n"].concat();
        let mut pushed = 0;
        while output.shared.lock().lost == 0 {
            output.push(&line);
            pushed += 1;
        }
        pushed
    }

    #[test]
    fn lines_arrive_in_the_order_in_which_they_were_left() {
        let (mut reader, output) = pipe();
        for line in ["one\n", "two\n", "three\n"] {
            output.push(line.as_bytes());
        }
        assert_eq!(output.drain(DRAIN_TIMEOUT), 0);
        let mut text = [0; 14];
        reader.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"one\ntwo\nthree\n");
    }

    #[test]
    fn a_reader_that_takes_nothing_costs_lines_and_no_time() {
        let (reader, output) = pipe();
        let pushed = fill(&output);
        assert!(output.drain(Duration::from_millis(1)) > 1);
        // Every line that comes is whole, and what is missing is counted.
        let mut reader = BufReader::new(reader);
        let (mut whole, mut line) = (0, String::new());
        while whole < pushed - 1 {
            line.clear();
            reader.read_line(&mut line).unwrap();
            if line.starts_with('(') {
                continue;
            }
            assert_eq!(line.len(), 1024);
            whole += 1;
        }
    }

    #[test]
    fn what_was_lost_is_said_when_the_reader_is_back() {
        let (reader, output) = pipe();
        fill(&output);
        let mut reader = BufReader::new(reader);
        let mut line = String::new();
        while !line.starts_with('(') {
            line.clear();
            reader.read_line(&mut line).unwrap();
        }
        assert_eq!(line, "(lines lost: 1)\n");
    }

    #[test]
    fn a_disk_that_is_full_costs_the_line_alone() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let output = Output::start(full, Loss::Told).unwrap();
        output.push(b"one\n");
        output.push(b"two\nthree\n");
        assert_eq!(output.drain(DRAIN_TIMEOUT), 3);
    }

    #[test]
    fn of_what_is_of_interest_only_now_the_last_is_shown() {
        let (reader, output) = pipe();
        fill(&output);
        for number in 0..1000 {
            output.show(format!("\r{number}").as_bytes());
        }
        output.show(b"\rthe last\n");
        let mut reader = BufReader::new(reader);
        let mut text = Vec::new();
        while !text.ends_with(b"\rthe last\n") {
            let more = reader.fill_buf().unwrap();
            text.extend_from_slice(more);
            let count = more.len();
            reader.consume(count);
        }
        assert!(!text.windows(4).any(|part| part == b"\r500"));
    }
}
