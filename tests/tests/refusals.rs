//! What is refused, and how it is said: status 1, one line, the thing and the remedy in it.

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use mig_stream::{Header, StreamReader, StreamWriter};
use migpipe_tests::{Done, Guest, Host, finish, needs_kvm, run, spec, wait};
use vm_state::{KernelKind, MachineDescription};

/// A saved guest to be damaged.
fn saved(host: &Host) -> PathBuf {
    let mut a = Guest::boot(host, "web", &spec(64, "500", 16), &["--mem", "64M"]);
    let file = host.path("web.mig");
    host.run("mig-send", &["-q", "web", &format!("file:{}", file.display())]).expect(0);
    assert_eq!(a.ended(), Some(0));
    file
}

fn receive(host: &Host, file: &Path) -> Done {
    host.run("mig-recv", &["--console", "null", &format!("file:{}", file.display())])
}

#[test]
fn damaged_streams_are_refused_by_name_and_nothing_is_left() {
    needs_kvm!();
    let host = Host::new();
    let file = saved(&host);
    let good = fs::read(&file).unwrap();
    let bad = host.path("bad.mig");
    let middle = good.len() / 2;
    type Damage = fn(&mut Vec<u8>, usize);
    let cases: [(&str, Damage, &[&str]); 6] = [
        ("wrong magic", |bytes, _| bytes[..4].copy_from_slice(b"\x1f\x8b\x08\0"), &["gzip"]),
        ("an ssh banner", |bytes, _| bytes[..9].copy_from_slice(b"Welcome!\n"), &["Welcome"]),
        ("a flipped bit in a page", |bytes, middle| bytes[middle] ^= 4, &["damaged"]),
        ("a stream that was cut", |bytes, middle| bytes.truncate(middle), &["ends"]),
        ("a stream without its last byte", |bytes, _| bytes.truncate(bytes.len() - 1), &["ends"]),
        ("something behind it", |bytes, _| bytes.push(0), &[]),
    ];
    for (what, damage, words) in cases {
        let mut bytes = good.clone();
        damage(&mut bytes, middle);
        fs::write(&bad, bytes).unwrap();
        // A host of its own for each: what a host refused once it refuses for ever.
        let other = Host::new();
        println!("{what}: {}", receive(&other, &bad).refused_with(words).stderr.trim());
        host.run("mig-inspect", &[bad.to_str().unwrap()]).expect(1);
        assert_eq!(other.processes(), [], "{what}: something is left over");
        assert_eq!(other.sockets(), [] as [PathBuf; 0], "{what}: a socket is left over");
    }
}

#[test]
fn a_migration_that_was_refused_once_is_refused_for_ever() {
    needs_kvm!();
    let (source, host) = (Host::new(), Host::new());
    let _guest = Guest::boot(&source, "web", "builtin:idle,tick-ms=20", &["--mem", "16M"]);
    let file = host.path("web.mig");
    // Through a pipe: what is written to the file directly is a saved guest, which nobody asks about.
    source.sh(&format!("mig-send -q web | cat > {}", file.display())).expect(0);
    let bad = host.path("bad.mig");
    let good = fs::read(&file).unwrap();
    fs::write(&bad, &good[..good.len() / 2]).unwrap();
    receive(&host, &bad).refused_with(&["ends"]);
    // Its source may have asked by now, and run on.
    let said = receive(&host, &file).refused_with(&["has refused the migration"]).stderr;
    assert!(!said.contains("--clone"), "it may be at home again: {said}");
    let copy = format!("file:{}", file.display());
    host.run("mig-recv", &["--clone", "--console", "null", &copy]).expect(0);
    assert_eq!(host.state("web").as_deref(), Some("running"));
}

#[test]
fn a_one_way_stream_is_taken_once_and_whoever_brings_it_again_hears_of_clone() {
    needs_kvm!();
    let (source, host) = (Host::new(), Host::new());
    let _guest = Guest::boot(&source, "web", "builtin:idle,tick-ms=20", &["--mem", "16M"]);
    let file = host.path("web.mig");
    source.sh(&format!("mig-send -q web | cat > {}", file.display())).expect(0);
    receive(&host, &file).expect(0);
    host.run("vmctl", &["quit", "web"]).expect(0);
    receive(&host, &file).refused_with(&["not run twice", "one-way", "mig-recv --clone"]);
    let copy = format!("file:{}", file.display());
    host.run("mig-recv", &["--clone", "--console", "null", &copy]).expect(0);
    assert_eq!(host.state("web").as_deref(), Some("running"));
}

