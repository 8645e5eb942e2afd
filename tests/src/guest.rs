//! A guest that a test boots.

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use crate::console::Console;
use crate::host::Host;
use crate::{HANG_TIMEOUT, wait_within};

/// A vmrun that a test started.
#[derive(Debug)]
pub struct Guest {
    /// The guest's name.
    pub name: String,
    /// Its console on this host.
    pub console: Console,
    process: Child,
}

/// The built-in guest that most tests move: `fill-mb` MiB of random data and a hot set.
pub fn spec(pages: u64, rate: &str, fill_mb: u64) -> String {
    format!("builtin:dirty,pages={pages},rate={rate},fill=random,fill-mb={fill_mb},tick-ms=20")
}

impl Guest {
    /// Boots a built-in guest on `host` and waits until its memory is filled and it ticks.
    pub fn boot(host: &Host, name: &str, kernel: &str, args: &[&str]) -> Self {
        Self::boot_at(host, name, &host.path(&format!("{name}.console")), kernel, args)
    }

    /// As [`Self::boot`], with its console in a file of the test's choice: another guest of this
    /// name had one before.
    pub fn boot_at(host: &Host, name: &str, console: &Path, kernel: &str, args: &[&str]) -> Self {
        let guest = Self::start_at(host, name, console, kernel, args);
        guest.console.wait_for("ready");
        guest.console.wait_ticks(2);
        guest
    }

    /// Starts a guest and waits for nothing.
    pub fn start(host: &Host, name: &str, kernel: &str, args: &[&str]) -> Self {
        Self::start_at(host, name, &host.path(&format!("{name}.console")), kernel, args)
    }

    /// As [`Self::start`], where one of its name may have left the host: it is held back then.
    pub fn start_unless_it_left(host: &Host, name: &str, kernel: &str, args: &[&str]) -> Self {
        Self::spawn(host, name, &host.path(&format!("{name}.console")), kernel, args)
    }

    /// Tests use a name again and again.
    fn start_at(host: &Host, name: &str, console: &Path, kernel: &str, args: &[&str]) -> Self {
        Self::spawn(host, name, console, kernel, &[args, &["--again"]].concat())
    }

    fn spawn(host: &Host, name: &str, console: &Path, kernel: &str, args: &[&str]) -> Self {
        let process = host
            .command("vmrun")
            .args(["--name", name, "--kernel", kernel])
            .arg(format!("--console=file:{}", console.display()))
            .arg("--log=error")
            .args(args)
            .stdout(Stdio::inherit())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("vmrun starts");
        Self { name: name.to_owned(), console: Console::at(console), process }
    }

    /// The console that a later life of this guest writes, in the directory of this one's.
    pub fn console_of(&self, name: &str) -> Console {
        Console::at(&self.console.path().with_file_name(format!("{name}.console")))
    }

    /// Its vmrun's process.
    pub fn pid(&self) -> i32 {
        self.process.id() as i32
    }

    /// Waits until its vmrun ends, and returns its exit status.
    pub fn ended(&mut self) -> Option<i32> {
        wait_within(&mut self.process, HANG_TIMEOUT).code()
    }

    /// Whether its vmrun still runs.
    pub fn lives(&mut self) -> bool {
        self.process.try_wait().expect("a child can be waited for").is_none()
    }

    /// Panics unless the guest ticks on here.
    #[track_caller]
    pub fn assert_runs(&mut self) {
        assert!(self.lives(), "vmrun of {} has ended", self.name);
        self.console.wait_ticks(3);
    }

    /// Panics if the guest ticks here.
    #[track_caller]
    pub fn assert_stands_still(&self) {
        self.console.assert_silent(Duration::from_millis(150));
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
