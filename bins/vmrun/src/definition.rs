//! How a guest is booted once more: the command line of a vmrun that boots the machine that its
//! description is of, as the definition of a unit (`VMRUN_OPTS`).
//!
//! It is made of what a stream has said, so it is rendered from parts that are read back, and what does
//! not come out as it went in has no definition. A file in it has to be where this host lets arriving
//! guests have files, as their disks do: a kernel is read with the rights of whoever runs vmrun, and
//! what is in it is the guest's to see.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Parser;
use migpipe_cli::environment;
use migpipe_units::Bytes;
use vm_machine::{AllowedPaths, CpuSpec, VirtioKind, VirtioSpec};
use vm_state::{BootDescription, DeviceDescription, MachineDescription};

use crate::args::Args;
use crate::devices::{console_spec, devices};

/// Where the administrator of a host keeps definitions.
const ADMINISTRATORS: &str = "/etc/migpipe";

/// The variable of a definition in which the command line is.
const OPTIONS: &str = "VMRUN_OPTS";

/// The variable that says why there is none.
const MISSING: &str = "VMRUN_MISSING";

/// The kernel that needs no file.
const BUILTIN: &str = "builtin:";

/// The parameter of a network card that a guest is given where its definition does not say it.
const MAC: &str = "mac";

/// What a guest is booted with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Definition {
    boot: BootDescription,
    mem: Bytes,
    cpus: u32,
    hugepages: bool,
    console: String,
    devices: Vec<VirtioSpec>,
}

/// What the command line says of how its guest is booted; nothing where a path is no text.
pub fn boot_description(args: &Args) -> Option<BootDescription> {
    let absolute = |path: &Path| Some(std::path::absolute(path).ok()?.to_str()?.to_owned());
    let kernel = args.kernel.as_ref()?;
    let kernel = match kernel.starts_with(BUILTIN) {
        true => kernel.clone(),
        false => absolute(Path::new(kernel))?,
    };
    let initrd = match &args.initrd {
        Some(initrd) => Some(absolute(initrd)?),
        None => None,
    };
    let cpu = args.cpu.parse::<CpuSpec>().ok()?.absolute().ok()?.to_string();
    let (cmdline, small_pages) = (args.append.clone(), args.small_pages);
    Some(BootDescription { kernel, initrd, cmdline, cpu, small_pages })
}

impl Definition {
    /// That of a machine.
    ///
    /// # Errors
    /// Why it has none, to be put behind "because".
    pub fn of_machine(machine: &MachineDescription) -> Result<Self, String> {
        let boot = machine.boot.as_deref().cloned();
        let boot = boot.ok_or("its source did not say how it was booted")?;
        let (mut console, mut devices) = (String::from("null"), Vec::new());
        for DeviceDescription { kind, id, params, .. } in &machine.devices {
            match VirtioKind::of(kind) {
                Some(kind) => {
                    devices.push(VirtioSpec { kind, id: id.clone(), params: params.clone() })
                }
                None => {
                    if let Some(to) = params.get(VirtioSpec::CONSOLE_PARAM) {
                        console.clone_from(to);
                    }
                }
            }
        }
        let mem = machine.pages().bytes();
        let (cpus, hugepages) = (machine.vcpus, machine.hugetlb);
        let this = Self { boot, mem, cpus, hugepages, console, devices };
        if this.options().iter().any(|word| word.contains(char::is_control)) {
            return Err("there is a control character in what it was booted with".to_owned());
        }
        match Args::try_parse_from(command_line("guest", &this.options())) {
            Ok(args) if Self::of_args(&args).as_ref() == Some(&this) => Ok(this),
            _ => Err("no command line of vmrun says what it is".to_owned()),
        }
    }

    /// That of a command line.
    fn of_args(args: &Args) -> Option<Self> {
        Some(Self {
            boot: boot_description(args)?,
            mem: args.mem,
            cpus: args.cpus,
            hugepages: args.hugepages,
            console: console_spec(&args.console).ok()?.to_string(),
            devices: devices(args).ok()?,
        })
    }

    /// The options of the command line; each is one word with its value.
    fn options(&self) -> Vec<String> {
        let Self { boot, mem, cpus, hugepages, console, devices } = self;
        let mut words = vec![format!("--kernel={}", boot.kernel)];
        words.extend(boot.initrd.as_ref().map(|initrd| format!("--initrd={initrd}")));
        words.extend([
            format!("--append={}", boot.cmdline),
            match mem.0 % (1 << 20) {
                0 => format!("--mem={}M", mem.0 >> 20),
                _ => format!("--mem={}", mem.0),
            },
            format!("--cpus={cpus}"),
            format!("--cpu={}", boot.cpu),
            format!("--console={console}"),
        ]);
        words.extend(devices.iter().map(option));
        words.extend(boot.small_pages.then(|| "--small-pages".to_owned()));
        words.extend(hugepages.then(|| "--hugepages".to_owned()));
        words
    }

