//! Whatever a stream says, mig-recv and its vmrun hold no more than a fixed amount of memory beside
//! the guest's, and leave nothing behind.
//!
//! The figure is the peak of all processes that were waited for (getrusage(2), RUSAGE_CHILDREN), so
//! that these tests have a program of their own.

use std::fs;
use std::io::Write;
use std::process::{ChildStdin, Stdio};
use std::time::Instant;

use mig_stream::{Flags, Header, Preamble, RoundStats, StreamReader, StreamWriter};
use migpipe_tests::{Done, Frame, Host, finish, frame_of, needs_kvm, saved_guest};
use migpipe_units::{Bytes, Gfn, MigrationId, PageRange, Pages, RegionId};
use nix::sys::resource::{UsageWho, getrusage};
use vm_state::{CpuidLeaf, DeviceDescription, MachineDescription, MemoryRegion};

/// What the largest process may hold beside the guest's memory: 32 MiB of saved state as it came,
/// as a message on its way to vmrun, and both as they grow.
const BOUND: Bytes = Bytes(96 << 20);

/// The memory of the guests that are built.
const GUEST: Bytes = Bytes(16 << 20);

/// What an endless stream goes on for, if nobody stops it: far more than the bound.
const ENDLESS: Bytes = Bytes(1 << 30);

const FILL: u16 = 2;
const SECTION: u16 = 6;
const UNKNOWN: u16 = 0x8123;

struct Bench {
    machine: MachineDescription,
}

type Out = StreamWriter<ChildStdin>;

impl Bench {
    fn new() -> Self {
        let host = Host::new();
        let bytes = fs::read(saved_guest(&host)).unwrap();
        let reader = StreamReader::open(&bytes[..]).unwrap();
        let header = reader.header();
        let machine = MachineDescription::decode(&header.machine, &header.regions).unwrap();
        Self { machine }
    }

    /// All of the guest's memory.
    fn all(&self) -> PageRange {
        PageRange { region: RegionId(0), first: 0, count: self.machine.memory[0].pages }
    }

    /// The same guest with this memory.
    fn with_memory(&self, regions: &[(u64, u64)]) -> Self {
        let numbered = (0..).map(RegionId).zip(regions);
        let memory = numbered
            .map(|(id, &(base, pages))| MemoryRegion { id, base: Gfn(base), pages: Pages(pages) })
            .collect();
        Self { machine: MachineDescription { memory, ..self.machine.clone() } }
    }

