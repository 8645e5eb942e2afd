//! The console of the built-in guest, as it writes it to a file.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::HANG_TIMEOUT;

/// What one tick line says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tick {
    /// The number of the tick since the guest booted.
    pub number: u64,
    /// Hot pages written.
    pub writes: u64,
    /// Pages checked.
    pub checked: u64,
    /// The longest gap since the last tick (microseconds).
    pub gap_us: u64,
    /// The longest gap of all (microseconds).
    pub max_gap_us: u64,
}

impl Tick {
    fn parse(line: &str) -> Option<Self> {
        let words: Vec<_> = line.split_whitespace().collect();
        if words.first() != Some(&"tick") {
            return None;
        }
        let value = |name: &str| {
            let at = words.iter().position(|word| *word == name)?;
            words.get(at + 1)?.parse().ok()
        };
        Some(Self {
            number: value("tick")?,
            writes: value("writes")?,
            checked: value("checked")?,
            gap_us: value("gap-us")?,
            max_gap_us: value("max-gap-us")?,
        })
    }
}

/// The console of one guest on one host.
#[derive(Clone, Debug)]
pub struct Console {
    path: PathBuf,
}

impl Console {
    /// The console that is written to `path`.
    pub fn at(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The destination of a move within this host to a guest `name` that writes this console.
    pub fn as_destination(&self, name: &str) -> String {
        format!("exec:mig-recv --quiet --name {name} --console file:{}", self.path.display())
    }

    /// What was written so far.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.path).unwrap_or_default()).into_owned()
    }

    /// The whole lines of it; the last may still be being written.
    fn lines(&self) -> Vec<String> {
        let text = self.text();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(|line| line.trim_end_matches('\r').to_owned()).collect()
    }

    /// All ticks so far. Panics if the guest found an error in its memory.
    pub fn ticks(&self) -> Vec<Tick> {
        let lines = self.lines();
        if let Some(error) = lines.iter().find(|line| line.contains("ERROR")) {
            panic!("the guest says: {error}");
        }
        lines.iter().filter_map(|line| Tick::parse(line)).collect()
    }

    /// The last tick so far.
    pub fn last_tick(&self) -> Option<Tick> {
        self.ticks().last().copied()
    }

    /// Waits for a line that begins with `word`.
    pub fn wait_for(&self, word: &str) -> String {
        let mut found = None;
        wait(&format!("'{word}' on {}", self.path.display()), || {
            found = self.lines().into_iter().find(|line| line.starts_with(word));
            found.is_some()
        });
        found.expect("waited for")
    }

    /// Waits for `count` more ticks than there are now and returns the last.
    pub fn wait_ticks(&self, count: usize) -> Tick {
        let before = self.ticks().len();
        wait(&format!("{count} ticks on {}", self.path.display()), || {
            self.ticks().len() >= before + count
        });
        self.last_tick().expect("there are ticks")
    }

    /// Panics if a tick comes within `time`: the guest must not run.
    pub fn assert_silent(&self, time: Duration) {
        let before = self.text().len();
        thread::sleep(time);
        assert_eq!(self.text().len(), before, "the guest runs: {}", self.path.display());
    }
}

/// Waits until `done`, and panics after [`HANG_TIMEOUT`].
pub fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < HANG_TIMEOUT, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Checks that the ticks of a guest, host after host, are one story: no counter goes back, none
/// is missing, none is there twice.
pub fn assert_one_story(consoles: &[&Console]) {
    let ticks: Vec<_> = consoles.iter().flat_map(|console| console.ticks()).collect();
    for pair in ticks.windows(2) {
        assert_eq!(pair[1].number, pair[0].number + 1, "a tick is lost or there twice: {pair:?}");
        assert!(pair[1].writes >= pair[0].writes, "writes went back: {pair:?}");
        assert!(pair[1].checked >= pair[0].checked, "checked went back: {pair:?}");
    }
}
