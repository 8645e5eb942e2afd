//! The files that a stream names: which of them a receiver opens.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use migpipe_tests::{Console, Done, Guest, Host, Image, assert_one_story, needs_kvm, spec};

fn small() -> String {
    spec(64, "500", 16)
}

/// Sends a guest to a mig-recv of another host.
fn send(from: &Host, guest: &str, to: &Host, recv: &str) -> Done {
    from.run("mig-send", &["-q", guest, &format!("exec:{}", to.remote(recv))])
}

/// Where guests that arrive have their files, if nothing else is said.
fn guests(host: &Host) -> PathBuf {
    host.path("state/vmrun/guests")
}

/// A file that its user needs as it is.
fn precious(host: &Host) -> PathBuf {
    let file = host.path("authorized_keys");
    fs::write(&file, "ssh-ed25519 AAAA somebody\n").unwrap();
    file
}

/// A guest whose stream says that its console is `file`: its source has it elsewhere by now.
fn boot_with_console(host: &Host, name: &str, file: &Path) -> Guest {
    let before = fs::read(file).unwrap();
    let guest = Guest::boot(host, name, &small(), &["--mem", "64M"]);
    let described = guest.console.path().to_owned();
    // The stream names the console of the command line, so that is where a link leads.
    host.run("vmctl", &["pause", name]).expect(0);
    fs::remove_file(&described).unwrap();
    symlink(file, &described).unwrap();
    host.run("vmctl", &["resume", name]).expect(0);
    assert_eq!(fs::read(file).unwrap(), before, "its source writes on into the removed file");
    guest
}

#[test]
fn a_stream_does_not_write_a_file_that_its_receiver_has_not_named() {
    needs_kvm!();
    let (here, there) = (Host::new(), Host::new());
    let file = precious(&there);
    let before = fs::read(&file).unwrap();
    let mut a = boot_with_console(&here, "a", &file);
    let done = send(&here, "a", &there, "mig-recv").expect(0);
    assert_eq!(a.ended(), Some(0), "it is no reason to stay");
    let own = guests(&there).join("a.serial0.log");
    for word in ["console of a goes to", &own.display().to_string(), "a.console", "--files-in"] {
        assert!(done.stderr.contains(word), "'{word}' is not in {}", done.stderr);
    }
    Console::at(&own).wait_ticks(3);
    assert_eq!(fs::read(&file).unwrap(), before);
}

#[test]
fn both_consoles_that_are_elsewhere_go_to_files_and_a_quiet_receiver_says_nothing() {
    needs_kvm!();
    let (here, there) = (Host::new(), Host::new());
    let hvc0 = format!("unix:{}", here.path("a.hvc0").display());
    let mut a = Guest::boot(&here, "a", &small(), &["--mem", "64M", "--virtio-console", &hvc0]);
    let done = send(&here, "a", &there, "mig-recv -q --name b").expect(0);
    assert_eq!((a.ended(), done.stderr.as_str()), (Some(0), ""));
    let b = Console::at(&guests(&there).join("b.serial0.log"));
    b.wait_ticks(3);
    assert!(guests(&there).join("b.console0.log").exists());
    assert_one_story(&[&a.console, &b]);
}

#[test]
fn a_disk_that_a_stream_names_is_refused_and_left_alone() {
    needs_kvm!();
    let (here, there) = (Host::new(), Host::new());
    let image = Image::create(&here.path("web.raw"), 64);
    let before = fs::read(image.name()).unwrap();
    let mut a = Guest::boot(&here, "a", &small(), &["--mem", "64M", "--disk", image.name()]);
    let words = ["block disk0 is at", image.name(), "--disk", "--files-in", "a runs on here"];
    send(&here, "a", &there, "mig-recv -q 2>/dev/null").refused_with(&words);
    // A link in the directory of guests leads where it leads.
    let link = guests(&there).join("web.raw");
    symlink(image.name(), &link).unwrap();
    let linked = format!("mig-recv -q --files-in {} 2>/dev/null", guests(&there).display());
    send(&here, "a", &there, &format!("{linked} --console null")).refused_with(&words);
    a.assert_runs();
    assert!(image.is_held_by(a.pid()));
    assert_eq!(fs::read(image.name()).unwrap(), before);

    // What its receiver names is meant, and who wants the stream to choose can have that.
    let copy = Image::create(&there.path("copy.raw"), 64);
    let named = format!("mig-recv -q --disk disk0={}", copy.name());
    send(&here, "a", &there, &named).expect(0);
    assert!(copy.is_held_by(there.pid("a").unwrap()));
    let third = Host::new();
    let to_third = third.remote("mig-recv -q --files-anywhere --console null");
    there.run("mig-send", &["-q", "a", &format!("exec:{to_third}")]).expect(0);
    assert!(copy.is_held_by(third.pid("a").unwrap()));
}