#[test]
fn a_newer_format_is_refused_with_its_number() {
    needs_kvm!();
    let host = Host::new();
    let file = saved(&host);
    let mut bytes = fs::read(&file).unwrap();
    // The oldest version that can read the stream, and the version written; then the sum.
    let end = preamble_sum(&bytes);
    bytes[8..12].copy_from_slice(&[9, 0, 9, 0]);
    let sum = crc32c(&bytes[..end]);
    bytes[end..end + 4].copy_from_slice(&sum.to_le_bytes());
    fs::write(&file, bytes).unwrap();
    receive(&host, &file).refused_with(&["format", "9"]);
}

/// Where the checksum of the preamble is: behind what it sums.
fn preamble_sum(bytes: &[u8]) -> usize {
    (16..128)
        .find(|end| crc32c(&bytes[..*end]).to_le_bytes() == bytes[*end..*end + 4])
        .expect("the preamble has a checksum")
}

/// CRC-32C (RFC 3720, appendix B.4), bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |register, byte| {
        (0..8).fold(register ^ u32::from(*byte), |register, _| {
            (register >> 1) ^ (0x82f6_3b78 & 0_u32.wrapping_sub(register & 1))
        })
    })
}

/// The start of that stream, of a machine that differs from its own by `change`.
fn described(file: &Path, change: impl FnOnce(&mut MachineDescription)) {
    let stream = StreamReader::open(fs::File::open(file).unwrap()).unwrap();
    let header = stream.header().clone();
    let mut machine = MachineDescription::decode(&header.machine, &header.regions).unwrap();
    change(&mut machine);
    let header = Header { machine: machine.encode().unwrap(), ..header };
    let mut bytes = Vec::new();
    let mut writer = StreamWriter::new(&mut bytes, *stream.preamble(), header).unwrap();
    writer.flush().unwrap();
    fs::write(file, bytes).unwrap();
}

#[test]
fn a_missing_cpu_feature_is_refused_by_name_before_the_first_page() {
    needs_kvm!();
    let host = Host::new();
    let file = saved(&host);
    described(&file, |machine| {
        let leaf = machine.cpu.cpuid.iter_mut().find(|leaf| leaf.function == 1).unwrap();
        // VMX: AMD has none, and vmrun gives it to no guest.
        leaf.ecx |= 1 << 5;
    });
    receive(&host, &file).refused_with(&[
        "this host cannot run the guest: it lacks the CPU features vmx; started with",
        "the baseline of both hosts (vmctl cpu baseline) it could have come",
    ]);
    assert_eq!(host.processes(), []);
}

#[test]
fn a_linux_guest_is_refused_by_a_host_that_cannot_run_it_before_the_first_page() {
    needs_kvm!();
    if !Path::new("/sys/module/kvm_pvm").exists() {
        println!("SKIPPED a Linux guest that cannot run here: this host's KVM is not PVM");
        return;
    }
    let host = Host::new();
    let file = saved(&host);
    described(&file, |machine| machine.kernel = KernelKind::Linux);
    receive(&host, &file).refused_with(&["guest web is Linux", "PVM", "VT-x or AMD-V"]);
    assert_eq!(host.processes(), []);
}

#[test]
fn a_guest_larger_than_the_host_is_refused_by_name() {
    needs_kvm!();
    let host = Host::new();
    let total_kib: u64 = fs::read_to_string("/proc/meminfo")
        .unwrap()
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse().ok())
        .unwrap();
    let too_much = format!("{}M", total_kib / 1024 * 2);
    let mut a = Guest::boot(&host, "a", "builtin:idle,tick-ms=20", &["--mem", &too_much]);
    host.run("mig-send", &["-q", "a", "exec:mig-recv --quiet --name b 2>/dev/null"])
        .refused_with(&["memory", "runs on here"]);
    a.assert_runs();
}

