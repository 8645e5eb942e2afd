//! Makes the seeds of every target from a real saved guest: `make_corpus SAVED DIRECTORY`, where
//! SAVED is what `mig-send GUEST file:SAVED` wrote. `scripts/fuzz --make-corpus` runs it.
//!
//! Seeds are small, since the fuzzer tries many changes of each: of a stream only a few pages are
//! kept.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{env, fs};

use mig_engine::handover::HandoverMode;
use mig_engine::ownership::{Authority, Input, MigrationStatus, State};
use mig_stream::{
    DestinationOutcome, Flags, FormatVersion, Header, MemoryDigest, Message, Preamble, QueryBody,
    Record, RegionDigest, ReturnWriter, RoundStats, StreamDigest, StreamReader, StreamWriter,
};
use migpipe_units::{
    Acknowledged, Bytes, Finding, Gfn, HostId, MigrationId, Nonce, PageRange, Pages, RegionId,
};
use serde::Serialize;
use vm_control::{Event, Handover, Loaded, Order, Refusal, Reply, Request, Started, Status};
use vm_state::{DeviceParam, MachineDescription, MemoryBacking, MemoryRegion};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const ID: MigrationId = MigrationId::from_bytes(*b"0123456789abcdef");
const BY: Acknowledged =
    Acknowledged { host: HostId::from_bytes([3; 16]), nonce: Nonce::from_bytes([4; 16]) };

/// Pages that are kept of a stream.
const PAGES: usize = 1;

fn main() -> Result<()> {
    let [saved, directory] = &env::args_os().skip(1).collect::<Vec<_>>()[..] else {
        return Err("usage: make_corpus SAVED DIRECTORY".into());
    };
    let guest = Guest::read(Path::new(saved))?;
    let corpus = Corpus(PathBuf::from(directory));
    streams(&guest, &corpus)?;
    answers(&corpus)?;
    let description = guest.machine.encode()?;
    let state = [&[description][..], &guest.sections].concat();
    corpus.add("state", "saved", &parts(&state))?;
    corpus.add("state", "serial", &parts(&[guest.machine.encode()?, guest.section("serial")]))?;
    control(&guest, &corpus)?;
    kernels(&corpus)?;
    rings(&guest, &corpus)
}

/// What there is to make seeds of.
struct Guest {
    header: Header,
    machine: MachineDescription,
    pages: Vec<(PageRange, Vec<u8>)>,
    sections: Vec<Vec<u8>>,
}

impl Guest {
    fn read(saved: &Path) -> Result<Self> {
        let bytes = fs::read(saved)?;
        let mut reader = StreamReader::open(&bytes[..])?;
        let header = reader.header().clone();
        let machine = MachineDescription::decode(&header.machine, &header.regions)?;
        let (mut pages, mut sections) = (Vec::new(), Vec::new());
        while let Some(record) = reader.next_record()? {
            match record {
                Record::Pages(range) if pages.len() < PAGES => {
                    let mut bytes = vec![0; range.len().0 as usize];
                    reader.read_payload(&mut bytes)?;
                    bytes.truncate(4096);
                    pages.push((PageRange { count: Pages(1), ..range }, bytes));
                }
                Record::Section(section) => sections.push(section),
                _ => {}
            }
        }
        Ok(Self { header, machine, pages, sections })
    }

    /// The section of that name.
    fn section(&self, name: &str) -> Vec<u8> {
        let named = |section: &&Vec<u8>| section[16..].starts_with(name.as_bytes());
        self.sections.iter().find(named).cloned().unwrap_or_default()
    }

    /// The payload of that section: what is between its name and its checksum.
    fn payload(&self, name: &str) -> Vec<u8> {
        let section = self.section(name);
        let end = section.len().saturating_sub(4);
        section.get(16 + name.len()..end).unwrap_or_default().to_vec()
    }
}

struct Corpus(PathBuf);

impl Corpus {
    fn add(&self, target: &str, name: &str, bytes: &[u8]) -> Result<()> {
        let directory = self.0.join(target);
        fs::create_dir_all(&directory)?;
        Ok(fs::write(directory.join(name), bytes)?)
    }
}

/// Each part with its length in front.
fn parts(parts: &[Vec<u8>]) -> Vec<u8> {
    let with_length = |part: &Vec<u8>| [&(part.len() as u32).to_le_bytes()[..], part].concat();
    parts.iter().flat_map(with_length).collect()
}