#[test]
fn a_disk_in_the_directory_of_guests_needs_no_word() {
    needs_kvm!();
    let (here, there) = (Host::new(), Host::new());
    fs::create_dir_all(guests(&there)).unwrap();
    // One directory of both hosts, as on a network file system.
    let image = Image::create(&guests(&there).join("web.raw"), 64);
    let mut a = Guest::boot(&here, "a", &small(), &["--mem", "64M", "--disk", image.name()]);
    send(&here, "a", &there, "mig-recv -q").expect(0);
    assert_eq!(a.ended(), Some(0));
    assert!(image.is_held_by(there.pid("a").unwrap()));
}

#[test]
fn a_guest_that_comes_home_finds_its_files_and_no_other_guest_does() {
    needs_kvm!();
    let (home, away) = (Host::new(), Host::new());
    let image = Image::create(&home.path("web.raw"), 64);
    let mut web = Guest::boot(&home, "web", &small(), &["--mem", "64M", "--disk", image.name()]);
    let there =
        format!("mig-recv -q --files-anywhere --console file:{}/web.log", away.path("").display());
    send(&home, "web", &away, &there).expect(0);
    assert_eq!(web.ended(), Some(0));
    Console::at(&away.path("web.log")).wait_ticks(3);
    let console = "--console null";
    let back = |options: &str| {
        let recv = home.remote(&format!("mig-recv -q {console} {options}"));
        away.run("mig-send", &["-q", "web", &format!("exec:{recv}")])
    };
    back("--name w2").expect(0);
    assert!(image.is_held_by(home.pid("w2").unwrap()), "its disk, under another name");

    // From there it moves on within the host, and is known under that name too.
    home.run("mig-send", &["-q", "w2", "exec:mig-recv -q --name w3"]).expect(0);
    assert!(image.is_held_by(home.pid("w3").unwrap()));

    // Another guest, away, that names the same disk.
    let disk = format!("{},ro,id=disk0", image.name());
    home.run("vmctl", &["quit", "w3"]).expect(0);
    let other = Guest::boot(&away, "other", &small(), &["--mem", "64M", "--disk", &disk]);
    let recv = format!("exec:{}", home.remote("mig-recv -q 2>/dev/null"));
    away.run("mig-send", &["-q", "other", &recv])
        .refused_with(&["block disk0 is at", "--files-in"]);
    drop(other);
}

#[test]
fn a_guest_that_is_saved_and_restored_on_its_host_has_its_console_and_disk() {
    needs_kvm!();
    let host = Host::new();
    let image = Image::create(&host.path("web.raw"), 64);
    let mut web = Guest::boot(&host, "web", &small(), &["--mem", "64M", "--disk", image.name()]);
    let file = format!("file:{}", host.path("web.mig").display());
    host.run("mig-send", &["-q", "web", &file]).expect(0);
    assert_eq!(web.ended(), Some(0));
    let before = web.console.text().len();
    assert_eq!(host.run("mig-recv", &[&file]).expect(0).stderr.lines().count(), 1);
    web.console.wait_ticks(3);
    assert!(web.console.text().len() > before, "its console goes on where it was");
    assert!(image.is_held_by(host.pid("web").unwrap()));
}
