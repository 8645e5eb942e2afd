//! The main job: a guest moves while it works, and proves by itself that nothing was lost.

use std::time::Duration;

use migpipe_tests::{Guest, Host, assert_one_story, needs_kvm, report, spec, wait};

/// The case of the README: 400 MiB of random data and a hot set of 1,024 pages.
fn busy() -> String {
    spec(1024, "2000", 400)
}

#[test]
fn a_guest_moves_through_a_plain_pipe() {
    needs_kvm!();
    for cpus in ["1", "2"] {
        let host = Host::new();
        let mut a = Guest::boot(&host, "a", &busy(), &["--mem", "512M", "--cpus", cpus]);
        let b = a.console_of("b");
        let script = format!(
            "mig-send --verify a | mig-recv --name b --console file:{}",
            b.path().display()
        );
        host.sh(&script).expect(0);
        b.wait_ticks(10);
        a.assert_stands_still();
        assert_eq!(host.state("a").as_deref(), Some("handed-over"));
        assert_eq!(host.state("b").as_deref(), Some("running"));
        assert_one_story(&[&a.console, &b]);

        // Nobody can run the source by mistake; who asks the destination finishes the story.
        assert_eq!(host.run("vmctl", &["resume", "a"]).status, Some(1));
        assert_eq!(host.run("vmctl", &["quit", "a"]).status, Some(1));
        host.run("mig-send", &["--resolve", "a", "exec:mig-recv"]).expect(0);
        assert_eq!(a.ended(), Some(0));
        assert_eq!(host.state("b").as_deref(), Some("running"));
    }
}

#[test]
fn a_guest_moves_with_a_handover() {
    needs_kvm!();
    for cpus in ["1", "2"] {
        let host = Host::new();
        let mut a = Guest::boot(&host, "a", &busy(), &["--mem", "512M", "--cpus", cpus]);
        let b = a.console_of("b");
        let file = host.path("report.json");
        let destination = b.as_destination("b");
        let done = host
            .run("mig-send", &["a", &destination, "--report", file.to_str().unwrap()])
            .expect(0);
        assert_eq!(a.ended(), Some(0), "the source ends after RUNNING");
        b.wait_ticks(10);
        assert_one_story(&[&a.console, &b]);

        let report = report(&file);
        let inside = b.ticks().iter().map(|tick| tick.gap_us).max().unwrap();
        println!(
            "{cpus} vCPU(s): downtime {:.2} ms as mig-send saw it, longest gap inside the guest \
             {:.2} ms (goal 20 ms); {:.0} ms in all, {} sent",
            report.downtime.total.unwrap().as_secs_f64() * 1e3,
            inside as f64 / 1e3,
            report.totals.duration.as_secs_f64() * 1e3,
            report.totals.bytes,
        );
        assert!(inside < 500_000, "the guest stood still for {inside} us");
        assert!(done.stderr.contains("first instruction"), "no table: {}", done.stderr);
    }
}

#[test]
fn digests_of_the_whole_memory_agree() {
    needs_kvm!();
    let host = Host::new();
    let a = Guest::boot(&host, "a", &busy(), &["--mem", "512M", "--cpus", "2"]);
    let b = a.console_of("b");
    let destination = b.as_destination("b");
    host.run("mig-send", &["--verify", "a", &destination]).expect(0);
    b.wait_ticks(3);
    assert_one_story(&[&a.console, &b]);
}

#[test]
fn ten_migrations_in_a_row_lose_nothing() {
    needs_kvm!();
    let host = Host::new();
    let a = Guest::boot(&host, "a", &spec(1024, "max", 32), &["--mem", "128M", "--cpus", "2"]);
    let mut consoles = vec![a.console.clone()];
    for hop in 0..10 {
        let (from, to) = if hop % 2 == 0 { ("a", "b") } else { ("b", "a") };
        wait("the name to be free", || host.state(to).is_none());
        let console = a.console_of(&format!("hop{hop}"));
        let destination = console.as_destination(to);
        // At its full rate the guest outruns a busy machine now and then.
        host.run("mig-send", &["--on-stall", "stop", from, &destination]).expect(0);
        console.wait_ticks(3);
        consoles.push(console);
    }
    let story: Vec<_> = consoles.iter().collect();
    assert_one_story(&story);
}

