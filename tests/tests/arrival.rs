//! A guest that arrives as a unit, with a service manager that does as much as that takes.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;

use migpipe_tests::{Guest, HANG_TIMEOUT, Host, needs_kvm, run, spec, wait};
use nix::unistd::geteuid;

/// systemctl, of a manager that has the unit of a guest called b: `state` says how the unit is, and
/// `files` what it reads.
const SYSTEMCTL: &str = r#"#!/bin/sh
here=${0%/*}
environment=$XDG_RUNTIME_DIR/vmrun/b.arrival.env
case $* in
    *show*)
        state=$(cat "$here/state")
        pid=$(cat "$here/pid" 2>/dev/null)
        if [ "$state" = started ]; then
            state=active
            kill -0 "$pid" 2>/dev/null || state=failed
        fi
        echo "LoadState=loaded"
        echo "ActiveState=$state"
        echo "EnvironmentFiles=$XDG_STATE_HOME/vmrun/definitions/b.conf (ignore_errors=yes)"
        echo "EnvironmentFiles=$(cat "$here/files" 2>/dev/null || echo "$environment") (ignore_errors=yes)"
        echo "InvocationID=1"
        echo "StatusText="
        echo "ExecMainCode=1"
        echo "ExecMainStatus=$(cat "$here/status" 2>/dev/null)"
        ;;
    *stop*) echo stopped >>"$here/stopped" ;;
    *start*)
        [ -e "$here/never" ] && exit
        . "$environment"
        eval "set -- $VMRUN_OPTS"
        echo "$*" >"$here/options"
        (
            NOTIFY_SOCKET=$here/notify vmrun --name b "$@" 2>"$here/log"
            echo $? >"$here/status"
        ) </dev/null >/dev/null 2>&1 &
        echo $! >"$here/pid"
        echo started >"$here/state"
        ;;
    *reset-failed*) echo inactive >"$here/state" ;;
esac
"#;

const JOURNALCTL: &str = "#!/bin/sh\ncase $* in *INVOCATION*) cat ${0%/*}/log ;; esac\n";

/// A host with such a manager.
struct Managed {
    host: Host,
    bin: PathBuf,
    manager: UnixDatagram,
}

impl Managed {
    fn new(test: &str) -> Option<Self> {
        if !geteuid().is_root() {
            println!("SKIPPED {test}: needs root");
            return None;
        }
        let host = Host::new();
        let bin = host.path("bin");
        fs::create_dir(&bin).unwrap();
        for (name, script) in [("systemctl", SYSTEMCTL), ("journalctl", JOURNALCTL)] {
            fs::write(bin.join(name), script).unwrap();
            fs::set_permissions(bin.join(name), fs::Permissions::from_mode(0o755)).unwrap();
        }
        fs::write(bin.join("state"), "inactive").unwrap();
        let manager = UnixDatagram::bind(bin.join("notify")).unwrap();
        manager.set_read_timeout(Some(HANG_TIMEOUT)).unwrap();
        Some(Self { host, bin, manager })
    }

    /// A tunnel to a mig-recv there.
    fn receive(&self, options: &str) -> String {
        format!(
            "exec:exec unshare --mount sh -c 'mount -t tmpfs none /run && \
             mkdir -p /run/systemd/system && PATH={}:$PATH exec mig-recv --name b {options}'",
            self.bin.display()
        )
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.bin.join(name)).unwrap_or_default()
    }

    /// What the manager was told, up to a message with `text` in it.
    fn told(&self, text: &str) -> Vec<String> {
        let mut messages: Vec<String> = Vec::new();
        let mut room = [0; 4096];
        while !messages.last().is_some_and(|message| message.contains(text)) {
            let length = self.manager.recv(&mut room).expect("a message");
            messages.push(String::from_utf8_lossy(&room[..length]).into_owned());
        }
        messages
    }

    /// What there is of the guest beside its control socket.
    fn files(&self) -> Vec<String> {
        let socket = self.host.runtime_dir().join("b.sock");
        let dir = fs::read_dir(socket.parent().unwrap()).unwrap();
        let names = dir.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> =
            names.filter(|name| name.starts_with("b.") && !name.starts_with("b.sock")).collect();
        names.sort();
        names
    }
}

fn boot(host: &Host) -> Guest {
    Guest::boot(host, "a", &spec(64, "500", 1), &["--mem", "64M"])
}

#[test]
fn a_guest_arrives_as_a_unit_that_is_started_when_it_runs() {
    needs_kvm!();
    let Some(managed) = Managed::new(module_path!()) else { return };
    let host = &managed.host;
    let mut a = boot(host);
    let done = host.run("mig-send", &["-q", "a", &managed.receive("--console null")]).expect(0);
    assert!(done.stderr.contains("b runs here (vmrun@b.service)"), "{}", done.stderr);
    assert_eq!(a.ended(), Some(0));
    assert_eq!(host.state("b").as_deref(), Some("running"));
    assert!(managed.read("options").contains("--arrival --incoming --go-timeout never"));
    let told = managed.told("READY");
    assert!(told[0].contains("EXTEND_TIMEOUT_USEC="), "{told:?}");
    let ready = told.last().unwrap();
    assert!(ready.contains("STATUS=") && !ready.contains("receiving"), "{told:?}");
    assert!(told.iter().any(|it| it.contains("receiving") || it.contains("incoming")), "{told:?}");
    // The unit keeps it.
    assert_eq!(managed.files(), ["b.definition"]);
    let definition =
        fs::read_to_string(host.runtime_dir().join("b.sock").with_extension("definition")).unwrap();
    assert!(definition.contains("VMRUN_OPTS=\"--kernel=builtin:dirty,"), "{definition}");
    host.run("vmctl", &["quit", "b"]).expect(0);
    wait("the end of the unit", || managed.read("status").trim() == "0");
    assert_eq!(managed.files(), [""; 0]);
}

#[test]
fn a_guest_that_is_refused_leaves_nothing_of_its_unit() {
    needs_kvm!();
    let Some(managed) = Managed::new(module_path!()) else { return };
    let host = &managed.host;
    let mut a = boot(host);
    let elsewhere = "--console file:/nonexistent/directory/console";
    let done = host.run("mig-send", &["-q", "a", &managed.receive(elsewhere)]).expect(1);
    assert!(done.stderr.contains("/nonexistent/directory/console"), "{}", done.stderr);
    assert_eq!(managed.files(), [""; 0]);
    assert_eq!(managed.read("state").trim(), "inactive", "it is no failure of the host's");
    a.assert_runs();
    // Its vmrun does not start at all.
    let done = host.run("mig-send", &["-q", "a", &managed.receive("--files-in /nonexistent")]);
    done.expect(1);
    assert_eq!(managed.files(), [""; 0]);
    a.assert_runs();
}

#[test]
fn a_unit_that_is_busy_or_knows_of_no_arrivals_takes_no_guest() {
    needs_kvm!();
    let Some(managed) = Managed::new(module_path!()) else { return };
    let host = &managed.host;
    let mut a = boot(host);
    fs::write(managed.bin.join("state"), "activating").unwrap();
    let done = host.run("mig-send", &["-q", "a", &managed.receive("--quiet")]).expect(1);
    assert!(done.stderr.contains("vmrun@b.service is activating on this host"), "{}", done.stderr);
    fs::write(managed.bin.join("state"), "inactive").unwrap();
    fs::write(managed.bin.join("files"), "/etc/migpipe/b.conf").unwrap();
    let done = host.run("mig-send", &["-q", "a", &managed.receive("--as unit")]).expect(1);
    assert!(done.stderr.contains("vmrun@b.service does not read"), "{}", done.stderr);
    assert_eq!(managed.read("options"), "", "it was not started");
    a.assert_runs();
    // By default it comes all the same.
    host.run("mig-send", &["-q", "a", &managed.receive("--quiet --console null")]).expect(0);
    assert_eq!(managed.read("options"), "", "it was not started");
    assert_eq!(host.state("b").as_deref(), Some("running"));
    host.run("vmctl", &["quit", "b"]).expect(0);
}

/// Once the files of the arrival are gone, a start that is late would boot a guest.
#[test]
fn a_start_that_does_not_come_is_taken_back() {
    needs_kvm!();
    let Some(managed) = Managed::new(module_path!()) else { return };
    let host = &managed.host;
    let mut a = boot(host);
    fs::write(managed.bin.join("never"), "").unwrap();
    let done = host.run("mig-send", &["-q", "a", &managed.receive("--quiet")]).expect(1);
    assert!(done.stderr.contains("vmrun@b.service does not start"), "{}", done.stderr);
    assert_eq!(managed.read("stopped"), "stopped\n");
    assert_eq!(managed.files(), [""; 0]);
    a.assert_runs();
}

/// What would have been booted is not, if whoever brought a guest in its place went away.
#[test]
fn a_unit_that_is_started_for_a_guest_that_does_not_come_boots_none() {
    let host = Host::new();
    let environment = host.runtime_dir().join("b.sock").with_extension("arrival.env");
    fs::create_dir_all(environment.parent().unwrap()).unwrap();
    fs::write(&environment, "VMRUN_OPTS=\"--incoming --arrival\"\n").unwrap();
    let mut vmrun = host.command("vmrun");
    let done = run(vmrun.args(["--name", "b", "--incoming", "--arrival"]));
    done.refused_with(&["whoever was to bring b went away"]);
    assert!(!environment.exists(), "the next start would wait for a guest too");
}
