//! The program as a shell calls it.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use mig_stream::{
    Flags, Header, MemoryDigest, Preamble, QueryBody, RegionDigest, RoundStats, StreamWriter,
};
use migpipe_units::{Bytes, Gfn, MigrationId, Nonce, PageRange, Pages, RegionId};
use tempfile::TempDir;
use vm_state::{
    BootDescription, CpuDescription, CpuidLeaf, DeviceDescription, KernelKind, MachineDescription,
    MemoryRegion, Section,
};

const ID: MigrationId = MigrationId::from_bytes([0x11; 16]);

fn machine() -> MachineDescription {
    let leaf = |function, text: &[u8; 16]| {
        let word = |at: usize| u32::from_le_bytes(text[at..at + 4].try_into().unwrap());
        CpuidLeaf {
            function,
            index: 0,
            flags: 0,
            eax: word(0),
            ebx: word(4),
            ecx: word(8),
            edx: word(12),
        }
    };
    MachineDescription {
        name: "web".into(),
        vcpus: 2,
        memory: vec![MemoryRegion { id: RegionId(0), base: Gfn(0), pages: Pages(1024) }],
        hugetlb: false,
        cpu: CpuDescription {
            cpuid: vec![
                leaf(0x8000_0002, b"AMD EPYC 9654 96"),
                leaf(0x8000_0003, b"-Core Processor "),
                leaf(0x8000_0004, b"                "),
            ],
            xsave_components: 7,
            xsave_bytes: 832,
            arch_capabilities: Some(0),
            msrs: vec![0x10, 0x174],
            tsc_khz: 2_400_000,
        },
        devices: vec![DeviceDescription {
            kind: "block".into(),
            id: "root".into(),
            section_version: 3,
            params: BTreeMap::from([("path".to_owned(), "web\x1b.raw".to_owned())]),
        }],
        kernel: KernelKind::Linux,
        boot: Some(Box::new(BootDescription {
            kernel: "/boot/vmlinuz\x1b".to_owned(),
            initrd: Some("/boot/initrd.img".to_owned()),
            cmdline: "console=ttyS0".to_owned(),
            cpu: "host".to_owned(),
            small_pages: true,
        })),
    }
}

fn header() -> Header {
    Header {
        guest: "web".into(),
        machine: machine().encode().unwrap(),
        regions: machine().memory,
        released: vec![],
    }
}

fn section(name: &str) -> Vec<u8> {
    let payload = vec![7; 100];
    Section { name: name.into(), instance: 1, version: 3, payload }.encode().unwrap()
}

fn run(first: u64, count: u64) -> PageRange {
    PageRange { region: RegionId(0), first, count: Pages(count) }
}

/// A stream that holds this header and these sections, up to `End` and `Go`.
fn stream(header: Header, sections: &[Vec<u8>]) -> Vec<u8> {
    let flags = Flags {
        return_path: true,
        page_sums: true,
        separate_commit: false,
        verify: true,
        saved: false,
        snapshot: false,
    };
    let mut stream = StreamWriter::new(vec![], Preamble::migrate(ID, flags), header).unwrap();
    stream.extents(&[run(0, 3)]).unwrap();
    stream.pages(run(0, 2), &[5; 8192]).unwrap();
    stream.fill(run(2, 1022), 0).unwrap();
    let stats = RoundStats {
        number: 0,
        pages: Pages(2),
        filled: Pages(1022),
        bytes: Bytes(8300),
        dirty_next: Pages(17),
        duration: Duration::from_millis(2),
    };
    stream.round(&stats).unwrap();
    stream.blackout().unwrap();
    for section in sections {
        stream.section(section).unwrap();
    }
    let mut memory = RegionDigest::new();
    memory.update(&[5; 8192]);
    memory.zeros(Bytes(1022 * 4096));
    stream.digest(&MemoryDigest::new([memory])).unwrap();
    stream.end().unwrap();
    stream.go(Nonce::from_bytes([0x22; 16])).unwrap();
    stream.into_inner()
}

fn good() -> Vec<u8> {
    stream(header(), &[section("vcpu"), section("serial")])
}

struct Found {
    status: i32,
    out: String,
    err: String,
}