#[test]
fn a_guest_larger_than_a_receiver_takes_is_refused_by_name_before_anything_is_made_for_it() {
    needs_kvm!();
    let host = Host::new();
    let mut a = Guest::boot(&host, "a", &spec(64, "500", 16), &["--mem", "64M", "--cpus", "2"]);
    let cases: [(&str, &[&str]); 2] = [
        ("--max-mem 63M", &["a has 64.0 MiB of memory", "63.0 MiB", "--max-mem", "runs on here"]),
        ("--max-cpus 1", &["a has 2 vCPUs", "1 at most", "--max-cpus", "runs on here"]),
    ];
    for (limit, words) in cases {
        let recv = format!("exec:mig-recv --quiet --name b {limit} 2>/dev/null");
        host.run("mig-send", &["-q", "a", &recv]).refused_with(words);
        assert!(!host.path("state/vmrun/log/b.log").exists(), "a vmrun was started for it");
    }
    a.assert_runs();
    let recv = "exec:mig-recv --quiet --name b --max-mem 64M --max-cpus 2";
    host.run("mig-send", &["-q", "a", recv]).expect(0);
    assert_eq!(a.ended(), Some(0));
}

/// Gives a mig-recv one byte of a stream after the other, slowly, and returns how many it took
/// before it gave up, of how many, and what it said.
fn trickle(
    mut recv: Child,
    into: impl FnOnce(&mut Child) -> Box<dyn Write>,
) -> (usize, usize, Done) {
    let began = Instant::now();
    let mut out = into(&mut recv);
    // A preamble begins so, and there is no end to it.
    let bytes = [&b"\x89MIG\r\n\x1a\n"[..], &[0; 32]].concat();
    let taken = bytes.iter().take_while(|byte| {
        thread::sleep(Duration::from_millis(200));
        out.write_all(&[**byte]).is_ok() && recv.try_wait().unwrap().is_none()
    });
    let taken = taken.count();
    (taken, bytes.len(), finish(recv, began))
}

