//! What scripts read: docs/json.md and the programs say the same.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Stdio;

use migpipe_tests::{Done, Guest, Host, needs_kvm, spec, wait};
use serde_json::Value;

fn file(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name)).unwrap()
}

/// The keys that the page has under a heading.
fn documented(heading: &str) -> BTreeSet<String> {
    let page = file("docs/json.md");
    let section = page.split(&format!("\n## {heading}\n")).nth(1).expect("the section");
    let section = section.split("\n## ").next().unwrap();
    let keys = section.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    keys.map(str::to_owned).collect()
}

/// Every key of a value that leads to no object.
fn keys(value: &Value, path: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                let dot = if path.is_empty() { "" } else { "." };
                keys(value, &format!("{path}{dot}{key}"), found);
            }
        }
        Value::Array(list) if list.iter().any(Value::is_object) => {
            list.iter().for_each(|value| keys(value, &format!("{path}[]"), found));
        }
        _ => drop(found.insert(path.to_owned())),
    }
}

/// Compares what the page says with what was printed, both ways.
#[track_caller]
fn compare(heading: &str, samples: &[Value]) {
    let (documented, mut printed) = (documented(heading), BTreeSet::new());
    samples.iter().for_each(|sample| keys(sample, "", &mut printed));
    let covers = |told: &str, key: &str| match told.strip_suffix(".*") {
        Some(above) => key == above || key.starts_with(&format!("{above}.")),
        // An object or a list that is not there is null or empty.
        None => {
            told == key
                || told.starts_with(&format!("{key}."))
                || told.starts_with(&format!("{key}[]"))
        }
    };
    for key in &printed {
        assert!(documented.iter().any(|told| covers(told, key)), "{heading}: {key} is not told");
    }
    for told in &documented {
        let exactly = |key: &String| key == told || told.ends_with(".*") && covers(told, key);
        assert!(printed.iter().any(exactly), "{heading}: nobody prints {told}");
    }
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// All values of a text, on however many lines.
fn values(text: &str) -> Vec<Value> {
    serde_json::Deserializer::from_str(text).into_iter().map(Result::unwrap).collect()
}

/// The one object that a program says on stderr when it fails.
#[track_caller]
fn fault(done: &Done) -> Value {
    let said: Vec<_> = done.stderr.lines().collect();
    assert_eq!(said.len(), 1, "{done:#?}");
    let fault: Value = serde_json::from_str(said[0]).unwrap();
    assert_eq!(fault["code"], done.status.unwrap());
    assert_eq!(fault["version"], 1);
    fault
}

#[test]
fn what_a_host_can_give_to_a_guest() {
    needs_kvm!();
    let host = Host::new();
    let own = host.run("vmctl", &["cpu"]).expect(0).stdout;
    compare("Processors", &[serde_json::from_str(&own).unwrap()]);
}

#[test]
fn what_went_wrong_is_one_object_with_the_guest_and_who_has_it() {
    needs_kvm!();
    let host = Host::new();
    let mut a = Guest::boot(&host, "a", &spec(64, "500", 8), &["--mem", "64M"]);
    let mut faults = Vec::new();
    for (program, args, status, guest, at) in [
        ("mig-send", &["--json", "a", "exec:exit 3"][..], 1, Some("a"), Some("source")),
        ("mig-send", &["--json", "a", "fd:99"], 2, Some("a"), Some("source")),
        ("mig-send", &["--json", "nobody", "exec:true"], 1, Some("nobody"), None),
        ("mig-send", &["--json", "--resolve", "a", "exec:true"], 1, Some("a"), None),
        ("mig-send", &["--json", "--nonsense"], 2, None, None),
        ("mig-recv", &["--json"], 2, None, None),
        ("mig-recv", &["--json", "file:/nonexistent"], 1, None, None),
        ("mig-recv", &["--json", "--console", "stdio"], 2, None, None),
        ("vmctl", &["--json", "status", "nobody"], 1, Some("nobody"), None),
        ("vmctl", &["balloon", "a", "1M", "--json"], 1, Some("a"), None),
        ("vmctl", &["--json", "list", "--nonsense"], 2, None, None),
        ("mig-inspect", &["--json", "/nonexistent"], 1, None, None),
        ("vmrun", &["--json", "--name", "b", "--kernel", "/nonexistent"], 1, Some("b"), None),
        ("vmrun", &["--json", "--name", "a", "--kernel", "builtin:idle"], 1, Some("a"), None),
        ("vmrun", &["--json", "--name", "b", "--kernel", "builtin:x"], 2, Some("b"), None),
        ("vmrun", &["--json", "--name", "b"], 2, None, None),
    ] {
        let done = host.run(program, args).expect(status);
        let fault = fault(&done);
        assert_eq!(fault["program"], program);
        assert_eq!(fault["guest"].as_str(), guest, "{args:?}: {fault}");
        assert_eq!(fault["guest_is_at"].as_str(), at, "{args:?}: {fault}");
        assert!(!fault["what"].as_str().unwrap().is_empty(), "{args:?}");
        faults.push(fault);
    }
    compare("What went wrong", &faults);
    a.assert_runs();
    // Where all goes well there is nothing to be said.
    let done = host.run("mig-send", &["--json", "a", "exec:mig-recv --json -q --name b"]).expect(0);
    assert_eq!(done.stderr, "");
}

#[test]
fn what_a_migration_would_come_to() {
    needs_kvm!();
    let host = Host::new();
    let mut a = Guest::boot(&host, "a", &spec(64, "500", 8), &["--mem", "64M"]);
    let dest = "exec:mig-recv -q --name b --console null";
    let asked = ["-n", "--json", "--max-bandwidth", "64M", "a", dest];
    let done = host.run("mig-send", &asked).expect(0);
    assert_eq!(done.stderr, "");
    let refused = ["-n", "--json", "a", "exec:mig-recv --console null"];
    let taken = host.run("mig-send", &refused).expect(1);
    let fault = fault(&taken);
    assert!(fault["what"].as_str().unwrap().contains("name: a guest named a is"), "{fault}");
    assert_eq!((&fault["guest"], &fault["guest_is_at"]), (&"a".into(), &"source".into()));
    let not_asked = host.run("mig-send", &["-n", "--json", "a"]).expect(0);
    let samples = [done, taken, not_asked].map(|it| serde_json::from_str(&it.stdout).unwrap());
    compare("What a migration would come to", &samples);
    a.assert_runs();
}

#[test]
fn the_last_line_of_progress_says_what_became_of_the_migration() {
    needs_kvm!();
    let host = Host::new();
    let a = Guest::boot(&host, "a", &spec(64, "500", 8), &["--mem", "64M"]);
    let mut samples = Vec::new();
    for (dest, status, outcome, at) in [
        ("exec:exit 3", 1, "failed", Some("source")),
        ("tcp:127.0.0.1:1", 1, "failed", Some("source")),
        (
            "exec:mig-recv -q --name b --console null --report recv.json --progress-fd 8 8>recv",
            0,
            "completed",
            Some("destination"),
        ),
    ] {
        let file = host.path("progress");
        let script = format!(
            "cd {1} && exec mig-send -q --report {0}.json --progress-fd 7 a '{dest}' 7>{0}",
            file.display(),
            host.path("").display()
        );
        host.sh(&script).expect(status);
        let lines = lines(&fs::read_to_string(&file).unwrap());
        let (last, before) = lines.split_last().unwrap();
        assert_eq!(last["outcome"], outcome, "{dest}");
        assert_eq!(last["guest_is_at"].as_str(), at, "{dest}");
        assert_eq!((&last["phase"], &last["guest"]), (&"done".into(), &"a".into()));
        assert!(before.iter().all(|line| line["outcome"].is_null()));
        let report: Value =
            serde_json::from_str(&fs::read_to_string(file.with_extension("json")).unwrap())
                .unwrap();
        assert_eq!(last["migration"], report["migration"]);
        let times: Vec<_> = lines.iter().map(|line| line["time_ns"].as_u64().unwrap()).collect();
        assert!(times.is_sorted(), "{times:?}");
        samples.extend(lines);
        if status == 0 {
            let golden = file_of_a_report();
            compare("Report", &[report, golden]);
            let text = |name: &str| fs::read_to_string(host.path(name)).unwrap();
            compare("Report of mig-recv", &values(&text("recv.json")));
            samples.extend(values(&text("recv")));
        }
    }
    compare("Progress", &samples);
    drop(a);
}

/// One in which everything happened that can.
fn file_of_a_report() -> Value {
    serde_json::from_str(&file("crates/mig-engine/src/report/golden/migrated.json")).unwrap()
}

#[test]
fn what_vmctl_and_mig_inspect_print_is_what_the_page_says() {
    needs_kvm!();
    let host = Host::new();
    let memory = ["--mem", "64M", "--balloon"];
    let mut a = Guest::boot(&host, "a", &spec(64, "500", 16), &memory);
    let mut sending = host
        .command("mig-send")
        .args(["-q", "--max-bandwidth", "4M", "a", "exec:exec cat >/dev/null"])
        .args(["--return", "none"])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let value = |args: &[&str]| -> Option<Value> {
        serde_json::from_str(&host.run("vmctl", args).stdout).ok()
    };
    let mut info = None;
    wait("progress", || {
        info = value(&["--json", "info", "a"]);
        info.as_ref().is_some_and(|info| info["phase"] == "pre_copy")
    });
    let list = value(&["--json", "list"]).unwrap();
    let status = value(&["--json", "status", "a"]).unwrap();
    compare("vmctl list and status", &[list[0].clone(), status]);
    compare("vmctl info", &[info.unwrap()]);
    host.run("vmctl", &["cancel", "a"]).expect(0);
    sending.wait().unwrap();
    // A guest that comes, one that leaves, one that ends, and a file.
    let saved = host.path("a.mig");
    let events = host
        .command("vmctl")
        .args(["--json", "events", "a", "--until", "ended"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    host.run("vmctl", &["pause", "a"]).expect(0);
    host.run("vmctl", &["resume", "a"]).expect(0);
    host.run("mig-send", &["-q", "a", &format!("file:{}", saved.display())]).expect(0);
    assert_eq!(a.ended(), Some(0));
    let events = events.wait_with_output().unwrap();
    compare("vmctl events", &lines(&String::from_utf8(events.stdout).unwrap()));
    let inspected = host.run("mig-inspect", &["--json", saved.to_str().unwrap()]).expect(0);
    let flipped = host.path("flipped");
    let mut bytes = fs::read(&saved).unwrap();
    let end = bytes.len() - 1;
    bytes[end] ^= 1;
    fs::write(&flipped, bytes).unwrap();
    let damaged = host.run("mig-inspect", &["--json", flipped.to_str().unwrap()]).expect(1);
    compare("mig-inspect", &[lines(&inspected.stdout), lines(&damaged.stdout)].concat());
    host.run(
        "mig-recv",
        &["-q", "--name", "b", saved.to_str().map(|it| format!("file:{it}")).unwrap().as_str()],
    )
    .expect(0);
    compare("vmctl records", &[value(&["--json", "records"]).unwrap()]);
}

#[test]
fn a_script_waits_for_a_state() {
    needs_kvm!();
    let host = Host::new();
    let waiting = |state: &str| {
        let mut command = host.command("vmctl");
        command.args(["wait", "a", state]).spawn().unwrap()
    };
    let mut first = waiting("running");
    let a = Guest::boot(&host, "a", &spec(64, "500", 1), &["--mem", "64M"]);
    assert!(first.wait().unwrap().success());
    host.run("vmctl", &["wait", "a", "running"]).expect(0);
    host.run("vmctl", &["wait", "a", "paused", "--timeout", "0.1"])
        .refused_with(&["a is running and not paused"]);
    // A script that asks again and again: vmrun serves 64 clients at once.
    for _ in 0..80 {
        host.run("vmctl", &["wait", "a", "paused", "--timeout", "0"]).expect(1);
    }
    let mut paused = waiting("paused");
    host.run("vmctl", &["pause", "a"]).expect(0);
    assert!(paused.wait().unwrap().success());
    let mut ended = waiting("ended");
    host.run("vmctl", &["quit", "a"]).expect(0);
    assert!(ended.wait().unwrap().success());
    host.run("vmctl", &["wait", "a", "asleep"]).expect(2);
    drop(a);
}
