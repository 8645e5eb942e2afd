//! A real sshd on loopback, with keys, a port and a configuration of its own.

use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::{Host, bin_dir, wait};

/// An sshd by which one logs in to a host.
#[derive(Debug)]
pub struct Sshd {
    process: Child,
    dir: PathBuf,
    port: u16,
}

/// As root sshd wants a user of its own and a directory: a mount namespace gives it both, and this
/// machine keeps neither.
const START: &str = r#"
    if [ "$(id -u)" = 0 ]; then
        mkdir -p /run/sshd
        if ! grep -q '^sshd:' /etc/passwd; then
            { cat /etc/passwd; echo 'sshd:x:65533:65534::/run/sshd:/usr/sbin/nologin'; } >"$1/passwd"
            mount --bind "$1/passwd" /etc/passwd
        fi
    fi
    exec "$2" -D -e -f "$1/sshd_config""#;

impl Sshd {
    /// Starts one that leads to `host`; nothing, and it says so, where there is none installed.
    ///
    /// `authorized` makes the line of `authorized_keys` of a public key. `path` is the PATH of who
    /// logs in, beside that of the system.
    pub fn start(host: &Host, path: &Path, authorized: impl Fn(&str) -> String) -> Option<Self> {
        let Some((program, libraries)) = program() else {
            println!("SKIPPED ssh: there is no sshd (openssh-server)");
            return None;
        };
        let dir = host.path("sshd");
        fs::create_dir(&dir).expect("a directory");
        for key in ["host_key", "user_key"] {
            let mut keygen = Command::new("ssh-keygen");
            keygen.args(["-q", "-t", "ed25519", "-N", "", "-C", "hosta", "-f"]).arg(dir.join(key));
            assert!(keygen.status().expect("ssh-keygen").success());
        }
        let public = |key: &str| fs::read_to_string(dir.join(key)).expect("a key");
        // Nobody else takes it in the meantime: it is not given out again soon.
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|it| it.local_addr());
        let port = free.expect("a port").port();
        let known = format!("[127.0.0.1]:{port} {}", public("host_key.pub"));
        fs::write(dir.join("known_hosts"), known).expect("a file");
        let authorized = authorized(public("user_key.pub").trim());
        fs::write(dir.join("authorized_keys"), authorized + "\n").expect("a file");
        let (here, path) = (dir.display(), path.display());
        let (runtime, state) = (host.path("run"), host.path("state"));
        let config = format!(
            "ListenAddress 127.0.0.1\nPort {port}\nHostKey {here}/host_key\nPidFile none\n\
             AuthorizedKeysFile {here}/authorized_keys\nStrictModes no\nUsePAM no\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\n\
             PermitRootLogin prohibit-password\nLogLevel INFO\n\
             SetEnv PATH={path}:/usr/bin:/bin XDG_RUNTIME_DIR={} XDG_STATE_HOME={}\n",
            runtime.display(),
            state.display()
        );
        fs::write(dir.join("sshd_config"), config).expect("a file");
        let log = fs::File::create(dir.join("log")).expect("a file");
        let mut command = Command::new("unshare");
        let mounts = if nix::unistd::geteuid().is_root() { "--mount" } else { "--" };
        command.args([mounts, "sh", "-c", START, "sh"]).arg(&dir).arg(program);
        command.env("LD_LIBRARY_PATH", libraries).stdin(Stdio::null()).stdout(Stdio::null());
        let process = command.stderr(log).spawn().expect("unshare");
        let mut sshd = Self { process, dir, port };
        wait("sshd", || {
            assert!(sshd.process.try_wait().expect("a child").is_none(), "{}", sshd.log());
            TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()
        });
        Some(sshd)
    }

    /// As [`Self::start`], for a user who may do anything and finds the programs of this build.
    pub fn open(host: &Host) -> Option<Self> {
        Self::start(host, &bin_dir(), str::to_owned)
    }

    /// What it has said.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// The options with which ssh logs in.
    pub fn options(&self) -> Vec<String> {
        let file = |name: &str| self.dir.join(name).display().to_string();
        vec![
            format!("Port={}", self.port),
            format!("IdentityFile={}", file("user_key")),
            format!("UserKnownHostsFile={}", file("known_hosts")),
            "GlobalKnownHostsFile=none".to_owned(),
            "IdentitiesOnly=yes".to_owned(),
            "StrictHostKeyChecking=yes".to_owned(),
        ]
    }

    /// The same as arguments of mig-send.
    pub fn send_options(&self) -> Vec<String> {
        self.options().into_iter().map(|option| format!("--ssh-option={option}")).collect()
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// sshd, and where its libraries are: installed, or as the lab of two hosts has unpacked it.
fn program() -> Option<(PathBuf, PathBuf)> {
    let unpacked =
        std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache/migpipe-lab/sshd"));
    let trees = [Some(PathBuf::from("/")), unpacked];
    let mut found = trees
        .into_iter()
        .flatten()
        .map(|tree| (tree.join("usr/sbin/sshd"), tree.join("usr/lib/x86_64-linux-gnu")));
    found.find(|(program, _)| program.is_file())
}