impl From<Output> for Found {
    fn from(output: Output) -> Self {
        Self {
            status: output.status.code().unwrap(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_mig-inspect"))
}

fn inspect(bytes: &[u8], options: &[&str]) -> Found {
    let (_directory, path) = file(bytes);
    program().args(options).arg(&path).output().unwrap().into()
}

fn file(bytes: &[u8]) -> (TempDir, PathBuf) {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("web.mig");
    fs::write(&path, bytes).unwrap();
    (directory, path)
}

/// What is said of a stream that cannot be received: one line, the file in front.
fn complaint(bytes: &[u8]) -> String {
    let (_directory, path) = file(bytes);
    let found: Found = program().arg(&path).output().unwrap().into();
    assert_eq!(found.status, 1, "{}", found.err);
    assert_eq!(found.err.lines().count(), 1, "{}", found.err);
    let prefix = format!("mig-inspect: {}: ", path.display());
    found.err.strip_prefix(&prefix).unwrap_or_else(|| panic!("{}", found.err)).to_owned()
}

#[test]
fn a_saved_guest_is_told_from_a_stream() {
    let flags = Flags { page_sums: true, saved: true, ..Flags::default() };
    let mut stream = StreamWriter::new(vec![], Preamble::migrate(ID, flags), header()).unwrap();
    stream.end().unwrap();
    let bytes = stream.into_inner();
    let text = inspect(&bytes, &[]).out;
    assert!(text.contains("one way, pages with checksums, saved"), "{text}");
    assert!(inspect(&bytes, &["--json"]).out.contains("\"saved\":true"));
    assert!(!inspect(&good(), &[]).out.contains("saved"));
}

#[test]
fn a_whole_stream_is_described() {
    let found = inspect(&good(), &[]);
    assert_eq!((found.status, found.err.as_str()), (0, ""));
    for line in [
        "guest        web",
        "migration    11111111-1111-1111-1111-111111111111",
        "format       1, readable from 1 on",
        "flags        both ways, pages with checksums, memory to be verified",
        "memory       region 0 at 0x0, 4.0 MiB",
        "             of it 12.0 KiB in 1 runs hold data",
        "vCPUs        2",
        "cpu          AMD EPYC 9654 96-Core Processor, TSC 2.400 GHz, XSAVE components 0x7 \
         (832 bytes), 3 CPUID leaves, 2 MSRs",
        "kernel       Linux",
        "boots        /boot/vmlinuz\u{fffd} with /boot/initrd.img, cpu host, 'console=ttyS0', \
         memory in pages of 4 KiB",
        "device       block root, section version 3, path=web\u{fffd}.raw",
        "    0            2         1022    8.1 KiB           17      2.0ms    4.0 MiB/s",
        "vcpu                            1        3      100 B",
        "serial                          1        3      100 B",
        "verdict      whole; GO was given",
    ] {
        assert!(found.out.lines().any(|found| found == line), "{line}\nnot in\n{}", found.out);
    }
}

#[test]
fn a_stream_from_a_pipe_is_read_too() {
    let mut child = program().stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&good()).unwrap();
    let found: Found = child.wait_with_output().unwrap().into();
    assert_eq!(found.status, 0);
    assert!(found.out.ends_with("verdict      whole; GO was given\n"), "{}", found.out);
}

#[test]
fn json_has_the_same_figures() {
    let text = inspect(&good(), &[]).out;
    let digest = text.lines().find_map(|line| line.strip_prefix("digest       ")).unwrap();
    let found = inspect(&good(), &["--json"]);
    let summary: serde_json::Value = serde_json::from_str(&found.out).unwrap();
    for (pointer, value) in [
        ("/guest", serde_json::json!("web")),
        ("/kind", serde_json::json!("guest")),
        ("/machine/vcpus", serde_json::json!(2)),
        ("/migration", serde_json::json!("11111111-1111-1111-1111-111111111111")),
        ("/format", serde_json::json!({"written": 1, "oldest_reader": 1})),
        (
            "/flags",
            serde_json::json!({"return_path": true, "page_sums": true,
            "separate_commit": false, "verify": true, "saved": false, "snapshot": false}),
        ),
        ("/regions/0", serde_json::json!({"id": 0, "base": 0, "pages": 1024})),
        (
            "/rounds/0",
            serde_json::json!({"number": 0, "pages": 2, "filled": 1022, "bytes": 8300,
            "dirty_next": 17, "nanoseconds": 2_000_000}),
        ),
        ("/sections/1/name", serde_json::json!("serial")),
        ("/totals/pages", serde_json::json!(2)),
        ("/totals/records", serde_json::json!(8)),
        ("/totals/digest", serde_json::json!(digest)),
        ("/verdict/is", serde_json::json!("whole")),
        ("/go", serde_json::json!(true)),
    ] {
        assert_eq!(summary.pointer(pointer), Some(&value), "{pointer}");
    }
}

#[test]
fn every_record_is_listed_where_it_begins() {
    let found = inspect(&good(), &["--records"]);
    let (list, _) = found.out.split_once("\n\n").unwrap();
    let names: Vec<_> = list.lines().map(|line| line.split_whitespace().nth(1).unwrap()).collect();
    assert_eq!(
        names,
        [
            "Extents", "Pages", "Fill", "Round", "Blackout", "Section", "Section", "Digest", "End",
            "Go"
        ]
    );
    assert!(list.contains("Pages     region 0 pages 0x0-0x1 (2)"), "{list}");

    let found = inspect(&good(), &["--records", "--json"]);
    let values: Vec<serde_json::Value> =
        found.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(values.len(), 11);
    assert_eq!(values[1]["range"]["count"], 2);
    assert_eq!(values[10]["guest"], "web");
}

#[test]
fn damage_is_one_line_that_names_the_file_and_the_summary_goes_as_far_as_the_stream() {
    let bytes = good();
    let said = complaint(&bytes[..bytes.len() - 200]);
    assert!(said.contains("the sender or the tunnel died"), "{said}");
    let mut flipped = bytes.clone();
    flipped[bytes.len() / 2] ^= 1;
    let said = complaint(&flipped);
    assert!(said.starts_with("the payload of the Pages record at byte"), "{said}");

    let found = inspect(&flipped, &[]);
    assert!(found.out.contains("guest        web"), "{}", found.out);
    assert!(found.out.contains("verdict      cannot be received: the payload"), "{}", found.out);
    let found = inspect(&flipped, &["--json"]);
    let summary: serde_json::Value = serde_json::from_str(&found.out).unwrap();
    assert_eq!(summary["verdict"]["is"], "damaged");
}

#[test]
fn what_is_no_stream_is_named() {
    assert!(complaint(&[0x1f, 0x8b, 8, 0]).contains("put 'gunzip' in front"));
    assert!(complaint(b"").contains("nothing came"));
    assert!(complaint(b"Welcome to hostb\n").contains("\"Welcome to hostb\""));
    let found: Found = program().arg("/nowhere/web.mig").output().unwrap().into();
    assert_eq!(found.status, 1);
    assert!(found.err.starts_with("mig-inspect: /nowhere/web.mig: cannot open it: "));
}

#[test]
fn what_no_destination_could_load_is_a_fault() {
    let said = complaint(&stream(header(), &[section("vcpu"), section("vcpu")]));
    assert!(said.starts_with("section vcpu 1 came a second time at byte"), "{said}");
    let said = complaint(&stream(header(), &[b"garbage".to_vec()]));
    assert!(said.contains("cannot be read: this is not a saved section"), "{said}");
    let said = complaint(&stream(Header { machine: vec![9, 9, 9], ..header() }, &[]));
    assert!(said.contains("machine description has version"), "{said}");
    let said = complaint(&stream(Header { guest: "db".into(), ..header() }, &[]));
    assert!(said.contains("guest db, and the machine in it of guest web"), "{said}");
}

#[test]
fn a_migration_that_was_given_up_is_no_guest() {
    let preamble = Preamble::migrate(ID, Flags::default());
    let mut stream = StreamWriter::new(vec![], preamble, header()).unwrap();
    stream.abort("cancelled").unwrap();
    let said = complaint(&stream.into_inner());
    assert_eq!(said, "the sender gave the migration up: cancelled\n");
}

#[test]
fn a_query_is_whole_without_a_guest() {
    let header = Header::from(&QueryBody::default());
    for (preamble, kind) in
        [(Preamble::resolve(ID), "query    "), (Preamble::release(ID), "release  ")]
    {
        let stream = StreamWriter::new(vec![], preamble, header.clone()).unwrap();
        let found = inspect(&stream.into_inner(), &[]);
        assert_eq!(found.status, 0);
        assert!(found.out.starts_with(kind), "{}", found.out);
        assert!(found.out.ends_with("verdict      whole\n"), "{}", found.out);
    }
}

#[test]
fn wrong_usage_has_its_own_status() {
    let found: Found = program().arg("--nonsense").output().unwrap().into();
    assert_eq!(found.status, 2);
    let found: Found = program().arg("--help").output().unwrap().into();
    assert_eq!(found.status, 0);
    assert!(found.out.contains("zstd -dc web.mig.zst | mig-inspect"));
}
