//! What is left to vmrun once it listens: everything below reads what a guest, a client or a stream
//! has chosen.
//!
//! A call outside answers ENOSYS and kills nothing: a guest must not die of a call that was
//! forgotten here.

use std::os::fd::AsRawFd;
use std::path::Path;

use migpipe_confine::sets::{OPEN_FILES, OPENING, RUNTIME, SOCKET, THREADS};
use migpipe_confine::{Access, Files, Filter, calls};
use vm_control::server;
use vm_machine::confinement::{BUILDER, CONSOLE, DISKS, OWNER, REGISTERS, THROTTLE, VCPU, WORKER};
use vm_machine::{AllowedPaths, MemorySource};
use vm_records::departure::Departures;
use vm_records::record;
use vm_records::record::Records;

/// The thread that waits for SIGTERM and SIGINT.
pub const SIGNALS: Filter =
    Filter { thread: "signals", tables: &[RUNTIME, calls![SYS_rt_sigtimedwait]] };

/// The main thread and those that serve clients.
const SERVICE: Filter = Filter {
    thread: "service",
    tables: &[
        RUNTIME,
        THREADS,
        OPEN_FILES,
        OPENING,
        SOCKET,
        server::CALLS,
        record::CALLS,
        OWNER,
        REGISTERS,
        DISKS,
    ],
};

/// All threads.
pub const FILTERS: &[Filter] = &[SERVICE, SIGNALS, VCPU, WORKER, CONSOLE, THROTTLE, BUILDER];

/// Confines the calling thread, and those that it starts from here on, to what serving the guest
/// takes: files are opened in the directories of `records` and `departures` alone, and the socket can
/// be removed.
pub fn service(
    socket: &Path,
    records: Option<&Records>,
    departures: &Departures,
) -> anyhow::Result<()> {
    let mut files =
        Files::none().and(directory_of(socket), Access::Remove).and(departures.dir(), Access::Keep);
    if let Some(records) = records {
        files = files.and(records.dir(), Access::Keep);
    }
    Ok(migpipe_confine::enter(&SERVICE, &[], &files)?)
}

/// Confines the calling thread to reading a description and printing what was found.
pub fn examiner() -> anyhow::Result<()> {
    Ok(migpipe_confine::enter(&SERVICE, &[], &Files::none())?)
}

/// Confines the thread that builds the machine of a guest that arrives: it opens any file that this
/// user may, or those at `allowed` and what every machine needs, and the files of its memory.
pub fn builder(allowed: &AllowedPaths, memory: &MemorySource) -> anyhow::Result<()> {
    let mut files = Files::none();
    if let MemorySource::Tmpfs(tmpfs) = memory {
        // It has no path but this one.
        let root = format!("/proc/self/fd/{}", tmpfs.root().as_raw_fd());
        files = files.and(root, Access::ReadWrite);
    }
    let Some(paths) = allowed.paths() else {
        return Ok(migpipe_confine::enter(&BUILDER, &[], &files.and("/", Access::Open))?);
    };
    {
        for device in ["/dev/kvm", "/dev/net/tun"] {
            files = files.and(device, Access::Open);
        }
        // How much memory is left; randomness.
        for path in ["/proc", "/sys", "/dev/urandom"] {
            files = files.and(path, Access::Read);
        }
        for place in paths {
            // What is to be made, or to be replaced as a socket is, takes rights on its directory.
            let is_open = place.is_dir() || place.is_file();
            let opened = if is_open { place } else { directory_of(place) };
            files = files.and(opened, Access::Open);
        }
    }
    Ok(migpipe_confine::enter(&BUILDER, &[], &files)?)
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}
