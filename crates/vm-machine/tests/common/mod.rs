//! A built-in guest whose console is read from a file.
#![allow(clippy::print_stderr, reason = "a test that is skipped says so")]
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use migpipe_confine::{Mode, ViolationAction};
use migpipe_units::Bytes;
use vm_devices::ConsoleSpec;
use vm_machine::{Host, IncomingConfig, Kernel, Machine, MachineConfig, MemorySource, Wanted};
use vm_memory::GuestMemoryBackend;
use vm_state::DeviceParam;

/// How long anything may take before the test fails.
pub const HANG_TIMEOUT: Duration = Duration::from_secs(600);

/// False, and a line that says so, where there is no KVM.
pub fn has_kvm(test: &str) -> bool {
    match std::fs::File::options().read(true).write(true).open("/dev/kvm") {
        Ok(_) => true,
        Err(error) => {
            eprintln!("SKIPPED {test}: /dev/kvm cannot be opened: {error}");
            false
        }
    }
}

/// The counters of one tick line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tick {
    pub number: u64,
    pub writes: u64,
    pub checked: u64,
    pub walks: u64,
    pub gap_us: u64,
    pub max_gap_us: u64,
}

/// That the serial console goes to this file.
pub fn serial_console(path: &Path) -> DeviceParam {
    let [kind, id, name] = ["serial", "serial0", "console"].map(str::to_owned);
    DeviceParam { kind, id, name, value: console(path).to_string() }
}

pub struct Guest {
    pub machine: Machine,
    pub console: PathBuf,
}

pub fn console(path: &Path) -> ConsoleSpec {
    ConsoleSpec::File(path.to_owned())
}

impl Guest {
    /// Boots the built-in guest; it is paused.
    pub fn boot(dir: &Path, spec: &str, mem: &str, cpus: u32) -> Self {
        // A thread that calls what its filter does not have ends the tests.
        migpipe_confine::begin(Mode::Enforce, ViolationAction::Killed);
        let path = dir.join("console");
        let machine = Machine::boot(&MachineConfig {
            name: "test".to_owned(),
            kernel: Kernel::Builtin(spec.parse().unwrap()),
            cmdline: String::new(),
            mem: mem.parse::<Bytes>().unwrap(),
            cpus,
            cpu: Wanted::default(),
            console: console(&path),
            memory: MemorySource::default(),
            devices: Vec::new(),
        })
        .unwrap();
        Self { machine, console: path }
    }

    /// A machine that waits for this one, with a console of its own.
    pub fn destination(&self, dir: &Path) -> Self {
        let path = dir.join("console-of-destination");
        let here =
            IncomingConfig { overrides: vec![serial_console(&path)], ..IncomingConfig::default() };
        let host = Host::probe().unwrap();
        let machine = Machine::incoming(&self.machine.describe(), &here, &host).unwrap();
        Self { machine, console: path }
    }

    /// Copies all memory that exists, in the way of a client: through the files.
    pub fn copy_memory_to(&self, destination: &Self) {
        use std::os::fd::AsFd;
        let to = destination.machine.memory_fds();
        for ((id, from), (other, to)) in self.machine.memory_fds().into_iter().zip(to) {
            assert_eq!(id, other);
            copy_file(from.as_fd(), to.as_fd());
        }
        assert_eq!(self.machine.memory().num_regions(), destination.machine.memory().num_regions());
    }

    pub fn text(&self) -> String {
        std::fs::read_to_string(&self.console).unwrap_or_default()
    }

    /// Whole lines of the console, after a look for errors among them.
    pub fn lines(&self) -> Vec<String> {
        let text = self.text();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let lines: Vec<_> = whole.lines().map(str::to_owned).collect();
        for line in &lines {
            assert!(!line.starts_with("ERROR"), "{line}");
        }
        lines
    }

    pub fn ticks(&self) -> Vec<Tick> {
        self.lines().iter().filter_map(|line| tick(line)).collect()
    }

    pub fn last_tick(&self) -> Tick {
        *self.ticks().last().expect("a tick")
    }

    pub fn wait_for(&self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let end = Instant::now() + HANG_TIMEOUT;
        while !done(self) {
            assert!(
                Instant::now() < end,
                "no {what} within {HANG_TIMEOUT:?}; the console says:\n{}",
                self.text()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn wait_until_ready(&self) {
        self.wait_for("ready line", |guest| {
            guest.lines().first().is_some_and(|line| line.starts_with("ready "))
        });
    }

    /// Waits until the guest has printed so many ticks more than it has now.
    pub fn wait_for_ticks(&self, more: usize) {
        let wanted = self.ticks().len() + more;
        self.wait_for("tick", |guest| guest.ticks().len() >= wanted);
    }

    /// Waits until the guest has written so many pages that it had not begun to write when this
    /// was called.
    pub fn wait_for_writes(&self, pages: u64) {
        // The first new line may count what was written before.
        self.wait_for_ticks(2);
        let wanted = self.last_tick().writes + pages;
        self.wait_for("written page", |guest| guest.last_tick().writes >= wanted);
    }

    /// A figure of the ready line, such as `hot-gfn`.
    pub fn ready(&self, key: &str) -> u64 {
        number(&self.lines()[0], key)
    }
}

fn number(line: &str, key: &str) -> u64 {
    let mut words = line.split(' ').skip_while(|word| *word != key);
    words.next();
    let value = words.next().unwrap_or_else(|| panic!("no {key} in {line}"));
    match value.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).unwrap(),
        None => value.parse().unwrap(),
    }
}

fn tick(line: &str) -> Option<Tick> {
    line.starts_with("tick ").then(|| Tick {
        number: number(line, "tick"),
        writes: number(line, "writes"),
        checked: number(line, "checked"),
        walks: number(line, "walks"),
        gap_us: number(line, "gap-us"),
        max_gap_us: number(line, "max-gap-us"),
    })
}

fn copy_file(from: std::os::fd::BorrowedFd<'_>, to: std::os::fd::BorrowedFd<'_>) {
    use std::os::unix::fs::FileExt;
    let from = std::fs::File::from(from.try_clone_to_owned().unwrap());
    let to = std::fs::File::from(to.try_clone_to_owned().unwrap());
    let len = from.metadata().unwrap().len();
    let mut piece = vec![0; 1 << 20];
    let zeros = vec![0; 1 << 20];
    let mut at = 0;
    while at < len {
        let count = piece.len().min((len - at) as usize);
        from.read_exact_at(&mut piece[..count], at).unwrap();
        // Fresh memory is zeros already.
        if piece[..count] != zeros[..count] {
            to.write_all_at(&piece[..count], at).unwrap();
        }
        at += count as u64;
    }
}