    /// The files that a boot reads, beside the disks.
    fn files(&self) -> Vec<PathBuf> {
        let kernel = Some(&self.boot.kernel).filter(|kernel| !kernel.starts_with(BUILTIN));
        let paths = kernel.into_iter().chain(&self.boot.initrd).map(PathBuf::from);
        let cpu = self.boot.cpu.parse::<CpuSpec>().ok();
        let baseline = cpu.as_ref().and_then(CpuSpec::baseline).map(Path::to_owned);
        paths.chain(baseline).collect()
    }

    /// Whether `other` is the same guest: an address that this does not name may be any.
    fn is_met_by(&self, other: &Self) -> bool {
        let mut other = other.clone();
        for (own, other) in self.devices.iter().zip(&mut other.devices) {
            if own.kind == VirtioKind::Net && !own.params.contains_key(MAC) {
                other.params.remove(MAC);
            }
        }
        *self == other
    }
}

/// The option by which a command line names this device.
fn option(device: &VirtioSpec) -> String {
    let VirtioSpec { kind, id, params } = device;
    let rest = |without: &str| -> String {
        let params = params.iter().filter(|(name, _)| *name != without);
        params.map(|(name, value)| format!(",{name}={value}")).collect()
    };
    let param = |name: &str| params.get(name).map_or("", String::as_str);
    match kind {
        VirtioKind::Block => format!("--disk={}{},id={id}", param("path"), rest("path")),
        VirtioKind::Net => format!("--net=tap={}{},id={id}", param("tap"), rest("tap")),
        VirtioKind::Console => format!("--virtio-console={}", param(VirtioSpec::CONSOLE_PARAM)),
        VirtioKind::Rng => "--rng".to_owned(),
        VirtioKind::Balloon => "--balloon".to_owned(),
    }
}

fn command_line(name: &str, options: &[String]) -> Vec<String> {
    let mut words = vec!["vmrun".to_owned(), format!("--name={name}")];
    words.extend_from_slice(options);
    words
}

/// What an administrator has written about a guest of this host.
pub struct Administrators {
    path: PathBuf,
    /// Its command line, where that can be read.
    definition: Option<Definition>,
}

impl Administrators {
    /// What there is of a guest of this name.
    pub fn read(name: &str) -> Option<Self> {
        let path = Path::new(ADMINISTRATORS).join(format!("{name}.conf"));
        let text = fs::read_to_string(&path).ok()?;
        let options = value_of(OPTIONS, &text)?;
        let definition = shlex::split(&options)
            .and_then(|words| Args::try_parse_from(command_line(name, &words)).ok())
            .and_then(|args| Definition::of_args(&args));
        Some(Self { path, definition })
    }
}

/// The value of a variable in an environment file (systemd.exec(5), EnvironmentFile).
fn value_of(variable: &str, text: &str) -> Option<String> {
    let mut lines = text.lines().rev();
    let value =
        lines.find_map(|line| line.trim().strip_prefix(variable)?.strip_prefix('='))?.trim();
    let quoted = |quote: char| value.strip_prefix(quote)?.strip_suffix(quote);
    if let Some(value) = quoted('\'') {
        return Some(value.to_owned());
    }
    let value = quoted('"').unwrap_or(value);
    let mut plain = String::new();
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => plain.extend(chars.next()),
            c => plain.push(c),
        }
    }
    Some(plain)
}

