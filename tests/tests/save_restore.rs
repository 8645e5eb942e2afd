//! A guest in a file.

use migpipe_tests::{Guest, Host, assert_one_story, needs_kvm, spec};

/// Starts a guest of the same name at once: there is no wait before it.
fn boot_again(host: &Host, name: &str) -> Guest {
    let console = host.path("again.console");
    Guest::boot_at(host, name, &console, &spec(64, "500", 8), &["--mem", "128M"])
}

/// A guest whose end takes a while: there is memory to be freed.
fn large(host: &Host) -> Guest {
    Guest::boot(host, "web", &spec(256, "1000", 300), &["--mem", "512M"])
}

#[test]
fn a_guest_that_was_ended_has_left_its_name() {
    needs_kvm!();
    let host = Host::new();
    let mut a = large(&host);
    host.run("vmctl", &["quit", "web"]).expect(0);
    let mut b = boot_again(&host, "web");
    b.assert_runs();
    assert_eq!(a.ended(), Some(0));
}

#[test]
fn a_guest_that_has_moved_has_left_its_name_and_its_disks() {
    needs_kvm!();
    let (host, there) = (Host::new(), Host::new());
    let disk = host.path("web.raw");
    std::fs::File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    let disk = disk.display().to_string();
    let kernel = spec(256, "1000", 300);
    let mut a = Guest::boot(&host, "web", &kernel, &["--mem", "512M", "--disk", &disk]);
    let elsewhere = host.path("other.raw").display().to_string();
    std::fs::copy(&disk, &elsewhere).unwrap();
    let receive = format!("mig-recv -q --console null --disk disk0={elsewhere}");
    let to = format!("exec:{}", there.remote(&receive));
    host.run("mig-send", &["-q", "web", &to]).expect(0);
    let console = host.path("again.console");
    let mut b = Guest::boot_at(
        &host,
        "web",
        &console,
        &spec(64, "500", 8),
        &["--mem", "128M", "--disk", &disk],
    );
    b.assert_runs();
    assert_eq!(a.ended(), Some(0));
    assert_eq!(there.state("web").as_deref(), Some("running"));
}

#[test]
fn a_saved_guest_is_restored_at_once() {
    needs_kvm!();
    let host = Host::new();
    let a = large(&host);
    let file = format!("file:{}", host.path("web.mig").display());
    host.run("mig-send", &["-q", "web", &file]).expect(0);
    let b = a.console_of("restored");
    let console = format!("file:{}", b.path().display());
    host.run("mig-recv", &["-q", "--console", &console, &file]).expect(0);
    b.wait_ticks(3);
    assert_one_story(&[&a.console, &b]);
}

fn save(host: &Host) -> (Guest, String) {
    let mut a = Guest::boot(host, "web", &spec(256, "1000", 64), &["--mem", "128M", "--cpus", "2"]);
    let file = host.path("web.mig").display().to_string();
    host.run("mig-send", &["web", &format!("file:{file}")]).expect(0);
    assert_eq!(a.ended(), Some(0), "the guest is in the file and nowhere else");
    (a, file)
}

#[test]
fn a_saved_guest_is_restored_under_its_own_name() {
    needs_kvm!();
    let host = Host::new();
    let (a, file) = save(&host);
    let inspected = host.run("mig-inspect", &[&file]).expect(0);
    assert!(inspected.stdout.contains("web"), "{}", inspected.stdout);
    let b = a.console_of("restored");
    let console = format!("file:{}", b.path().display());
    host.run("mig-recv", &["--console", &console, &format!("file:{file}")]).expect(0);
    assert_eq!(host.state("web").as_deref(), Some("running"));
    b.wait_ticks(5);
    assert_one_story(&[&a.console, &b]);
}

#[test]
fn a_saved_guest_runs_once_unless_a_copy_is_asked_for() {
    needs_kvm!();
    let host = Host::new();
    let (a, file) = save(&host);
    let source = format!("file:{file}");
    host.run("mig-recv", &["--name", "one", "--console", "null", &source]).expect(0);
    host.run("mig-recv", &["--name", "two", "--console", "null", &source])
        .refused_with(&["two", "twice", "--clone"]);
    assert_eq!(host.state("two"), None);

    let b = a.console_of("copy");
    let console = format!("file:{}", b.path().display());
    let done = host
        .run("mig-recv", &["--clone", "--name", "two", "--console", &console, &source])
        .expect(0);
    assert!(done.stderr.contains("a copy of web"), "no warning: {}", done.stderr);
    b.wait_ticks(3);
    assert_one_story(&[&a.console, &b]);
    assert_eq!(host.state("one").as_deref(), Some("running"));
}

#[test]
fn a_full_disk_leaves_the_guest_running_and_no_file() {
    needs_kvm!();
    let host = Host::new();
    let mut a = Guest::boot(&host, "web", &spec(64, "500", 64), &["--mem", "128M"]);
    // A file system of its own that is too small.
    let dir = host.path("small");
    std::fs::create_dir(&dir).unwrap();
    let script = format!(
        "unshare --mount sh -c 'mount -t tmpfs -o size=8m none {dir} && \
         mig-send web file:{dir}/web.mig; status=$?; ls -A {dir}; exit $status'",
        dir = dir.display()
    );
    if host.sh("unshare --mount true").status != Some(0) {
        println!("SKIPPED a_full_disk: this user may not make a mount namespace");
        return;
    }
    let done = host.sh(&script).expect(1);
    assert!(done.stderr.contains("No space left"), "{}", done.stderr);
    assert_eq!(done.stdout, "", "something is left over");
    a.assert_runs();
    assert_one_story(&[&a.console]);
}