fn streams(guest: &Guest, corpus: &Corpus) -> Result<()> {
    let one_way = Flags { page_sums: true, ..Flags::default() };
    let both = Flags { return_path: true, page_sums: true, ..Flags::default() };
    let small = Header { machine: Vec::new(), ..guest.header.clone() };
    for (name, flags, header, whole) in [
        ("whole", one_way, &guest.header, true),
        ("one-way", one_way, &small, false),
        ("saved", Flags { saved: true, ..one_way }, &small, false),
        ("snapshot", Flags { saved: true, snapshot: true, ..one_way }, &small, false),
        ("both-ways", both, &small, false),
        ("verified", Flags { verify: true, ..both }, &small, false),
        ("separate", Flags { separate_commit: true, ..both }, &small, false),
        ("unsummed", Flags { page_sums: false, ..one_way }, &small, false),
    ] {
        let stream = stream(guest, flags, header, whole)?;
        corpus.add("stream", name, &stream)?;
        if name == "both-ways" {
            corpus.add("stream_raw", name, &stream)?;
        }
    }
    let query = QueryBody { to: Some(BY), age: Duration::from_secs(9) };
    for (name, preamble, asked) in [
        ("query", Preamble::resolve(ID), query),
        ("query-one-way", Preamble::resolve(ID), QueryBody { to: None, ..query }),
        ("release", Preamble::release(ID), query),
    ] {
        let stream = StreamWriter::new(Vec::new(), preamble, Header::from(&asked))?;
        corpus.add("stream", name, &stream.into_inner())?;
    }
    let mut probe = StreamWriter::new(Vec::new(), Preamble::probe(ID), small.clone())?;
    for (range, bytes) in &guest.pages {
        probe.pages(*range, bytes)?;
    }
    probe.round(&RoundStats::default())?;
    probe.end()?;
    corpus.add("stream", "probe", &probe.into_inner())?;
    let mut stream = StreamWriter::new(Vec::new(), Preamble::migrate(ID, both), small)?;
    stream.abort("cancelled")?;
    let mut aborted = stream.into_inner();
    corpus.add("stream", "aborted", &aborted)?;
    // A record that nobody knows in the place of the one that is there: it may be skipped.
    let at = aborted.len() - "cancelled".len() - 32;
    aborted[at..at + 2].copy_from_slice(&0x8123_u16.to_le_bytes());
    corpus.add("stream", "unknown", &aborted)
}

fn stream(guest: &Guest, flags: Flags, header: &Header, whole: bool) -> Result<Vec<u8>> {
    let preamble = Preamble::migrate(ID, flags);
    let mut stream = StreamWriter::new(Vec::new(), preamble, header.clone())?;
    let all = PageRange { region: RegionId(0), first: 0, count: header.regions[0].pages };
    stream.extents(&[PageRange { count: Pages(3), ..all }, all])?;
    stream.fill(all, 0)?;
    if whole || flags.verify || !flags.page_sums {
        for (range, bytes) in &guest.pages {
            stream.pages(*range, bytes)?;
        }
    }
    stream.round(&RoundStats {
        number: 1,
        duration: Duration::from_millis(3),
        ..Default::default()
    })?;
    stream.blackout()?;
    for section in guest.sections.iter().filter(|section| whole || section.len() < 200) {
        stream.section(section)?;
    }
    if flags.verify {
        stream.digest(&MemoryDigest::new(header.regions.iter().map(|_| RegionDigest::new())))?;
    }
    stream.end()?;
    if flags.go_follows() {
        stream.go(BY.nonce)?;
    }
    Ok(stream.into_inner())
}

