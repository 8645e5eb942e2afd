//! The guest's memory as other processes have it: out of core dumps, and for reading alone where
//! nobody is to write. What it is made of: huge pages of a tmpfs that vmrun mounts for itself, of
//! hugetlbfs, or small ones.

use std::fs;
use std::process::Stdio;
use std::time::Instant;

use migpipe_tests::{Guest, Host, assert_one_story, finish, needs_kvm, spec, wait};

/// What the guest has (KiB): nothing else of this size is shared.
const MEMORY_KIB: u64 = 96 << 10;

/// Huge pages for two of them (2 MiB each), and what the kernel needs to find them.
const HUGE_PAGES: u64 = 2 * (MEMORY_KIB >> 11) + 8;

/// A mapping of the whole memory (proc_pid_smaps(5)).
#[derive(Debug)]
struct Mapping {
    access: String,
    page_kib: u64,
    /// How much of it is mapped in transparent huge pages.
    huge_kib: u64,
    flags: Vec<String>,
}

/// Those of a process.
fn mappings(pid: i32) -> Vec<Mapping> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default();
    let mut found = Vec::new();
    let (mut access, mut size, mut page_kib, mut huge_kib) = ("", 0, 0, 0);
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        let mut number = || words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
        match first {
            "Size:" => size = number(),
            "KernelPageSize:" => page_kib = number(),
            "ShmemPmdMapped:" => huge_kib = number(),
            "VmFlags:" if size == MEMORY_KIB && access.ends_with('s') => found.push(Mapping {
                access: access.to_owned(),
                page_kib,
                huge_kib,
                flags: words.map(str::to_owned).collect(),
            }),
            _ if first.contains('-') => access = words.next().unwrap_or_default(),
            _ => {}
        }
    }
    found
}

/// All that the processes of a host have, with their names.
fn all_mappings(host: &Host) -> Vec<(i32, String, Mapping)> {
    let processes = host.processes().into_iter();
    let of = |(pid, name): (i32, String)| {
        mappings(pid).into_iter().map(move |mapping| (pid, name.clone(), mapping))
    };
    processes.flat_map(of).collect()
}

/// Moves a guest, and looks at its memory meanwhile.
fn look_at_a_move(options: &[&str], page_kib: u64) {
    let host = Host::new();
    let mut a =
        Guest::boot(&host, "a", &spec(64, "500", 32), &[&["--mem", "96M"], options].concat());
    let b = a.console_of("b");
    let destination = b.as_destination("b");
    let mut sender = host.command("mig-send");
    sender.args(["-q", "--max-bandwidth", "256K", "a", &destination]);
    let sender = sender.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut found = Vec::new();
    wait("all four to have the memory", || {
        found = all_mappings(&host);
        let names = found.iter().map(|(_, name, _)| &**name);
        let vmruns = names.clone().filter(|name| *name == "vmrun").count();
        vmruns >= 2
            && ["mig-send", "mig-recv"].iter().all(|it| names.clone().any(|name| name == *it))
    });
    for (pid, name, mapping) in &found {
        let seen = format!("{name} ({pid}): {mapping:?}");
        assert!(mapping.flags.iter().any(|flag| flag == "dd"), "in core dumps: {seen}");
        let access = if name == "mig-send" { "r--s" } else { "rw-s" };
        assert_eq!(mapping.access, access, "{seen}");
        assert_eq!(mapping.page_kib, page_kib, "{seen}");
    }
    host.run("vmctl", &["set-speed", "a", "0"]).expect(0);
    finish(sender, Instant::now()).expect(0);
    assert_eq!(a.ended(), Some(0));
    b.wait_ticks(5);
    assert_one_story(&[&a.console, &b]);
}

#[test]
fn guest_memory_is_in_no_core_dump_and_a_sender_cannot_write_to_it() {
    needs_kvm!();
    look_at_a_move(&[], 4);
}

/// Huge pages that are there for one test.
struct Reserved(String);