#[test]
fn memory_above_the_hole_moves() {
    needs_kvm!();
    let host = Host::new();
    // More than fits below the hole: most of it lies above 4 GiB.
    let a = Guest::boot(&host, "a", &spec(1024, "2000", 4608), &["--mem", "6G"]);
    let b = a.console_of("b");
    let destination = b.as_destination("b");
    host.run("mig-send", &["a", &destination]).expect(0);
    b.wait_ticks(3);
    assert_one_story(&[&a.console, &b]);
}

/// Moves an untouched guest with so much memory: how long that took (seconds), and what mig-send held
/// (KiB).
fn move_untouched(host: &Host, name: &str, memory: &str) -> (f64, f64) {
    let a = Guest::boot(host, name, "builtin:idle,tick-ms=20", &["--mem", memory]);
    let there = format!("{name}-there");
    let b = a.console_of(&there);
    let script = format!(
        "/usr/bin/time -f 'rss %M wall %e' mig-send -q {name} \
         exec:'mig-recv --quiet --name {there} --console file:{}'",
        b.path().display()
    );
    let done = host.sh(&script).expect(0);
    let words: Vec<_> = done.stderr.split_whitespace().collect();
    let value = |name: &str| -> f64 {
        let at = words.iter().position(|word| *word == name).unwrap();
        words[at + 1].parse().unwrap()
    };
    b.wait_ticks(3);
    assert_one_story(&[&a.console, &b]);
    (value("wall"), value("rss"))
}

#[test]
fn an_untouched_guest_moves_in_no_time_and_in_little_memory() {
    needs_kvm!();
    let host = Host::new();
    let (small, _) = move_untouched(&host, "small", "16M");
    let (wall, rss_kib) = move_untouched(&host, "large", "16G");
    println!(
        "16 GiB untouched: {wall} s (16 MiB: {small} s), mig-send RSS {:.1} MiB",
        rss_kib / 1024.0
    );
    // Its pages are a thousand times as many.
    assert!(wall < 20.0 * small.max(0.05), "it took {wall} s, and 16 MiB took {small} s");
    // 64 MiB and the bitmaps: a bit for each of 4 Mi pages in each of four bitmaps.
    assert!(rss_kib < (64.0 + 2.0) * 1024.0, "mig-send holds {rss_kib} KiB");
}

#[test]
fn every_channel_carries_a_guest() {
    needs_kvm!();
    let host = Host::new();
    let mut name = "g0".to_owned();
    let guest = Guest::boot(&host, &name, &spec(64, "500", 16), &["--mem", "64M"]);
    let mut consoles = vec![guest.console.clone()];
    let socket = host.path("stream.sock").display().to_string();
    let fifo = host.path("back").display().to_string();
    host.sh(&format!("mkfifo {fifo}")).expect(0);
    let ways = [
        ("unix", format!("mig-recv unix:{socket} RECV & while ! test -S {socket}; do sleep 0.01; done; mig-send -q GUEST unix:{socket} && wait $!")),
        ("tcp", "mig-recv tcp:127.0.0.1:46917 RECV & for i in $(seq 100); do mig-send -q GUEST tcp:127.0.0.1:46917 2>/dev/null && break; sleep 0.05; done; wait $!".to_owned()),
        ("return stdin", format!("mig-send -q --return stdin GUEST < {fifo} | mig-recv RECV > {fifo}")),
        ("return fd", format!("mig-send -q --return fd:7 GUEST 7< {fifo} | mig-recv RECV > {fifo}")),
        ("fd", "exec 8> >(mig-recv RECV); mig-send -q GUEST fd:8; status=$?; exec 8>&-; wait $!; exit $status".to_owned()),
        ("zero copy", "mig-send -q --zero-copy --verify GUEST | mig-recv RECV".to_owned()),
        ("zero copy without a pipe", "mig-send -q --zero-copy --verify GUEST exec:'mig-recv RECV'".to_owned()),
        ("filter", "mig-send -q GUEST | gzip -1 | gunzip | mig-recv RECV".to_owned()),
        ("commit", "mig-send -q GUEST exec:'gzip -1 | gunzip | mig-recv RECV' --commit exec:'vmctl commit NAME'".to_owned()),
    ];
    for (at, (what, script)) in ways.iter().enumerate() {
        let next = format!("g{}", at + 1);
        let console = guest.console_of(&next);
        let recv = format!("--quiet --name {next} --console file:{}", console.path().display());
        let script = script.replace("RECV", &recv).replace("GUEST", &name).replace("NAME", &next);
        let done = host.sh(&script);
        assert_eq!(done.status, Some(0), "{what}: {done:#?}");
        console.wait_ticks(2);
        consoles.push(console);
        // One way the source waits for its resolution; otherwise it is about to end.
        if host.state(&name).as_deref() == Some("handed-over") {
            host.run("mig-send", &["--resolve", &name, "exec:mig-recv"]).expect(0);
        }
        name = next;
    }
    let story: Vec<_> = consoles.iter().collect();
    assert_one_story(&story);
}