/// The text of a definition, and what is to be said of it, where a guest may have files in `allowed`.
pub fn text(
    machine: &MachineDescription,
    allowed: &AllowedPaths,
    administrators: Option<&Administrators>,
) -> (String, Vec<String>) {
    let name = &machine.name;
    let made = Definition::of_machine(machine).and_then(|definition| {
        let mut files = definition.files().into_iter();
        match files.find(|file| !allowed.allows(file)) {
            Some(file) => Err(format!(
                "{} is where no file of an arriving guest may be (--files-in)",
                file.display()
            )),
            None => Ok(definition),
        }
    });
    let own = Path::new(ADMINISTRATORS).join(format!("{name}.conf"));
    let mut notes = Vec::new();
    let line = match &made {
        Ok(definition) => environment::variable_of_words(OPTIONS, &definition.options()),
        Err(why) => environment::variable_of_text(
            MISSING,
            &format!("{name} came here without a definition: {why}"),
        ),
    };
    match (administrators, &made) {
        (Some(theirs), made) => {
            let same = match (&theirs.definition, made) {
                (Some(theirs), Ok(definition)) => theirs.is_met_by(definition),
                _ => false,
            };
            if !same {
                notes.push(format!(
                    "{} of this host says something else of {name} than came with it, and is what \
                     is booted after a reset",
                    theirs.path.display()
                ));
            }
        }
        (None, Err(why)) => notes.push(format!(
            "{name} cannot be booted here again, after a reset for one: {why}; {} would say how",
            own.display()
        )),
        (None, Ok(definition)) => {
            for file in definition.files().iter().filter(|file| !file.exists()) {
                notes.push(format!(
                    "{name} cannot be booted here again, after a reset for one, as long as there is \
                     no {}",
                    file.display()
                ));
            }
        }
    }
    let head = format!(
        "# How {name} is booted here, as it came. What {} says comes first.\n",
        own.display()
    );
    (head + &line, notes)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use migpipe_units::{Gfn, MemoryRegion, RegionId};
    use vm_state::{CpuDescription, KernelKind};

    use super::*;

    fn args(words: &[&str]) -> Args {
        let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
        Args::try_parse_from(command_line("web", &words)).unwrap()
    }

    /// What vmrun says of a guest of this command line.
    fn machine(args: &Args) -> MachineDescription {
        let device = |kind: &str, id: &str, params: &BTreeMap<String, String>| DeviceDescription {
            kind: kind.to_owned(),
            id: id.to_owned(),
            section_version: 1,
            params: params.clone(),
        };
        let console = BTreeMap::from([("console".to_owned(), args.console.clone())]);
        let specs = devices(args).unwrap();
        let virtio = specs.iter().map(|spec| device(spec.kind.name(), &spec.id, &spec.params));
        let pages = args.mem.pages();
        MachineDescription {
            name: args.name.clone(),
            vcpus: args.cpus,
            memory: vec![MemoryRegion { id: RegionId(0), base: Gfn(0), pages }],
            hugetlb: args.hugepages,
            cpu: CpuDescription::default(),
            devices: [device("serial", "serial0", &console)].into_iter().chain(virtio).collect(),
            kernel: KernelKind::Linux,
            boot: boot_description(args).map(Box::new),
        }
    }

    const ALL: &[&str] = &[
        "--kernel=/boot/vm linuz",
        "--initrd=/boot/initrd",
        "--append=console=ttyS0 init='/bin/sh -c \"$x\"' a\\b",
        "--mem=2G",
        "--cpus=3",
        "--cpu=baseline:/etc/fleet.json,-rdrand",
        "--console=file:/srv/web.log",
        "--disk=/srv/web.raw,direct,serial=s1",
        "--disk=/srv/data.raw,ro,id=data",
        "--net=tap=tap0,mac=52:54:00:12:34:56",
        "--rng",
        "--virtio-console=unix:/run/web",
        "--balloon",
        "--small-pages",
    ];

    #[test]
    fn a_guest_is_defined_by_what_it_was_booted_with() {
        for words in [ALL, &["--kernel=builtin:dirty,pages=1", "--hugepages"]] {
            let booted = args(words);
            let definition = Definition::of_machine(&machine(&booted)).unwrap();
            assert_eq!(Some(&definition), Definition::of_args(&booted).as_ref());
            let (text, notes) = text(&machine(&booted), &AllowedPaths::anywhere(), None);
            let missing = notes.iter().filter(|note| note.contains("as long as there is no"));
            assert_eq!(missing.count(), definition.files().len(), "{notes:?}");
            let options = shlex::split(&value_of(OPTIONS, &text).unwrap()).unwrap();
            assert_eq!(options, definition.options(), "{text}");
            assert_eq!(text.lines().count(), 2, "{text}");
        }
        assert_eq!(Definition::of_args(&args(ALL)).unwrap().files().len(), 3);
    }

    #[test]
    fn what_is_no_command_line_defines_nothing() {
        let good = machine(&args(ALL));
        Definition::of_machine(&good).unwrap();
        let boots: [fn(&mut BootDescription); 5] = [
            |boot| boot.kernel = "boot/relative".to_owned(),
            |boot| boot.kernel = "/boot/a\nGUEST_STOP=send:exec:id".to_owned(),
            |boot| boot.cmdline.push('\r'),
            |boot| boot.cpu = "none".to_owned(),
            |boot| boot.initrd = Some(String::new()),
        ];
        for change in boots {
            let mut bad = good.clone();
            change(bad.boot.as_mut().unwrap());
            Definition::of_machine(&bad).unwrap_err();
        }
        let others: [fn(&mut MachineDescription); 4] = [
            |machine| machine.boot = None,
            |machine| machine.vcpus = 0,
            |machine| {
                let disk = machine.devices.iter_mut().find(|it| it.kind == "block").unwrap();
                disk.params.insert("path".to_owned(), "/srv/a,serial=b".to_owned());
            },
            |machine| {
                let disk = machine.devices.iter_mut().find(|it| it.kind == "block").unwrap();
                disk.params.insert("cache".to_owned(), "none".to_owned());
            },
        ];
        for (number, change) in others.into_iter().enumerate() {
            let mut bad = good.clone();
            change(&mut bad);
            Definition::of_machine(&bad).unwrap_err();
            let (text, _) = text(&bad, &AllowedPaths::anywhere(), None);
            assert!(value_of(OPTIONS, &text).is_none(), "{number}: {text}");
            assert!(value_of(MISSING, &text).is_some(), "{number}: {text}");
        }
    }

    #[test]
    fn a_stream_has_no_file_booted_from_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let kernel = dir.path().join("kernel");
        fs::write(&kernel, "").unwrap();
        let allowed = AllowedPaths::new(&[dir.path().to_owned()]);
        let booting = |kernel: &Path, initrd: &str| {
            let (kernel, initrd) =
                (format!("--kernel={}", kernel.display()), format!("--initrd={initrd}"));
            text(&machine(&args(&[&kernel, &initrd])), &allowed, None)
        };
        let inside = kernel.to_str().unwrap();
        let (text, notes) = booting(&kernel, inside);
        assert!(value_of(OPTIONS, &text).is_some() && notes.is_empty(), "{text} {notes:?}");
        for (kernel, initrd) in [(&*kernel, "/etc/shadow"), (Path::new("/etc/shadow"), inside)] {
            let (text, notes) = booting(kernel, initrd);
            assert_eq!(value_of(OPTIONS, &text), None);
            let [note] = &notes[..] else { panic!("{notes:?}") };
            for word in ["cannot be booted here again", "/etc/shadow is where", "web.conf"] {
                assert!(note.contains(word), "{note}");
            }
        }
        let (_, notes) = booting(&dir.path().join("gone"), inside);
        assert!(notes[0].contains("as long as there is no") && notes.len() == 1, "{notes:?}");
    }

    #[test]
    fn what_an_administrator_has_written_is_named_where_it_is_another_guest() {
        let theirs = |words: &[&str]| Administrators {
            path: PathBuf::from("/etc/migpipe/web.conf"),
            definition: Definition::of_args(&args(words)),
        };
        let came = &["--kernel=builtin:x", "--net=tap=tap0,mac=52:54:00:12:34:56"][..];
        let said = |theirs: &Administrators| {
            text(&machine(&args(came)), &AllowedPaths::anywhere(), Some(theirs)).1
        };
        assert_eq!(said(&theirs(came)), [""; 0]);
        assert_eq!(said(&theirs(&["--kernel=builtin:x", "--net=tap=tap0"])), [""; 0]);
        let unreadable = Administrators { definition: None, ..theirs(came) };
        for other in [&theirs(&["--kernel=builtin:x"]), &unreadable] {
            let notes = said(other);
            assert!(notes.len() == 1 && notes[0].contains("/etc/migpipe/web.conf"), "{notes:?}");
        }
    }

    #[test]
    fn a_variable_is_read_as_a_service_manager_reads_it() {
        for (line, value) in [
            ("VMRUN_OPTS=\"--mem 2G\"", Some("--mem 2G")),
            ("VMRUN_OPTS='--mem 2G'", Some("--mem 2G")),
            (" VMRUN_OPTS= --rng ", Some("--rng")),
            ("VMRUN_OPTS=\"a \\\"b\\\" \\\\ \\$c\"", Some("a \"b\" \\ $c")),
            ("VMRUN_OPTS=a\nVMRUN_OPTS=b", Some("b")),
            ("#VMRUN_OPTS=a\nGUEST_STOP=quit", None),
        ] {
            assert_eq!(value_of(OPTIONS, line).as_deref(), value, "{line}");
        }
    }
}