    /// Has a mig-recv read a stream of this guest that `write` goes on with, and checks what it
    /// took and left. A write that fails ends the stream.
    fn refuse(&self, what: &str, write: impl FnOnce(&mut Out) -> Option<()>) -> Done {
        let host = Host::new();
        let began = Instant::now();
        let mut child = host
            .command("mig-recv")
            .args(["--console", "null"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let out = child.stdin.take().unwrap();
        let id = MigrationId::random();
        let preamble = Preamble::migrate(id, Flags { page_sums: true, ..Flags::default() });
        let machine = self.machine.encode().unwrap();
        let header = Header {
            guest: "web".to_owned(),
            machine,
            regions: self.machine.memory.clone(),
            released: vec![],
        };
        if let Ok(mut out) = StreamWriter::new(out, preamble, header) {
            let _ = write(&mut out);
        }
        let done = finish(child, began).expect(1);
        let peak = Bytes((getrusage(UsageWho::RUSAGE_CHILDREN).unwrap().max_rss() as u64) << 10);
        println!("{what}: {peak} at most, {:.1?}: {}", done.took, done.stderr.trim());
        assert!(peak <= Bytes(BOUND.0 + GUEST.0), "{what}: {peak} were held");
        assert_eq!(done.stderr.trim().lines().count(), 1, "{what}: {done:#?}");
        assert!(!done.stderr.contains('\x1b'), "{what}: {done:#?}");
        assert_eq!(host.processes(), [], "{what}: something is left over");
        assert!(host.sockets().is_empty(), "{what}: a socket is left over");
        done
    }

    fn expect(&self, what: &str, words: &[&str], write: impl FnOnce(&mut Out) -> Option<()>) {
        let done = self.refuse(what, write);
        for word in words {
            assert!(done.stderr.contains(word), "{what}: '{word}' is not in {}", done.stderr);
        }
    }
}

/// Records of one kind, `count` times, past all that the writer knows and would refuse.
fn raw(out: &mut Out, kind: u16, payload: &[u8], count: u32) -> Option<()> {
    let out = out.get_mut();
    for sequence in 0..count {
        out.write_all(&frame_of(Frame { kind, sequence, ..Frame::default() }, payload)).ok()?;
    }
    Some(())
}

#[test]
fn no_stream_makes_its_receiver_hold_more_than_a_fixed_amount() {
    needs_kvm!();
    let guest = Bench::new();

    for length in [16 << 20, u32::MAX] {
        guest.expect("a length and nothing behind it", &["record"], |out| {
            let frame =
                Frame { kind: SECTION, sequence: 0, length: Some(length), ..Frame::default() };
            out.get_mut().write_all(&frame_of(frame, &[])).ok()
        });
    }
    guest.expect("more sections than there are", &["more than 4096 sections"], |out| {
        raw(out, SECTION, &[0; 64], 5000)
    });
    guest.expect("sections of all bytes that there may be", &["MSEC"], |out| {
        (0..4).try_for_each(|_| out.section(&vec![0; 8 << 20]).ok())?;
        out.end().ok().map(drop)
    });
    guest.expect("as many empty sections as there may be", &["MSEC"], |out| {
        (0..4096).try_for_each(|_| out.section(&[]).ok())?;
        out.end().ok().map(drop)
    });
    guest.expect("more bytes of sections than there may be", &["more than"], |out| {
        raw(out, SECTION, &vec![0; 8 << 20], 40)
    });
    guest.expect("unknown records without end", &["ends"], |out| {
        raw(out, UNKNOWN, &vec![0; 16 << 20], (ENDLESS.0 >> 24) as u32)
    });
    guest.expect("one run of pages without end", &["ends"], |out| {
        let run = PageRange { count: Pages(256), ..guest.all() };
        let pages = vec![7; 1 << 20];
        (0..ENDLESS.0 >> 20).try_for_each(|_| out.pages(run, &pages).ok())
    });
    guest.expect(
        "fills of all memory without end",
        &["fills cover", "more than 16 times"],
        |out| {
            let pieces = guest.all().count.0 / 1024;
            let mut fills = (0..100 * pieces as u32).map(|sequence| {
                let pages = (u64::from(sequence) % pieces * 1024, 1024);
                let frame = Frame { kind: FILL, sequence, pages, ..Frame::default() };
                frame_of(frame, &u64::from(sequence).to_le_bytes())
            });
            fills.try_for_each(|fill| out.get_mut().write_all(&fill).ok())
        },
    );
    guest.expect("rounds without end", &["ends"], |out| {
        let mut out = out.get_mut();
        let mut buffer = std::io::BufWriter::new(&mut out);
        let stats = [0; 44];
        let rounds = (0..2_000_000)
            .map(|sequence| frame_of(Frame { kind: 0x8004, sequence, ..Frame::default() }, &stats));
        rounds.into_iter().try_for_each(|round| buffer.write_all(&round).ok())
    });
    guest.expect("hints of all memory, a million times", &["ends"], |out| {
        let hints = vec![guest.all(); 65_536];
        (0..16).try_for_each(|_| out.extents(&hints).ok())?;
        out.round(&RoundStats::default()).ok()
    });
}

#[test]
fn no_description_makes_its_receiver_hold_or_think_more_than_it_should() {
    needs_kvm!();
    let guest = Bench::new();
    let described = |change: fn(&mut MachineDescription)| {
        let mut machine = guest.machine.clone();
        change(&mut machine);
        Bench { machine }
    };
    let nothing = |_: &mut Out| Some(());
    described(|machine| machine.cpu.msrs = (0..200_000).collect()).expect(
        "200,000 MSRs",
        &["this host"],
        nothing,
    );
    described(|machine| {
        let leaf = CpuidLeaf { function: 7, index: 0, flags: 1, eax: 0, ebx: 0, ecx: 0, edx: 0 };
        machine.cpu.cpuid.extend(vec![leaf; 140_000]);
    })
    .expect("140,000 leaves of CPUID", &["web does not run here"], nothing);
    described(|machine| {
        let device = DeviceDescription {
            kind: "rng".to_owned(),
            id: String::new(),
            section_version: 1,
            params: [].into(),
        };
        machine.devices.extend(vec![device; 100_000]);
    })
    .expect("100,000 devices", &["rng"], nothing);
    described(|machine| machine.vcpus = u32::MAX).expect("4 billion vCPUs", &["vCPUs"], nothing);
    described(|machine| machine.devices[0].kind = "\x1b]0;gone\x07".to_owned()).expect(
        "a device that drives the terminal",
        &["device", "gone"],
        nothing,
    );
    for name in ["../../escaped", "/tmp/escaped", "--incoming", "a\nb", ""] {
        let machine = MachineDescription { name: name.to_owned(), ..guest.machine.clone() };
        let named = Bench { machine };
        named.expect("a name that leads elsewhere", &["is no name for a guest"], nothing);
    }
}

#[test]
fn a_guest_that_no_host_can_hold_is_refused_by_name_before_a_page_of_it_comes() {
    needs_kvm!();
    let guest = Bench::new();
    let end = 1_u64 << 40;
    guest.with_memory(&[(0, end - 256)]).expect("4 PiB", &["memory"], |_| Some(()));
    guest.with_memory(&[(0, 1 << 29)]).expect("2 TiB", &["memory", "left"], |_| Some(()));
    let many: Vec<_> = (0..256).map(|number| (number << 21, 1 << 20)).collect();
    guest.with_memory(&many).expect("256 regions of 4 GiB", &["memory"], |_| Some(()));
    let mut huge = guest.with_memory(&[(0, 1 << 29)]);
    huge.machine.hugetlb = true;
    huge.expect("2 TiB of huge pages", &["memory"], |_| Some(()));
}