#[test]
fn a_paused_guest_arrives_paused() {
    needs_kvm!();
    let host = Host::new();
    let a = Guest::boot(&host, "a", &spec(64, "500", 16), &["--mem", "64M"]);
    host.run("vmctl", &["pause", "a"]).expect(0);
    let b = a.console_of("b");
    let destination = b.as_destination("b");
    host.run("mig-send", &["a", &destination]).expect(0);
    assert_eq!(host.state("b").as_deref(), Some("paused"));
    b.assert_silent(Duration::from_millis(150));
    host.run("vmctl", &["resume", "b"]).expect(0);
    b.wait_ticks(3);
    assert_one_story(&[&a.console, &b]);
}

#[test]
fn a_guest_arrives_in_a_vmrun_that_waits_for_it() {
    needs_kvm!();
    let host = Host::new();
    let a = Guest::boot(&host, "a", &spec(64, "500", 16), &["--mem", "64M"]);
    let b = a.console_of("waiting");
    let console = format!("--console=file:{}", b.path().display());
    let mut waiting =
        host.command("vmrun").args(["--name", "waiting", "--incoming", &console]).spawn().unwrap();
    wait("the socket", || host.state("waiting").as_deref() == Some("incoming"));
    host.run("mig-send", &["a", "exec:mig-recv --vm waiting"]).expect(0);
    b.wait_ticks(3);
    assert_one_story(&[&a.console, &b]);
    host.run("vmctl", &["quit", "waiting"]).expect(0);
    assert_eq!(
        migpipe_tests::wait_within(&mut waiting, migpipe_tests::HANG_TIMEOUT).code(),
        Some(0)
    );
}

#[test]
fn any_elf_with_a_pvh_note_boots_and_moves() {
    needs_kvm!();
    let host = Host::new();
    let file = host.path("kernel.elf");
    std::fs::write(&file, vm_guest::IMAGE).unwrap();
    // As a file the same program is a kernel like any other: it gets one vCPU and reads its
    // command line.
    let append = "pages=64 rate=500 fill=random fill-mb=16 tick-ms=20 cpus=1";
    let kernel = file.display().to_string();
    let a = Guest::boot(&host, "a", &kernel, &["--mem", "64M", "--append", append]);
    let b = a.console_of("b");
    let destination = b.as_destination("b");
    host.run("mig-send", &["a", &destination]).expect(0);
    b.wait_ticks(3);
    assert_one_story(&[&a.console, &b]);
}

#[test]
fn a_guest_that_powers_off_ends_its_vmrun() {
    needs_kvm!();
    let host = Host::new();
    let mut a = Guest::start(&host, "a", "builtin:idle,tick-ms=10,run-ticks=5", &["--mem", "32M"]);
    assert_eq!(a.ended(), Some(0));
    assert!(a.console.text().contains("done ticks 5"), "{}", a.console.text());
    assert_eq!(host.sockets(), [] as [std::path::PathBuf; 0]);
}

#[test]
fn two_hosts_share_nothing() {
    needs_kvm!();
    let (one, two) = (Host::new(), Host::new());
    let a = Guest::boot(&one, "web", &spec(64, "500", 16), &["--mem", "64M"]);
    let console = two.path("web.console");
    let recv = two.remote(&format!("mig-recv --console file:{}", console.display()));
    one.run("mig-send", &["web", &format!("exec:{recv}")]).expect(0);
    wait("the source to end", || one.state("web").is_none());
    assert_eq!(two.state("web").as_deref(), Some("running"));
    let b = migpipe_tests::Console::at(&console);
    b.wait_ticks(3);
    assert_one_story(&[&a.console, &b]);
}
