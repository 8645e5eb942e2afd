//! What is promised to survive a power loss is on the disk before anybody relies on it: the order
//! of the system calls, as strace sees them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use migpipe_tests::{Guest, Host, needs_kvm, spec, wait};

const CALLS: &str = "fsync,fdatasync,link,linkat,rename,renameat,renameat2,mkdir,mkdirat";

/// What was done to files, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Done {
    /// Something was written to this file.
    Wrote(String),
    /// The content of this file, or the names in this directory, are on the disk.
    Synced(String),
    /// The file got a name: from, to.
    Named(String, String),
    /// The directory was made.
    Made(String),
}

/// `strace` with which a script is prefixed, writing to a file of the host.
fn strace(host: &Host) -> Option<String> {
    strace_of(host, CALLS)
}

/// The same, of these system calls.
fn strace_of(host: &Host, calls: &str) -> Option<String> {
    if Command::new("strace").arg("-V").stdout(Stdio::null()).status().is_err() {
        println!("SKIPPED: there is no strace");
        return None;
    }
    let trace = host.path("trace").display().to_string();
    Some(format!("strace -f -y -qq -s 0 -e trace={calls} -o {trace}"))
}

/// What the trace says, but for what failed. A call that others interrupt counts where it ends.
fn trace(host: &Host) -> Vec<Done> {
    let text = fs::read_to_string(host.path("trace")).expect("strace writes what it saw");
    let mut begun = std::collections::BTreeMap::new();
    let mut done = Vec::new();
    for line in text.lines() {
        let Some((thread, rest)) = line.split_once(' ') else { continue };
        let rest = rest.trim_start();
        if let Some(head) = rest.strip_suffix("<unfinished ...>") {
            begun.insert(thread, head.to_owned());
            continue;
        }
        let call = match rest.strip_prefix("<... ").and_then(|rest| rest.split_once("resumed>")) {
            Some((_, tail)) => begun.remove(thread).unwrap_or_default() + tail,
            None => rest.to_owned(),
        };
        let result = call.rsplit_once("= ").and_then(|(_, result)| result.trim().parse().ok());
        let Some::<u64>(_) = result else { continue };
        done.extend(read(&call));
    }
    done
}

fn read(call: &str) -> Option<Done> {
    let name = call.split('(').next()?;
    let quoted: Vec<_> = call.split('"').skip(1).step_by(2).map(str::to_owned).collect();
    // As the file is called then: a draft is renamed later.
    let open = || Some(call.split('<').nth(1)?.split('>').next()?.to_owned());
    Some(match name {
        "write" | "writev" => Done::Wrote(open()?),
        "fsync" | "fdatasync" => Done::Synced(open()?),
        "mkdir" | "mkdirat" => Done::Made(quoted.first()?.clone()),
        _ => Done::Named(quoted.first()?.clone(), quoted.get(1)?.clone()),
    })
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or(".", |(parent, _)| parent)
}

/// Panics unless so many files got a name that contains `part`, and each was synced before that
/// and its directory after that. More may be under way.
#[track_caller]
fn assert_names_are_durable(done: &[Done], part: &str, count: usize) {
    let mut left = count;
    for (at, step) in done.iter().enumerate() {
        let Done::Named(from, to) = step else { continue };
        if left == 0 || !to.contains(part) {
            continue;
        }
        left -= 1;
        let synced = |steps: &[Done], what: &str| steps.contains(&Done::Synced(what.to_owned()));
        assert!(synced(&done[..at], from), "{to} got its name before its content was synced");
        assert!(synced(&done[at..], parent(to)), "the name {to} was not synced");
    }
    assert_eq!(left, 0, "of {count} names that contain {part}: {done:?}");
}

#[test]
fn a_record_is_on_the_disk_and_so_is_every_directory_above_it() {
    needs_kvm!();
    let host = Host::new();
    let Some(strace) = strace(&host) else { return };
    let a = Guest::boot(&host, "a", &spec(64, "500", 16), &["--mem", "64M"]);
    // A state directory that is not there, and neither is the one above it.
    let there = host.path("there");
    let state = there.join("new/state");
    let receive = format!(
        "exec:XDG_RUNTIME_DIR={} XDG_STATE_HOME={} {strace} mig-recv -q --confine=off \
         --console null 2>{}",
        there.display(),
        state.display(),
        // strace holds it for as long as the guest lives.
        host.path("recv.err").display()
    );
    host.run("mig-send", &["-q", "a", &receive]).expect(0);
    let mut vmruns = host.processes().into_iter().filter(|(pid, _)| *pid != a.pid());
    let (vmrun, _) = vmruns.find(|(_, name)| name == "vmrun").expect("the guest's");
    let migrations = state.join("vmrun/migrations");
    let record = || {
        let entries = fs::read_dir(&migrations).unwrap().map(|entry| entry.unwrap().path());
        let mut records = entries.filter_map(|path| fs::read_to_string(path).ok());
        records.any(|text| text.contains("\"Ran\""))
    };
    wait("the last record", record);
    // Whatever else is to be done for it is done when its thread has ended; strace, which holds each
    // thread to its end, has written that down by then.
    let recorder = || {
        let tasks = fs::read_dir(format!("/proc/{vmrun}/task")).expect("it runs");
        let name = |task: &fs::DirEntry| fs::read_to_string(task.path().join("comm"));
        tasks.flatten().any(|task| name(&task).is_ok_and(|name| name.trim() == "go-timer"))
    };
    wait("the recorder's end", || !recorder());
    let done = trace(&host);
    // The host's identity; may run, then ran.
    assert_names_are_durable(&done, "/migrations/", 3);

    let first_record = done
        .iter()
        .position(|step| matches!(step, Done::Named(_, to) if to.contains("/migrations/")))
        .unwrap();
    for dir in migrations.ancestors().take(4) {
        let dir = dir.to_str().unwrap();
        let made = done.iter().position(|step| *step == Done::Made(dir.to_owned()));
        let made = made.unwrap_or_else(|| panic!("{dir} was not made: {done:?}"));
        let synced = done[made..first_record].contains(&Done::Synced(parent(dir).to_owned()));
        assert!(synced, "the name of {dir} was not synced before the first record");
    }
    for dir in [&state, &state.join("vmrun"), &migrations] {
        let mode = fs::metadata(dir).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode, 0o700, "{} is for its user alone", dir.display());
    }
}