fn answers(corpus: &Corpus) -> Result<()> {
    let timings = vec![("load".to_owned(), Duration::from_micros(430))];
    let digest = StreamDigest(0x0123_4567_89ab_cdef);
    let good = [
        Message::Ready { version: FormatVersion::NEWEST },
        Message::Ack { digest, by: BY, timings: timings.clone() },
        Message::Running { timings },
    ];
    let bad = [
        Message::Refused { reason: "this host has no avx512f".to_owned() },
        Message::Failed { reason: "no space left on device".to_owned() },
    ];
    let resolved = [
        Message::Resolved(DestinationOutcome::Prepared),
        Message::Resolved(DestinationOutcome::Running),
        Message::Resolved(DestinationOutcome::Refused),
        Message::Resolved(DestinationOutcome::MayHaveRun { why: "the host crashed".to_owned() }),
        Message::Resolved(DestinationOutcome::OtherHost { host: BY.host }),
    ];
    let probed = [
        Message::Examined {
            findings: vec![
                Finding::fine("processor", "all of it is here"),
                Finding::in_the_way("block disk0", "no such file"),
            ],
        },
        Message::Measured { bytes: Bytes(1 << 20) },
    ];
    for (name, messages) in
        [("good", &good[..]), ("bad", &bad), ("resolved", &resolved), ("probed", &probed)]
    {
        let mut writer = ReturnWriter::new(Vec::new(), ID)?;
        messages.iter().try_for_each(|message| writer.send(message))?;
        let bytes = writer.into_inner();
        corpus.add("answers", name, &bytes)?;
        if name == "good" {
            corpus.add("stream_raw", "answers", &bytes)?;
        }
    }
    Ok(())
}

fn messages(messages: &[impl Serialize]) -> Result<Vec<u8>> {
    let encoded: Vec<Vec<u8>> =
        messages.iter().map(postcard::to_stdvec).collect::<std::result::Result<_, _>>()?;
    // The first byte is even: hello was said.
    Ok([vec![0], parts(&encoded)].concat())
}

fn control(guest: &Guest, corpus: &Corpus) -> Result<()> {
    let machine = &guest.machine;
    let sections: Vec<_> =
        guest.sections.iter().filter(|section| section.len() < 200).cloned().collect();
    let source = [
        Request::Describe,
        Request::Status,
        Request::MapMemory,
        Request::Own(Input::Begin(ID)),
        Request::Leaves {
            id: ID,
            to: "ssh:hostb".to_owned(),
            destination: vec!["ssh:hostb".to_owned(), "--ssh-option=Port=2222".to_owned()],
        },
        Request::MeasureDirtying,
        Request::DirtyLogStart,
        Request::DirtyLogHarvest,
        Request::Throttle(20),
        Request::PostProgress { id: ID, progress: "{}".to_owned() },
        Request::Order(Order::SetSpeed(None)),
        Request::Order(Order::SetDowntime(Duration::from_millis(50))),
        Request::Pause,
        Request::FlushDisks,
        Request::SaveState,
        Request::Own(Input::Commit(ID, Some(BY))),
        Request::Own(Input::Confirm(ID)),
    ];
    let operator = [
        Request::Balloon(Bytes(8 << 20)),
        Request::Own(Input::Begin(ID)),
        Request::Order(Order::Cancel),
        Request::Own(Input::Release(ID)),
        Request::Own(Input::TakeBack(ID)),
        Request::Resume,
    ];
    let replacement = ["block", "disk0", "path", "/dev/null"].map(str::to_owned);
    let [kind, id, name, value] = replacement;
    let overrides = vec![DeviceParam { kind, id, name, value }];
    let destination = [
        Request::Receive {
            id: ID,
            description: machine.clone(),
            overrides,
            mode: HandoverMode::BothWays,
        },
        Request::Prepare { id: ID, sections: sections.clone(), paused_for: None },
        Request::Go { id: ID, by: Authority::Source(Some(BY.nonce)) },
        Request::MigrationStatus { id: ID, nonce: Some(BY.nonce) },
        Request::Own(Input::Refuse(ID)),
        Request::Own(Input::Quit { force: true }),
    ];
    corpus.add("control_server", "source", &messages(&source)?)?;
    corpus.add("control_server", "destination", &messages(&destination)?)?;
    corpus.add("control_server", "operator", &messages(&operator)?)?;
    corpus.add("control_server", "events", &messages(&[Request::Subscribe])?)?;

    // As large as the memory file that the target passes.
    let memory = vec![MemoryRegion { id: RegionId(0), base: Gfn(0), pages: Pages(16) }];
    let small = MachineDescription { memory, devices: Vec::new(), ..machine.clone() };
    let status = Status {
        name: "web".to_owned(),
        pid: 4711,
        ownership: State::Migrating(ID),
        running: true,
        vcpus: 1,
        memory: Bytes(16 << 20),
        backing: Some(MemoryBacking::HugeTmpfs),
        throttle: 20,
        progress: Some("{}".to_owned()),
        balloon: None,
        held: None,
        handover: Some(Handover {
            taken_by: Some(BY),
            age: Duration::from_secs(9),
            destination: vec!["ssh:hostb".to_owned()],
        }),
        released: vec![ID],
    };
    // In the order of the requests that the target makes.
    let replies = [
        Reply::Description(small),
        Reply::Done,
        Reply::Done,
        Reply::Status(status),
        Reply::Harvested { dirty: Pages(50) },
        Reply::Done,
        Reply::Paused { took: Duration::from_micros(60) },
        Reply::State(sections),
        Reply::Done,
        Reply::MigrationStatus(MigrationStatus::Prepared),
        Reply::Orders(vec![Order::Cancel]),
        Reply::Refused(Refusal::WrongMigration { have: ID, asked: ID }),
        Reply::Received { notes: vec!["the console of web goes to null".to_owned()] },
        Reply::Prepared(Loaded { load: Duration::from_micros(400), acknowledge: Some(BY) }),
        Reply::Started(Started::default()),
        Reply::Done,
    ];
    let events = [
        Event::Resumed,
        Event::Paused,
        Event::Ownership(State::Owned),
        Event::Ended("off".to_owned()),
    ];
    let session = [messages(&replies)?, messages(&events)?[1..].to_vec()].concat();
    corpus.add("control_client", "session", &session)
}

