//! How a guest comes to be here: booted, or brought.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use anyhow::{Context, anyhow};
use mig_engine::ownership::Ownership;
use tracing::{debug, info};
use vm_machine::{
    AllowedPaths, CpuSpec, Host, HugeTmpfs, Kernel, Machine, MachineConfig, MachineError,
    MemorySource, VirtioSpec,
};
use vm_records::departure::{Departure, Departures};
use vm_records::known_files;
use vm_records::record::Records;
use vm_state::MachineDescription;

use crate::args::Args;
use crate::arrival::Draft;
use crate::builder::Builder;
use crate::definition;
use crate::devices::{console_spec, devices};
use crate::guest::{Guest, Inner};

/// The guest of this command line, before anything of it runs. The definition of one that arrives goes
/// to `draft`.
pub fn inner(args: &Args, held: Option<String>, draft: Option<Draft>) -> anyhow::Result<Inner> {
    // Both take a while, and whoever brings a guest waits for both.
    let probe = args.incoming.then(|| thread::spawn(Host::probe));
    let memory = memory_source(args);
    let host = probe.and_then(|probe| probe.join().ok()?.ok());
    let machine = match &args.kernel {
        Some(kernel) => Some(boot(args, kernel, memory.clone())?),
        None => None,
    };
    if let Some(machine) = &machine {
        info!("guest memory: {}", machine.memory_backing());
    }
    let description = machine.as_ref().map(|machine| MachineDescription {
        boot: definition::boot_description(args).map(Box::new),
        ..machine.describe()
    });
    let builder = match args.incoming {
        true => Some(Builder::start(allowed(args)?, memory, host, draft)?),
        false => None,
    };
    Ok(Inner {
        name: args.name.clone(),
        ownership: if args.incoming { Ownership::incoming() } else { Ownership::booted() },
        machine,
        builder,
        description,
        wanted: !args.paused && held.is_none(),
        held,
        throttle: 0,
        console: args.console.clone(),
        virtio_console: args.virtio_console.clone(),
        migration: None,
        measurement: None,
        withdrawn: Vec::new(),
        released: VecDeque::new(),
        receiver: None,
        acknowledged: false,
        go_timer: None,
        recording: None,
        claim: None,
        parent: None,
    })
}

/// Where the guest's memory comes from: as the command line says, or else a tmpfs with huge pages,
/// where this host lets this user have one.
pub fn memory_source(args: &Args) -> MemorySource {
    if args.hugepages {
        return MemorySource::HugeTlb;
    }
    if args.small_pages {
        return MemorySource::Memfd { huge: false };
    }
    match HugeTmpfs::mount() {
        Ok(tmpfs) => MemorySource::Tmpfs(Arc::new(tmpfs)),
        Err(error) => {
            info!(
                "no tmpfs with huge pages for guest memory: {}; a memfd has them where \
                 /sys/kernel/mm/transparent_hugepage/shmem_enabled is 'advise', and hugetlbfs \
                 where vm.nr_hugepages sets them apart (--hugepages)",
                migpipe_cli::one_line(&error.into())
            );
            MemorySource::default()
        }
    }
}

/// Where an arriving guest may have files; with what this command line itself names.
pub fn allowed(args: &Args) -> anyhow::Result<AllowedPaths> {
    if args.files_anywhere {
        return Ok(AllowedPaths::anywhere());
    }
    let mut paths = [&args.files_in[..], &args.named].concat();
    for console in [Some(&args.console), args.virtio_console.as_ref()].into_iter().flatten() {
        paths.extend(console_spec(console)?.path().map(Path::to_owned));
    }
    if !args.files_in.is_empty() {
        return Ok(AllowedPaths::new(&paths));
    }
    let own = vm_paths::guests_dir();
    vm_paths::ensure_dir(&own)?;
    paths.push(own.clone());
    Ok(AllowedPaths::new(&paths).with_consoles_in(&own))
}

