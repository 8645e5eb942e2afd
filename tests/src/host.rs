//! A host: its own guests, its own memory of migrations.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use migpipe_units::HostId;
use tempfile::TempDir;

use crate::program::{Done, run};

/// The directories of one host. Two hosts on one machine share nothing but its processor.
#[derive(Debug)]
pub struct Host {
    dir: TempDir,
}

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}

impl Host {
    /// A host without guests, which has been here for long: it remembers every migration that there
    /// was.
    pub fn new() -> Self {
        let host = Self::fresh();
        host.remember_for(Duration::from_secs(24 * 3600));
        host
    }

    /// A host that has never heard of any migration, and has no memory yet.
    pub fn fresh() -> Self {
        let dir = tempfile::Builder::new().prefix("mig").tempdir().expect("a directory");
        for sub in ["run", "state"] {
            fs::create_dir(dir.path().join(sub)).expect("a directory");
        }
        Self { dir }
    }

    /// Lets the host's memory of migrations have begun so long ago.
    pub fn remember_for(&self, time: Duration) {
        let dir = self.migrations();
        let mut tree = fs::DirBuilder::new();
        tree.recursive(true).mode(0o700).create(&dir).expect("a directory");
        let since = SystemTime::now() - time;
        let identity = serde_json::json!({ "id": HostId::random(), "since": since });
        fs::write(dir.join("host-id"), identity.to_string()).expect("a file");
    }

    /// The directory of its records of migrations.
    pub fn migrations(&self) -> PathBuf {
        self.path("state/vmrun/migrations")
    }

    /// Its records of migrations.
    pub fn records(&self) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(self.migrations()) else { return Vec::new() };
        let records = entries.filter_map(|entry| Some(entry.ok()?.path()));
        records.filter(|path| !path.ends_with("host-id")).collect()
    }

    /// A file of this host.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The directory of its sockets.
    pub fn runtime_dir(&self) -> PathBuf {
        self.path("run/vmrun")
    }

    /// A program of this build, to be run on this host.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(bin_dir().join(program));
        self.put_on(&mut command);
        command
    }

    /// A shell with the programs of this build in its PATH, on this host.
    pub fn shell(&self, script: &str) -> Command {
        let mut command = Command::new("bash");
        command.args(["-o", "pipefail", "-c", script]);
        self.put_on(&mut command);
        command
    }

    fn put_on(&self, command: &mut Command) {
        let path = std::env::var("PATH").unwrap_or_default();
        command
            .env("XDG_RUNTIME_DIR", self.path("run"))
            .env("XDG_STATE_HOME", self.path("state"))
            .env("PATH", format!("{}:{path}", bin_dir().display()))
            .stdin(Stdio::null());
    }

    /// What a shell on another host types to run `command` on this one, as ssh would.
    pub fn remote(&self, command: &str) -> String {
        format!(
            "env XDG_RUNTIME_DIR={} XDG_STATE_HOME={} {command}",
            self.path("run").display(),
            self.path("state").display()
        )
    }

    /// Runs a program to its end.
    pub fn run(&self, program: &str, args: &[&str]) -> Done {
        run(self.command(program).args(args))
    }

    /// Runs a script to its end.
    pub fn sh(&self, script: &str) -> Done {
        run(&mut self.shell(script))
    }

    /// The state of a guest, as scripts see it.
    pub fn state(&self, guest: &str) -> Option<String> {
        let done = self.run("vmctl", &["status", guest, "--json"]);
        let value: serde_json::Value = serde_json::from_str(&done.stdout).ok()?;
        Some(value["state"].as_str()?.to_owned())
    }

    /// The process of a guest's vmrun.
    pub fn pid(&self, guest: &str) -> Option<i32> {
        let done = self.run("vmctl", &["status", guest, "--json"]);
        let value: serde_json::Value = serde_json::from_str(&done.stdout).ok()?;
        Some(value["pid"].as_i64()? as i32)
    }

    /// The control sockets that are left.
    pub fn sockets(&self) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(self.runtime_dir()) else { return Vec::new() };
        entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
    }

    /// The processes that belong to this host: its directories are in their environment.
    pub fn processes(&self) -> Vec<(i32, String)> {
        let mine = self.dir.path().as_os_str().as_encoded_bytes();
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        entries
            .filter_map(|entry| {
                let path = entry.ok()?.path();
                let pid = path.file_name()?.to_str()?.parse().ok()?;
                let environ = fs::read(path.join("environ")).ok()?;
                let belongs = environ.windows(mine.len()).any(|part| part == mine);
                belongs.then(|| (pid, name_of(&path)))
            })
            .collect()
    }
}

impl Drop for Host {
    /// Guests outlive the programs that brought them; they do not outlive their test.
    fn drop(&mut self) {
        use nix::sys::signal::{Signal, kill};
        use nix::unistd::Pid;
        for (pid, name) in self.processes() {
            if ["vmrun", "mig-", "lossy-"].iter().any(|ours| name.starts_with(ours)) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }
}

fn name_of(proc_dir: &Path) -> String {
    fs::read_to_string(proc_dir.join("comm")).unwrap_or_default().trim().to_owned()
}

/// Where the programs of this build are.
pub fn bin_dir() -> PathBuf {
    let own = std::env::current_exe().expect("this program has a path");
    // Tests are in target/PROFILE/deps, programs one above.
    let dir = own.parent().expect("a directory");
    let dir = if dir.ends_with("deps") { dir.parent().expect("target/PROFILE") } else { dir };
    assert!(
        dir.join("vmrun").is_file(),
        "the programs are not built: cargo build --workspace (looked in {})",
        dir.display()
    );
    dir.to_owned()
}