fn kernels(corpus: &Corpus) -> Result<()> {
    let one_cpu = |mut image: Vec<u8>| {
        image.push(1);
        image
    };
    let pvh = elf(b"Xen\0", 18, 4);
    corpus.add("kernel", "pvh", &one_cpu(pvh))?;
    corpus.add("kernel", "vmlinux", &one_cpu(elf(b"Linux\0\0\0", 0x100, 6)))?;
    corpus.add("kernel", "bzimage", &one_cpu(bzimage()))
}

/// An ELF file with one segment of code at 2 MiB and one note (ELF-64, chapters 2 and 5).
fn elf(owner: &[u8], note: u32, owner_length: u32) -> Vec<u8> {
    const ENTRY: u64 = 2 << 20;
    let mut notes = [owner_length, 8, note].map(u32::to_le_bytes).concat();
    notes.extend(owner);
    notes.extend(ENTRY.to_le_bytes());
    let headers = 64 + 2 * 56_u64;
    let code_at = headers + notes.len() as u64;
    let mut image = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    image.extend([2_u16, 62].map(u16::to_le_bytes).concat());
    image.extend(1_u32.to_le_bytes());
    image.extend([ENTRY, 64, 0].map(u64::to_le_bytes).concat());
    image.extend(0_u32.to_le_bytes());
    image.extend([64_u16, 56, 2, 0, 0, 0].map(u16::to_le_bytes).concat());
    for (kind, flags, at, address, bytes, memory) in [
        (1_u32, 5_u32, code_at, ENTRY, 4_u64, 0x1000_u64),
        (4, 4, headers, 0, notes.len() as u64, notes.len() as u64),
    ] {
        image.extend([kind, flags].map(u32::to_le_bytes).concat());
        image.extend([at, address, address, bytes, memory, 4].map(u64::to_le_bytes).concat());
    }
    image.extend(notes);
    image.extend([0xf4, 0xeb, 0xfd, 0x90]);
    image
}

/// A boot sector, one sector of setup, and a payload (Linux, Documentation/arch/x86/boot.rst).
fn bzimage() -> Vec<u8> {
    let mut image = vec![0; 1024];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]);
    put(0x1fe, &[0x55, 0xaa]);
    put(0x200, &[0xeb, 0x6a]);
    put(0x202, b"HdrS");
    put(0x206, &0x20f_u16.to_le_bytes());
    put(0x211, &[1]);
    put(0x214, &0x10_0000_u32.to_le_bytes());
    put(0x22c, &0x7fff_ffff_u32.to_le_bytes());
    put(0x230, &(2_u32 << 20).to_le_bytes());
    put(0x234, &[1]);
    put(0x236, &1_u16.to_le_bytes());
    put(0x238, &2047_u32.to_le_bytes());
    put(0x258, &(2_u64 << 20).to_le_bytes());
    put(0x260, &(4_u32 << 20).to_le_bytes());
    image.extend(b"the compressed kernel");
    image
}