#[test]
fn a_saved_guest_is_on_the_disk_before_its_source_ends() {
    needs_kvm!();
    for (to, named) in [("file:", 1), (">", 0)] {
        let host = Host::new();
        let calls = format!("{CALLS},write,writev");
        let Some(strace) = strace_of(&host, &calls) else { return };
        let mut a = Guest::boot(&host, "a", &spec(64, "500", 16), &["--mem", "64M"]);
        let file = host.path("a.mig").display().to_string();
        host.sh(&format!("exec {strace} mig-send -q --confine=off a {to}{file}")).expect(0);
        assert_eq!(a.ended(), Some(0));
        let done = trace(&host);
        assert_names_are_durable(&done, "a.mig", named);
        // The end of the stream too, which is written after all else was synced; and the name last.
        let written = if named == 1 { format!("{file}.part") } else { file.clone() };
        let last = |step: Done| done.iter().rposition(|it| *it == step);
        let end = last(Done::Wrote(written.clone()));
        let content = last(Done::Synced(written));
        let name = last(Done::Synced(parent(&file).to_owned()));
        assert!(end.is_some() && end < content && content < name, "{done:?}");
    }
}

#[test]
fn a_saved_guest_runs_after_its_record_says_so() {
    needs_kvm!();
    let host = Host::new();
    let Some(strace) = strace(&host) else { return };
    let mut a = Guest::boot(&host, "a", &spec(64, "500", 16), &["--mem", "64M"]);
    let file = format!("file:{}", host.path("a.mig").display());
    host.run("mig-send", &["-q", "a", &file]).expect(0);
    assert_eq!(a.ended(), Some(0));
    let script = format!("exec {strace} mig-recv -q --confine=off --console null {file}");
    let mut recv = host.shell(&script).spawn().unwrap();
    wait("the guest", || host.state("a").as_deref() == Some("running"));
    // Two are there when it runs, whatever comes later: "restoring" and "may run".
    let done = trace(&host);
    // strace ends with the guest.
    host.run("vmctl", &["quit", "a"]).expect(0);
    recv.wait().unwrap();
    assert_names_are_durable(&done, "/migrations/", 2);
}

#[test]
fn a_guest_that_ends_as_soon_as_it_arrived_is_known_to_have_run() {
    needs_kvm!();
    let (host, there) = (Host::new(), Host::new());
    let Some(strace) = strace(&there) else { return };
    let a = Guest::boot(&host, "a", &spec(64, "500", 16), &["--mem", "64M"]);
    // Its record gets its name a second late.
    let receive = format!(
        "exec:XDG_RUNTIME_DIR={} XDG_STATE_HOME={} {strace} \
         -e inject=rename,renameat,renameat2:delay_enter=1000000 \
         mig-recv -q --confine=off --console null --name b 2>{}",
        there.path("run").display(),
        there.path("state").display(),
        there.path("recv.err").display(),
    );
    // It waits for the tunnel, which strace holds.
    let mut sender = host.command("mig-send").args(["-q", "a", &receive]).spawn().unwrap();
    let runs = || there.run("vmctl", &["status", "b"]).stdout.contains("running");
    wait("the guest to run there", runs);
    there.run("vmctl", &["quit", "b"]).expect(0);
    assert!(sender.wait().unwrap().success());
    drop(a);
    let records = there.path("state/vmrun/migrations");
    let files = || fs::read_dir(&records).expect("a directory").flatten();
    let record = files().find(|it| it.file_name().len() == 36).expect("a record").path();
    assert!(fs::read_to_string(&record).unwrap().contains("\"Ran\""), "{}", record.display());
    let drafts = files().filter(|it| it.file_name().to_string_lossy().starts_with('.')).count();
    assert_eq!(drafts, 0, "drafts are left over");
}