fn boot(args: &Args, kernel: &str, memory: MemorySource) -> anyhow::Result<Machine> {
    let cpu = args.cpu.parse::<CpuSpec>().map_err(migpipe_cli::usage)?.read()?;
    let kernel = match kernel.strip_prefix("builtin:") {
        Some(_) if args.initrd.is_some() => {
            let why = anyhow!("the built-in guest is not Linux, and only Linux takes an initrd");
            return Err(migpipe_cli::usage(why));
        }
        Some(_) => Kernel::Builtin(kernel.parse().map_err(migpipe_cli::usage)?),
        None => Kernel::from_file(PathBuf::from(kernel), args.initrd.clone())?,
    };
    kernel.check_host()?;
    let config = MachineConfig {
        name: args.name.clone(),
        kernel,
        cmdline: args.append.clone(),
        mem: args.mem,
        cpus: args.cpus,
        cpu,
        console: console_spec(&args.console)?,
        memory,
        devices: devices(args)?,
    };
    let machine = Machine::boot(&config)
        .map_err(|error| match error {
            MachineError::TwoOnStdio => migpipe_cli::usage(error),
            error => error.into(),
        })
        .with_context(|| format!("cannot make the machine of {}", args.name))?;
    let consoles = config.console.path().map(Path::to_owned);
    let files = config.devices.iter().filter_map(VirtioSpec::path).chain(consoles);
    // It runs as well without; it has to be told of its files once more when it comes back.
    if let Err(error) = known_files::remember(&args.name, &files.collect::<Vec<_>>()) {
        debug!("what files {} has is not remembered: {error}", args.name);
    }
    Ok(machine)
}

/// Why a guest is not to run though it is booted: one of its name left this host, and may run where
/// it went. Its vmrun is there all the same, so that the operator decides with one word, and a
/// service manager does not start it again and again.
pub fn held(args: &Args, departures: &Departures) -> anyhow::Result<Option<String>> {
    let name = &args.name;
    if args.incoming || args.again {
        return Ok(None);
    }
    let Some(departure) = departures.read(name)? else { return Ok(None) };
    if ended_here(&departure, departures)? {
        return Ok(None);
    }
    Ok(Some(format!(
        "{name} is held back and does not run: {departure}; vmctl resume {name} starts it here all \
         the same, vmctl quit {name} gives its name back (vmctl forget {name}, or vmrun --again, \
         beforehand)"
    )))
}

/// Whether the guest that left went to another name on this very host and is there no more: it has
/// not left from there, and nobody answers at its socket.
fn ended_here(departure: &Departure, departures: &Departures) -> anyhow::Result<bool> {
    let Some(arrived) = Records::of_this_host().read(departure.id)? else { return Ok(false) };
    if departures.read(&arrived.name)?.is_some() {
        return Ok(false);
    }
    let answer = UnixStream::connect(&arrived.socket);
    Ok(answer.is_err_and(|error| {
        matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound)
    }))
}

/// Lets a booted guest run.
pub fn start(guest: &Guest, args: &Args) -> anyhow::Result<()> {
    let mut inner = guest.lock();
    let Some(machine) = &inner.machine else { return Ok(()) };
    guest.watch(machine).context("cannot watch the guest")?;
    if let Some(why) = &inner.held {
        migpipe_cli::complain("vmrun", &anyhow::anyhow!("{why}"));
        return Ok(());
    }
    if args.again {
        guest.notes.stays();
    }
    if !args.paused {
        guest.resume(&mut inner)?;
    }
    Ok(())
}

/// The control connection that mig-recv gave us as stdin. From here on this process belongs to
/// nobody's terminal: it lives on when the ssh session ends that brought the guest.
pub fn adopted() -> anyhow::Result<UnixStream> {
    let stdin = io::stdin().as_fd().try_clone_to_owned().context("cannot take stdin")?;
    nix::unistd::setsid().context("cannot begin a session of its own")?;
    Ok(UnixStream::from(stdin))
}