/// Steps of a driver that works one queue, as the target reads them.
struct Steps {
    queue: u8,
    bytes: Vec<u8>,
}

impl Steps {
    fn new(device: u8, set_up: u8, queue: u8) -> Self {
        Self { queue, bytes: vec![device, set_up] }
    }

    fn bytes(mut self, address: u32, bytes: &[u8]) -> Self {
        self.bytes.push(0);
        self.bytes.extend(&address.to_le_bytes()[..3]);
        self.bytes.push(bytes.len() as u8);
        self.bytes.extend(bytes);
        self
    }

    fn descriptor(mut self, index: u8, address: u32, length: u32, flags: u8) -> Self {
        self.bytes.extend([2, self.queue, index]);
        self.bytes.extend(&address.to_le_bytes()[..3]);
        self.bytes.extend(&length.to_le_bytes()[..3]);
        self.bytes.extend([flags, index + 1]);
        self
    }

    /// Offers the chain that begins with descriptor 0, and lets the device run.
    fn offer(mut self) -> Vec<u8> {
        self.bytes.extend([3, self.queue, 0, 0, 1, 0]);
        self.turn()
    }

    fn turn(mut self) -> Vec<u8> {
        self.bytes.push(6);
        self.bytes
    }

    fn load(mut self, payload: &[u8]) -> Self {
        self.bytes.extend([7, payload.len() as u8]);
        self.bytes.extend(payload);
        self
    }
}

fn rings(guest: &Guest, corpus: &Corpus) -> Result<()> {
    // As the target numbers its devices.
    const DISK: u8 = 0;
    const RNG: u8 = 1;
    const CONSOLE: u8 = 2;
    const BALLOON: u8 = 3;
    const CARD: u8 = 4;
    const HEADER: u32 = 0x8000;
    const DATA: u32 = 0x9000;
    const STATUS: u32 = 0xa000;
    const MORE: u8 = 1;
    const WRITE: u8 = 2;
    // VIRTIO 1.2, 5.2.6: in, out, flush, the id, discard, write zeroes.
    for (name, kind, data) in [
        ("disk-read", 0_u8, WRITE),
        ("disk-write", 1, 0),
        ("disk-flush", 4, 0),
        ("disk-id", 8, WRITE),
        ("disk-discard", 11, 0),
        ("disk-zeroes", 13, 0),
    ] {
        let header = [[kind, 0, 0, 0].as_slice(), &[0; 12]].concat();
        let range = [0_u64.to_le_bytes(), (8_u64).to_le_bytes()].concat();
        let length = if kind > 10 { 16 } else { 512 };
        let steps = Steps::new(DISK, 1, 0)
            .bytes(HEADER, &header)
            .bytes(DATA, &range)
            .descriptor(0, HEADER, 16, MORE)
            .descriptor(1, DATA, length, data | MORE)
            .descriptor(2, STATUS, 1, WRITE);
        corpus.add("rings", name, &steps.offer())?;
    }
    let random = Steps::new(RNG, 3, 0).descriptor(0, DATA, 300, WRITE);
    corpus.add("rings", "random", &random.offer())?;
    let line = Steps::new(CONSOLE, 1, 1).descriptor(0, DATA, 100, 0);
    corpus.add("rings", "line", &line.offer())?;
    let numbers = [8, 0, 0, 0, 9, 0, 0, 0];
    let inflate = Steps::new(BALLOON, 1, 0).bytes(DATA, &numbers).descriptor(0, DATA, 8, 0);
    corpus.add("rings", "inflate", &inflate.offer())?;
    let report = Steps::new(BALLOON, 1, 2).descriptor(0, DATA, 0x3000, WRITE);
    corpus.add("rings", "report", &report.offer())?;
    let frame = Steps::new(CARD, 1, 1).descriptor(0, DATA, 100, 0);
    corpus.add("rings", "frame", &frame.offer())?;
    for (name, device) in [("block", DISK), ("console", CONSOLE), ("balloon", BALLOON)] {
        let state = guest.payload(&format!("virtio-{name}"));
        let arrives = Steps::new(device, 1, 0).load(&state);
        corpus.add("rings", &format!("{name}-arrives"), &arrives.turn())?;
    }
    Ok(())
}