impl Reserved {
    const PATH: &'static str = "/proc/sys/vm/nr_hugepages";

    /// So many more than there were, all of them free.
    fn new(count: u64) -> Result<Self, String> {
        let why = |error: std::io::Error| format!("{}: {error}", Self::PATH);
        let before = fs::read_to_string(Self::PATH).map_err(why)?.trim().to_owned();
        let number = before.parse::<u64>().map_err(|error| error.to_string())?;
        fs::write(Self::PATH, (number + count).to_string()).map_err(why)?;
        let reserved = Self(before);
        let meminfo = fs::read_to_string("/proc/meminfo").map_err(why)?;
        let kib = meminfo.lines().find_map(|line| line.strip_prefix("Hugepagesize:"));
        let free = meminfo.lines().find_map(|line| line.strip_prefix("HugePages_Free:"));
        match (kib.map(str::trim), free.and_then(|free| free.trim().parse::<u64>().ok())) {
            (Some("2048 kB"), Some(free)) if free >= count => Ok(reserved),
            (size, free) => Err(format!("huge pages of {size:?}, of which {free:?} are free")),
        }
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let _ = fs::write(Self::PATH, &self.0);
    }
}

#[test]
fn memory_in_huge_pages_moves_as_any_other() {
    needs_kvm!();
    match Reserved::new(HUGE_PAGES) {
        Ok(_reserved) => look_at_a_move(&["--hugepages"], 2048),
        Err(why) => println!("SKIPPED {}: no huge pages can be had: {why}", module_path!()),
    }
}

/// What `vmctl status` says that the memory of a guest is made of.
fn backing(host: &Host, name: &str) -> String {
    let done = host.run("vmctl", &["status", name, "--json"]);
    let value: serde_json::Value = serde_json::from_str(&done.stdout).expect(&done.stdout);
    value["memory_backing"].as_str().unwrap_or_default().to_owned()
}

/// How much of the guest's memory its vmrun has mapped in transparent huge pages (KiB).
fn huge_kib(host: &Host, pid: i32) -> u64 {
    let of = all_mappings(host).into_iter().filter(|(process, ..)| *process == pid);
    of.map(|(.., mapping)| mapping.huge_kib).sum()
}

#[test]
fn memory_has_huge_pages_whatever_the_host_gives_to_memfds_at_both_ends() {
    needs_kvm!();
    let host = Host::new();
    let mut a = Guest::boot(&host, "a", &spec(64, "500", 32), &["--mem", "96M"]);
    let here = backing(&host, "a");
    if here != "a private tmpfs, transparent huge pages" {
        println!("SKIPPED {}: this host gives {here}", module_path!());
        return;
    }
    assert!(huge_kib(&host, a.pid()) >= 32 << 10, "the guest wrote 32 MiB");
    let b = a.console_of("b");
    host.run("mig-send", &["-q", "a", &b.as_destination("b")]).expect(0);
    assert_eq!(a.ended(), Some(0));
    b.wait_ticks(5);
    assert_one_story(&[&a.console, &b]);
    assert_eq!(backing(&host, "b"), here);
    let there = host.processes().into_iter().find(|(_, name)| name == "vmrun").unwrap().0;
    // What the guest touched since, and its look at what it has filled goes on.
    wait("the guest to touch its memory", || huge_kib(&host, there) >= 16 << 10);
}

#[test]
fn small_pages_are_small_and_move_as_any_other() {
    needs_kvm!();
    let host = Host::new();
    let options = ["--mem", "96M", "--small-pages"];
    let mut a = Guest::boot(&host, "a", &spec(64, "500", 32), &options);
    assert_eq!(backing(&host, "a"), "a memfd, pages of 4 KiB");
    assert_eq!(huge_kib(&host, a.pid()), 0);
    let b = a.console_of("b");
    host.run("mig-send", &["-q", "a", &b.as_destination("b")]).expect(0);
    assert_eq!(a.ended(), Some(0));
    b.wait_ticks(5);
    assert_one_story(&[&a.console, &b]);
}