#[test]
fn a_header_that_trickles_does_not_hold_its_receiver() {
    let host = Host::new();
    let socket = host.path("recv.sock");
    let recv = |source: &str| {
        let mut recv = host.command("mig-recv");
        recv.args(["--timeout", "1", source]).stdin(Stdio::piped());
        recv.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let by_pipe = trickle(recv("-"), |recv| Box::new(recv.stdin.take().unwrap()));
    let by_socket = trickle(recv(&format!("unix:{}", socket.display())), |_| {
        wait("the receiver to listen", || socket.exists());
        Box::new(UnixStream::connect(&socket).unwrap())
    });
    for (taken, all, done) in [by_pipe, by_socket] {
        println!("after {taken} of {all} bytes: {}", done.stderr.trim());
        assert!(taken < all, "each byte was a reason to wait for the next");
        done.refused_with(&["header", "1 s"]);
    }
}

#[test]
fn a_name_that_is_taken_is_refused_before_anything_is_sent() {
    needs_kvm!();
    let host = Host::new();
    let mut a = Guest::boot(&host, "a", &spec(64, "500", 16), &["--mem", "64M"]);
    host.run("mig-send", &["-q", "a", "exec:mig-recv --quiet 2>/dev/null"])
        .refused_with(&["a guest named a is on this host already", "--name"]);
    a.assert_runs();
}

#[test]
fn a_tunnel_that_holds_data_back_is_named() {
    needs_kvm!();
    let host = Host::new();
    let mut a = Guest::boot(&host, "a", &spec(64, "500", 16), &["--mem", "64M"]);
    let before = a.console.last_tick().unwrap();
    host.run(
        "mig-send",
        &["-q", "--ready-timeout", "1", "a", "exec:gzip | gunzip | mig-recv --quiet --name b"],
    )
    .refused_with(&["holds data back", "--one-way", "--commit"]);
    a.assert_runs();
    let gap = a.console.ticks().iter().filter(|t| t.number > before.number).map(|t| t.gap_us).max();
    println!("longest gap meanwhile: {} us", gap.unwrap());
}

#[test]
fn a_tunnel_that_fails_is_named_with_its_status() {
    needs_kvm!();
    let host = Host::new();
    let mut a = Guest::boot(&host, "a", &spec(64, "500", 16), &["--mem", "64M"]);
    // It dies with the header, and before it.
    for command in ["exit 255", "exec <&- >&-; sleep 0.1; exit 255"] {
        host.run("mig-send", &["-q", "a", &format!("exec:{command}")])
            .refused_with(&["exit 255", "status 255"]);
    }
    a.assert_runs();
}

#[test]
fn terminals_are_refused() {
    needs_kvm!();
    let host = Host::new();
    let _a = Guest::boot(&host, "a", &spec(64, "500", 16), &["--mem", "64M"]);
    // script(1) gives its command a terminal for all three.
    for (command, words) in
        [("mig-recv", ["mig-recv:", "terminal"]), ("mig-send a", ["mig-send:", "terminal"])]
    {
        let mut shell = host.shell(&format!("script -qec '{command}' /dev/null"));
        let done = run(&mut shell);
        assert_eq!(done.status, Some(2), "{done:#?}");
        for word in words {
            assert!(done.stdout.contains(word), "{done:#?}");
        }
    }
    assert_eq!(host.state("a").as_deref(), Some("running"));
}

#[test]
fn wrong_usage_has_a_status_of_its_own() {
    let host = Host::new();
    for (program, args) in [
        ("mig-send", &["a", "nonsense:x"][..]),
        ("mig-send", &[]),
        ("mig-recv", &["ftp:x"]),
        ("vmrun", &["--name", "x"]),
        ("vmctl", &["frobnicate"]),
        ("mig-inspect", &["--nonsense"]),
    ] {
        let done = host.run(program, args).expect(2);
        assert!(!done.stderr.is_empty(), "{program} {args:?} says nothing");
    }
}

#[test]
fn every_program_documents_itself() {
    let host = Host::new();
    for program in ["vmrun", "mig-send", "mig-recv", "vmctl", "mig-inspect"] {
        let help = host.run(program, &["--help"]).expect(0).stdout;
        assert!(help.contains("Examples:"), "{program} --help has no examples");
        assert!(help.contains("Exit status:"), "{program} --help has no exit statuses");
        host.run(program, &["--version"]).expect(0);
        assert!(host.run(program, &["--man"]).expect(0).stdout.contains(".TH"));
        for shell in ["bash", "zsh", "fish"] {
            let text = host.run(program, &["--completions", shell]).expect(0).stdout;
            assert!(text.contains(program), "{program} --completions {shell}");
        }
    }
}

#[test]
fn an_unknown_guest_is_named() {
    let host = Host::new();
    for (program, args) in
        [("mig-send", &["nobody", "file:x"][..]), ("vmctl", &["status", "nobody"])]
    {
        host.run(program, args).refused_with(&["nobody"]);
    }
}

#[test]
fn a_file_that_is_no_socket_is_never_taken_for_a_dead_one() {
    needs_kvm!();
    let host = Host::new();
    let mut a = Guest::boot(&host, "a", &spec(64, "500", 1), &["--mem", "64M"]);
    let notes = host.path("notes");
    fs::write(&notes, "precious").unwrap();
    let path = notes.display();
    let vmrun = "vmrun --name b --mem 64M --kernel builtin:dirty,pages=1";
    for listens in [
        format!("{vmrun} --socket {path}"),
        format!("{vmrun} --console unix:{path}"),
        format!("{vmrun} --virtio-console unix:{path}"),
        format!("mig-recv unix:{path}"),
    ] {
        host.sh(&listens).refused_with(&["notes is no socket"]);
    }
    let destination = format!("exec:mig-recv --quiet --name b --console unix:{path} 2>/dev/null");
    host.run("mig-send", &["-q", "a", &destination]).refused_with(&["notes is no socket"]);
    assert_eq!(fs::read_to_string(&notes).unwrap(), "precious");
    a.assert_runs();
}

#[test]
fn a_console_that_is_a_fifo_without_a_reader_holds_nothing_up() {
    needs_kvm!();
    let host = Host::new();
    let mut a = Guest::boot(&host, "a", &spec(64, "500", 1), &["--mem", "64M"]);
    let fifo = host.path("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let console = format!("file:{}", fifo.display());
    let destination = format!("exec:mig-recv --quiet --name b --console {console}");
    host.run("mig-send", &["-q", "a", &destination]).expect(0);
    assert_eq!(a.ended(), Some(0));
    assert_eq!(host.state("b").as_deref(), Some("running"));
    // Whoever reads it later finds what was printed.
    let read = format!("head -c 6 {}", fifo.display());
    assert!(host.sh(&read).expect(0).stdout.len() == 6);
    let vmrun = nix::unistd::Pid::from_raw(host.pid("b").unwrap());
    nix::sys::signal::kill(vmrun, nix::sys::signal::Signal::SIGTERM).unwrap();
    wait("b to end", || host.processes().is_empty());
    assert_eq!(host.sockets().len(), 0);
}
