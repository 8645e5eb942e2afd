//! The commands of docs/guide.md do what it says, and its messages are those of the programs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use migpipe_tests::{Host, Sshd, needs_kvm, run};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn guide() -> String {
    fs::read_to_string(root().join("docs/guide.md")).unwrap()
}

fn section<'a>(page: &'a str, title: &str) -> &'a str {
    let text = page.split(&format!("\n## {title}\n")).nth(1).unwrap_or_else(|| panic!("{title}"));
    text.split("\n## ").next().unwrap()
}

/// An ssh of `host` that knows how to get to the other host, as a user's ~/.ssh/config would.
fn ssh_of(host: &Host, sshd: &Sshd) -> PathBuf {
    let bin = host.path("bin");
    fs::create_dir(&bin).unwrap();
    let options: String = sshd.options().iter().map(|option| format!(" -o '{option}'")).collect();
    let script =
        format!("#!/bin/sh\nPATH=${{PATH#*:}}\nexec ssh{options} -o HostName=127.0.0.1 \"$@\"\n");
    let path = bin.join("ssh");
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    bin
}

#[test]
fn the_first_ten_minutes_can_be_pasted() {
    needs_kvm!();
    let (a, b) = (Host::new(), Host::new());
    let (Some(to_a), Some(to_b)) = (Sshd::open(&a), Sshd::open(&b)) else { return };
    let (of_a, of_b) = (ssh_of(&a, &to_b), ssh_of(&b, &to_a));
    let mut commands = Command::new(root().join("scripts/guide-commands"));
    let commands = run(commands.arg("Ten minutes with two hosts")).expect(0).stdout;
    let mut count = 0;
    for line in commands.lines() {
        let (host, command) = line.split_once('\t').expect("a host and a command");
        let (host, ssh) = match host {
            "hosta" => (&a, &of_a),
            "hostb" => (&b, &of_b),
            other => panic!("no host {other}"),
        };
        // What runs in the background has the terminal, and not the test's pipes.
        let script = match command.strip_suffix(" &") {
            Some(command) => format!("{command} >vmrun.out 2>&1 &"),
            None => command.to_owned(),
        };
        let mut shell: Command = host.shell(&format!("PATH={}:$PATH; {script}", ssh.display()));
        let done = run(shell.current_dir(host.path("")));
        assert_eq!(done.status, Some(0), "{line}: {done:#?}");
        count += 1;
    }
    assert!(count > 10, "only {count} commands");
    for host in [&a, &b] {
        assert_eq!(host.run("vmctl", &["list"]).expect(0).stdout.lines().count(), 1);
    }
}

/// All code and scripts, with strings that go on in the next line put together.
fn sources() -> String {
    let mut text = String::new();
    let mut dirs = vec![root().join("bins"), root().join("crates"), root().join("scripts")];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else if let Ok(file) = fs::read_to_string(&path) {
                for line in file.lines() {
                    match line.strip_suffix('\\') {
                        Some(begun) => text.push_str(begun.trim_start()),
                        None => text.push_str(&format!("{}\n", line.trim_start())),
                    }
                }
            }
        }
    }
    text
}

#[test]
fn every_message_that_is_explained_is_said_by_a_program() {
    let (page, sources) = (guide(), sources());
    let rows = section(&page, "When something goes wrong").lines();
    let mut count = 0;
    for row in rows.filter(|row| row.starts_with("| `")) {
        let message = row.split('`').nth(1).unwrap();
        for piece in message.split("...").map(str::trim).filter(|piece| !piece.is_empty()) {
            assert!(sources.contains(piece), "nobody says '{piece}'");
        }
        count += 1;
    }
    assert!(count > 10, "only {count} messages");
}
